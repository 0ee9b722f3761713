"""A model to an ONNX bundle without torch: its graphs are written from its weights.

    convert(read_stored(resolve_model("mobileclip2-s0")), "s0/")

The bundle carries its own check. Beside each tower, fused, the unfused one is written from the same
weights: batch normalisation, branches and layer scales are nodes of their own, as in training. Both
embed the package's photographs and captions, the unfused tower in full length, one input at a time,
and in ONNX Runtime without optimisations. A tower beyond its gate (`gates.py`) is refused, and no
bundle is written.

One tower is in memory at a time.

Shapes: B batch, N photographs or captions, T tokens, D embedding.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices, zoo
from pocketclip._version import __version__
from pocketclip.embeddings import check_lengths
from pocketclip.errors import EmbeddingError, ExportError, last_line
from pocketclip.graph.build import write_tower
from pocketclip.graph.ports import Kind
from pocketclip.images import open_image
from pocketclip.infer.backends import BACKENDS, plain_onnx_session, text_batches
from pocketclip.infer.bundle import (
    TOKENIZER,
    TOWERS,
    Bundle,
    check_runtime_path,
    own_files,
    read,
    unwritten_bundle,
    write_manifest,
)
from pocketclip.infer.comparison import (
    CAPTIONS,
    compare,
    judge_backends,
    median_ms,
    own_photos,
    store_check_frame,
    until_verified,
)
from pocketclip.license import License, write_entry
from pocketclip.preprocess import Preprocess
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.storage.local import OwnFiles, files_in, refuse_others, write_whole_folder
from pocketclip.tokenizer import Tokenizer, portable
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.checkpoint.stored import StoredModel

PRECISIONS = ("fp32", "fp16")
Attempt = Callable[[Path, Mapping[str, Any], ProgressReporter], Mapping[str, Any]]
"""Writes both towers to a folder, given the manifest so far; returns their entries of it."""
_TEXTS_PER_CALL = 4
SCRATCH = "float-"
"""Beginning of the names of files that an attempt leaves for the next one; they are removed."""
_UNFUSED = "unfused-"
_COMPARED = {
    False: "the unfused towers, written from the same weights and run without optimisations",
    True: "the towers as their fused weights are, run without optimisations",
}
"""What the towers are compared with, by whether the weights are fused already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReference:
    """What a conversion is compared with: inputs, and their embeddings by the unfused towers."""

    pixels: NDArray[np.float32]
    """Preprocessed photographs (N, 3, S, S)."""
    images: list[NDArray[np.uint8]]
    """The photographs themselves, each (H, W, 3)."""
    ids: NDArray[np.int64]
    """Token ids (N, T) of captions, in the full context length."""
    expected: Mapping[str, Embeddings]
    """Embeddings (N, D) by tower."""
    described: str
    """How they were computed."""


def convert(
    stored: StoredModel,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    normalize: bool = False,
    preprocessing: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
    about: Mapping[str, Any] | None = None,
    replaceable: OwnFiles = own_files,
    attempts: Sequence[Attempt] = (),
    before_keeping: Callable[[], object] = lambda: None,
    license: License | None = None,
) -> Bundle:
    """Write a model as an ONNX bundle, verified, without torch.

    Args:
        stored: the model, as `pocketclip.checkpoint.stored.read_stored` returns it.
        out: the bundle's folder: new, empty, or an older bundle, which is replaced.
        precision: one of `PRECISIONS`; `fp16` stores the weights in half the space, and computes in
            float32.
        normalize: both towers return unit embeddings.
        preprocessing: put the evaluation transform into the image tower's graph.
        reporter: receives one sentence per step.
        about: further entries of `bundle.json`, such as `source`.
        replaceable: returns the files of an older folder that may be replaced.
        attempts: other ways to write both towers, in `precision`; the first that is within the
            gates is kept.
        before_keeping: called when the new bundle is complete and verified, before it replaces an
            older one; if it raises, nothing is kept.
        license: of the weights; None for the one that the model says.

    Raises:
        ExportError: no such precision; `out` holds something else; the weights are not usable.
        DriftError: a tower does not compute what the weights do.
        CheckpointError: the weights are damaged.
        OSError: the disk is full or the folder is not writable.
    """
    if precision not in PRECISIONS and not attempts:
        raise ExportError(f"a conversion is {' or '.join(PRECISIONS)}, not {precision!r}")
    path, report = Path(out), as_reporter(reporter)
    check_runtime_path(path)
    refuse_others(path, replaceable, ExportError)
    image_input = "photo" if preprocessing else "preprocessed"
    manifest = {
        "pocketclip": __version__,
        "space_id": stored.identity.space_id,
        "model": zoo.to_dict(stored.config),
        "logit_scale": _scale(stored),
        "target": "onnx",
        "precision": precision,
        "image_input": image_input,
        "normalized": normalize,
        **(about or {}),
    }
    with write_whole_folder(path, replaceable) as folder:
        (folder / TOKENIZER).write_text(portable(stored.config.text.context_length), "utf-8")
        report.stage("computing the embeddings to compare with")
        reference = embed_by_weights(stored, folder)

        def write_and_check(attempt: Attempt) -> dict[str, Any]:
            manifest.update(attempt(folder, manifest, report))
            report.stage("comparing them with the unfused towers")
            return check(unwritten_bundle(folder, manifest), reference)

        ways = list(attempts) or [functools.partial(_write_towers, stored)]
        manifest["verification"] = until_verified(
            [functools.partial(write_and_check, attempt) for attempt in ways], report
        )
        remove_scratch(folder)
        manifest["check"] = store_check_frame(unwritten_bundle(folder, manifest))
        licence = write_entry(stored.license if license is None else license, folder)
        if licence is not None:
            manifest["licence"] = licence
        write_manifest(folder, manifest, files_in(folder))
        before_keeping()
    return read(path)


