"""A reinforce recipe with its models loaded: it turns prepared pairs into samples.

Shapes: A augmentations of an image, B batch, D embedding (of all teachers together), S side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, DataError
from pocketclip.pairs import PairShard
from pocketclip.reinforce.captioners import Captioner, caption_pairs, load_captioner
from pocketclip.reinforce.check_report import CheckOptions, TeacherCheck
from pocketclip.reinforce.own_models import OwnCaptioner, OwnTeacher
from pocketclip.reinforce.prepare import Plan, Prepared
from pocketclip.reinforce.recipe import Recipe, digest
from pocketclip.reinforce.teacher_check import check_teacher, check_teachers, read_sample
from pocketclip.reinforce.teachers import Teacher, load_teacher
from pocketclip.shards import JsonlWriter, ShardWriter
from pocketclip.types import Embeddings, Pair, Sample

VERSION = 1
"""Version of what a recipe means; part of the hash that is stored with each shard."""


class Engine:
    """A recipe with its models loaded.

    Attributes:
        recipe: the recipe.
        facts: everything that affects the contents of a shard, as JSON types.
        config_hash: the hash of the facts.

    Raises:
        ConfigError: two captioners would write the same key, or the layout holds only one.
        PocketclipError: a model cannot be loaded, see `load_teacher` and `load_captioner`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        options: dict[str, Any] = {
            "device": recipe.device,
            "precision": recipe.precision,
            "offline": recipe.offline,
        }
        self._options = options
        self.augmentation = Augmentation.from_config(recipe.image_augmentation)
        self.teachers: list[Teacher | OwnTeacher] = [
            load_teacher(spec, **options) for spec in recipe.teachers
        ]
        self.captioners: list[Captioner | OwnCaptioner] = [
            load_captioner(spec, sampling=recipe.sampling, **options) for spec in recipe.captioners
        ]
        self._check_own()
        if recipe.layout == "v1" and len(self.captioners) > 1:
            raise ConfigError(
                "layout v1 holds the captions of one captioner only: use layout named"
            )
        keys = [captioner.key for captioner in self.captioners]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(
                f"two captioners would write {repeated[0]}: give each a name, --captioner NAME=SPEC"
            )
        self.facts = self._facts()
        self.config_hash = digest(self.facts)

    def _check_own(self) -> None:
        """Refuse what the user's own models cannot follow."""
        own = next((teacher for teacher in self.teachers if isinstance(teacher, OwnTeacher)), None)
        if own is not None and self.recipe.augmentations and self.augmentation.output_size is None:
            raise ConfigError(
                f"{own.name} takes views of one size: give image_augmentation a "
                "random_resized_crop, a center_crop or a resize to a width and height"
            )
        has_own = [isinstance(captioner, OwnCaptioner) for captioner in self.captioners]
        if self.recipe.sampling and has_own and all(has_own):
            raise ConfigError(
                "sampling does not apply to captioners of your own, which sample as they want: "
                "leave it out"
            )

    def _facts(self) -> dict[str, Any]:
        """Return everything that affects the contents of a shard, as plain JSON types."""
        recipe = self.recipe
        dtype = recipe.dtype if recipe.format == "tar" else "float32"
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
            # Of captions alone, only what decides them.
            "augmentation": self.augmentation.config if self.teachers else None,
            "augmentations": self.augmentations,
            "captions": recipe.captions if self.captioners else 0,
            "seed": recipe.seed,
            "dtype": dtype if self.teachers else "",
            "layout": recipe.layout,
            "format": recipe.format,
            "images": recipe.images,
        }

    @property
    def augmentations(self) -> int:
        """A, the number of views per image: 0 without a teacher to embed them."""
        return self.recipe.augmentations if self.teachers else 0

    @property
    def plan(self) -> Plan:
        """The views that worker processes make of each image."""
        return Plan(
            augmentation=self.augmentation,
            augmentations=self.augmentations,
            seed=self.recipe.seed,
            teachers=tuple(teacher.transform for teacher in self.teachers),
            captioners=tuple(c.transform for c in self.captioners if isinstance(c, Captioner)),
        )

    def check(self, shards: Sequence[PairShard], options: CheckOptions) -> TeacherCheck:
        """Return what the teachers score on a sample of the pairs.

        Raises:
            PocketclipError: the start of the student cannot be loaded, an embedding is not finite,
                or the pairs cannot be read. A sample that cannot be scored is the result's
                `problem`.
        """
        start = None
        if options.student_start is not None:  # first: a wrong name is seen before any work
            start = load_teacher(options.student_start, **self._options)
        try:
            sample = read_sample(
                options.shards or shards, options.pairs, label_column=options.label_column
            )
            scores, together = check_teachers(self.teachers, sample)
        except DataError as error:
            return TeacherCheck(problem=str(error))
        return TeacherCheck(
            teachers=scores,
            ensemble=together if len(scores) > 1 else None,
            student_start=None if start is None else check_teacher(start, sample),
        )

    def reinforce(self, batch: Sequence[tuple[Pair, Prepared]]) -> list[Sample]:
        """Return the reinforced samples of B prepared pairs."""
        captions = [dict(pair.captions) for pair, _ in batch]
        for captioner in self.captioners:
            if any(captioner.key in by_key for by_key in captions):
                raise ConfigError(
                    f"the pairs have captions under {captioner.key} already: give the captioner "
                    "another name, --captioner NAME=SPEC, or take fewer captions from the pairs"
                )
            synthetic = caption_pairs(captioner, batch, self.recipe.captions, self.recipe.seed)
            for by_key, texts in zip(captions, synthetic, strict=True):
                by_key[captioner.key] = texts
        image_embeddings = self._embed_views(batch)
        text_embeddings = self._embed_captions(captions)
        return [
            Sample(
                uid=pair.uid,
                image=pair.image if self.recipe.images else None,
                captions=by_key,
                url=pair.url,
                meta=pair.meta,
                param_aug=views.param_aug if self.augmentations else None,
                embeddings={**image_rows, **text_rows},
            )
            for (pair, views), by_key, image_rows, text_rows in zip(
                batch, captions, image_embeddings, text_embeddings, strict=True
            )
        ]

    def _embed_views(self, batch: Sequence[tuple[Pair, Prepared]]) -> list[dict[str, Embeddings]]:
        count = self.augmentations
        if not count:
            return [{} for _ in batch]

        def name_of(row: int) -> str:
            return f"image {batch[row // count][0].uid!r}, augmentation {row % count}"

        by_teacher = []
        for teacher in self.teachers:
            squares = np.concatenate([views.augmented[teacher.transform.key] for _, views in batch])
            by_teacher.append(teacher.encode_squares(squares, name_of))
        joined = np.concatenate(by_teacher, axis=1)  # (B * A, D)
        return [{"image_emb": rows} for rows in joined.reshape(len(batch), count, -1)]

    def _embed_captions(self, captions: Sequence[dict[str, list[str]]]) -> list[dict[str, Any]]:
        if not self.teachers:
            return [{} for _ in captions]
        flat = [text for by_key in captions for texts in by_key.values() for text in texts]
        if flat:
            by_teacher = [teacher.encode_text(flat) for teacher in self.teachers]
            rows = iter(np.concatenate(by_teacher, axis=1))  # each (D,)
        width = sum(teacher.embed_dim for teacher in self.teachers)
        out: list[dict[str, Any]] = []
        for by_key in captions:
            embeddings = {}
            for key, texts in by_key.items():
                block = [next(rows) for _ in texts]
                embeddings[f"{key}_emb"] = np.array(block, np.float32).reshape(len(block), width)
            out.append(embeddings)
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

    def count_cut(self, samples: Sequence[Sample]) -> int:
        """Return the number of captions that exceed a teacher's context."""
        flat = [text for sample in samples for texts in sample.captions.values() for text in texts]
        over = np.zeros(len(flat), bool)
        for teacher in self.teachers:
            over |= np.asarray(teacher.over_length(flat), bool)
        return int(over.sum())
