"""`pocketclip pull`: a published model, fetched, converted and kept, without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip import zoo
from pocketclip.cli._options import (
    Calibration,
    Json,
    ModelArgument,
    ModelName,
    Offline,
    Revision,
)
from pocketclip.cli.output import print_json, say

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle


def pull(
    model: ModelArgument,
    precision: Annotated[
        str,
        typer.Option(
            help="The precision of the weights: fp32; fp16, which halves the size and is as fast; "
            "or int8, which needs --calibration."
        ),
    ] = "fp32",
    calibration: Calibration = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The folder to write the bundle to.  [default: the user's cache]"
        ),
    ] = None,
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Put resizing, cropping and scaling into the graph, which then takes uint8 RGB of "
            "any size; needs --out.",
        ),
    ] = False,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Make the towers return unit embeddings; needs --out."),
    ] = False,
    model_name: ModelName = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Fetch a published model, convert it to an ONNX bundle, and keep it; torch is not needed.

    In an install without torch, every verb that takes a MODEL does this by itself at the first
    use; `pull` does it ahead, in the precision of your choice, and asks the hub for a newer
    revision. The bundle is kept in the user's cache (POCKETCLIP_CACHE, else ~/.cache/pocketclip),
    one per model and revision. It is written only if it computes what the weights do.

    \b
    pocketclip pull mobileclip2-s0
    pocketclip pull mobileclip2-s0 --precision fp16 --out app/model
    pocketclip pull timm/MobileCLIP2-S0-OpenCLIP --revision main --json
    pocketclip pull mobileclip2-s2 --precision int8 --calibration photos/
    pocketclip pull mobileclip2-s0 --preprocessing --normalize --out app/model
    """
    from pocketclip.cli._inputs import photographs
    from pocketclip.cli._progress import ConsoleReporter
    from pocketclip.export.pull import pull as run

    photos = photographs(calibration) if calibration else []
    begun = time.monotonic()
    reporter = ConsoleReporter()
    try:
        bundle = run(
            model, model_name=model_name, precision=precision, calibration=photos, out=out,
            preprocessing=preprocessing, normalize=normalize, revision=revision, offline=offline,
            reporter=reporter,
        )  # fmt: skip
    finally:
        reporter.end()
    seconds = time.monotonic() - begun
    if json:
        print_json(_facts(bundle, seconds))
    else:
        _print(bundle, seconds)


def _facts(bundle: Bundle, seconds: float) -> dict[str, Any]:
    from pocketclip.cli.export import bundle_facts

    return {
        **bundle_facts(bundle),
        "source": dict(bundle.source),
        "seconds": round(seconds, 1),
    }


def _print(bundle: Bundle, seconds: float) -> None:
    from pocketclip.infer.license import license_of_bundle

    source = bundle.source
    origin = f"{source['repo']} at {source['revision'][:8]}" if "repo" in source else source["file"]
    say(f"{zoo.describe(bundle.config)} is ready: {bundle.folder}")
    say(f"  weights: {origin}, {source['bytes'] / 1e6:.1f} MB")
    say(f"  bundle: {bundle.target}, {bundle.precision}, {bundle.bytes / 1e6:.1f} MB; "
        f"{seconds:.1f} s")  # fmt: skip
    if bundle.precision == "fp16":
        say("  fp16 saves space, not time: it is computed in float32")
    figures = bundle.verification["backends"]["onnxruntime"]
    say(
        f"  compared with {bundle.verification['compared_with']}: cosine at least "
        f"{min(figures[tower]['min_cosine'] for tower in ('image', 'text')):.6f}"
    )
    say(f"  licence of the weights: {license_of_bundle(bundle, with_text=False)}")
