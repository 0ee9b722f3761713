"""`pocketclip push`: a trained model to the Hugging Face hub, with its card and licence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import AcceptLicence, Json
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.publish import Plan


def push(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A training run, a fine-tuning, or a checkpoint folder."
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository to upload to.")],
    license: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            metavar="ID",
            help="The licence to publish the weights under, by the hub's name, such as apache-2.0. "
            " [default: that of the weights that the run started from]",
        ),
    ] = None,
    license_text: Annotated[
        Path | None,
        typer.Option(
            "--licence-text",
            "--license-text",
            help="The file with the text of a licence that the hub does not know.",
        ),
    ] = None,
    accept_license: AcceptLicence = False,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Let everybody see the repository. Without it, it is private."
        ),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="The results file of `pocketclip eval` for the card.  [default: results.jsonl in "
            "RUN, if it is there]"
        ),
    ] = None,
    open_clip: Annotated[
        bool,
        typer.Option(
            "--open-clip/--no-open-clip",
            help="Upload open_clip's form too, where the model has one.",
        ),
    ] = True,
    keep_card: Annotated[
        bool,
        typer.Option("--keep-card", help="Leave the README.md of an existing repository as it is."),
    ] = False,
    revision: Annotated[
        str, typer.Option(help="The branch to commit to; it is created if it is missing.")
    ] = "main",
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="The message of the commit.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
    json: Json = False,
) -> None:
    """Upload a trained model to the Hugging Face hub, with a model card and its licence.

    Uploads our checkpoint (config.json, model.safetensors), open_clip's form where the model has
    one, and a card with data, recipe, results and licence, in one commit. Shows everything first
    and asks. The repository is created if it is missing, private unless --public. Needs a licence:
    --licence, or that of the weights that the run started from, which stays with them. Needs a
    token with write access (HF_TOKEN, or `hf auth login`). Of local paths, only the last part of a
    name is published.

    \b
    pocketclip push runs/small me/small --licence apache-2.0
    pocketclip push runs/small me/small --licence mit --results results.jsonl --dry-run
    pocketclip push runs/shelf me/shelf --public --accept-licence --yes
    """
    publish = import_with_extra("pocketclip.publish", "publishing a model", "train")
    if json and not (yes or dry_run):
        raise PocketclipError("--json asks nothing: give --yes to upload, or --dry-run")
    with publish.prepare(
        run, repo, license=license, license_text=license_text, accept_license=accept_license,
        public=public, results=results, open_clip=open_clip, keep_card=keep_card,
        revision=revision, message=message, dry_run=dry_run, reporter=None if json else note,
    ) as plan:  # fmt: skip
        if not json:
            _show(plan)
        if dry_run:
            if json:
                print_json({**plan.as_json(), "commit": None})
            else:
                say("nothing was uploaded (--dry-run)")
            return
        if not yes and not _agreed(plan):
            note("nothing was uploaded")
            raise typer.Exit(2)
        url = publish.upload(plan, reporter=None if json else note)
    if json:
        print_json({**plan.as_json(), "commit": url})
    else:
        say(f"uploaded: {url}")
        say(f"use it as a MODEL: pocketclip classify photo.jpg --model {repo} --labels ...")


def _agreed(plan: Plan) -> bool:
    if not sys.stdin.isatty():
        raise PocketclipError(
            "nothing was uploaded: there is nobody to ask; give --yes after looking at what "
            "--dry-run shows"
        )
    try:
        return typer.confirm(f"upload this to {plan.repo} ({plan.visibility})?", err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None


def _show(plan: Plan) -> None:
    if plan.existing is None:
        state = "does not exist yet and will be created"
    else:
        state = f"exists, with {len(plan.existing.files)} files"
    say(f"repository  {plan.repo}, {plan.visibility}: {state}")
    if plan.revision != "main":
        say(f"branch      {plan.revision}")
    say(f"account     {plan.account or 'none'}")
    say(f"licence     {plan.license}")
    for origin in plan.facts.origins:
        say(f"made from   {origin}")
    for name, size in plan.files.items():
        how = " (replaces the one there)" if name in plan.replaced else ""
        say(f"file        {name}, {_size(size)}{how}")
    for name in plan.removed:
        say(f"removes     {name}, of an earlier push")
    for text in plan.notes:
        say(f"note        {text}")
    if "README.md" in plan.files:
        say("")
        say("README.md:")
        for line in plan.card.splitlines():
            say(f"  {line}" if line else "", dim=True)
        say("")


def _size(size: int) -> str:
    return f"{size:,} bytes" if size < 100_000 else f"{size / 1e6:,.1f} MB"
