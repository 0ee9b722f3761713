"""What the exporters for phones have in common: silence, layers of operations, int8 that holds.

Shapes: N rows to calibrate or compare with, D embedding.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import BundleError, ExportError, first_line
from pocketclip.export.sensitivity import Build, search

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import Node

Kind = Literal["image", "text"]
INT8_COSINE = 0.993
"""What int8 has to reach on the rows that are at hand while it is made; the gate itself, 0.99, is
asked of photographs that were not among them."""
PROBE_SECONDS = 120


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it neither Python nor native code of this process writes to stdout or stderr.

    What an error says is kept; it travels with the exception.
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


def program(tower: nn.Module, example: Tensor, shapes: Any = None) -> ExportedProgram:
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


def lacking(target: str, kind: str, program: ExportedProgram, error: BaseException) -> ExportError:
    """Return the error that says which operation of which layer a target cannot express.

    Args:
        target: its name, for people.
        kind: the tower.
        program: what was to be converted.
        error: what the target's converter raised.
    """
    said = "\n".join(_said(error))
    # Now, while it is quiet: what the converter's frames hold is given up with complaints.
    traceback.clear_frames(error.__traceback__)
    words = {word.removeprefix("torch._ops.") for word in re.findall(r"[A-Za-z_][\w:.]*", said)}
    graphs = [program.graph]
    with contextlib.suppress(Exception):  # some take operations apart before they look at them
        graphs.append(program.run_decompositions().graph)
    by_operation = (_named(graph, words, _operations) for graph in graphs)
    by_name = (_named(graph, words, lambda node: {node.name}) for graph in graphs)
    node = next((found for found in itertools.chain(by_operation, by_name) if found), None)
    if node is None:
        return ExportError(f"{target} cannot express the {kind} tower: {first_line(error)}")
    return ExportError(
        f"{target} cannot express the {kind} tower: it lacks the operation {node.target}, which "
        f"layer {layer_of(node) or '(the tower itself)'} needs; change that layer or choose "
        "another format"
    )


def _named(graph: Any, words: Collection[str], names: Callable[[Node], set[str]]) -> Node | None:
    """Return the first operation of a graph that is among the words of an error."""
    for node in graph.nodes:
        if node.op == "call_function" and names(node) & set(words):
            found: Node = node
            return found
    return None


def _operations(node: Node) -> set[str]:
    operation = str(node.target)
    library, *name = operation.split(".")
    short = {f"{library}{mark}{name[0]}" for mark in (".", "::")} if name else set()
    return {operation, *short}


def _said(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def rows(arrays: Sequence[NDArray[Any]] | None, example: Tensor) -> list[NDArray[Any]]:
    """Return arrays (n, ...) as rows (1, ...) of the example's type; the example itself if none."""
    if not arrays:
        arrays = [example.numpy()]
    dtype = example.numpy().dtype
    return [np.ascontiguousarray(row[None], dtype) for array in arrays for row in array]


def embeddings(tower: nn.Module, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what a tower in torch says of rows: (N, D)."""
    import torch

    with torch.inference_mode():
        return np.concatenate([tower(torch.from_numpy(row)).numpy() for row in inputs])


def keep_until_good(
    layers: Sequence[str],
    build: Build,
    inputs: Sequence[NDArray[Any]],
    reference: NDArray[Any],
    keep: Collection[str],
    min_cosine: float = INT8_COSINE,
) -> tuple[list[str], list[str]]:
    """Return which layers int8 leaves alone, so that it stays near the reference, and notes.

    Args:
        layers: all that can be left alone, in the order of the model.
        build: returns what runs the model with the named layers left alone.
        inputs: rows (1, ...) for it.
        reference: the embeddings (N, D) that it should give.
        keep: layers that the caller wants left alone in any case.
        min_cosine: how near.

    Raises:
        ExportError: it is not near enough even with every layer left alone.
    """
    wanted = frozenset(keep)
    unknown = wanted - set(layers)
    if unknown:
        raise ExportError(
            f"there is no layer {min(unknown)!r} to keep; the layers are {', '.join(layers)}"
        )
    rest = [name for name in layers if name not in wanted]
    found = search(rest, lambda more: build(wanted | more), inputs, reference, min_cosine)
    notes = [f"smallest cosine while it was made, {len(inputs)} rows: {found.after.min_cosine:.6f}"]
    if found.kept:
        notes.append(f"without the kept layers it was {found.before.min_cosine:.6f}")
    return [name for name in layers if name in wanted or name in found.kept], notes


def probe(path: Path, code: str, runtime: str) -> None:
    """Load a file in a process of its own, which a damaged file may crash.

    Args:
        path: the file; `code` finds it in `sys.argv[1]`.
        code: loads and executes it, and raises if that does not work.
        runtime: its name, for people.

    Raises:
        BundleError: it could not be loaded there.
    """
    if not path.is_file():
        raise BundleError(f"{path} does not exist; export the bundle again")
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, os.fspath(path)],
                stdout=subprocess.DEVNULL,
                stderr=said,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BundleError(_damaged(path, runtime, "it never came to an end")) from None
        said.seek(0)
        lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    if done.returncode < 0:
        raise BundleError(_damaged(path, runtime, f"it crashes (signal {-done.returncode})"))
    if done.returncode:
        raise BundleError(_damaged(path, runtime, lines[-1][:200] if lines else "no reason given"))


def _damaged(path: Path, runtime: str, reason: str) -> str:
    return f"{path}: {runtime} cannot load it: {reason}; copy the bundle again, or export it again"


def facts(
    file: str,
    given: tuple[str, str, Sequence[int | None]],
    found: tuple[str, str, Sequence[int | None]],
    *,
    kept: Sequence[str] = (),
    notes: Sequence[str] = (),
    dynamic_batch: bool = False,
) -> dict[str, Any]:
    """Return what a bundle says of a tower; `given` and `found` are name, dtype and shape."""

    def describe(port: tuple[str, str, Sequence[int | None]]) -> dict[str, Any]:
        return {"name": port[0], "dtype": port[1], "shape": list(port[2])}

    return {
        "file": file,
        "input": describe(given),
        "output": describe(found),
        "dynamic_batch": dynamic_batch,
        "kept": list(kept),
        "notes": list(notes),
    }


Run = Callable[[NDArray[Any]], NDArray[Any]]
