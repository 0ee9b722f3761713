"""One step of training: forward pass, loss of the whole batch, gradients.

With accumulation, the loss is still that of the whole batch. The embeddings of all micro-batches
are computed once without gradients, the loss gives the gradient of each embedding, and a second
forward pass with the same random choices carries it to the weights (Gao et al., arXiv
2101.06983). The sums that a sparse model's routers leave are treated likewise. If BatchNorm is
absent or frozen, and experts have room for all tokens, this equals the large batch; otherwise
BatchNorm takes its statistics from each micro-batch, and experts have their room there.

Shapes: b samples of a micro-batch, B of a step and process, n captions of each, D embedding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pocketclip.errors import ConfigError
from pocketclip.nn.clip import CLIP
from pocketclip.nn.transformer import preserve_batch_norm_statistics
from pocketclip.tokenizer import PAD
from pocketclip.train import distributed, losses
from pocketclip.train.batch_types import longest_text
from pocketclip.train.live_teachers import LiveTeachers
from pocketclip.train.loader import Batch, normalise
from pocketclip.train.loss_inputs import Captions, Features, TeacherEmbeddings
from pocketclip.train.loss_terms import captioning_sum
from pocketclip.train.phases import count_forward, phase
from pocketclip.train.routing import Routing
from pocketclip.train.sections import LossSection, uses_captions
from pocketclip.types import Encoder


class Stepper:
    """Computes gradients of a recipe's loss.

    Args:
        model: the model itself.
        wrapped: the model as it is called: compiled, distributed, or the same object.
        settings: the recipe's loss.
        teacher_dims: each teacher's embedding dimension, stored or live.
        teacher_scales: each teacher's logit scale.
        teacher_biases: each teacher's bias, for SigLIP's loss.
        logit_bias: the student's bias, for SigLIP's loss.
        routing: of a sparse model; None: its routers have no losses, and nothing is counted.
        device: the model's device.
        dtype: the dtype to compute in; parameters and losses stay float32.
        gathered: compare with the samples of all processes.
        teachers: live teachers, for batches without stored embeddings.
        channels_last: use the channels-last memory format for pixels.
        text_multiple: token columns that are padding in the whole batch are left out, down to a
            multiple of this, if that cannot change the result (causal text towers). 0: none are.
    """

    def __init__(
        self,
        model: CLIP,
        wrapped: nn.Module,
        settings: LossSection,
        *,
        teacher_dims: Sequence[int] = (),
        teacher_scales: Sequence[float] = (),
        teacher_biases: Sequence[float] = (),
        logit_bias: nn.Parameter | None = None,
        routing: Routing | None = None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        gathered: bool = False,
        teachers: Sequence[Encoder] = (),
        channels_last: bool = False,
        text_multiple: int = 1,
    ) -> None:
        self.model, self.wrapped, self.settings = model, wrapped, settings
        self.dims, self.scales = tuple(teacher_dims), tuple(teacher_scales)
        self.biases = tuple(teacher_biases)
        self.logit_bias, self.routing = logit_bias, routing
        self.device, self.dtype, self.gathered = device, dtype, gathered
        self.teachers = LiveTeachers(teachers, device) if teachers else None
        self.channels_last = channels_last
        text = model.config.text
        self.text_multiple = text_multiple if text.ignores_padding else 0
        self._sizes: list[object] = []  # of the first step's micro-batches
        # Without a loss scale, small float16 gradients would become 0.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradient of one step to the parameters, and return the terms of its loss.

        Args:
            batches: the step's micro-batches.

        Raises:
            ConfigError: embeddings do not fit the teachers' dimensions.
        """
        with phase("copy"):
            batches = [self._counted(one).to(self.device, non_blocking=True) for one in batches]
        with distributed.sizes_agreed() if self._repeats(batches) else contextlib.nullcontext():
            teacher = self._teacher_embeddings(batches)
            captions = self._captions(batches)
            if len(batches) == 1:
                features = self._forward(batches[0])
                if features.captioning is not None:
                    features.captioning = self._token_shares(batches)[0] * features.captioning
                terms = self._terms(features, teacher, captions)
                with phase("backward"):
                    self._scaled(_total(terms)).backward()  # type: ignore[no-untyped-call]
            else:
                terms = self._accumulated(batches, teacher, captions)
        return {name: term.detach() for name, term in terms.items()}

    def _repeats(self, batches: Sequence[Batch]) -> bool:
        """Return whether all processes have agreed on sizes, which their first step does.

        Afterwards each asserts its own: only some of them would call a common check.

        Raises:
            ConfigError: the batches have other sizes than those of the first step.
        """
        if not self.gathered:
            return False
        sizes: list[object] = [
            (
                len(batch.uids),
                [tuple(ids.shape) for ids in batch.captions],
                [None if x is None else tuple(x.shape) for x in batch.teacher_captions],
            )
            for batch in batches
        ]
        if self._sizes and sizes != self._sizes:
            raise ConfigError(
                f"a step has batches of {sizes}, the first one had {self._sizes}; with several "
                "processes all steps need the same batch size and captions"
            )
        repeats, self._sizes = bool(self._sizes), sizes
        return repeats

    def _counted(self, batch: Batch) -> Batch:
        """Return a batch with its `text_length` if it is needed and the captions are on the CPU."""
        if batch.text_length is not None or not (self.text_multiple and batch.captions[0].is_cpu):
            return batch
        return replace(batch, text_length=longest_text(batch.captions))

    def _scaled(self, value: Tensor) -> Tensor:
        scaled: Tensor = self.scaler.scale(value)
        return scaled

    @phase("forward")
    def _forward(self, batch: Batch) -> Features:
        pixels = normalise(
            batch.images,
            self.model.config.preprocess,
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format,
        )
        ids = torch.cat(batch.captions)
        if self.text_multiple and batch.text_length is not None:
            # A causal tower ignores what follows the longest text's end token. A multiple keeps the
            # number of lengths, and thus of compiled graphs, small.
            ids = ids[:, : math.ceil(batch.text_length / self.text_multiple) * self.text_multiple]
        count_forward(pixels, ids)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.wrapped(pixels, ids)
        image, text, scale = out[:3]
        captioning = None
        if self.settings.kind == "captioning":
            labels = self.model.text.fit(ids)[:, 1:]
            total = captioning_sum(out[3][:, :-1], labels, PAD)
            captioning = total / (labels != PAD).sum()
        return Features(
            image=image.float(),
            captions=list(text.float().chunk(len(batch.captions))),
            scale=scale,
            captioning=captioning,
            routing=self.routing.take() if self.routing is not None else None,
        )

    @phase("loss")
    def _terms(
        self, features: Features, teacher: TeacherEmbeddings, captions: Captions
    ) -> dict[str, Tensor]:
        settings = self.settings
        shared: dict[str, Any] = {"gathered": self.gathered, "chunk": settings.chunk}
        terms: dict[str, Tensor] = {}
        if settings.kind == "siglip":
            terms = self._siglip(features, teacher, captions, shared)
        elif settings.weights != (0.0, 0.0):
            terms = losses.reinforced_loss(
                features.image, features.captions, teacher.image, teacher.captions,
                features.scale, self.dims, self.scales, weights=settings.weights,
                teacher_weights=settings.teacher_weights, contrasted=captions.contrasted,
                text_ids=captions.text_ids, **shared,
            )  # fmt: skip
        if features.captioning is not None:
            terms["captioning_loss"] = settings.captioning_weight * features.captioning
        if self.routing is not None and features.routing is not None:
            terms |= self.routing.terms(features.routing)
        return terms

    def _siglip(
        self,
        features: Features,
        teacher: TeacherEmbeddings,
        captions: Captions,
        shared: dict[str, Any],
    ) -> dict[str, Tensor]:
        contrastive_weight, distill_weight = self.settings.weights
        bias = self.logit_bias
        assert bias is not None
        image, scale = features.image, features.scale
        zero = image.new_zeros(())
        terms = {"contrastive_loss": zero, "distill_loss": zero}
        for k, text in enumerate(features.captions):
            if contrastive_weight and captions.contrasted[k]:
                ids = None if captions.text_ids is None else captions.text_ids[k]
                term = losses.siglip_loss(image, text, scale, bias, text_ids=ids, **shared)
                terms["contrastive_loss"] = terms["contrastive_loss"] + contrastive_weight * term
            known = teacher.captions[k] if distill_weight else None
            if known is not None:
                assert teacher.image is not None
                term = losses.siglip_distillation_loss(
                    image, text, scale, bias, teacher.image, known,
                    self.dims, self.scales, self.biases,
                    teacher_weights=self.settings.teacher_weights, **shared,
                )  # fmt: skip
                terms["distill_loss"] = terms["distill_loss"] + distill_weight * term
        return terms

    def _accumulated(
        self, batches: Sequence[Batch], teacher: TeacherEmbeddings, captions: Captions
    ) -> dict[str, Tensor]:
        states, features = [], []
        # Only the second pass counts in BatchNorm's statistics.
        with torch.no_grad(), preserve_batch_norm_statistics(self.model):
            for batch in batches:
                states.append(_random_state(self.device))
                features.append(self._forward(batch))
        joined = Features(
            image=torch.cat([output.image for output in features]).requires_grad_(),
            captions=[
                torch.cat(texts).requires_grad_()
                for texts in zip(*(output.captions for output in features), strict=True)
            ],
            scale=features[0].scale.detach().requires_grad_(),
        )
        sums = [output.routing for output in features if output.routing is not None]
        if sums:
            joined.routing = torch.stack(sums).sum(0).requires_grad_()
        terms = self._terms(joined, teacher, captions)
        leaves = [joined.image, *joined.captions]
        if terms:
            with phase("backward"):
                self._scaled(_total(terms)).backward()  # type: ignore[no-untyped-call]
        shares: list[Tensor] = []
        if self.settings.kind == "captioning":
            shares = list(self._token_shares(batches))
        for k, (batch, state) in enumerate(zip(batches, states, strict=True)):
            last = k == len(batches) - 1
            with _random_state_set(state, self.device), self._syncing(last):
                micro = self._forward(batch)
                rows = slice(k * len(micro.image), (k + 1) * len(micro.image))
                outputs = [micro.image, *micro.captions]
                surrogate = micro.image.new_zeros(())
                for output, leaf in zip(outputs, leaves, strict=True):
                    if leaf.grad is not None:
                        surrogate = surrogate + (output * leaf.grad[rows]).sum()
                if joined.scale.grad is not None:
                    surrogate = surrogate + micro.scale * joined.scale.grad / len(batches)
                if joined.routing is not None and joined.routing.grad is not None:
                    assert micro.routing is not None
                    surrogate = surrogate + (micro.routing * joined.routing.grad).sum()
                if micro.captioning is not None:
                    term = self.settings.captioning_weight * shares[k] * micro.captioning
                    surrogate = surrogate + self._scaled(term)
                    sum_so_far = terms.get("captioning_loss", term.new_zeros(()))
                    terms["captioning_loss"] = sum_so_far + term.detach()
                with phase("backward"):
                    surrogate.backward()  # type: ignore[no-untyped-call]
        return terms

    def _token_shares(self, batches: Sequence[Batch]) -> Tensor:
        """Return the fraction of the step's caption tokens in each micro-batch, (batches,).

        The captioning loss is a mean over tokens. The total is the mean over processes, so the
        fractions sum to 1 only on average.
        """
        fitted = [self.model.text.fit(torch.cat(batch.captions)) for batch in batches]
        counts = torch.stack([(ids[:, 1:] != PAD).sum() for ids in fitted])
        total = distributed.gather_rows(counts.sum()[None]).sum()
        return (counts * distributed.world_size()).float() / total

    @contextlib.contextmanager
    def _syncing(self, last: bool) -> Iterator[None]:
        # Gradients of all processes are averaged once, after the last micro-batch.
        no_sync = getattr(self.wrapped, "no_sync", None)
        with contextlib.nullcontext() if last or no_sync is None else no_sync():
            yield

    def _captions(self, batches: Sequence[Batch]) -> Captions:
        """Return how the contrastive term uses the captions of the step's batch.

        Raises:
            ConfigError: the batches have none of the captions that it should use.
        """
        contrasted = self._used(batches[0], "contrastive", self.settings.weights[0])
        text_ids = None
        if self.settings.same_text == "positive" and any(contrasted):
            # Padding too: the ids of all processes need the same number of columns.
            columns = zip(*(batch.captions for batch in batches), strict=True)
            text_ids = [torch.cat(ids) for ids in columns]
        return Captions(contrasted=contrasted, text_ids=text_ids)

    def _used(
        self, batch: Batch, term: Literal["contrastive", "distill"], weight: float
    ) -> list[bool]:
        """Return whether a term of this weight uses each caption of the batch.

        Raises:
            ConfigError: the batch has none of the captions that the term should use.
        """
        which = getattr(self.settings, f"{term}_captions")
        if not weight or which == "all":
            return [weight > 0] * len(batch.captions)
        used = uses_captions(which, batch.kinds)
        if not any(used):
            raise ConfigError(
                f"loss.{term}_captions: the batch has no {which} captions, but "
                f"{', '.join(batch.kinds) or 'captions of no stated kind'}; set data.captions to "
                f"both or {which}"
            )
        return used

    def _teacher_embeddings(self, batches: Sequence[Batch]) -> TeacherEmbeddings:
        if self.settings.weights[1] == 0:
            return TeacherEmbeddings(image=None, captions=[])
        used = self._used(batches[0], "distill", self.settings.weights[1])
        embeddings = [self._batch_embeddings(batch, used) for batch in batches]
        image = torch.cat([image for image, _ in embeddings])
        parts = iter(zip(*(texts for _, texts in embeddings), strict=True))
        captions = [torch.cat(next(parts)) if one else None for one in used]
        if image.shape[1] != sum(self.dims):
            raise ConfigError(
                f"the teachers' embeddings have {image.shape[1]} values, but their dimensions "
                f"{list(self.dims)} add up to {sum(self.dims)}; set loss.teacher_dims"
            )
        return TeacherEmbeddings(image=image, captions=captions)

    def _batch_embeddings(self, batch: Batch, used: Sequence[bool]) -> tuple[Tensor, list[Tensor]]:
        """Return the teachers' embeddings of a batch and its used captions: stored, or new."""
        if self.teachers is None:
            assert batch.teacher_image is not None
            stored = []
            for rows, one in zip(batch.teacher_captions, used, strict=True):
                if one:
                    assert rows is not None
                    stored.append(rows)
            return batch.teacher_image, stored
        captions = [
            self.teachers.encode_texts(texts)
            for texts, one in zip(batch.texts, used, strict=True)
            if one
        ]
        return self.teachers.encode_images(batch.images), captions


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextlib.contextmanager
def _random_state_set(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
    yield
