"""A static site: the camera page and models as files, for any web server.

    export_site(["phone-int8/"], "site/")
    export_web("mobileclip2-s0", "site/", calibration=photos, accept_license=True)

All addresses are relative, so that the site works below any path. Model files are compressed, since
most hosts do not compress them; pages inflate and verify them. A site is written whole or not at
all, and an older one is replaced if nothing was added to it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip import zoo
from pocketclip._version import __version__
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.devices import cores
from pocketclip.errors import ChangedBundleError, DataError, ExportError, ParseError
from pocketclip.export.job import MIN_CALIBRATION
from pocketclip.formats.json_text import read_json
from pocketclip.infer.bundle import Bundle, read
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.license import license_of_source, require_accepted
from pocketclip.infer.web_models import (
    FOLDER,
    SiteFile,
    WebModel,
    group_bundles,
    models_json,
    public_label_set,
    runtimes,
    slug,
)
from pocketclip.label_set import LabelSet, read_label_set
from pocketclip.license import FILE as LICENCE
from pocketclip.pages.offline import offline_files
from pocketclip.pages.presets import encode_presets, preset_prompts
from pocketclip.pages.web_files import NO_VENDOR, WebFiles, web_files, with_webgpu
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.storage.local import files_in, refuse_others, write_whole_folder
from pocketclip.storage.temporary import scratch_folder

MARKER = "pocketclip-site.json"
"""Names the files of a site, so that it can be replaced."""
PAGES = {"index": "camera", "camera": "camera", "classify": "classify"}
"""The pages of a site, and what they are."""
PRECISIONS = ("int8", "fp16", "fp32")
WEBGPU_PRECISIONS = ("fp16", "fp32")
_DOING = "handing them on with a web page"
_LEVEL = 9  # of compression
_CHUNK = 1 << 20
_DIGITS = 12  # of a hash, in addresses
_HEADER = 256  # bytes of an answer's header, about

Reporter = ProgressReporter | Callable[[str], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site that was written."""

    folder: Path
    models: tuple[WebModel, ...]
    bytes: int
    """Of all files."""
    first_visit: Mapping[str, int]
    """What a first visit of the camera page downloads, in bytes, by runtime: all pages and modules,
    which are kept for a visit without a network, the runtime, and of the first model the smallest
    image tower."""

    def facts(self) -> dict[str, Any]:
        """Return what it is, for JSON."""
        return {
            "site": str(self.folder), "bytes": self.bytes, "first_visit": dict(self.first_visit),
            "models": [
                {
                    "id": one.id, "model": one.bundles[0].config.name, "space_id": one.space_id,
                    "precisions": [bundle.precision for bundle in one.bundles],
                    "license": str(one.license),
                }
                for one in self.models
            ],
        }  # fmt: skip


def export_web(
    model: str | os.PathLike[str] | ModelSource,
    out: str | os.PathLike[str],
    *,
    further: Sequence[str | os.PathLike[str]] = (),
    precision: str | None = None,
    webgpu_precision: str | None = None,
    calibration: Sequence[Any] = (),
    label_sets: Mapping[str, str | os.PathLike[str]] | None = None,
    webgpu_runtime: str | os.PathLike[str] | None = None,
    accept_license: bool = False,
    model_name: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    reporter: Reporter = None,
) -> Site:
    """Write a static site with a model, which is converted if it is no bundle; without torch.

    Args:
        model: an ONNX bundle; or what is converted to one, a published model, a weight file or a
            checkpoint.
        out: the folder: new, empty, or an older site, which is replaced.
        further: more ONNX bundles, of the same or other models.
        precision: of a model that is converted: one of `PRECISIONS`; None for int8, which is the
            smallest, and runs on the processor.
        webgpu_precision: of a second copy of it, for WebGPU, which cannot run int8.
        calibration: photographs like those to be used later, with which int8 is calibrated.
        label_sets: files of `pocketclip fit`, by the names that people see.
        webgpu_runtime: see `pocketclip.pages.web_files.with_webgpu`.
        accept_license: whether the licences of the weights allow to hand them on.
        model_name: see `pocketclip.export.pull.pull`.
        revision: as `model_name`.
        offline: as `model_name`.
        reporter: receives the steps.

    Raises:
        ConfigError: a licence may forbid it, and was not accepted; or as `export_site`.
        ExportError: an argument does not fit the model; or as `export_site`.
        PocketclipError: the model cannot be fetched or converted.
    """
    if not isinstance(model, ModelSource):
        model = resolve_model(model, revision=revision)
    is_bundle = model.kind == "bundle"
    wanted = [] if is_bundle else _precisions(precision, webgpu_precision, len(calibration))
    if is_bundle and (calibration or precision or webgpu_precision):
        raise ExportError(
            f"{model.text} is a bundle, which is copied as it is: leave out photographs and "
            "precisions, and give further bundles"
        )
    if not is_bundle and not accept_license:  # before it is fetched
        require_accepted(license_of_source(model), False, doing=_DOING)
    _check(Path(out), webgpu_runtime)
    report = as_reporter(reporter)
    from pocketclip.export.pull import pull  # late: it needs the whole converter

    with scratch_folder("site") as folder:
        bundles: list[str | os.PathLike[str]] = [model.path] if model.path and is_bundle else []
        for one in wanted:
            pulled = pull(
                model.path or model.text, model_name=model_name, precision=one, out=folder / one,
                calibration=calibration if one == "int8" else (), revision=model.revision,
                offline=offline, reporter=report,
            )  # fmt: skip
            bundles.append(pulled.folder)
            if webgpu_precision is not None and zoo.is_sparse(pulled.config):
                raise ExportError(
                    f"WebGPU does not run the mixtures of experts of {pulled.config.name}: leave "
                    "its precision out"
                )
        return export_site(
            [*bundles, *further], out, label_sets=label_sets, webgpu_runtime=webgpu_runtime,
            accept_license=accept_license, reporter=report,
        )  # fmt: skip


