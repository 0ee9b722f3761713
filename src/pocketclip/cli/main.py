"""`pocketclip`: the entry point of the command line.

Exit codes: 0 success; 1 some inputs were skipped, each is named; 2 nothing was done, the message
says why; 130 interrupted. If standard output cannot be written: 1 for verbs whose files are
written, 2 for the others, 141 if the reader is gone, as with `| head`.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import signal
import sys
from typing import Annotated

import typer

from pocketclip._version import __version__
from pocketclip.cli import output
from pocketclip.errors import PocketclipError

VERBS = {
    "quickstart": "Run every step on a small dataset, in minutes.",
    "models": "List the models with their published figures.",
    "pull": "Fetch a model and keep it ready to use, without torch.",
    "classify": "Choose the label that fits each photograph.",
    "fit": "Fit a label set to a few labelled photographs, in seconds.",
    "caption": "Write captions of photographs.",
    "explain": "Show where in a photograph a text is found.",
    "embed": "Write embeddings of photographs or texts.",
    "index": "Bring a library of photographs up to date, for search.",
    "search": "Find photographs that fit a text or a photograph.",
    "duplicates": "Find photographs that are there several times.",
    "forget": "Remove photographs from a library, not from the disk.",
    "export-vectors": "Write a library's embeddings for other programs.",
    "serve": "Serve embeddings, classification and search over HTTP.",
    "plan": "Plan storage, GPU hours, network and cost.",
    "reinforce": "Add captions and teachers' embeddings to pairs.",
    "join": "Join images with reinforcements, by uid.",
    "materialise": "Render a dataset's views at a student's size.",
    "audit": "Check a reinforced dataset.",
    "show": "Draw samples of a reinforced dataset.",
    "sweep-scales": "Find the logit scale that fits each teacher of a dataset.",
    "train": "Train a model.",
    "finetune": "Make a model better on your own images.",
    "upcycle": "Make a model a sparse mixture of experts.",
    "eval": "Score a model on evaluation sets.",
    "compare": "Compare models task by task.",
    "push": "Upload a trained model to the Hugging Face hub.",
    "export": "Export a model to a bundle for a phone or computer.",
    "bench": "Measure the speed and size of models.",
}
"""The verbs, each with its line in the list of verbs."""
_WRITERS = frozenset(
    {"quickstart", "pull", "fit", "finetune", "embed", "index", "forget", "push", "reinforce",
     "join", "materialise", "show", "train", "export", "export-vectors", "upcycle"}
)  # fmt: skip
"""Verbs that write files first and print afterwards."""
_FILE_OPTIONS = frozenset({"--out", "-o", "--repair", "--html", "--plot", "--confusion"})
"""Options with which the other verbs write files."""
_WIDEST = 100  # characters per line of help
_FUNCTIONS = {"eval": "evaluate"}  # functions that are not called like their verb


def build(*verbs: str) -> typer.Typer:
    """Return the command line with the given verbs, or with all."""
    app = typer.Typer(
        name="pocketclip",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would double the time of --help
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST},
    )
    app.callback()(_root)
    width = min(output.width_of(sys.stdout), _WIDEST) - 2  # the help is indented
    for verb in verbs or VERBS:
        name = verb.replace("-", "_")
        module = importlib.import_module(f"pocketclip.cli.{name}")
        function = getattr(module, _FUNCTIONS.get(verb, name))
        text = _wrap_examples(inspect.getdoc(function) or "", width)
        app.command(verb, help=text, short_help=VERBS[verb])(function)
    return app


def _wrap_examples(text: str, width: int) -> str:
    """Return a verb's help with long examples continued on the next line, as in a shell."""
    lines = []
    for line in text.split("\n"):
        while len(line) > width and line.startswith(("pocketclip ", "torchrun ", "    ")):
            end = line.rfind(" --", 10, width + 1)
            if end < 0:
                break
            lines.append(f"{line[:end]} \\")
            line = f"    {line[end + 1 :]}"
        lines.append(line)
    return "\n".join(lines)


def _show_version(requested: bool) -> None:
    if requested:
        output.say(f"pocketclip {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fast image-text models for phones and laptops: train, evaluate, export and use them.

    \b
    Start here:
      pocketclip quickstart
      pocketclip models
    Use a model:
      pocketclip classify photo.jpg --labels "a dog,a cat"
      pocketclip embed photos/ --out photos.npy
      pocketclip caption photos/ --model coca-vit-l14 --out captions.jsonl
    Search in your photographs:
      pocketclip index ~/Pictures
      pocketclip search "red car in the snow"
    Make a model better on your own images:
      pocketclip finetune mobileclip2-s0 --data shelf/ --out runs/shelf
    Train your own:
      pocketclip reinforce pairs.csv --out dr --teacher vit-b16
      pocketclip audit dr
      pocketclip train grocery-small --data dr --out runs/small
    Evaluate and export it:
      pocketclip eval runs/small --suite datacomp38 --data sets -o results.jsonl
      pocketclip compare results.jsonl mobileclip2-s0
      pocketclip export runs/small --format openvino --out laptop
      pocketclip bench runs/small laptop
    """


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    args = sys.argv[1:]
    try:
        output.set_up()
    except output.LostOutputError as error:
        sys.exit(_lost(error, worked=False))
    worked = bool(args) and (
        args[0] in _WRITERS or any(arg.partition("=")[0] in _FILE_OPTIONS for arg in args)
    )
    try:
        code = _run(args)
    except output.LostOutputError as error:
        code = _lost(error, worked=worked)
    try:
        output.flush()
    except output.LostOutputError as error:
        code = code or _lost(error, worked=worked)
    sys.exit(code)


def _run(args: list[str]) -> int:
    # Only the requested verb: importing all of them takes longer than many answers.
    verb = args[0] if args else ""
    if verb in ("caption", "export", "export-vectors", "pull", "serve", "upcycle"):
        # They write for minutes: after `timeout` nothing must be left behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app = build(verb) if verb in VERBS else build()
        code = app(_optional_values(args), standalone_mode=False) or 0
        if code == 130:  # some versions of typer report an interruption so
            raise KeyboardInterrupt
        return int(code)
    except output.LostOutputError:
        raise
    except PocketclipError as error:
        output.note(f"error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        output.note("interrupted; no partial files were left")
        return 130
    except typer.Exit as exited:
        return exited.exit_code
    except OSError as error:
        name = error.filename  # may be bytes, or the number of an open file
        where = f" ({os.fsdecode(name) if isinstance(name, bytes) else name})" if name else ""
        output.note(f"error: {error.strerror or error}{where}")
        return 2
    except Exception as error:
        # Typer's own errors, such as an unknown option, can show themselves. Each version defines
        # their class elsewhere.
        if not hasattr(error, "show"):
            raise
        text = io.StringIO()
        error.show(file=text)
        for line in text.getvalue().splitlines():
            output.note(line)
        return int(getattr(error, "exit_code", 2))


def _lost(error: output.LostOutputError, *, worked: bool) -> int:
    """Return the exit code if standard output could not be written."""
    if error.reader_gone:  # as with `| head`: the code of a process that SIGPIPE ended
        return 141
    output.note(f"error: {error}")
    return 1 if worked else 2


def _optional_values(args: list[str]) -> list[str]:
    """Return the arguments with `local` after a bare `--ray`: typer has no optional values."""
    bare = {
        i
        for i, text in enumerate(args)
        if text == "--ray" and (i + 1 == len(args) or args[i + 1].startswith("-"))
    }
    return [f"{text}=local" if i in bare else text for i, text in enumerate(args)]


if __name__ == "__main__":
    main()
