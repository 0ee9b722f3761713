"""`pocketclip export --format web`: a static site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketclip.cli.output import note, print_json, say


def export_web(
    model: str, out: Path, *, precision: str | None, calibration: list[str] | None,
    label_sets: list[str], json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write the site, and print what it is; the options are those of `export.web.export_web`."""
    from pocketclip.cli._inputs import photographs
    from pocketclip.export.web import export_web as run
    from pocketclip.serve.settings_checks import parse_label_sets

    photos: Sequence[Path] = photographs(calibration) if calibration else []
    site = run(
        model, out, precision=precision, calibration=photos,
        label_sets=parse_label_sets(label_sets), reporter=note, **options,
    )  # fmt: skip
    if json:
        print_json(site.facts())
        return
    say(f"{site.folder}: {site.bytes / 1e6:.1f} MB, for any web server")
    for one in site.models:
        forms = ", ".join(bundle.precision for bundle in one.bundles)
        say(f"  {one.bundles[0].config.name}: {forms}; licence of the weights: {one.license}")
    for runtime, size in site.first_visit.items():
        say(f"  first visit, {_RUNTIMES[runtime]}: {size / 1e6:.1f} MB")
    say(f"  try it: python -m http.server --directory {site.folder}")


_RUNTIMES = {"wasm": "on the processor", "webgpu": "with WebGPU"}
