"""Tracing a tower with torch, silently, and naming the layer that a runtime cannot express."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from pocketclip.errors import ExportError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import Node


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence stdout and stderr of this process, from Python and from native code.

    Exceptions keep their messages.
    """
    before = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "w") as void, warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        saved = [os.dup(1), os.dup(2)]
        try:
            logging.disable(logging.CRITICAL)
            os.dup2(void.fileno(), 1)
            os.dup2(void.fileno(), 2)
            with contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
                yield
        finally:
            logging.disable(before)
            for descriptor, copy in enumerate(saved, start=1):
                os.dup2(copy, descriptor)
                os.close(copy)


def trace(tower: nn.Module, example: Tensor, shapes: Any = None) -> ExportedProgram:
    """Return a tower as torch's exported program; the batch is fixed unless `shapes` frees it.

    Raises:
        ExportError: torch cannot trace it.
    """
    import torch

    with quiet():
        try:
            return torch.export.export(tower, (example,), dynamic_shapes=shapes)
        except Exception as error:
            raise ExportError(f"torch cannot trace the tower: {first_line(error)}") from error


def layer_of(node: Node) -> str:
    """Return the path of the module that an operation belongs to, such as `tower.stages.0`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def layers_of(graph: Any) -> list[str]:
    """Return the module paths of a graph's operations, each once, in the order of the model."""
    paths = (layer_of(node) for node in graph.nodes if node.op == "call_function")
    return list(dict.fromkeys(path for path in paths if path))


def missing_operation(
    target: str, kind: str, program: ExportedProgram, error: BaseException
) -> ExportError:
    """Return the error that says which operation of which layer a target cannot express.

    Args:
        target: its name, for messages.
        kind: the tower.
        program: the program that could not be converted.
        error: the exception of the target's converter.
    """
    messages = "\n".join(_messages(error))
    # Clear the frames while output is silenced: destroying the converter's objects prints warnings.
    traceback.clear_frames(error.__traceback__)
    words = {word.removeprefix("torch._ops.") for word in re.findall(r"[A-Za-z_][\w:.]*", messages)}
    graphs = [program.graph]
    with contextlib.suppress(Exception):  # some converters decompose operations first
        graphs.append(program.run_decompositions().graph)
    by_operation = (_first_named(graph, words, _operation_names) for graph in graphs)
    by_name = (_first_named(graph, words, lambda node: {node.name}) for graph in graphs)
    node = next((match for match in itertools.chain(by_operation, by_name) if match), None)
    if node is None:
        return ExportError(f"{target} cannot express the {kind} tower: {first_line(error)}")
    return ExportError(
        f"{target} cannot express the {kind} tower: it lacks the operation {node.target}, which "
        f"layer {layer_of(node) or '(the tower itself)'} needs; change that layer or choose "
        "another format"
    )


def _first_named(
    graph: Any, words: Collection[str], names: Callable[[Node], set[str]]
) -> Node | None:
    """Return the first operation of a graph that an error message names."""
    for node in graph.nodes:
        if node.op == "call_function" and names(node) & set(words):
            match: Node = node
            return match
    return None


def _operation_names(node: Node) -> set[str]:
    operation = str(node.target)
    library, *name = operation.split(".")
    short = {f"{library}{mark}{name[0]}" for mark in (".", "::")} if name else set()
    return {operation, *short}


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
