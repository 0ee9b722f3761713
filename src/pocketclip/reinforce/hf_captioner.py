"""Captions from image-to-text models of `transformers`.

Shapes: B images, n captions per image, R rows (B n), V vocabulary, S side of a square in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.reinforce import teacher_preprocess
from pocketclip.reinforce.hf import (
    CAPTIONERS,
    config_of,
    folder_of,
    identity,
    load_tokenizer,
    load_weights,
    need_transformers,
    processor_of,
    quiet,
    read_json,
)
from pocketclip.reinforce.protocols import Captioning
from pocketclip.reinforce.sampling import Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TransformersWriter:
    """An image-to-text model of transformers.

    The library's `generate` samples a whole batch from one random stream. Here every caption has
    its own stream: a logits processor draws the next token from it and masks all other tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        # The models have no common field that holds a context: 77 without a length.
        sampling = dataclasses.replace(sampling, max_length=sampling.longest)
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.transformers = need_transformers()
        self.settings: dict[str, Any] = {
            "max_new_tokens": sampling.longest - 1,
            "min_new_tokens": max(0, sampling.min_length - 1),
            "repetition_penalty": sampling.repetition_penalty,
        }
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
            self.settings["pad_token_id"] = tokenizer.eos_token_id

    def write(self, pixels: Tensor, per_image: int, seeds: Sequence[int]) -> list[str]:
        """Return the B n captions of pixels (B, 3, S, S), in the order of the images."""
        import torch

        settings = self.settings | {"num_return_sequences": per_image, "num_beams": 1}
        if self.sampling.is_random:
            # `do_sample`, although only one token is left to choose: otherwise the library writes
            # one caption per image. Its further processors must not change the logits.
            processors = self.transformers.LogitsProcessorList([self._logits_processor(seeds)])
            settings |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            settings["logits_processor"] = processors
        elif self.sampling.method == "beam":
            settings |= {
                "do_sample": False,
                "num_beams": self.sampling.beams,
                "length_penalty": self.sampling.length_penalty,
            }
        else:
            settings["do_sample"] = False
        devices = [pixels.device] if pixels.device.type == "cuda" else []
        with quiet(self.transformers), torch.random.fork_rng(devices):
            ids = self.model.generate(pixel_values=pixels, **settings)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _logits_processor(self, seeds: Sequence[int]) -> Any:
        """Return a logits processor that draws each row's next token from that row's stream."""
        import torch

        from pocketclip.nn.sampling import draw_uniforms, sample_ids

        sampling = self.sampling
        nucleus = sampling.method == "nucleus"
        cut: dict[str, Any] = {"top_p": sampling.top_p} if nucleus else {"top_k": sampling.top_k}
        streams = torch.from_numpy(draw_uniforms(seeds, sampling.longest))

        base: Any = self.transformers.LogitsProcessor

        class Draw(base):  # type: ignore[misc]
            step = 0

            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
                draws = streams[:, self.step].to(scores.device)
                self.step += 1
                tokens = sample_ids(scores.float() / sampling.temperature, draws, **cut)
                return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

        return Draw()


def load_transformers(
    spec: ModelSource, sampling: Sampling, device: torch.device, dtype: torch.dtype, offline: bool
) -> Captioning:
    """Load the parts of a captioner from a folder of transformers or the hub.

    Raises:
        CheckpointError, ConfigError, HubError, MissingDependencyError: see `load_captioner`.
    """
    need_transformers()
    folder = folder_of(spec.target, offline=offline)
    config, class_name = config_of(folder, CAPTIONERS, "captioner")
    processor, where = processor_of(folder)
    transform, scaling = teacher_preprocess.from_processor(processor, where)
    model, tokenizer = load_weights(folder, class_name), load_tokenizer(folder)
    generation = folder / "generation_config.json"
    extra = read_json(generation) if generation.is_file() else {}
    facts = {
        "kind": "transformers",
        "model": str(config["model_type"]),
        "space_id": identity(folder, "transformers", {**config, "gen": extra}, processor),
    }
    writer = TransformersWriter(model.to(device, dtype), tokenizer, sampling)
    return writer, facts, transform, scaling
