"""`pocketclip`: the entry point and what all verbs share.

Exit codes: 0 all went well; 1 some inputs were skipped, each named; 2 nothing was done, the
message says why; 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import warnings
from typing import Annotated, Any

import typer

from pocketclip import __version__
from pocketclip.errors import PocketclipError

VERBS = (
    *("quickstart", "models", "classify", "embed", "reinforce", "join", "audit", "show"),
    *("train", "eval", "compare", "export", "bench"),
)
_FUNCTIONS = {"eval": "evaluate"}  # whose name is not the verb's


def build(*verbs: str) -> typer.Typer:
    """Return the command line with the given verbs, or with all."""
    made = typer.Typer(
        name="pocketclip",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes half of the time that --help may
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    made.callback()(_root)
    for verb in verbs or VERBS:
        module = importlib.import_module(f"pocketclip.cli.{verb}")
        made.command(verb)(getattr(module, _FUNCTIONS.get(verb, verb)))
    return made


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pocketclip {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """From raw image-text pairs to a fast image-text model on a phone or a laptop.

    \b
    pocketclip quickstart                                  the whole way, in minutes
    pocketclip models                                      what there is
    pocketclip classify photo.jpg --labels "a dog,a cat" --model mobileclip2-s0
    pocketclip embed photos/ --out photos.npy --model mobileclip2-s0
    pocketclip reinforce pairs.csv --out dr --teacher vit-b16 --captioner coca-vit-l14
    pocketclip audit dr                                    is the dataset whole?
    pocketclip train grocery-small --data dr --out runs/small
    pocketclip eval runs/small --suite datacomp38 --data sets --out results.jsonl
    pocketclip compare results.jsonl mobileclip2-s0        beside the published models
    pocketclip export runs/small --format openvino --out laptop
    pocketclip bench runs/small laptop                     how fast and large they are here
    """


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    warnings.showwarning = _show_warning
    # Only the verb that is asked for: making all of them takes longer than many answers.
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "export":  # which writes for minutes: `timeout` and the like leave nothing behind
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app = build(verb) if verb in VERBS else build()
        code = app(_optional_values(sys.argv[1:]), standalone_mode=False) or 0
        if code == 130:  # how some versions of typer report an interruption
            raise KeyboardInterrupt
        sys.exit(code)
    except PocketclipError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; nothing half-written was left", file=sys.stderr)
        sys.exit(130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        # Typer's own errors, an unknown option say, know how to show themselves. Their class has
        # another home in each version.
        if not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(getattr(error, "exit_code", 2))


def _optional_values(args: list[str]) -> list[str]:
    """Return the arguments with `--ray` alone written out, which typer cannot express."""
    bare = {
        i
        for i, text in enumerate(args)
        if text == "--ray" and (i + 1 == len(args) or args[i + 1].startswith("-"))
    }
    return [f"{text}=local" if i in bare else text for i, text in enumerate(args)]


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
