"""Training of the shipped captioner: a narrow output layer, and rounds for its decoder alone.

Shapes: B batch, T tokens, V vocabulary, U ids that occur in captions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pocketclip.nn.coca import CoCa
from pocketclip.nn.transformer import run_blocks
from pocketclip.train.losses import captioning_loss
from quickstart_models.dataset import CAPTIONS, SceneDataset, crop

_CHUNK = 250  # images per forward pass of the frozen tower


class NarrowHead:
    """A captioner's output layer, restricted during training to the ids that occur.

    The vocabulary has 49,408 ids, of which scenes need about a hundred; logits for all of them
    would be nearly all of the work. One input feature of the layer is held at 1, so that
    `widen` can give all other ids the same row: -30 for that feature and 0 elsewhere.
    """

    def __init__(self, model: CoCa, ids: Tensor) -> None:
        self.model = model
        self.weight = 2.0
        self.used = torch.unique(ids)
        self.used = self.used[self.used != 0]
        self.index = torch.zeros(model.config.text.vocab_size, dtype=torch.int64)
        self.index[self.used] = torch.arange(1, len(self.used) + 1)  # 0 is padding here too
        width = model.config.text.width
        model.decoder.head = nn.Linear(width, len(self.used) + 1, bias=False)
        nn.init.normal_(model.decoder.head.weight, std=width**-0.5)
        self.hold()

    def labels(self, ids: Tensor) -> Tensor:
        """Return the narrow layer's labels for ids (B, T)."""
        return self.index[ids]

    @torch.no_grad()
    def hold(self) -> None:
        """Reset the constant feature to 1, after each optimiser step."""
        self.model.decoder.norm.weight[-1] = 0
        self.model.decoder.norm.bias[-1] = 1

    @torch.no_grad()
    def widen(self) -> None:
        """Replace the narrow layer by one for the whole vocabulary."""
        old = self.model.decoder.head.weight
        new = nn.Linear(old.shape[1], len(self.index), bias=False)
        new.weight.zero_()
        new.weight[:, -1] = -30
        new.weight[self.used] = old[1:]
        self.model.decoder.head = new


def decoder_parameters(model: CoCa) -> list[nn.Parameter]:
    """Return the parameters that `decoder_losses` trains."""
    assert model.image.pool is not None
    parts = (model.image.pool, model.image.norm, model.text, model.decoder)
    return [parameter for part in parts for parameter in part.parameters()]


@torch.no_grad()
def spread_queries(model: CoCa, generator: torch.Generator) -> None:
    """Make the other pooling queries noisy copies of the first.

    Contrastive training puts the features that distinguish scenes where the first query attends.
    The decoder sees the tokens of the other queries, which hold little about shapes.
    """
    assert model.image.pool is not None
    query = model.image.pool.query
    noise = torch.randn(query[1:].shape, generator=generator)
    query[1:] = query[:1] + 0.3 * query[:1].std() * noise


def decoder_losses(
    model: CoCa,
    narrow: NarrowHead,
    dataset: SceneDataset,
    steps: int,
    size: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the captioning loss of each step, with the image tower frozen below its pooling.

    Every picture passes through the tower once, in one view, so that a step costs a fraction of
    a full one.
    """
    model.eval()
    pool = model.image.pool
    assert pool is not None
    with torch.no_grad():
        features = torch.cat(
            [
                run_blocks(
                    model.image.blocks,
                    model.image.embed_patches(crop(dataset.images[i : i + _CHUNK], generator)),
                    recompute=False,
                )
                for i in range(0, len(dataset.images), _CHUNK)
            ]
        )
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(features), generator=generator)
        rows, order = order[:size], order[size:]
        ids = dataset.ids[rows, torch.randint(CAPTIONS, (len(rows),), generator=generator)]
        ids = ids[:, : int((ids != 0).sum(1).max())]
        tokens = model.image.norm(pool(features[rows]))[:, 1:]
        states = model.text.with_tokens(model.text.fit(ids))[1]
        logits = model.decoder(states, tokens)
        yield captioning_loss(logits[:, :-1], narrow.labels(ids)[:, 1:])
