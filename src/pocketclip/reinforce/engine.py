"""A recipe with its models loaded: prepared pairs in, samples out.

Shapes: A augmentations of an image, B batch, D embedding (of all teachers together), S side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError
from pocketclip.reinforce.captioners import Captioner, load_captioner
from pocketclip.reinforce.prepare import Plan, Prepared
from pocketclip.reinforce.recipe import Recipe, digest
from pocketclip.reinforce.teachers import Teacher, load_teacher
from pocketclip.shards import JsonlWriter, ShardWriter
from pocketclip.types import Embeddings, Pair, Sample

VERSION = 1
"""Of what a recipe means; part of the hash that shards are bound to."""


class Engine:
    """A recipe with its models loaded."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        where: dict[str, Any] = {
            "device": recipe.device,
            "precision": recipe.precision,
            "offline": recipe.offline,
        }
        self.augmentation = Augmentation.from_config(recipe.image_augmentation)
        self.teachers: list[Teacher] = [load_teacher(spec, **where) for spec in recipe.teachers]
        self.captioners: list[Captioner] = [
            load_captioner(spec, sampling=recipe.sampling, **where) for spec in recipe.captioners
        ]
        if recipe.layout == "v1" and len(self.captioners) > 1:
            raise ConfigError("layout v1 holds the captions of one captioner: use layout named")
        keys = [captioner.key for captioner in self.captioners]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ConfigError(
                f"two captioners would write {doubled[0]}: name them, --captioner NAME=SPEC"
            )
        self.facts = self._facts()
        self.config_hash = digest(self.facts)

    def _facts(self) -> dict[str, Any]:
        """Return all that decides what a shard holds, as plain JSON types."""
        recipe = self.recipe
        return {
            "version": VERSION,
            "teachers": [
                {
                    "name": teacher.name,
                    "embed_dim": teacher.embed_dim,
                    "logit_scale": teacher.logit_scale,
                    "logit_bias": teacher.logit_bias,
                    "space_id": teacher.space_id,
                    "precision": teacher.dtype,
                }
                for teacher in self.teachers
            ],
            "captioners": [{"key": c.key, **c.identity} for c in self.captioners],
            "augmentation": self.augmentation.config,
            "augmentations": recipe.augmentations,
            "captions": recipe.captions if self.captioners else 0,
            "seed": recipe.seed,
            "dtype": recipe.dtype if recipe.format == "tar" else "float32",
            "layout": recipe.layout,
            "format": recipe.format,
            "images": recipe.images,
        }

    @property
    def plan(self) -> Plan:
        """What the worker processes make of each image."""
        return Plan(
            augmentation=self.augmentation,
            augmentations=self.recipe.augmentations,
            seed=self.recipe.seed,
            teachers=tuple(teacher.transform for teacher in self.teachers),
            captioners=tuple(captioner.transform for captioner in self.captioners),
        )

    def reinforce(self, batch: Sequence[tuple[Pair, Prepared]]) -> list[Sample]:
        """Return the samples of some prepared pairs."""
        captions = [dict(pair.captions) for pair, _ in batch]
        for captioner in self.captioners:
            squares = np.stack([ready.whole[captioner.transform.key] for _, ready in batch])
            uids = [pair.uid for pair, _ in batch]
            written = captioner.caption_squares(
                squares, uids, self.recipe.captions, self.recipe.seed
            )
            for own, drawn in zip(captions, written, strict=True):
                own[captioner.key] = drawn
        views = self._embed_views(batch)
        read = self._embed_captions(captions)
        return [
            Sample(
                uid=pair.uid,
                image=pair.image if self.recipe.images else None,
                captions=own,
                url=pair.url,
                meta=pair.meta,
                param_aug=ready.param_aug if self.recipe.augmentations else None,
                embeddings={**seen, **told},
            )
            for (pair, ready), own, seen, told in zip(batch, captions, views, read, strict=True)
        ]

    def _embed_views(self, batch: Sequence[tuple[Pair, Prepared]]) -> list[dict[str, Embeddings]]:
        count = self.recipe.augmentations
        if not count:
            return [{} for _ in batch]

        def name_of(row: int) -> str:
            return f"image {batch[row // count][0].uid!r}, augmentation {row % count}"

        parts = []
        for teacher in self.teachers:
            squares = np.concatenate([ready.augmented[teacher.transform.key] for _, ready in batch])
            parts.append(teacher.encode_squares(squares, name_of))
        joined = np.concatenate(parts, axis=1)  # (B * A, D)
        return [{"image_emb": rows} for rows in joined.reshape(len(batch), count, -1)]

    def _embed_captions(self, captions: Sequence[dict[str, list[str]]]) -> list[dict[str, Any]]:
        flat = [text for own in captions for texts in own.values() for text in texts]
        if flat:
            parts = [teacher.encode_text(flat) for teacher in self.teachers]
            rows = iter(np.concatenate(parts, axis=1))  # each (D,)
        width = sum(teacher.embed_dim for teacher in self.teachers)
        out: list[dict[str, Any]] = []
        for own in captions:
            found = {}
            for key, texts in own.items():
                block = [next(rows) for _ in texts]
                found[f"{key}_emb"] = np.array(block, np.float32).reshape(len(block), width)
            out.append(found)
        return out

    def writer(self, path: str) -> ShardWriter | JsonlWriter:
        """Return a writer for one shard."""
        recipe = self.recipe
        if recipe.format == "jsonl":
            return JsonlWriter(path, images=recipe.images)
        return ShardWriter(
            path,
            dtype=recipe.dtype,
            layout=recipe.layout,
            images=recipe.images,
            teacher_dims=[teacher.embed_dim for teacher in self.teachers],
        )

    def cut(self, samples: Sequence[Sample]) -> int:
        """Return how many captions are longer than a teacher reads."""
        flat = [text for own in samples for texts in own.captions.values() for text in texts]
        over = np.zeros(len(flat), bool)
        for teacher in self.teachers:
            over |= np.asarray(teacher.over_length(flat), bool)
        return int(over.sum())
