"""`pocketclip audit`: check a folder of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import Json, Offline
from pocketclip.cli.output import print_json, say
from pocketclip.errors import count_of

if TYPE_CHECKING:
    from pocketclip.shards import AuditReport


def audit(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder of shards, local or in an object store.")
    ],
    repair: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Write a copy without the bad samples to this new folder, with a list of those "
            "dropped.",
        ),
    ] = None,
    recompute: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compute this many stored embeddings again, with the teachers, and report how far "
            "they drifted.",
        ),
    ] = 0,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="With --recompute: a teacher, as in `reinforce`; repeat in the stored order.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The largest drift that passes, as 1 - cosine.")
    ] = 0.01,
    seed: Annotated[
        int, typer.Option(help="With --recompute: the seed that chooses the embeddings.")
    ] = 0,
    device: Annotated[
        str, typer.Option(help="With --recompute: the device of the teachers: auto, cpu or cuda.")
    ] = "auto",
    offline: Offline = False,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Whether to decode all images.")
    ] = True,
    workers: Annotated[
        int, typer.Option(min=1, help="The number of processes that read shards.")
    ] = 1,
    score_samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="The number of samples on which the teachers are scored by their stored "
            "embeddings; 0: none.",
        ),
    ] = 500,
    json: Json = False,
) -> None:
    """Check all samples of a dataset and report what is wrong.

    Finds truncated tars, missing and undeclared shards, hashes that differ from index.json,
    missing keys, wrong shapes, NaN, embeddings without unit length, images that cannot be decoded,
    duplicate uids, and parameters that cannot be replayed. Also scores the teachers, alone and
    together, on a sample of the set: one stored view of each image against the captions. A low
    score is no problem of the set, but of what it can teach. The exit code is 0 if nothing is
    wrong, 1 if something is, and 2 if nothing could be audited.

    \b
    pocketclip audit joined
    pocketclip audit joined --repair clean --workers 4
    pocketclip audit out --recompute 100 --teacher vit-b16 --teacher runs/small
    """
    from pocketclip.cli._progress import progress
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
            score_samples=score_samples,
            on_progress=advance,
        )
    if json:
        print_json(report.facts())
    else:
        _show(report)
    if not report.clean:
        raise typer.Exit(1)


def show_parts(parts: dict[str, int], samples: int) -> None:
    """Print the bytes per sample, in total and by kind of content."""
    if samples:
        each = ", ".join(f"{part} {count / samples:,.0f}" for part, count in parts.items())
        say(f"bytes per sample: {sum(parts.values()) / samples:,.0f} ({each})")


def _show(report: AuditReport) -> None:
    index = "" if report.indexed else ", without index.json"
    samples, shards = count_of(report.samples, "sample"), count_of(report.shards, "shard")
    say(f"{report.folder}: {samples} in {shards}{index}")
    show_parts(report.parts, report.samples)
    columns = ", ".join(f"{name} {count}" for name, count in sorted(report.columns.items()))
    say(f"samples that have: {columns or 'nothing'}")
    if report.samples and not any(name.endswith("_emb") for name in report.columns):
        from pocketclip.shards.index import how_to_embed

        say(f"captions alone, without embeddings; to add them: {how_to_embed(report.folder)}")
    if report.dtypes:
        say(f"embeddings stored as {', '.join(report.dtypes)}")
    for key, count in report.ignored.items():
        members = count_of(count, f"member {key} does", f"members {key} do")
        say(f"{members} not belong to the layout and are not read")
    for drift in report.drift:
        say(
            f"teacher {drift.teacher}: {count_of(drift.compared, 'embedding')} computed again: "
            f"1 - cosine is {drift.mean:.2g} on average, {drift.largest:.2g} at most ({drift.uid})"
        )
    for key, scores in report.scores.items():
        say(f"the teachers on a stored view of each image against the first caption of {key}:")
        for score in scores:
            say(f"  {score.line('all together' if score.name == 'ensemble' else '')}")
            if score.knows_nothing:
                say("    no better than chance: these embeddings teach nothing about the captions")
    for kind, count in report.counts.items():
        say(f"{kind}: {count}")
        for problem in report.problems[kind][:5]:
            where = " ".join(filter(None, (problem.file, problem.uid)))
            say(f"  {where}: {problem.reason}")
    if report.repaired is not None:
        say(
            f"{report.repaired}: {count_of(report.kept, 'sample')} kept, {report.dropped} dropped, "
            "each named in dropped.jsonl"
        )
    say("clean" if report.clean else "not clean")
