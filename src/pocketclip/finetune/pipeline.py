"""`pocketclip finetune`: from a published model to a better one of the user's own images.

    result = finetune("mobileclip2-s0", "shelf/", "runs/shelf")

The steps, each of which resumes: read and split the images; score the start; store augmented views
with the start's embeddings (and a larger teacher's); try learning rates; train; score
the models between start and end; write the best one. The start's affinities between the user's
images and captions about other things are distilled (MobileCLIP's loss, arXiv 2311.17049, equation
2, with the start as the teacher), and weights are interpolated between start and end (WiSE-FT,
arXiv 2109.01903), so that what the start knew is kept.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import checkpoint, storage
from pocketclip.checkpoint import resolve
from pocketclip.errors import ConfigError, DataError, count_of
from pocketclip.export.job import check as check_export
from pocketclip.export.job import export as export_bundle
from pocketclip.finetune import interpolate, teaching
from pocketclip.finetune.commands import next_commands
from pocketclip.finetune.details import describe_labels
from pocketclip.finetune.finetune_run import (
    DATA,
    SHARDS,
    STEPS,
    FinetuneRun,
    Options,
    validation_share,
)
from pocketclip.finetune.own_images import OwnImages, digest, only, read_images
from pocketclip.finetune.own_shards import (
    is_reinforced,
    read_shards,
    split_shards,
    with_validation_images,
)
from pocketclip.finetune.rates import choose_rate
from pocketclip.finetune.report import finetune_page
from pocketclip.finetune.retention import Retention
from pocketclip.finetune.start import open_start
from pocketclip.finetune.tables import IMAGES, VALIDATION, write_tables
from pocketclip.finetune.training import reinforce, train_recipe, training_images
from pocketclip.finetune.validation import Validation, training_pixels
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.pairs.split import hold_out
from pocketclip.pipeline_folder import MODEL
from pocketclip.progress import ProgressReporter
from pocketclip.train.recipe_settings import parse_settings

_ROUNDING = 1e-6
FEW = 30
"""Below this number of validation images their score is called rough."""
log = logging.getLogger(__name__)


def finetune(
    model: str,
    data: str,
    out: str | Path,
    options: Options | None = None,
    *,
    export: Sequence[str] = (),
    offline: bool = False,
    workers: int | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Make a model better on the user's own images, and keep what it knew.

    Args:
        model: the MODEL to start from, with trainable weights.
        data: a folder with one sub-folder per label, a table with labels or captions, or a folder
            of images; see `own_images`.
        out: the output folder; a second call with the same arguments resumes an interrupted one.
        options: how to fine-tune.
        export: bundles to make of the result, by format: `onnx`, `openvino`, ...
        offline: take models from the local cache only.
        workers: decode processes; None chooses a number for the machine.
        reporter: receives the progress.

    Returns:
        The contents of `result.json`.

    Raises:
        ConfigError, DataError: bad settings, images that cannot be used, or a folder that holds
            something else.
        PocketclipError: the start cannot be trained, or a step failed.
    """
    options = (options or Options()).checked()
    reporter = reporter or ProgressReporter()
    reporter.stage("reading the model and the images")
    for target in export:
        check_export(target, "fp32", Path(out) / target)
    start = open_start(model, offline=offline)
    own = _read(data, options)
    if own.kind == "none" and not (options.captioner or options.teachers):
        raise DataError(
            f"{data} has images without labels or captions: pass --teacher MODEL to learn from "
            "what a larger model says of them, or --captioner MODEL to have captions written first"
        )
    _refuse_inside(out, data)
    settings: dict[str, Any] = {
        "model": resolve.absolute(model),
        "space_id": start.space_id,
        "data": data if storage.is_remote(data) else str(Path(data).resolve()),
        "images": digest(own),
        **_json(options),
    }
    settings = json.loads(json.dumps(settings))  # as a resumed call reads them: lists, no tuples
    run = FinetuneRun(
        out=Path(out), settings=settings, reporter=reporter, workers=workers, options=options,
        start=start, own=own, offline=offline, teachers=list(options.teachers),
    )  # fmt: skip
    train_recipe(run, len(own))  # refuses wrong settings before there is a folder
    with run.claim_folder():
        _run(run, export)
    return run.result


