"""A published model as a bundle, without torch: fetched, converted and kept.

    bundle = pull("mobileclip2-s0")
    pocketclip.load("mobileclip2-s0")  # without torch, runs it

The bundle is kept in the user's cache (`pocketclip.infer.model_cache`), or elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.checkpoint import hub
from pocketclip.checkpoint.hub import RemoteFile
from pocketclip.checkpoint.resolve import MANIFEST, ModelSource, resolve_model
from pocketclip.checkpoint.stored import StoredModel, expected_name, fetch_source
from pocketclip.errors import ConfigError, ExportError, HubError, count_of
from pocketclip.export import onnx
from pocketclip.export.job import check_calibration
from pocketclip.export.tower_files import TowerFiles, calibration_rows
from pocketclip.export.towers import GraphTowers
from pocketclip.graph.build import Pixels
from pocketclip.images import open_image
from pocketclip.infer import bundle as bundles
from pocketclip.infer.bundle import TOWERS, Bundle, check_runtime_path, own_files, read
from pocketclip.infer.comparison import CAPTIONS
from pocketclip.infer.convert import Attempt
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLDS
from pocketclip.infer.model_cache import Place, find, hub_place, local_place, shown
from pocketclip.infer.ready import (
    KINDS,
    Weights,
    confirm,
    convert_weights,
    damage_of,
    fetch_weights,
    hub_weights,
    keep,
)
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.storage.local import digest_file, files_in, refuse_others, write_whole_folder

PRECISIONS = ("fp32", "fp16", "int8")


def pull(
    model: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    precision: str = "fp32",
    calibration: Sequence[Any] = (),
    out: str | os.PathLike[str] | None = None,
    preprocessing: bool = False,
    normalize: bool = False,
    revision: str | None = None,
    offline: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> Bundle:
    """Fetch a model, convert it to an ONNX bundle without torch, and keep it.

    The hub is asked whether the revision has moved. A bundle that is there already, of the same
    weights in the same precision, is left as it is. In the user's cache there is one bundle per
    model and revision: another precision replaces it.

    Args:
        model: a MODEL argument: a zoo name, a hub id, a weight file or a checkpoint.
        model_name: the zoo name of a weight file that does not name its model itself.
        precision: `fp32`; `fp16`, which halves the file and is as fast; or `int8`.
        calibration: photographs like those to be used later, with which int8 is calibrated.
        out: the folder to write the bundle to; None: the user's cache, where every verb and
            `pocketclip.load` find it in an install without torch.
        preprocessing: put the evaluation transform into the image tower's graph; needs `out`.
        normalize: both towers return unit embeddings; needs `out`.
        revision: of a repository on the hub: a branch, a tag or a commit; None for `main`.
        offline: make no request.
        reporter: receives the steps.

    Raises:
        ConfigError: not a model that can be converted.
        ExportError: no such precision; too few photographs to calibrate with; `preprocessing` or
            `normalize` without `out`; `out` holds something else.
        DriftError: the converted model does not compute what its weights do.
        HubError: the weights could not be fetched, and are not here.
        CheckpointError: they are damaged or do not fit.
        StorageError: the cache is full or not writable.
    """
    report = as_reporter(reporter)
    source = resolve_model(model, revision=revision)
    _check(source, precision, len(calibration))
    if out is None and (preprocessing or normalize):
        raise ExportError(
            "the bundles in the user's cache are plain: give --out DIR for one with "
            "--preprocessing or --normalize"
        )
    folder = None if out is None else _checked_folder(Path(out))
    if source.note:
        report.remark(source.note)
        source = replace(source, note="")
    name = expected_name(source, model_name)
    more = {"calibration": _describe(calibration)} if precision == "int8" else {}

    pixels: Pixels = "photo" if preprocessing else "preprocessed"

    def accepts(bundle: Bundle) -> bool:
        return (bundle.precision, bundle.image_input, bundle.normalized) == (
            precision, pixels, normalize,
        ) and bundle.source.get("calibration") == more.get("calibration")  # fmt: skip

    def attempts_of(stored: StoredModel) -> Sequence[Attempt]:
        if precision != "int8":
            return ()
        towers = GraphTowers(
            weights=stored.weights, config=stored.config, pixels=pixels, normalized=normalize
        )
        return _int8_attempts(towers, calibration, report)

    remote = _ask(source, name, accepts, report, offline=offline)
    place = _place(source, name, remote)
    if place is not None:
        there = _already_there(place, folder, accepts, report)
        if there is not None:
            return there
    weights = _weights(source, name, remote, offline=offline or source.kind == "hub")

    def write(to: Path) -> Bundle:
        files = files_in if folder is None else own_files
        return convert_weights(
            weights, to, report, precision=precision, preprocessing=preprocessing,
            normalize=normalize, replaceable=files, more=more, attempts_of=attempts_of,
        )  # fmt: skip

    if folder is not None:
        return write(folder)
    before = weights.place.read()
    if before is not None and not accepts(before):
        same = " with other photographs" if before.precision == precision else ""
        report.remark(f"this replaces {weights.place.title} in {before.precision}{same}")
    return keep(weights, write, accepts=accepts, reporter=report)


def _check(source: ModelSource, precision: str, calibration: int) -> None:
    if source.kind == "bundle":
        raise ConfigError(f"{source.text} is a bundle already: use it as it is")
    if source.kind not in KINDS:
        raise ConfigError(
            f"{source.text}: a published model, a weight file or a checkpoint can be pulled, not "
            f"models of {source.kind}"
        )
    if precision not in PRECISIONS:
        raise ExportError(
            f"unknown precision {precision!r}; a pulled model has {', '.join(PRECISIONS)}"
        )
    if precision != "int8" and calibration:
        raise ExportError("photographs to calibrate with are for --precision int8")
    if precision == "int8":
        check_calibration(calibration)


def _checked_folder(folder: Path) -> Path:
    check_runtime_path(folder)
    refuse_others(folder, own_files, ExportError)
    return folder


def _ask(
    source: ModelSource,
    name: str | None,
    accepts: Callable[[Bundle], bool],
    reporter: ProgressReporter,
    *,
    offline: bool,
) -> RemoteFile | None:
    """Return what the hub has now; None if it is not asked, or does not answer and need not.

    Raises:
        HubError: it does not answer, and neither a bundle nor the weights are here.
    """
    if source.kind != "hub" or hub.is_offline(offline):
        return None
    reporter.stage(f"asking the hub for {source.target}")
    # Of repositories with the same weights, one that is here already need not be downloaded.
    repos = sorted(source.repos, key=lambda repo: not _is_here(source, name, repo))
    try:
        return hub.ask(repos, revision=source.revision)
    except HubError as error:
        found = find(source, name)
        if found is None or not accepts(found):
            try:
                fetch_source(source, offline=True)
            except HubError:
                raise error from None
        reporter.remark(f"using what is here, which may not be the latest: {error}")
        return None


def _is_here(source: ModelSource, name: str | None, repo: str) -> bool:
    cached = hub.cached(repo, revision=source.revision)
    return cached is not None or find(replace(source, repos=(repo,)), name) is not None


def _place(source: ModelSource, name: str | None, remote: RemoteFile | None) -> Place | None:
    """Return the place of the model's bundle, as far as it is known before the weights are here."""
    if source.kind != "hub":
        return local_place(source, name)
    if remote is not None and remote.commit is not None:
        return hub_place(source, name, remote.repo, remote.commit)
    found = find(source, name)
    return None if found is None else hub_place(source, name, **_origin(found))


