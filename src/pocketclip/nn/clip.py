"""The two-tower model.

Shapes: B batch, H W height width, T tokens, D embedding.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, from_numpy, nn, tensor

from pocketclip import zoo
from pocketclip.embedding_space import SpaceIdentity, digest_weights, identify
from pocketclip.errors import PocketclipError
from pocketclip.license import UNKNOWN
from pocketclip.nn.mci import MCi
from pocketclip.nn.text import TextTower
from pocketclip.nn.transformer import FrozenBatchNormMixin
from pocketclip.nn.vit import ViT
from pocketclip.types import Arrays, LazyArrays

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[Any]


class CLIP(FrozenBatchNormMixin):
    """An image tower and a text tower that embed into one space (arXiv 2103.00020).

    Attributes:
        config: the configuration that the model was built from.
        image: the image tower.
        text: the text tower.
        logit_scale: the natural logarithm of the multiplier of cosine similarities, as in
            every published checkpoint; `logit_scale.exp()` is the multiplier itself.
        is_fused: whether `pocketclip.nn.reparam.fuse` made this model.
        inference_only: whether it was rearranged so that it can be neither trained nor saved.
        untrainable: the reason why `train()` is refused; empty if it is not.
        space_identity: the identity of the embedding space as last computed or loaded.
        license: the licence of the weights, or of those that they were trained from.
    """

    def __init__(self, config: zoo.ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.is_fused = False
        self.inference_only = False
        self.untrainable = ""
        self.space_identity: SpaceIdentity | None = None
        self.license = UNKNOWN
        self.image: MCi | ViT = (
            MCi(config.image, config.embed_dim)
            if isinstance(config.image, zoo.MCiConfig)
            else ViT(config.image, config.embed_dim, config.image_size)
        )
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(tensor(math.log(1 / 0.07)))
        self.set_gradient_checkpointing(config.gradient_checkpointing)

    def encode_image(self, pixels: Tensor | Array, *, normalize: bool = False) -> Tensor:
        """Return embeddings (B, D) of images.

        Args:
            pixels: preprocessed, (B, 3, H, W). H and W are multiples of the tower's total stride
                (MCi: 32 or 64) or patch size.
            normalize: scale the embeddings to unit length.
        """
        out = self.image(self.as_tensor(pixels))
        return F.normalize(out, dim=-1) if normalize else out

    def encode_text(self, ids: Tensor | Array, *, normalize: bool = False) -> Tensor:
        """Return embeddings (B, D) of texts.

        Args:
            ids: token ids (B, T), as `pocketclip.tokenizer.Tokenizer` returns them.
            normalize: scale the embeddings to unit length.
        """
        out = self.text(self.as_tensor(ids))
        return F.normalize(out, dim=-1) if normalize else out

    def as_tensor(self, array: Tensor | Array) -> Tensor:
        """Return a tensor unchanged, and an array as a tensor on the model's device.

        Preprocessing and the tokenizer are free of torch and return arrays.
        """
        if isinstance(array, Tensor):
            return array
        return from_numpy(array).to(self.logit_scale.device)

    def forward(
        self, pixels: Tensor | None = None, ids: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return unit embeddings of the inputs, and the multiplier of their similarity.

        Args:
            pixels: (B, 3, H, W), or None to skip the image tower.
            ids: (B, T), or None to skip the text tower.

        Returns:
            Image embeddings (B, D) or None, text embeddings (B, D) or None, and a scalar.
        """
        image = None if pixels is None else self.encode_image(pixels, normalize=True)
        text = None if ids is None else self.encode_text(ids, normalize=True)
        return image, text, self.logit_scale.exp()

    @property
    def space_id(self) -> str:
        """The id of the embedding space, see `pocketclip.embedding_space`; hashes all weights."""
        return self.identify_space().space_id

    def identify_space(self) -> SpaceIdentity:
        """Hash the weights, record the identity of the embedding space and return it."""
        digest = digest_weights(self.arrays())
        self.space_identity = identify(self.config, digest, self.space_identity)
        return self.space_identity

    def mark_fused(self, fused: nn.Module) -> None:
        """Mark `fused` as the fused copy of this model; it keeps this model's embedding space."""
        assert isinstance(fused, CLIP)
        fused.is_fused = True
        if not self.logit_scale.is_meta:
            digest = fused.identify_space().weights_digest
            fused.space_identity = SpaceIdentity(self.space_id, digest)

    def train(self, mode: bool = True) -> Self:
        """Set training mode.

        Raises:
            PocketclipError: the model cannot be trained; `untrainable` is the message.
        """
        if mode and self.untrainable:
            raise PocketclipError(self.untrainable)
        return super().train(mode)

    def set_gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.image.recompute = on
        self.text.recompute = on

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Call `set_gradient_checkpointing`; open_clip's name for it."""
        self.set_gradient_checkpointing(enable)

    def freeze(
        self, tower: Literal["image", "text"], *, train_last: int | Literal["head"] = 0
    ) -> None:
        """Stop training a tower: its parameters and its BatchNorm statistics.

        Args:
            tower: the tower to freeze.
            train_last: number of final blocks to keep trainable, plus what follows them; `head`
                keeps only the final projection to the embedding; 0 freezes the whole tower,
                position embedding included.

        Raises:
            ValueError: an unknown tower, or a tower with fewer blocks.
        """
        if tower not in ("image", "text"):
            raise ValueError(f"tower must be 'image' or 'text', not {tower!r}")
        module = self.image if tower == "image" else self.text
        trained: list[list[nn.Module]] = []
        if train_last == "head":
            trained = [[module.head]]
        else:
            groups = module.groups()
            blocks = len(groups) - 2  # between the input layers and the head
            if not isinstance(train_last, int) or not 0 <= train_last <= blocks:
                raise ValueError(
                    f"train_last must be 0 to {blocks} for this tower, or 'head', not "
                    f"{train_last!r}"
                )
            trained = groups[-1 - train_last :] if train_last else []
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        trained_ids = {id(m) for group in trained for layer in group for m in layer.modules()}
        for group in trained:
            for layer in group:
                layer.requires_grad_(True)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d) and id(layer) not in trained_ids:
                _freeze_statistics(layer)

    def freeze_batch_norm_statistics(self) -> None:
        """Use the running statistics of every BatchNorm during training too, unchanged."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                _freeze_statistics(module)

    def unfreeze(self) -> None:
        """Make everything trainable again, BatchNorm statistics included."""
        self.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.statistics_frozen = False  # type: ignore[assignment]
        self.train(self.training)

    def plain_state(self) -> dict[str, Tensor]:
        """Return the state dict without the prefixes that `torch.compile` adds to names."""
        return {n.replace("_orig_mod.", ""): v for n, v in self.state_dict().items()}

    def arrays(self) -> Arrays:
        """Return the weights as arrays, by the names of `plain_state`; floats are float32.

        Each access copies what is not float32 in the memory of the CPU; the rest is shared.
        """
        return LazyArrays({n: partial(_as_array, v) for n, v in self.plain_state().items()})


def _as_array(value: Tensor) -> Array:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous().numpy()


def _freeze_statistics(norm: nn.BatchNorm2d) -> None:
    norm.statistics_frozen = True  # type: ignore[assignment]
    norm.eval()
