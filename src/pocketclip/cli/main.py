"""`pocketclip`: the entry point and what all verbs share.

Exit codes: 0 all went well; 1 some inputs were skipped, each named; 2 nothing was done, the
message says why; 130 interrupted. Where standard output could not be written: 1 for verbs that
write files, whose work is done; 2 for the others; 141 if its reader left, as `| head` does.
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
    "quickstart": "Do the whole way on a small set, in minutes.",
    "models": "List the models with their published figures.",
    "classify": "Say which label fits each photograph.",
    "embed": "Write embeddings of photographs or texts.",
    "reinforce": "Store teachers' knowledge with raw pairs, once.",
    "join": "Bring reinforcements and images together, by uid.",
    "audit": "Say whether a dataset is whole.",
    "show": "Draw samples of a dataset.",
    "train": "Train a model.",
    "eval": "Score a model on evaluation sets.",
    "compare": "Compare models task by task.",
    "export": "Export a model to a bundle for a device.",
    "bench": "Measure models on this computer.",
}
"""What each verb does, in the few words that the list of verbs has room for."""
_WRITERS = frozenset({"quickstart", "embed", "reinforce", "join", "show", "train", "export"})
"""The verbs that print only after their work, which lies in files then."""
_FILE_OPTIONS = frozenset({"--out", "-o", "--repair", "--html", "--plot", "--confusion"})
"""The options by which the other verbs write files."""
_WIDEST = 100  # characters of a line of help
_FUNCTIONS = {"eval": "evaluate"}  # whose name is not the verb's


def build(*verbs: str) -> typer.Typer:
    """Return the command line with the given verbs, or with all."""
    made = typer.Typer(
        name="pocketclip",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes half of the time that --help may
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST},
    )
    made.callback()(_root)
    width = min(output.width_of(sys.stdout), _WIDEST) - 2  # which the help is indented by
    for verb in verbs or VERBS:
        module = importlib.import_module(f"pocketclip.cli.{verb}")
        function = getattr(module, _FUNCTIONS.get(verb, verb))
        about = _fitted(inspect.getdoc(function) or "", width)
        made.command(verb, help=about, short_help=VERBS[verb])(function)
    return made


def _fitted(text: str, width: int) -> str:
    """Return a verb's help with the examples broken where a shell goes on."""
    lines = []
    for line in text.split("\n"):
        while len(line) > width and line.startswith(("pocketclip ", "torchrun ", "    ")):
            at = line.rfind(" --", 10, width + 1)
            if at < 0:
                break
            lines.append(f"{line[:at]} \\")
            line = f"    {line[at + 1 :]}"
        lines.append(line)
    return "\n".join(lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.say(f"pocketclip {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """From raw image-text pairs to a fast image-text model on a phone or a laptop.

    \b
    pocketclip quickstart                           the whole way, in minutes
    pocketclip models                               what there is
    pocketclip classify photo.jpg --labels "a dog,a cat" --model mobileclip2-s0
    pocketclip embed photos/ --out photos.npy --model mobileclip2-s0
    pocketclip reinforce pairs.csv --out dr --teacher vit-b16
    pocketclip audit dr                             is the dataset whole?
    pocketclip train grocery-small --data dr --out runs/small
    pocketclip eval runs/small --suite datacomp38 --data sets --out results.jsonl
    pocketclip compare results.jsonl mobileclip2-s0 beside the published models
    pocketclip export runs/small --format openvino --out laptop
    pocketclip bench runs/small laptop              how fast and large they are
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
    # Only the verb that is asked for: making all of them takes longer than many answers.
    verb = args[0] if args else ""
    if verb == "export":  # which writes for minutes: `timeout` and the like leave nothing behind
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app = build(verb) if verb in VERBS else build()
        code = app(_optional_values(args), standalone_mode=False) or 0
        if code == 130:  # how some versions of typer report an interruption
            raise KeyboardInterrupt
        return int(code)
    except output.LostOutputError:
        raise
    except PocketclipError as error:
        output.note(f"error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        output.note("interrupted; nothing half-written was left")
        return 130
    except typer.Exit as done:
        return done.exit_code
    except OSError as error:
        name = error.filename  # bytes in some places; a number where a file is open
        where = f" ({os.fsdecode(name) if isinstance(name, bytes) else name})" if name else ""
        output.note(f"error: {error.strerror or error}{where}")
        return 2
    except Exception as error:
        # Typer's own errors, an unknown option say, know how to show themselves. Their class has
        # another home in each version.
        if not hasattr(error, "show"):
            raise
        shown = io.StringIO()
        error.show(file=shown)
        for line in shown.getvalue().splitlines():
            output.note(line)
        return int(getattr(error, "exit_code", 2))


def _lost(error: output.LostOutputError, *, worked: bool) -> int:
    """Return the exit code where not all could be printed."""
    if error.reader_gone:  # `| head` has enough: as a shell shows one that the signal ended
        return 141
    output.note(f"error: {error}")
    return 1 if worked else 2


def _optional_values(args: list[str]) -> list[str]:
    """Return the arguments with `--ray` alone written out, which typer cannot express."""
    bare = {
        i
        for i, text in enumerate(args)
        if text == "--ray" and (i + 1 == len(args) or args[i + 1].startswith("-"))
    }
    return [f"{text}=local" if i in bare else text for i, text in enumerate(args)]


if __name__ == "__main__":
    main()
