"""Captions of images, for whoever wants captions alone.

    report = caption(["photos/"], "coca-vit-l14", captions=3)
    report.rows[0]["path"], report.rows[0]["captions"]

    caption(["pairs.csv"], "coca-vit-l14", out="captions.jsonl")  # resumable, one row per image

The captions of an image depend only on the image, the model, the sampling, and on (seed, uid, k):
`pocketclip.reinforce.job` writes the same ones. Source: MobileCLIP (arXiv 2311.17049), section 3.1;
MobileCLIP2 (arXiv 2508.20691), section 3.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketclip import devices, storage
from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError
from pocketclip.pairs import PairOptions
from pocketclip.pairs.base import Draft
from pocketclip.pairs.loading import completed
from pocketclip.reinforce.caption_inputs import (
    ImageFile,
    Images,
    digest_of,
    open_images,
    source_of,
)
from pocketclip.reinforce.caption_rows import Row
from pocketclip.reinforce.caption_table import VERSION, CaptionTable, place_of, texts_of
from pocketclip.reinforce.captioners import Captioner, caption_pairs, load_captioner
from pocketclip.reinforce.job import batches
from pocketclip.reinforce.own_models import OwnCaptioner
from pocketclip.reinforce.prepare import Plan, Prepared
from pocketclip.reinforce.sampling import Sampling
from pocketclip.reinforce.workers import Workers
from pocketclip.types import Bad, Pair

COLUMN = "captions"
"""The column of the captions of images that have none of their own."""


@dataclass(slots=True, kw_only=True)
class CaptionReport:
    """The result of `caption`."""

    model: str
    """The captioner's name."""
    column: str
    """The key of the captions in each row."""
    rows: list[Row] = field(default_factory=list)
    """One per image, in the order of the input: `uid`, `path` or `url`, own captions, new ones.
    Empty with `out`."""
    count: int = 0
    """Images with captions."""
    kept: int = 0
    """Images among them whose captions an earlier run wrote."""
    left_over: int = 0
    """Rows of an earlier run whose images are not in the input any more; they stay."""
    bad: list[Bad] = field(default_factory=list)
    """Images that cannot be opened, and why."""


def _ignore(*_: Any) -> None:
    pass


def caption(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model: str,
    *,
    out: str | os.PathLike[str] | None = None,
    captions: int = 1,
    sampling: Sampling | Mapping[str, Any] | None = None,
    seed: int = 0,
    column: str | None = None,
    options: PairOptions | None = None,
    batch_size: int = 16,
    workers: int | None = 0,
    device: str = "auto",
    precision: devices.Precision = "auto",
    offline: bool = False,
    on_start: Callable[[int | None, Sequence[str]], None] = _ignore,
    on_progress: Callable[[int], None] = _ignore,
    on_row: Callable[[Row], None] = _ignore,
) -> CaptionReport:
    """Write captions of photographs, or of the images of a table or tars.

    Args:
        inputs: photographs (files, folders, patterns), or pairs as `open_pairs` takes them, whose
            own captions are optional.
        model: as `load_captioner` takes it.
        out: a table to write, `.jsonl`, `.parquet`, or `.csv` or `.tsv` for a single caption per
            image; local or in an object store. An earlier run into it is continued.
        captions: captions per image; `greedy` gives one, beam search at most `beams`.
        sampling: how captions are drawn; None: the defaults of `Sampling`.
        seed: seeds what is random.
        column: the column of the captions; None: `captions`, or for pairs that have captions of
            their own `syn_text_NAME`, as `reinforce` names them.
        options: how pairs are read.
        batch_size: images per batch.
        workers: processes that decode images; 0: none, None: one per core.
        device: as `load_captioner`.
        precision: as `load_captioner`.
        offline: as `load_captioner`.
        on_start: called once with the number of images (None: unknown) and sentences about files
            that were skipped.
        on_progress: called with the number of images done since the last call.
        on_row: called with each row, in order.

    Raises:
        ConfigError: a setting is invalid, the model is no captioner, or `out` holds captions of
            other settings; the message says which.
        PocketclipError: see `load_captioner`, `open_pairs` and `CaptionTable`.
    """
    if captions < 1 or batch_size < 1:
        raise ConfigError("captions and batch_size are 1 or more")
    if column in ("uid", "path", "url"):
        raise ConfigError(f"the column {column} says which image it is: choose another one")
    sources = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    names = [os.fspath(source) for source in sources]
    images = open_images(names, options or PairOptions())
    with Workers(workers, ahead=2 * batch_size) as pool:
        captioner = load_captioner(
            model, device=device, precision=precision, offline=offline, sampling=sampling
        )
        if isinstance(captioner, OwnCaptioner) and sampling:
            raise ConfigError(
                "sampling does not apply to captioners of your own, which sample as they want: "
                "leave it out"
            )
        column = column or (captioner.key if images.have_captions else COLUMN)
        settings = {
            "version": VERSION,
            "column": column,
            "captioner": {**captioner.identity, "key": column},
            "captions": captions,
            "seed": seed,
            "inputs": [storage.absolute(name) for name in names],
            "read as": images.options.identity() if images.are_pairs else "photographs",
        }
        table = CaptionTable(os.fspath(out), settings) if out is not None else None
        report = CaptionReport(model=captioner.name, column=column)
        run = _Run(captioner, images, report, table)
        on_start(images.total, images.passed_over)
        try:
            for good, bad in batches(run.prepared(pool, seed), batch_size, set()):
                texts = caption_pairs(captioner, good, captions, seed) if good else []
                for row in run.finish(good, texts, bad):
                    on_row(row)
                on_progress(len(good) + len(bad) + run.take_kept())
            on_progress(run.take_kept())
        finally:
            if table is not None:
                table.close()
    if table is not None:
        report.left_over = table.left_over
    return report


