"""How the captioner that ships learns to describe: a narrow last layer, and a round of its own.

Shapes: B batch, T tokens, V vocabulary, U ids that occur in captions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pocketclip.nn.coca import CoCa
from pocketclip.nn.transformer import run_blocks
from pocketclip.quickstart.lessons import CAPTIONS, Lessons, crop
from pocketclip.train.loss import captioning_loss

_AT_ONCE = 250  # images through the tower


class Narrow:
    """A captioner's last layer, narrowed to the ids that occur, while it learns.

    The vocabulary has 49,408 ids, of which scenes need about a hundred; logits for all would be
    nearly all of the work. One feature before the layer is held at 1, so that afterwards the rows
    of all other ids can be the same: -30 for that feature and 0 else.
    """

    def __init__(self, model: CoCa, ids: Tensor) -> None:
        self.model = model
        self.weight = 2.0
        self.used = torch.unique(ids)
        self.used = self.used[self.used != 0]
        self.place = torch.zeros(model.config.text.vocab_size, dtype=torch.int64)
        self.place[self.used] = torch.arange(1, len(self.used) + 1)  # 0 is padding here too
        width = model.config.text.width
        model.decoder.head = nn.Linear(width, len(self.used) + 1, bias=False)
        nn.init.normal_(model.decoder.head.weight, std=width**-0.5)
        self.hold()

    def labels(self, ids: Tensor) -> Tensor:
        """Return ids (B, T) as the narrow layer counts them."""
        return self.place[ids]

    @torch.no_grad()
    def hold(self) -> None:
        """Keep the last feature at 1."""
        self.model.decoder.norm.weight[-1] = 0
        self.model.decoder.norm.bias[-1] = 1

    @torch.no_grad()
    def widen(self) -> None:
        """Give the captioner a layer for the whole vocabulary."""
        old = self.model.decoder.head.weight
        new = nn.Linear(old.shape[1], len(self.place), bias=False)
        new.weight.zero_()
        new.weight[:, -1] = -30
        new.weight[self.used] = old[1:]
        self.model.decoder.head = new


def readers(model: CoCa) -> list[nn.Parameter]:
    """Return the parameters that `described` trains."""
    assert model.image.pool is not None
    parts = (model.image.pool, model.image.norm, model.text, model.decoder)
    return [parameter for part in parts for parameter in part.parameters()]


@torch.no_grad()
def spread_queries(model: CoCa, generator: torch.Generator) -> None:
    """Make the pooling's further queries slightly moved copies of the first.

    Contrastive training puts what tells scenes apart where the first query looks. The decoder sees
    the others' tokens, and hardly finds the shapes there.
    """
    assert model.image.pool is not None
    query = model.image.pool.query
    noise = torch.randn(query[1:].shape, generator=generator)
    query[1:] = query[:1] + 0.3 * query[:1].std() * noise


def described(
    model: CoCa,
    narrow: Narrow,
    lessons: Lessons,
    steps: int,
    size: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the captioning loss of each step, with the image tower below its pooling held still.

    The decoder learns to read the tokens at a fraction of the cost of a whole step: every picture
    passes through the tower once, in one view.
    """
    model.eval()
    pool = model.image.pool
    assert pool is not None
    with torch.no_grad():
        seen = torch.cat(
            [
                run_blocks(
                    model.image.blocks,
                    model.image._embedded(crop(lessons.images[i : i + _AT_ONCE], generator)),
                    recompute=False,
                )
                for i in range(0, len(lessons.images), _AT_ONCE)
            ]
        )
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(seen), generator=generator)
        rows, order = order[:size], order[size:]
        ids = lessons.ids[rows, torch.randint(CAPTIONS, (len(rows),), generator=generator)]
        ids = ids[:, : int((ids != 0).sum(1).max())]
        tokens = model.image.norm(pool(seen[rows]))[:, 1:]
        states = model.text.with_tokens(model.text.fit(ids))[1]
        logits = model.decoder(states, tokens)
        yield captioning_loss(logits[:, :-1], narrow.labels(ids)[:, 1:])