def _origin(bundle: Bundle) -> dict[str, str]:
    return {"repo": str(bundle.source["repo"]), "commit": str(bundle.source["revision"])}


def _already_there(
    place: Place,
    folder: Path | None,
    accepts: Callable[[Bundle], bool],
    reporter: ProgressReporter,
) -> Bundle | None:
    """Return the bundle if it is where it is wanted already, or can be copied there."""
    if folder is not None:
        there = _read_at(place, folder)
        if there is not None and accepts(there):
            reporter.remark(f"{place.title} is in {folder} already, in {there.precision}")
            return there
    kept = confirm(place, accepts)
    if kept is None:
        return None
    if folder is None:
        reporter.remark(f"{place.title} is ready already, in {kept.precision}")
        return kept
    reporter.stage(f"copying it from {shown(kept.folder)}")
    with write_whole_folder(folder, own_files) as temporary:
        for file in (MANIFEST, *kept.files):
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept.folder / file, temporary / file)
        bundles.read(temporary).check()  # another process may have replaced it meanwhile
    return read(folder)


def _read_at(place: Place, folder: Path) -> Bundle | None:
    """Return the intact bundle of a place's model in another folder, or None."""
    found = Place(title=place.title, folder=folder, origin=place.origin).read()
    return None if found is None or damage_of(found) is not None else found


def _weights(
    source: ModelSource, name: str | None, remote: RemoteFile | None, *, offline: bool
) -> Weights:
    if remote is None:
        return fetch_weights(source, name, offline=offline)
    return hub_weights(source, name, hub.download(remote, source.revision))


def _describe(photos: Sequence[Any]) -> dict[str, Any]:
    """Return the number of photographs and a hash of their contents."""
    total = hashlib.sha256()
    for photo in photos:
        if isinstance(photo, bytes):
            digest = hashlib.sha256(photo).hexdigest()
        elif isinstance(photo, (str, os.PathLike)):
            try:
                digest = digest_file(Path(photo))
            except OSError:  # the calibration names it and leaves it out
                digest = os.fspath(photo)
        else:
            digest = hashlib.sha256(np.asarray(open_image(photo)).tobytes()).hexdigest()
        total.update(f"{digest}\n".encode("utf-8", "surrogateescape"))
    return {"photographs": len(photos), "sha256": total.hexdigest()}


def _int8_attempts(
    towers: GraphTowers, photos: Sequence[Any], reporter: ProgressReporter
) -> list[Attempt]:
    """Return the ways to quantise a model, each with more layers in higher precision.

    Raises:
        ExportError: too few photographs can be read.
    """
    reporter.stage(f"preparing {count_of(len(photos), 'photograph')} to calibrate with")
    rows = calibration_rows(towers, photos, CAPTIONS, reporter)
    check_calibration(len(rows["image"]))

    def attempt(
        threshold: float, folder: Path, manifest: Mapping[str, Any], report: ProgressReporter
    ) -> dict[str, Any]:
        files = TowerFiles(onnx, folder, towers, rows, {}, manifest)
        files.write(threshold, report)
        return {kind: files.about[kind] for kind in TOWERS}

    return [functools.partial(attempt, threshold) for threshold in INT8_SEARCH_THRESHOLDS]