def _read(data: str, options: Options) -> OwnImages:
    """Return the user's images.

    Raises:
        DataError: they cannot be used.
        ConfigError: options that do not go with reinforced shards.
    """
    if not is_reinforced(data):
        return read_images(data, options.images, unlabelled=options.unlabelled)
    wrong = {
        "--teacher": options.teachers, "--captioner": options.captioner,
        "--unlabelled": options.unlabelled, "--label-column": options.images.label_column,
        "--caption-column": options.images.caption_column, "--where": options.images.where,
    }  # fmt: skip
    for name, value in wrong.items():
        if value:
            raise ConfigError(
                f"{name} does not go with reinforced shards, whose captions and teachers are "
                f"stored: give the images that {data} was made from, or leave it out"
            )
    return read_shards(data)


def _json(options: Options) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    values["settings"] = parse_settings(options.settings)
    values["captioner"] = options.captioner and resolve.absolute(options.captioner)
    values["teachers"] = [resolve.absolute(spec) for spec in options.teachers]
    values["keep"] = options.keep and storage.absolute(options.keep)
    images = values.pop("images")
    return {**{f"images.{k}": list(v) if isinstance(v, tuple) else v for k, v in images.items()},
            **values}  # fmt: skip


def _refuse_inside(out: str | Path, data: str) -> None:
    """Refuse an output folder whose files would be read as the user's images when resumed."""
    if storage.is_remote(data) or not Path(data).is_dir():
        return
    if Path(out).resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(
            f"{out} is inside {data}, so its files would be taken for your images: choose an --out "
            "outside of it"
        )


def _run(run: FinetuneRun, export: Sequence[str]) -> None:
    options, result = run.options, run.result
    result |= {"model": run.settings["model"], "data": run.own.source, "out": str(run.out)}
    result["warnings"] = []
    if run.own.kind == "none":
        _add_captions(run)
    with run.timed("data", f"splitting {count_of(len(run.own), 'image')}"):
        held_out, counts = _split(run)
    validation = Validation(run.out / DATA / VALIDATION, run.metric)
    result |= {"task": run.own.kind, "metric": run.metric, "counts": counts}
    for warning in _warnings(run, counts):
        run.warn(warning)
    with run.timed("start", "scoring the start"):
        retention = validation.retention(run.start, options.keep)
        before = float(run.recorded("start", lambda: validation.score(run.start)))
    result["retention"] = {"name": retention.name, "least": options.least_retention}
    run.teachers = _choose_teachers(run)
    if run.own.is_shards:
        result["shards"] = result["stored"]
    else:
        with run.timed("reinforce", "storing augmented views and embeddings"):
            result["shards"] = reinforce(run)
        counts["left_out"] += result["shards"]["left_out"]
    recipe, trials, why = choose_rate(
        run, train_recipe(run, counts["train"]), validation, retention
    )
    result["training"] = {
        "preset": options.preset, "steps": recipe.steps, "batch_size": recipe.batch_size,
        "lr": recipe.optimizer.lr, "lr_note": why,
        "rates": [dataclasses.asdict(trial) for trial in trials],
        "balance": recipe.data.balance, "views": options.views, "seed": options.seed,
        "captioners": [options.captioner] if options.captioner else [],
        "teachers": run.teachers, "self_distillation": run.distils_start,
    }  # fmt: skip
    with run.timed("train", f"training ({options.preset}), at most {recipe.steps} steps"):
        summary = run.train_run(options.preset, recipe, None)
    assert summary.model is not None
    result["training"]["steps_done"] = summary.step
    images, texts = training_images(run)
    way = interpolate.Way(
        run.start, checkpoint.load(summary.model),
        training_pixels(images, run.start.config.preprocess), texts=texts or None,
    )  # fmt: skip
    with run.timed("line", "scoring the models between start and end"):
        points = _line(run, way, before, validation, retention)
    best = interpolate.choose(points, options.least_retention)
    scored = [dataclasses.asdict(point) for point in points]
    result["line"] = scored if options.interpolation else []
    result["chosen"] = {"a": best.a}
    result["candidates"] = _candidates(points, best)
    result["verdict"] = _verdict(best, points[0], result)
    chosen = way.at(best.a)
    with run.timed("model", "writing the model"):
        checkpoint.save(chosen, run.out / MODEL)
    result["exports"] = _export(run, chosen, export)
    if run.own.kind != "none" and run.own.labels is not None:
        with run.timed("details", "looking at the labels one by one"):
            shown = only(run.own, held_out) if run.own.is_shards else run.own
            held = held_out[held_out] if run.own.is_shards else held_out
            result |= describe_labels(shown, held, run.start, chosen)
    result["next"] = next_commands(result)
    with run.timed("report", "writing the report"):
        page = finetune_page(result)
    run.finish(page)