def _write_towers(
    stored: StoredModel, folder: Path, manifest: Mapping[str, Any], reporter: ProgressReporter
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for kind in TOWERS:
        reporter.stage(f"writing the {kind} tower")
        entries[kind] = write_tower(
            stored.weights, stored.config, kind, folder / f"{kind}.onnx",
            precision="fp16" if manifest["precision"] == "fp16" else "fp32",
            normalize=manifest["normalized"],
            pixels="photo" if manifest["image_input"] == "photo" else "preprocessed",
        )  # fmt: skip
    return entries


def remove_scratch(folder: Path) -> None:
    """Remove the files that attempts left for the next one."""
    for file in folder.glob(f"{SCRATCH}*"):
        file.unlink()


def _scale(stored: StoredModel) -> float:
    try:
        return stored.logit_scale
    except EmbeddingError as error:
        raise ExportError(f"the model itself is not usable: {error}") from error


def check(bundle: Bundle, reference: WeightReference) -> dict[str, Any]:
    """Compare a bundle's towers with the weights that they were written from.

    Returns:
        The entries of `judge_backends`; and `compared_with`, `photographs` and `captions`.

    Raises:
        DriftError: the result of ONNX Runtime is beyond the gate; the message gives the figures.
    """

    def measure(backend: str) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for kind in TOWERS:
            embeddings, ms = _by_bundle(bundle, backend, kind, reference)
            figures[kind] = compare(embeddings, reference.expected[kind])
            if kind == "image":
                figures["ms"] = ms
        return figures

    return {
        "compared_with": reference.described,
        "photographs": len(reference.pixels),
        "captions": len(reference.ids),
        **judge_backends(
            bundle,
            measure,
            f"the converted {bundle.config.name} does not compute what its weights do; nothing was "
            "kept",
        ),
    }


def embed_by_weights(stored: StoredModel, folder: Path) -> WeightReference:
    """Embed the package's photographs and captions with the unfused towers, one by one.

    Args:
        stored: the model; a fused one has no unfused towers, and its own are run.
        folder: where each tower is written for a moment.

    Raises:
        ExportError: an embedding is zero or not finite.
    """
    photos = own_photos()
    preprocess = Preprocess(stored.config.preprocess)
    pixels = np.stack([preprocess(photo) for photo in photos])
    # One caption is too long on purpose.
    ids = Tokenizer(warn=False)(list(CAPTIONS), stored.config.text.context_length)
    names = {"image": [f"photograph {n + 1}" for n in range(len(photos))], "text": CAPTIONS}
    expected: dict[str, Embeddings] = {}
    for kind in TOWERS:
        rows = pixels if kind == "image" else ids
        embeddings = _run_plain(stored, kind, folder / f"{_UNFUSED}{kind}.onnx", rows)
        try:
            check_lengths(embeddings, names[kind].__getitem__)
        except EmbeddingError as error:
            raise ExportError(f"the model itself is not usable: {error}") from error
        expected[kind] = embeddings
    return WeightReference(
        pixels=pixels,
        images=[np.asarray(open_image(photo)) for photo in photos],
        ids=ids,
        expected=expected,
        described=_COMPARED[stored.is_fused],
    )


def _run_plain(stored: StoredModel, kind: Kind, path: Path, rows: NDArray[Any]) -> Embeddings:
    """Return embeddings (N, D) of an unfused tower, which is written, run and removed."""
    try:
        write_tower(stored.weights, stored.config, kind, path, fuse=False)
        try:
            session = plain_onnx_session(os.fspath(path), devices.cores())
            name = session.get_inputs()[0].name
            return np.concatenate([session.run(None, {name: row[None]})[0] for row in rows])
        except Exception as error:  # runtimes raise exceptions of any type
            raise ExportError(
                f"ONNX Runtime cannot run the {kind} tower of {stored.config.name}: "
                f"{last_line(error)}"
            ) from error
    finally:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


def _by_bundle(
    bundle: Bundle, backend: str, kind: str, reference: WeightReference
) -> tuple[Embeddings, float]:
    """Return embeddings (N, D) of a bundle's tower, and milliseconds per call with one input."""
    running = BACKENDS[backend](bundle, devices.cores())
    run = running.image if kind == "image" else running.text
    batches = list(_batches(bundle, kind, reference))
    out = np.empty((sum(len(rows) for rows, _ in batches), bundle.config.embed_dim), np.float32)
    for rows, batch in batches:
        found = run(batch)
        if found.shape != (len(rows), out.shape[1]):
            raise ExportError(f"the {kind} tower returns embeddings {found.shape}")
        out[rows] = found
    return out, median_ms(lambda: run(batches[0][1][:1])) if kind == "image" else 0.0


def _batches(
    bundle: Bundle, kind: str, reference: WeightReference
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Yield rows and their inputs, batched and trimmed as an `Encoder` does."""
    if kind == "image":
        if bundle.image_input == "photo":
            yield from (([row], image[None]) for row, image in enumerate(reference.images))
        else:
            yield list(range(len(reference.pixels))), reference.pixels
        return
    trims = bundle.config.text.ignores_padding
    for rows, batch in text_batches(reference.ids, _TEXTS_PER_CALL, ignores_padding=trims):
        yield rows.tolist(), batch
