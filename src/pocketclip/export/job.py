"""One export from beginning to end: towers, quantisation, verification, bundle.

    export(checkpoint.load("runs/small"), "phone/", target="openvino", precision="fp16")

A bundle appears at `out` whole and verified, or not at all.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices, zoo
from pocketclip._version import __version__
from pocketclip.errors import DriftError, ExportError, ImageError, MissingDependencyError
from pocketclip.export import quantize, verify
from pocketclip.export.towers import Pixels, Towers, prepare
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.infer.backends import RUNS, Run, TorchBackend
from pocketclip.infer.bundle import (
    TOKENIZER,
    TOWERS,
    Bundle,
    own_files,
    read,
    write_manifest,
)
from pocketclip.infer.encoder import Encoder
from pocketclip.preprocess import Preprocess
from pocketclip.storage.local import refuse_others, write_whole_folder
from pocketclip.tokenizer import Tokenizer, portable
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

TARGETS = ("onnx", "openvino", "coreml", "executorch", "litert")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "pal6")
ANY_SIZE = ("onnx", "openvino")
"""The targets whose graphs can hold the evaluation transform for photographs of any size."""
_CALIBRATED = ("onnx", "openvino", "executorch", "litert")
MIN_CALIBRATION = 16
_MAX_ROWS = 64
_COSINES = (0.995, 0.997, 0.9985, 0.9995)
"""What int8 is made to reach on the rows that it is calibrated with, one after the other: the gates
are asked of other photographs."""

_TEXTS = tuple(
    prompt.format(name)
    for prompt in ("a photo of {}.", "{}", "{} on a table, seen from above", "a drawing of {}")
    for name in ("a dog", "two children", "red apples", "the old town", "a cup", "snow", "bread")
)
"""What the text tower is calibrated with beside the captions that it is verified with."""

log = logging.getLogger(__name__)
Say = Callable[[str], None]
Accuracy = Callable[[Encoder], float]


def export(
    model: CLIP,
    out: str | os.PathLike[str],
    *,
    target: str,
    precision: str = "fp32",
    preprocessing: bool = False,
    normalize: bool = False,
    photos: Sequence[Any] = (),
    captions: Sequence[str] = (),
    calibration: Sequence[Any] = (),
    accuracy: Accuracy | None = None,
    say: Say = lambda _text: None,
    **options: Any,
) -> Bundle:
    """Export a model and verify what came out.

    Args:
        model: fused or not; unchanged.
        out: the bundle's folder: new, empty, or an older bundle, which is replaced.
        target: one of `TARGETS`.
        precision: one of `PRECISIONS`, as far as the target has it.
        preprocessing: put the evaluation transform into the image tower's graph.
        normalize: let the towers return unit embeddings.
        photos: more photographs to verify with than the package's own.
        captions: more captions to verify with.
        calibration: photographs like those that will be used, which int8 is calibrated with.
        accuracy: returns the top-1 of an encoder in percent; it may fall by at most
            `verify.MAX_POINTS_LOST`.
        say: is told what is being done.
        options: of the target (`deployment` of Core ML: `ios16` or `ios17`).

    Raises:
        ExportError: the target cannot do this, or the result is beyond a gate.
        MissingDependencyError: the target's package is not installed.
    """
    place = Path(out)
    module = check(
        target, precision, place, preprocessing=preprocessing, calibration=len(calibration),
        labelled=accuracy is not None, **options,
    )  # fmt: skip
    if model.inference_only:
        raise ExportError("export the model itself, not a form that was made for inference")
    say("preparing the towers")
    from pocketclip.nn.reparam import fuse  # late: `check` is for whoever has no torch, too

    wanted = verify.reference(model, photos, captions)
    pixels: Pixels = "levels" if preprocessing else "preprocessed"
    # ONNX Runtime is slower with it, but for int8 (docs/internals/performance.md).
    widen = target == "openvino" or (target == "onnx" and precision == "int8")
    towers = prepare(model, normalize=normalize, pixels=pixels, widen=widen)
    examples = None
    if precision in ("int8", "pal6"):
        examples = _examples(towers, calibration or wanted.photos, wanted, say)
        readable = len(examples["image"])
        if not readable:
            raise ExportError("none of the photographs to calibrate with can be read")
        if readable < len(calibration):
            check(target, precision, place, preprocessing=preprocessing, calibration=readable,
                  labelled=accuracy is not None, **options)  # fmt: skip
    about = {
        "pocketclip": __version__,
        "space_id": model.space_id,
        "model": zoo.to_dict(model.config),
        "logit_scale": wanted.logit_scale,
        "target": target,
        "precision": precision,
        "image_input": (
            "photo" if preprocessing else "image" if target == "coreml" else "preprocessed"
        ),
        "normalized": normalize,
    }
    with _parents_of(place), write_whole_folder(place, own_files) as folder:
        (folder / TOKENIZER).write_text(portable(towers.config.text.context_length), "utf-8")
        made = _Made(module, folder, towers, examples, options, about)
        before: float | None = None
        for attempt, cosine in enumerate(_COSINES if made.searches else (None,)):
            try:
                made.write(cosine, say)
                say("verifying")
                figures = _verified(module, folder, made.about, towers, wanted)
                if accuracy is not None:
                    say("comparing the accuracy")
                    if before is None:
                        before = accuracy(Encoder(fuse(model)))
                    after = accuracy(_runnable(module, folder, made.about, figures, model))
                    figures["accuracy"] = _compared(before, after)
                    figures["gate"]["max_points_lost"] = verify.MAX_POINTS_LOST
                break
            except DriftError:
                if not made.searches or attempt == len(_COSINES) - 1:
                    raise
                say("not near enough; keeping more layers in higher precision")
        if not figures["verified"]:
            log.warning("%s, %s: %s", target, precision, figures["reason"])
        made.remove_sources()
        names = [os.fspath(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        write_manifest(folder, {**made.about, "verification": figures}, names)
    return read(place)


@contextlib.contextmanager
def _parents_of(place: Path) -> Iterator[None]:
    """Remove the parents of `place` that were made within, if that fails."""
    missing = [folder for folder in place.resolve().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
        raise


def check(
    target: str,
    precision: str,
    place: Path,
    *,
    preprocessing: bool = False,
    calibration: int = 0,
    labelled: bool = False,
    **options: Any,
) -> Any:
    """Return the module of a target, having checked what can be known before any work.

    Args:
        target: as `export` takes it, like what follows.
        precision: likewise.
        place: the bundle's folder.
        preprocessing: likewise.
        calibration: how many photographs there are to calibrate with.
        labelled: whether accuracies are to be compared.
        options: of the target.

    Raises:
        ExportError: the target cannot do this, or `place` holds something else.
        MissingDependencyError: its package is not installed.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown format {target!r}; it is {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; it is {', '.join(PRECISIONS)}")
    module = importlib.import_module(f"pocketclip.export.{target}")
    if precision not in module.PRECISIONS:
        raise ExportError(
            f"{target} has no {precision} here; it has {', '.join(module.PRECISIONS)}"
        )
    foreign = [name for name in options if target != "coreml" or name != "deployment"]
    if foreign:
        raise ExportError(f"{target} has no option --{' or --'.join(foreign)}")
    if preprocessing and target not in ANY_SIZE:
        raise ExportError(
            f"{target} has no operation that resizes as the evaluation does; leave "
            f"--preprocessing out, or export to {' or '.join(ANY_SIZE)}"
        )
    if options:
        module.check_options(**options)
    if precision == "int8" and target in _CALIBRATED and calibration < MIN_CALIBRATION:
        raise ExportError(
            f"int8 is calibrated with photographs like those that will be used: give at least "
            f"{MIN_CALIBRATION} (100 to 500 are better), with --calibration FOLDER"
        )
    if labelled and target == "coreml":
        raise ExportError(
            "a coreml bundle cannot be executed here, so no accuracy can be measured: leave "
            "--labelled out"
        )
    if escape_surrogates(str(place.absolute())) != str(place.absolute()):
        raise ExportError(f"{place}: the runtimes open no path that is not UTF-8; name another")
    refuse_others(place, own_files, ExportError)
    module.package()
    if target == "openvino" and precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise MissingDependencyError(quantize.NO_NNCF)
    return module


class _Made:
    """The towers in a bundle's folder, written once or, in int8, until they are near enough."""

    def __init__(
        self,
        module: Any,
        folder: Path,
        towers: Towers,
        examples: Mapping[str, Sequence[NDArray[Any]]] | None,
        options: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self.module, self.folder, self.towers = module, folder, towers
        self.examples, self.options = examples, options
        self.about: dict[str, Any] = dict(about)
        self.searches = about["precision"] in ("int8", "pal6")

    def write(self, cosine: float | None, say: Say) -> None:
        """Write both towers; with `cosine`, in int8 that reaches it on the calibration's rows."""
        for kind in TOWERS:
            say(f"writing the {kind} tower")
            self.about[kind] = self._tower(kind, cosine)
        if self.about["image_input"] == "photo":
            facts = self.about["image"]
            path = self.folder / str(facts["file"])
            described = self.module.add_preprocessing(path, self.towers.config.preprocess)
            facts |= {key: described[key] for key in ("input", "output", "dynamic_batch")}

    def _tower(self, kind: str, cosine: float | None) -> dict[str, Any]:
        towers, precision = self.towers, self.about["precision"]
        tower = towers.image if kind == "image" else towers.text
        example = towers.image_example if kind == "image" else towers.text_example
        path = self.folder / f"{kind}{self.module.SUFFIX}"
        if self.about["target"] not in RUNS:
            more = dict(self.options)
            if self.examples is not None and cosine is not None:
                # All of them are compared for each layer that might be left alone.
                rows = self.examples[kind]
                more |= {"calibration": rows[:: -(-len(rows) // _MAX_ROWS)], "min_cosine": cosine}
            return dict(
                self.module.write(
                    tower, example, path, kind=kind, precision=precision, towers=towers, **more
                )
            )
        for file in self.folder.glob(f"{kind}.*"):
            file.unlink()  # an earlier attempt is still mapped into memory: not to be written over
        source = self._source(kind) if cosine is not None else path
        facts: dict[str, Any] = {}
        if cosine is None or not source.exists():
            facts = self.module.write(
                tower, example, source,
                kind=kind, towers=towers, precision="fp32" if cosine is not None else precision,
            )  # fmt: skip
        if cosine is None:
            return facts
        assert self.examples is not None
        run = getattr(quantize, f"quantise_{self.about['target']}")
        found = run(source, path, self.examples[kind], min_cosine=cosine, threads=devices.cores())
        # Described by the float form: the input and output are the same.
        facts = facts or self.about[kind]
        return {**facts, "file": path.name, "kept": found["kept"], "quantisation": found}

    def _source(self, kind: str) -> Path:
        return self.folder / f"float-{kind}{self.module.SUFFIX}"

    def remove_sources(self) -> None:
        """Remove what int8 was made from."""
        for file in self.folder.glob("float-*"):
            file.unlink()


def _examples(
    towers: Towers,
    calibration: Sequence[Any],
    wanted: verify.Reference,
    say: Say = lambda _text: None,
) -> dict[str, list[NDArray[Any]]]:
    """Return what int8 is calibrated with: rows for the image tower, rows for the text tower.

    Photographs that cannot be read are named and left out.
    """
    preprocess = Preprocess(towers.config.preprocess)

    def pixels(photo: Any) -> NDArray[Any]:
        if towers.pixels == "levels":
            return preprocess.to_uint8(photo).transpose(2, 0, 1).astype(np.float32)[None]
        return preprocess(photo)[None]

    texts = [*wanted.captions, *_TEXTS]
    ids = Tokenizer(warn=False)(texts, towers.config.text.context_length)
    images = []
    for photo in calibration:
        try:
            images.append(pixels(photo))
        except ImageError as error:
            say(f"skipped: {error}")
    return {"image": images, "text": [row[None] for row in ids]}


def _unwritten(folder: Path, about: Mapping[str, Any], verification: Mapping[str, Any]) -> Bundle:
    """Return the bundle that a folder is about to become."""
    return Bundle(
        folder=folder,
        config=zoo.from_dict(about["model"]),
        towers={tower: about[tower] for tower in TOWERS},
        files={},
        verification=verification,
        **{
            name: about[name]
            for name in (
                "space_id", "logit_scale", "target", "precision", "image_input", "normalized"
            )
        },
    )  # fmt: skip


def _verified(
    module: Any, folder: Path, about: Mapping[str, Any], towers: Towers, wanted: verify.Reference
) -> dict[str, Any]:
    if about["target"] in RUNS:
        return verify.verify(_unwritten(folder, about, {}), wanted)
    gates = verify.gates_of(about["precision"], about["image_input"])
    gate, limits = gates["image"], {"gate": verify.described(gates)}
    paths = {tower: folder / str(about[tower]["file"]) for tower in TOWERS}
    if not hasattr(module, "open_tower"):
        structure = {tower: module.inspect(path) for tower, path in paths.items()}
        squares = np.stack(
            [Preprocess(towers.config.preprocess).to_uint8(p) for p in wanted.photos]
        )
        ids = Tokenizer(warn=False)(list(wanted.captions), towers.config.text.context_length)
        module.add_check(folder, squares, ids, wanted.image, wanted.text, gate.cosine, gate.error)
        unverified = {
            "executed": False,
            "verified": False,
            "reason": module.NOT_EXECUTED,
            "judged": "the towers in torch with the weights that were read back",
        }
        return {**unverified, **structure, **limits}
    runs = {tower: module.open_tower(path) for tower, path in paths.items()}
    inputs = {k: np.concatenate(v) for k, v in _examples(towers, wanted.photos, wanted).items()}
    inputs["text"] = inputs["text"][: len(wanted.captions)]
    return {**verify.compare_towers(runs, inputs, wanted, gate), **limits}


class _Rows(TorchBackend):
    """The towers of a target that has no backend of ours, one row at a time, beside their model."""

    def __init__(self, model: CLIP, runs: Mapping[str, Run]) -> None:
        super().__init__(model)
        self.runs = runs

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        return np.concatenate([self.runs["image"](row[None]) for row in pixels])

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        # The encoder cuts what follows the longest text; these towers have all their places.
        ids = np.pad(ids, ((0, 0), (0, self.model.config.text.context_length - ids.shape[1])))
        return np.concatenate([self.runs["text"](row[None]) for row in ids])


def _runnable(
    module: Any, folder: Path, about: Mapping[str, Any], figures: Mapping[str, Any], model: CLIP
) -> Encoder:
    """Return what runs the towers that were written."""
    if about["target"] in RUNS:
        # The backend that decides; another one may be faster, and is not what is promised.
        return Encoder(_unwritten(folder, about, figures), RUNS[about["target"]][0])
    encoder = Encoder(model)  # for its transform and tokenizer
    encoder.backend = _Rows(
        model, {tower: module.open_tower(folder / str(about[tower]["file"])) for tower in TOWERS}
    )
    return encoder


def _compared(before: float, after: float) -> dict[str, float]:
    """Return both accuracies, in percent.

    Raises:
        DriftError: the export's is lower by more than the gate.
    """
    if not before - after <= verify.MAX_POINTS_LOST:
        raise DriftError(
            f"the export names {after:.2f} % of the labelled photographs right, the model "
            f"{before:.2f} %: more than {verify.MAX_POINTS_LOST} points lost; nothing was written"
        )
    return {"model_top1": before, "top1": after}