class _Run:
    """The images on their way to rows."""

    def __init__(
        self,
        captioner: Captioner | OwnCaptioner,
        images: Images,
        report: CaptionReport,
        table: CaptionTable | None,
    ) -> None:
        self.captioner, self.images, self.report, self.table = captioner, images, report, table
        self._facts: dict[str, Row] = {}
        """The row of each image that is not captioned yet, without captions."""
        self._images: dict[str, ImageFile] = {}
        """The file of each, as it was before it was read."""
        self._seen: set[str] = set()
        self._kept = 0

    def prepared(self, pool: Workers, seed: int) -> Iterator[tuple[Pair | Bad, Prepared | Bad]]:
        """Yield the images that an earlier run did not caption, decoded for the captioner."""
        one = self.captioner
        plan = Plan(
            augmentation=Augmentation.from_config({"center_crop": {"size": 8}}),  # none is made
            augmentations=0,
            seed=seed,
            teachers=(),
            captioners=() if isinstance(one, OwnCaptioner) else (one.transform,),
        )
        return pool.map(completed(self._new(), self.images.options.fetch), plan)

    def _new(self) -> Iterator[Pair | Bad | Draft]:
        for item in self.images.drafts():
            if isinstance(item, Bad):
                # A reader's duplicate has the uid of the first one, which may be on its way.
                again = item.uid in self._seen
                yield Bad(uid=_again(item.uid), reason=item.reason) if again else item
                continue
            pair = item.pair if isinstance(item, Draft) else item
            if pair.uid in self._seen:
                again_at = source_of(item) or _again(pair.uid)
                yield Bad(uid=again_at, reason="duplicate uid; the first one was kept")
            else:
                self._seen.add(pair.uid)
                facts = self._facts_of(pair, source_of(item))
                if self.table is not None:
                    image = self._images[pair.uid] = ImageFile.of(item)
                    if self.table.finished(facts, image):
                        self._kept += 1
                        del self._images[pair.uid]
                        continue
                self._facts[pair.uid] = facts
                yield item

    def finish(
        self,
        good: Sequence[tuple[Pair, Prepared]],
        texts: Sequence[Sequence[str]],
        bad: Sequence[Bad],
    ) -> Iterator[Row]:
        """Yield the rows of captioned images, and note the bad ones."""
        for (pair, _), new in zip(good, texts, strict=True):
            row = {**self._facts.pop(pair.uid), self.report.column: texts_of(new)}
            self.report.count += 1
            if self.table is not None:
                image = self._images.pop(pair.uid)
                self.table.add(row, image.facts(digest_of(pair.image or b"")))
            else:
                self.report.rows.append(row)
            yield row
        for one in bad:
            facts = self._facts.get(one.uid, {})
            name = facts.get("path") or facts.get("url") or one.uid
            reason = one.reason.removeprefix("image bytes: ").removeprefix(f"{name}: ")
            if self.table is not None and self.table.drop(one.uid) and facts:
                reason += " (its captions of an earlier run are kept)"
            self.report.bad.append(Bad(uid=name, reason=reason))

    def take_kept(self) -> int:
        """Return the number of images of an earlier run that were met since the last call."""
        new, self._kept = self._kept, 0
        self.report.kept += new
        self.report.count += new
        return new

    def _facts_of(self, pair: Pair, source: str) -> Row:
        own = {key: texts_of(texts) for key, texts in pair.captions.items()}
        if self.report.column in own:
            raise ConfigError(
                f"{pair.uid} has captions under {self.report.column} already: choose another column"
            )
        table = None if self.table is None else self.table.path
        return {"uid": pair.uid, **place_of(source, pair.url, table), **own}


def _again(uid: str) -> str:
    return f"{uid} (again)"
