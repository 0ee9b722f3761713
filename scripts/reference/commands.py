"""The page of the command line, from the functions that typer turns into verbs."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from pocketclip.cli import main as cli
from reference.markdown import code, plain, table

_INTRODUCTION = """# Command line

Every verb is listed by `pocketclip --help` and explained by `pocketclip VERB --help`, from which
this page is made. [Output and exit codes](../how-to/output.md) says what the verbs print and write.
An option that may be repeated is marked with …

"""
_NAMES: dict[Any, str] = {str: "text", int: "integer", float: "number", Path: "path", bool: "flag"}
_HELP_DEFAULT = re.compile(r"\s*\[default: ([^\]]+)\]")


def page() -> str:
    """Return the page."""
    rows = [(f"[`{verb}`](#{verb})", plain(about)) for verb, about in cli.VERBS.items()]
    parts = [_INTRODUCTION + table(("verb", "what it does"), rows)]
    return "\n\n".join([*parts, *map(_verb, cli.VERBS)])


def _verb(verb: str) -> str:
    name = verb.replace("-", "_")
    module = importlib.import_module(f"pocketclip.cli.{name}")
    function = getattr(module, cli._FUNCTIONS.get(verb, name))
    parameters = list(_parameters(function))
    arguments = [one for one in parameters if isinstance(one[1], ArgumentInfo)]
    usage = " ".join([f"pocketclip {verb} [OPTIONS]", *(_usage(*one) for one in arguments)])
    parts = [f"## {verb} {{ #{verb} }}", f"```text\n{usage}\n```", _about(function)]
    if arguments:
        rows = [
            (code(_usage(*one).strip("[]")), _type(one[2]), _default(one), _help(one))
            for one in arguments
        ]
        parts.append(table(("argument", "takes", "default", "meaning"), rows))
    rows = [
        (_flags(*one[:3]), _type(one[2]), _default(one), _help(one))
        for one in parameters
        if isinstance(one[1], OptionInfo)
    ]
    parts.append(table(("option", "takes", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _parameters(function: Callable[..., Any]) -> typing.Iterator[tuple[Any, ...]]:
    """Yield (name, typer's description, type, default) for each parameter of a verb."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, about = typing.get_args(hints[name])[:2]
        yield name, about, kind, parameter.default


def _about(function: Callable[..., Any]) -> str:
    """Return a verb's help; what follows a line with \\b alone is shown as it stands."""
    parts = []
    for paragraph in (inspect.getdoc(function) or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append(f"```sh\n{paragraph[2:]}\n```")
        else:
            parts.append(plain(paragraph))
    return "\n\n".join(parts)


def _usage(name: str, about: Any, kind: Any, default: Any) -> str:
    shown = (about.metavar or name.upper()) + ("..." if _repeats(kind) else "")
    return shown if default is inspect.Parameter.empty else f"[{shown}]"


def _flags(name: str, about: Any, kind: Any) -> str:
    # With `Annotated`, typer holds the first of the names as the default.
    names = [about.default, *(about.param_decls or ())]
    given = [one for one in names if isinstance(one, str) and one.startswith("-")]
    long = f"--{name.replace('_', '-')}"
    if not given and kind is bool:
        given = [f"{long}/--no-{name.replace('_', '-')}"]
    # Without a break within a name, however narrow the column.
    flags = sorted(given or [long], key=lambda flag: flag.startswith("--"))
    return " ".join(f"{code(flag)}{{ .nowrap }}" for flag in flags)


def _inner(kind: Any) -> Any:
    """Return a type without `| None`."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        [kind] = [one for one in typing.get_args(kind) if one is not type(None)]
    return kind


def _repeats(kind: Any) -> bool:
    return typing.get_origin(_inner(kind)) in (list, tuple)


def _type(kind: Any) -> str:
    inner = _inner(kind)
    if _repeats(kind):
        return f"{_type(typing.get_args(inner)[0])} …"
    if typing.get_origin(inner) is typing.Literal:
        return " ".join(code(one) for one in typing.get_args(inner))
    if isinstance(inner, type) and issubclass(inner, enum.Enum):
        return " ".join(code(one.value) for one in inner)
    return _NAMES.get(inner, getattr(inner, "__name__", str(inner)))


def _default(parameter: tuple[Any, ...]) -> str:
    _, about, _, default = parameter
    if default is inspect.Parameter.empty:
        return "required"
    if shown := _HELP_DEFAULT.search(about.help or ""):
        return code(shown[1])
    if default is None or isinstance(default, bool) or default in ("", [], ()):
        return ""
    return code(getattr(default, "value", default))


def _help(parameter: tuple[Any, ...]) -> str:
    return plain(_HELP_DEFAULT.sub("", parameter[1].help or ""))