def export_site(
    bundles: Sequence[Bundle | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    label_sets: Mapping[str, str | os.PathLike[str]] | None = None,
    webgpu_runtime: str | os.PathLike[str] | None = None,
    accept_license: bool = False,
    reporter: Reporter = None,
) -> Site:
    """Write a static site with ONNX bundles.

    Args:
        bundles: one or more; those of one embedding space are one model of the page.
        out: the folder: new, empty, or an older site, which is replaced.
        label_sets: as for `export_web`.
        webgpu_runtime: as for `export_web`.
        accept_license: as for `export_web`.
        reporter: receives the steps.

    Raises:
        BundleError: a bundle is damaged, or browsers cannot run it.
        ConfigError: a licence may forbid it, and was not accepted; the package was built without
            npm; or the runtime for WebGPU is another one.
        DataError: a label set is of none of the models.
        ExportError: there is no bundle, or `out` holds something else.
    """
    if not bundles:
        raise ExportError("a site needs a model: give an ONNX bundle")
    report = as_reporter(reporter)
    models = group_bundles(one if isinstance(one, Bundle) else read(one) for one in bundles)
    for model in models:
        require_accepted(model.license, accept_license, doing=_DOING)
    sets = [(name, read_label_set(path)) for name, path in (label_sets or {}).items()]
    for name, labels in sets:
        _check_label_set(name, labels, models)
    pages = _check(Path(out), webgpu_runtime).without_server(
        webgpu=any("webgpu" in runtimes(bundle) for model in models for bundle in model.bundles)
    )
    with write_whole_folder(out, own_files) as folder:
        entries = _write_models(folder, models, sets, report)
        report.stage("writing the pages")
        _write_pages(folder, pages)
        (folder / "models.json").write_bytes(models_json(entries))
        about = {
            "format": "pocketclip-site", "version": 1, "pocketclip": __version__,
            "files": sorted(files_in(folder)),
        }  # fmt: skip
        (folder / MARKER).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        total = sum((folder / name).stat().st_size for name in files_in(folder))
        first = _first_visit(folder, pages, entries[0])
    return Site(folder=Path(out), models=tuple(models), bytes=total, first_visit=first)


def own_files(folder: Path) -> set[str]:
    """Return the files of a site of ours; none if `folder` holds none."""
    try:
        raw = read_json(folder / MARKER)
        return {MARKER, *map(str, raw["files"])} if raw["format"] == "pocketclip-site" else set()
    except (OSError, ParseError, KeyError, TypeError):
        return set()


def _precisions(precision: str | None, webgpu: str | None, calibration: int) -> list[str]:
    """Return the precisions that a model is converted to.

    Raises:
        ExportError: there is no such precision, or too few photographs to calibrate with.
    """
    precision = precision or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; a site has {', '.join(PRECISIONS)}")
    if webgpu not in (None, *WEBGPU_PRECISIONS):
        raise ExportError(
            f"WebGPU cannot run {webgpu!r}: take {' or '.join(WEBGPU_PRECISIONS)} for it"
        )
    wanted = [precision]
    if webgpu is not None and webgpu != precision:
        wanted.append(webgpu)
    if "int8" in wanted and calibration < MIN_CALIBRATION:
        raise ExportError(
            "a site has its model in int8, which is calibrated with photographs like those that "
            f"will be used: give at least {MIN_CALIBRATION} with --calibration FOLDER, or take "
            "--precision fp16, which needs none and is about twice as large"
        )
    if "int8" not in wanted and calibration:
        raise ExportError("photographs to calibrate with are for int8: leave them out")
    return wanted


def _check(out: Path, webgpu_runtime: str | os.PathLike[str] | None) -> WebFiles:
    """Return the files of the pages, after checking that a site can be written at a place."""
    pages = web_files()
    if pages.vendor is None:
        raise ExportError(NO_VENDOR)
    refuse_others(out, own_files, ExportError)
    return (
        pages if webgpu_runtime is None else with_webgpu(pages, Path(webgpu_runtime), level=_LEVEL)
    )


def _check_label_set(name: str, labels: LabelSet, models: Sequence[WebModel]) -> None:
    for model in models:
        if model.space_id == labels.space_id:
            width = model.bundles[0].config.embed_dim
            labels.check_space(model.space_id, f"the label set {name}", embed_dim=width)
            return
    raise DataError(
        f"the label set {name} was fitted to {labels.model} ({labels.space_id}), which is not "
        "among the models of the site: give that model, or leave it out"
    )


def _write_models(
    folder: Path, models: Sequence[WebModel], sets: Sequence[tuple[str, LabelSet]],
    reporter: ProgressReporter,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write every file of the models, and return their entries of `models.json`."""
    named = [(name, labels, _label_set_file(name, labels)) for name, labels in sets]
    presets = {}
    for model in models:
        reporter.stage(f"embedding the presets for {model.id}")
        presets[model.id] = model.file("presets.json", _presets(model))
    reporter.stage("compressing the models")
    files = [file for model in models for file in model.files()]
    files += [*presets.values(), *(file for *_, file in named)]
    with ThreadPoolExecutor(cores()) as pool:  # zlib releases the interpreter lock
        packed = pool.map(lambda file: (file.url, _pack(file, folder)), files)
        stored = dict(packed)

    def placed(file: SiteFile) -> SiteFile:
        if file.name != LICENCE:
            return stored[file.url]
        assert isinstance(file.source, bytes)  # people read it, so it stays as it is
        _new(folder / file.url).write_bytes(file.source)
        return file

    return [
        model.entry(presets=presets[model.id], label_sets=named, stored=placed) for model in models
    ]


def _presets(model: WebModel) -> bytes:
    prompts = preset_prompts()
    encoder = Encoder(model.most_precise, "onnxruntime", memory_arena=False)
    return encode_presets(model.space_id, prompts, encoder.encode_text(prompts))


def _label_set_file(name: str, labels: LabelSet) -> SiteFile:
    content = public_label_set(labels)
    digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return SiteFile.of(f"label-sets/{digest}/{slug(name)}.json", content)


def _pack(file: SiteFile, folder: Path) -> SiteFile:
    """Compress a file into its place.

    Raises:
        ChangedBundleError: it is not the one that was exported.
    """
    target = _new(folder / f"{file.url}.gz")
    digest = hashlib.sha256()
    with target.open("wb") as raw, gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed:
        for chunk in _chunks(file.source):
            packed.write(chunk)
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        raise ChangedBundleError(
            f"{file.source!s} is not the file that was exported (its hash differs); export the "
            "bundle again"
        )
    return file.packed(target.stat().st_size)


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _write_pages(folder: Path, pages: WebFiles) -> None:
    for path in pages.files:
        _new(folder / path).write_bytes(pages.content(path))
    for path, content in offline_files(pages, server=False).items():
        _new(folder / path).write_bytes(content)
    for name, page in PAGES.items():
        (folder / f"{name}.html").write_text(pages.page(page, server=False), "utf-8")


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _first_visit(folder: Path, pages: WebFiles, model: Mapping[str, Any]) -> dict[str, int]:
    """Return `Site.first_visit`; the service worker fetches everything but models and runtimes."""
    kept = [
        name for name in files_in(folder)
        if not name.endswith(".gz") and not name.startswith(FOLDER) and name != MARKER
    ]  # fmt: skip
    always = sum((folder / name).stat().st_size + _HEADER for name in [*kept, "index.html"])
    always += model["presets"]["download_bytes"]
    found = {}
    for runtime, mark in (("wasm", "threaded.wasm"), ("webgpu", "asyncify.wasm")):
        towers = [
            sum(file["download_bytes"] for file in variant["image"]["files"])
            + (variant["check"]["pixels"]["download_bytes"] if variant["check"] else 0)
            for variant in model["variants"]
            if runtime in variant["runtimes"]
        ]
        engines = [
            int(about["download_bytes"])
            for name, about in pages.vendor_files.items()
            if mark in name
        ]
        if towers and engines:
            found[runtime] = always + sum(engines) + min(towers)
    return found