def _add_captions(run: FinetuneRun) -> None:
    """Give images without texts the captions of the captioner, if there is one."""
    options, own = run.options, run.own
    if options.captioner:
        with run.timed("caption", f"captioning {count_of(len(own), 'image')}"):
            run.own = teaching.caption(
                own,
                options.captioner,
                run.out / STEPS / "captions.json",
                seed=options.seed,
                offline=run.offline,
                advance=lambda done, total: run.reporter.progress(done, total, "images"),
            )


def _split(run: FinetuneRun) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Hold out the validation images and write the tables; return (N,) which, and the counts."""
    own, options = run.own, run.options
    share = options.share if options.share is not None else validation_share(len(own))
    labels = None if own.labels is None else own.labels.tolist()
    held_out = hold_out(own.names, labels, share=share)
    counts = {
        "train": int((~held_out).sum()),
        "validation": int(held_out.sum()),
        "left_out": len(own.left_out),
    }
    if own.labels is not None:
        counts["classes"] = len(set(own.labels.tolist()))
        counts["unvalidated"] = counts["classes"] - len(set(own.labels[held_out].tolist()))
    if counts["validation"] < 2:
        raise DataError(
            f"{own.source}: {count_of(len(own), 'image')} with at most one per label leave none to "
            "validate on, and nothing would say whether the result is better: add images, or learn "
            "from these with `pocketclip fit`"
        )
    said = {}
    if own.is_shards:
        images = run.out / DATA / IMAGES
        run.result["stored"] = run.recorded(
            "split", lambda: split_shards(own, held_out, run.out / SHARDS, images)
        )
        run.own = own = with_validation_images(own, held_out, images)
    if own.kind == "none":
        chosen = [int(i) for i in np.flatnonzero(held_out)]
        said = run.recorded(
            "teacher",
            lambda: {
                own.names[i]: number
                for i, number in zip(
                    chosen,
                    teaching.labelled_by_teacher(
                        own, chosen, options.teachers, offline=run.offline
                    ),
                    strict=True,
                )
            },
        )
    bad = _unreadable(run, held_out)
    counts["left_out"] += len(bad)
    counts["validation"] -= len(bad)
    if bad:
        text = f"{count_of(len(bad), 'validation image')} left out, the first: {next(iter(bad))}: "
        run.warn(text + next(iter(bad.values())))
    counts["rows"] = write_tables(
        run.out / DATA, own, held_out, options.seed, said, generic=run.may_distil, unreadable=bad
    )
    return held_out, counts


def _unreadable(run: FinetuneRun, held_out: NDArray[np.bool_]) -> dict[str, str]:
    """Return why validation images cannot be read, by name; an evaluation would stop at them.

    Raises:
        DataError: fewer than two can.
    """
    own = run.own
    bad: dict[str, str] = run.recorded(
        "unreadable",
        lambda: {
            own.names[i]: reason
            for i in np.flatnonzero(held_out)
            if (reason := teaching.why_unreadable(own.images[i]))
        },
    )
    if bad and held_out.sum() - len(bad) < 2:
        raise DataError(f"{own.source}: fewer than 2 validation images can be read")
    return bad


def _choose_teachers(run: FinetuneRun) -> list[str]:
    """Return the teachers to distil: those that know clearly more of the images than the start."""
    options = run.options
    if run.own.is_shards:
        return list(run.result["stored"]["teachers"])
    if not options.teachers or run.own.kind == "none":
        return list(options.teachers)
    with run.timed("teacher check", "comparing the teacher with the start on your images"):
        value = run.recorded(
            "teachers",
            lambda: dataclasses.asdict(
                teaching.check(
                    run.start, options.teachers, run.own, seed=options.seed, offline=run.offline
                )
            ),
        )
    run.result["teachers"] = value
    for line in value["lines"]:
        run.reporter.stage(line)
    if not value["used"]:
        return []
    if options.self_distillation:
        note = (
            f"{', '.join(options.teachers)}: distilled in the place of the start: what the start "
            "knew is kept only by the choice of the model"
        )
        run.warn(note)
    return list(options.teachers)


def _warnings(run: FinetuneRun, counts: Mapping[str, int]) -> list[str]:
    warnings = []
    if run.own.is_shards and run.options.self_distillation:
        warnings.append(
            "the shards' stored teachers are distilled, not the start: what it knew is kept only "
            "by the choice of the model"
        )
    if counts["validation"] < FEW:
        warnings.append(
            f"{count_of(counts['validation'], 'image')} for validation: its scores are rough"
        )
    if counts.get("unvalidated"):
        warnings.append(
            f"{count_of(counts['unvalidated'], 'label has', 'labels have')} one image only, which "
            "is trained on: no image validates them"
        )
    if run.own.left_out:
        warnings.append(
            f"{count_of(len(run.own.left_out), 'image')} left out, the first: {run.own.left_out[0]}"
        )
    return warnings


def _line(
    run: FinetuneRun,
    way: interpolate.Way,
    before: float,
    validation: Validation,
    retention: Retention,
) -> list[interpolate.Point]:
    unchanged = way.end.space_id == way.start.space_id  # no checkpoint was better
    whole = run.options.interpolation and not unchanged
    points = interpolate.POINTS if whole else (0.0, 1.0)

    def score(a: float) -> dict[str, float]:
        point = interpolate.score(
            way, a,
            lambda model: before if a == 0 else validation.score(model),
            lambda model: retention.score(Encoder(model)),
        )  # fmt: skip
        return dataclasses.asdict(point)

    out = []
    for number, a in enumerate(points, 1):
        out.append(interpolate.Point(**run.recorded(f"line-{a:g}", partial(score, a))))
        run.reporter.progress(number, len(points), "models")
    return out


def _candidates(
    points: Sequence[interpolate.Point], best: interpolate.Point
) -> list[dict[str, Any]]:
    named = [("start", points[0]), ("trained", points[-1])]
    if best not in (points[0], points[-1]):
        named.append((f"between, {best.a:.0%} of the way", best))
    return [
        {"name": name, "validation": p.validation, "retention": p.retention,
         "chosen": p is best, "note": "model/" if p is best else ""}
        for name, p in named
    ]  # fmt: skip


def _verdict(best: interpolate.Point, start: interpolate.Point, result: Mapping[str, Any]) -> str:
    """Return in one sentence what `model/` is, and why."""
    metric = result["metric"]
    if best.a == 0:
        least = result["retention"]["least"]
        kept = f" and keeps {least:.0%} of what the start knew" if least else ""
        return f"the start itself: nothing that was tried has a better {metric}{kept}"
    what = "the trained model" if best.a == 1 else f"{best.a:.0%} of the way from start to end"
    return (
        f"{what}, {metric} {100 * start.validation:.1f} -> {100 * best.validation:.1f} % on the "
        f"validation images, {math.floor(100 * best.retention + _ROUNDING)} % of the start's "
        "knowledge kept"
    )


def _export(run: FinetuneRun, chosen: CLIP, targets: Sequence[str]) -> dict[str, str]:
    """Write a bundle per target; return their folders."""
    folders = {}
    for target in targets:
        with run.timed(f"export {target}", f"exporting to {target}"):
            export_bundle(chosen, run.out / target, target=target)
        folders[target] = str(run.out / target)
    return folders
