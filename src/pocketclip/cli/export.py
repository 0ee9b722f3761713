"""`pocketclip export`: a model to a bundle that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli.labelled import LABELLED_HELP
from pocketclip.cli.loading import MODEL_HELP, MODEL_NAME_HELP, REVISION_HELP
from pocketclip.cli.output import note, print_json, say

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the bundle.")],
    target: Annotated[
        str, typer.Option("--format", "-f", help="onnx, openvino, coreml, executorch or litert.")
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, bf16 (openvino), int8, or pal6 (coreml: 6-bit palettes)."),
    ] = "fp32",
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Resize, crop and scale in the graph: uint8 RGB of any size goes in.",
        ),
    ] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Let the towers return unit embeddings.")
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Photographs like those that will be used; int8 needs 100 or more."),
    ] = None,
    verify_with: Annotated[
        list[str] | None, typer.Option(help="More photographs to verify the export with.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="A text file with more captions to verify with.")
    ] = None,
    labelled: Annotated[str | None, typer.Option(help=LABELLED_HELP)] = None,
    label_column: Annotated[str | None, typer.Option(help="The table's column of labels.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be repeated.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='A prompt such as "a photo of {}."; may be repeated.')
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Core ML's least system: ios16 or ios17.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help=MODEL_NAME_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help=REVISION_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Export a model to a bundle for a device or this computer, and prove that it is the same.

    The bundle holds both towers, the tokenizer, and the figures of its verification: photographs
    and captions went through it and through the model. Beyond the gate of its precision, nothing
    is written.

    \b
    pocketclip export runs/small --format openvino --precision fp16 --out laptop/
    pocketclip export mobileclip2-s0 --format coreml --precision fp16 --out phone/
    pocketclip export runs/small --precision int8 --calibration photos/ --out small/ \\
        --labelled pairs.csv --label-column product
    pocketclip classify photo.jpg --labels "a dog,a cat" --model laptop/
    """
    from pocketclip import checkpoint
    from pocketclip.cli._inputs import photographs, read_lines
    from pocketclip.cli.labelled import check_alone, top1
    from pocketclip.export.job import check
    from pocketclip.export.job import export as run

    options: dict[str, Any] = {} if deployment is None else {"deployment": deployment}
    calibrated = photographs(calibration) if calibration else []
    check(
        target, precision, out, preprocessing=preprocessing, calibration=len(calibrated),
        labelled=labelled is not None, **options,
    )  # fmt: skip
    verified = photographs(verify_with) if verify_with else []
    texts = read_lines(captions) if captions is not None else []
    accuracy = None
    if labelled is not None:
        accuracy = top1(
            labelled, label_column=label_column, where=where or [], templates=template or []
        )
    else:
        check_alone(label_column, where or [], template or [])
    bundle = run(
        checkpoint.load(model, model_name, offline=offline, revision=revision),
        out,
        target=target,
        precision=precision,
        preprocessing=preprocessing,
        normalize=normalize,
        photos=verified,
        captions=texts,
        calibration=calibrated,
        accuracy=accuracy,
        say=note,
        **options,
    )
    if json:
        print_json(facts(bundle))
    else:
        _print(bundle)


def facts(bundle: Bundle) -> dict[str, Any]:
    """Return what there is to know of a bundle, for JSON."""
    return {
        "bundle": str(bundle.folder),
        "model": bundle.config.name,
        "space_id": bundle.space_id,
        "target": bundle.target,
        "precision": bundle.precision,
        "image_input": bundle.image_input,
        "normalized": bundle.normalized,
        "bytes": bundle.bytes,
        "kept": {tower: about.get("kept", []) for tower, about in bundle.towers.items()},
        "verification": dict(bundle.verification),
    }


def _print(bundle: Bundle) -> None:
    say(
        f"{bundle.folder}: {bundle.config.name} for {bundle.target}, {bundle.precision}, "
        f"{bundle.bytes / 1e6:.1f} MB"
    )
    found = bundle.verification
    if not found.get("verified", True):
        say(f"  not verified: {found['reason']}")
    for title, figures in found.get("backends", {"": found}).items():
        place = f"  {title}: " if title else "  "
        if figures.get("passed") is False:
            say(f"{place}does not pass, and is not used: {figures['reason']}")
            continue
        if "min_cosine" not in figures["image"]:  # nothing was executed
            continue
        towers = [
            f"{tower} tower: cosine at least {figures[tower]['min_cosine']:.6f}, error at most "
            f"{figures[tower]['max_abs_error']:.1e}"
            for tower in ("image", "text")
        ]
        say(place + "; ".join(towers))
    if "accuracy" in found:
        say(
            f"  top-1: {found['accuracy']['top1']:.2f} %, the model "
            f"{found['accuracy']['model_top1']:.2f} %"
        )
    for tower, about in bundle.towers.items():
        for remark in about.get("notes", []):
            say(f"  {tower} tower: {remark}")
        if about.get("kept"):
            say(f"  {tower} tower, kept in higher precision: {', '.join(about['kept'])}")
