"""`pocketclip audit`: whether a folder of shards is what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli.output import print_json, say

if TYPE_CHECKING:
    from pocketclip.shards import AuditReport


def audit(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of shards.")],
    repair: Annotated[
        str | None,
        typer.Option(
            metavar="OUT", help="Write a clean copy to this new folder, with a list of the rest."
        ),
    ] = None,
    recompute: Annotated[
        int,
        typer.Option(
            min=0, help="Replay this many augmentations through the teachers; report the drift."
        ),
    ] = 0,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="With --recompute: a teacher, as in `reinforce`; repeat in their order."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The drift, in 1 - cosine, that is still good.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the drawing for --recompute.")] = 0,
    device: Annotated[str, typer.Option(help="Where the teachers run: auto, cpu, cuda.")] = "auto",
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Whether to decode every image.")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that open shards.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Open everything in DIR and report what is wrong.

    Looks for cut tars, missing and undeclared shards, hashes that differ from index.json, missing
    keys, wrong shapes, NaN, embeddings that are not of unit length, images that cannot be
    decoded, duplicate uids, and parameters that cannot be replayed. The exit code is 0 if all is
    well, 1 if not, and 2 if nothing could be audited.

    \b
    pocketclip audit joined
    pocketclip audit joined --repair clean --workers 4
    pocketclip audit out --recompute 100 --teacher vit-b16 --teacher runs/small
    """
    from dataclasses import asdict

    from pocketclip.cli._inputs import progress
    from pocketclip.reinforce.audit import audit as run
    from pocketclip.shards.reader import shards_in

    total = len(shards_in(folder))
    with progress(total, "shards") as advance:
        report = run(
            folder,
            recompute=recompute,
            teachers=teacher or [],
            device=device,
            offline=offline,
            repair=repair,
            tolerance=tolerance,
            seed=seed,
            workers=workers,
            decode_images=images,
            on_progress=advance,
        )
    if json:
        print_json({**asdict(report), "clean": report.clean})
    else:
        _show(report)
    if not report.clean:
        raise typer.Exit(1)


def show_parts(parts: dict[str, int], samples: int) -> None:
    """Print bytes per sample by part."""
    if samples:
        each = ", ".join(f"{part} {count / samples:,.0f}" for part, count in parts.items())
        say(f"bytes per sample: {sum(parts.values()) / samples:,.0f} ({each})")


def _show(report: AuditReport) -> None:
    index = "" if report.indexed else ", without index.json"
    say(f"{report.folder}: {report.samples} samples in {report.shards} shards{index}")
    show_parts(report.parts, report.samples)
    columns = ", ".join(f"{name} {count}" for name, count in sorted(report.columns.items()))
    say(f"samples that have: {columns or 'nothing'}")
    if report.dtypes:
        say(f"embeddings stored as {', '.join(report.dtypes)}")
    for key, count in report.ignored.items():
        say(f"{count} members {key} are no part of the layout and are not read")
    for drift in report.drift:
        say(
            f"teacher {drift.teacher}: {drift.compared} embeddings computed again, 1 - cosine "
            f"{drift.mean:.2g} on average, {drift.largest:.2g} at most ({drift.uid})"
        )
    for kind, count in report.counts.items():
        say(f"{kind}: {count}")
        for problem in report.problems[kind][:5]:
            where = " ".join(filter(None, (problem.file, problem.uid)))
            say(f"  {where}: {problem.reason}")
    if report.repaired is not None:
        say(
            f"{report.repaired}: {report.kept} samples kept, {report.dropped} dropped, each "
            "named in dropped.jsonl"
        )
    say("clean" if report.clean else "not clean")
