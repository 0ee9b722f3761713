"""`pocketclip export`: a model to a bundle that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip import zoo
from pocketclip.cli._options import (
    AcceptLicence,
    Calibration,
    Json,
    LabelColumn,
    Labelled,
    LabelledWhere,
    ModelArgument,
    ModelName,
    Offline,
    Revision,
    Template,
    labelled_accuracy,
)
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import ExportError, MissingDependencyError, how_to_install

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle


def export(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write the bundle, or site, to.")
    ],
    target: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="The format: onnx, openvino, coreml, executorch or litert for a bundle; web for "
            "a web site that classifies what a camera sees.",
        ),
    ] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(
            help="The precision of the weights: fp32, fp16, int8, bf16 (openvino), or pal6 "
            "(coreml: 6-bit palettes).  [default: fp32; for web int8]"
        ),
    ] = None,
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Put resizing, cropping and scaling into the graph, which then takes uint8 RGB of "
            "any size (onnx, openvino).",
        ),
    ] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Make the towers return unit embeddings.")
    ] = False,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="Add the image tower's feature maps for images of any size, for detection, "
            "segmentation and language models (onnx in fp32 or fp16).",
        ),
    ] = False,
    calibration: Calibration = None,
    verify_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTOS",
            help="Photographs to verify the export with, in addition to the package's own; may be "
            "repeated.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="A text file with captions to verify with, one per line, in addition to the "
            "package's own."
        ),
    ] = None,
    labelled: Labelled = None,
    label_column: LabelColumn = None,
    where: LabelledWhere = None,
    template: Template = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            help="The oldest system that a coreml bundle runs on: ios16 or ios17.  [default: ios16]"
        ),
    ] = None,
    further: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="BUNDLE",
            help="web: a further ONNX bundle, of the same model in another precision or of another "
            "model; may be repeated.",
        ),
    ] = None,
    webgpu_precision: Annotated[
        str | None,
        typer.Option(
            help="web: fp16 or fp32, of a second copy of the model for WebGPU.  [default: none]"
        ),
    ] = None,
    webgpu_runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="web: what WebGPU needs, the folder dist of the npm package onnxruntime-web.",
        ),
    ] = None,
    label_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="web: a label set of `pocketclip fit` for the page; may be repeated.",
        ),
    ] = None,
    accept_license: AcceptLicence = False,
    model_name: ModelName = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Export a model to a bundle for a phone or a computer, and verify it; or to a web site.

    The bundle holds both towers, the tokenizer, and the figures of its verification: the
    embeddings of photographs and captions are compared with the model's. If they differ by more
    than the precision allows, or --labelled finds a loss of more than 0.5 points of accuracy,
    nothing is written and the exit code is 2.

    A site (--format web) has the camera page and the model as files for any web server: nothing
    that a camera sees leaves the device. MODEL is an ONNX bundle, or is converted, to int8 if
    nothing else is said.

    \b
    pocketclip export runs/small --format openvino --precision fp16 --out laptop/
    pocketclip export mobileclip2-s0 --format coreml --precision fp16 --out phone/
    pocketclip export runs/small --precision int8 --calibration photos/ --out small/ \\
        --labelled pairs.csv --label-column product
    pocketclip classify photo.jpg --labels "a dog,a cat" --model laptop/
    pocketclip export mobileclip2-s0 --features --out backbone/
    pocketclip export small/ --format web --out site/
    pocketclip export clip/ --format web --calibration photos/ --webgpu-precision fp16 --out site/
    """
    from pocketclip import checkpoint, devices
    from pocketclip.cli._inputs import photographs, read_lines

    of_web = {
        "--with": further, "--webgpu-precision": webgpu_precision,
        "--webgpu-runtime": webgpu_runtime, "--label-set": label_set,
        "--accept-licence": accept_license,
    }  # fmt: skip
    if target == "web":
        from pocketclip.cli._export_web import export_web

        _refuse(
            "web", preprocessing=preprocessing, normalize=normalize, features=features,
            verify_with=verify_with, captions=captions, labelled=labelled,
            label_column=label_column, where=where, template=template, deployment=deployment,
        )  # fmt: skip
        export_web(
            model, out, precision=precision, calibration=calibration, further=further or (),
            webgpu_precision=webgpu_precision, webgpu_runtime=webgpu_runtime,
            label_sets=label_set or [], accept_license=accept_license, model_name=model_name,
            revision=revision, offline=offline, json=json,
        )  # fmt: skip
        return
    _refuse(target, **of_web)
    from pocketclip.export.job import check
    from pocketclip.export.job import export as run

    precision = precision or "fp32"
    if not devices.has_torch():
        raise MissingDependencyError(
            f"exporting needs torch: {how_to_install('train')}; an ONNX bundle of a published "
            "model is written without it, by `pocketclip pull MODEL --out DIR`"
        )
    options: dict[str, Any] = {} if deployment is None else {"deployment": deployment}
    calibration_photos = photographs(calibration) if calibration else []
    check(
        target, precision, out, preprocessing=preprocessing, features=features,
        calibration=len(calibration_photos), labelled=labelled is not None, **options,
    )  # fmt: skip
    # Before the model, whose download can take minutes.
    photos = photographs(verify_with) if verify_with else []
    texts = read_lines(captions) if captions is not None else []
    accuracy = labelled_accuracy(labelled, label_column, where or [], template or [])
    bundle = run(
        checkpoint.load(model, model_name, offline=offline, revision=revision),
        out,
        target=target,
        precision=precision,
        preprocessing=preprocessing,
        normalize=normalize,
        features=features,
        photos=photos,
        captions=texts,
        calibration=calibration_photos,
        accuracy=accuracy,
        reporter=note,
        **options,
    )
    if json:
        print_json(bundle_facts(bundle))
    else:
        _print(bundle)


def _refuse(target: str, **options: Any) -> None:
    """Refuse options that a format does not have.

    Raises:
        ExportError: one of them was given.
    """
    for name, value in options.items():
        if value:
            option = name if name.startswith("--") else f"--{name.replace('_', '-')}"
            hint = (
                "export to onnx with it, and give that bundle as MODEL" if target == "web"
                else "it is for --format web"
            )  # fmt: skip
            raise ExportError(f"{target} has no option {option}: {hint}")


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's properties and verification, for JSON."""
    from pocketclip.infer.license import license_of_bundle

    return {
        "bundle": str(bundle.folder),
        "model": bundle.config.name,
        "space_id": bundle.space_id,
        "target": bundle.target,
        "precision": bundle.precision,
        "image_input": bundle.image_input,
        "normalized": bundle.normalized,
        "features": None if bundle.features is None else dict(bundle.features),
        "bytes": bundle.bytes,
        "kept": {tower: about.get("kept", []) for tower, about in bundle.towers.items()},
        "verification": dict(bundle.verification),
        "license": str(license_of_bundle(bundle, with_text=False)),
    }


def _print(bundle: Bundle) -> None:
    from pocketclip.infer.license import license_of_bundle

    say(
        f"{bundle.folder}: {zoo.describe(bundle.config)} for {bundle.target}, {bundle.precision}, "
        f"{bundle.bytes / 1e6:.1f} MB"
    )
    known = license_of_bundle(bundle, with_text=False)
    if known.is_known:
        say(f"  licence of the weights: {known}")
    verification = bundle.verification
    if not verification.get("verified", True):
        say(f"  not verified: {verification['reason']}")
    for title, figures in verification.get("backends", {"": verification}).items():
        prefix = f"  {title}: " if title else "  "
        if figures.get("passed") is False:
            say(f"{prefix}beyond the gate, and not used: {figures['reason']}")
            continue
        if "min_cosine" not in figures["image"]:  # nothing was executed
            continue
        towers = [
            f"{tower} tower: cosine at least {figures[tower]['min_cosine']:.6f}, error at most "
            f"{figures[tower]['max_abs_error']:.1e}"
            for tower in ("image", "text")
        ]
        say(prefix + "; ".join(towers))
    if bundle.features is not None:
        maps = ", ".join(f"{m['name']} (stride {m['stride']})" for m in bundle.features["maps"])
        errors = bundle.features["verification"]["max_relative_error"].values()
        say(f"  features: {maps} and tokens, relative error at most {max(errors):.1e}")
    if "accuracy" in verification:
        accuracy = verification["accuracy"]
        say(f"  top-1: {accuracy['top1']:.2f} %; the model: {accuracy['model_top1']:.2f} %")
    for tower, entry in bundle.towers.items():
        for remark in entry.get("notes", []):
            say(f"  {tower} tower: {remark}")
        if entry.get("kept"):
            say(f"  {tower} tower, layers in higher precision: {', '.join(entry['kept'])}")
