"""Imports point down only, as the design lays the rooms out."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "pocketclip"

# Layer of a module, by the longest prefix. Within a layer, rooms of layer 2 are siblings.
LAYERS = {
    "pocketclip": 5,
    "pocketclip._deprecated": 0,
    "pocketclip._version": 0,
    "pocketclip.augment": 0,
    "pocketclip.caption_settings": 0,
    "pocketclip.cluster": 0,
    "pocketclip.embedding_space": 0,
    "pocketclip.embeddings": 0,
    "pocketclip.errors": 0,
    "pocketclip.feature_maps": 0,
    "pocketclip.formats": 0,
    "pocketclip.graph": 0,
    "pocketclip.images": 0,
    "pocketclip.label_set": 0,
    "pocketclip.license": 0,
    "pocketclip.pages": 0,
    "pocketclip.pairs": 0,
    "pocketclip.preprocess": 0,
    "pocketclip.progress": 0,
    "pocketclip.prompts": 0,
    "pocketclip.shards": 0,
    "pocketclip.storage": 0,
    "pocketclip.teacher_score": 0,
    "pocketclip.tokenizer": 0,
    "pocketclip.types": 0,
    "pocketclip.web": 0,
    "pocketclip.zoo": 0,
    "pocketclip.checkpoint": 1,
    "pocketclip.devices": 1,
    "pocketclip.nn": 1,
    "pocketclip.worker_pool": 1,
    "pocketclip.evaluate": 2,
    "pocketclip.export": 2,
    "pocketclip.infer": 2,
    "pocketclip.reinforce": 2,
    "pocketclip.train": 2,
    "pocketclip.train.evaluation": 2,  # a room of its own: see SIBLINGS
    "pocketclip.attribution": 3,
    "pocketclip.compat": 3,
    "pocketclip.embed": 3,
    "pocketclip.finetune": 3,
    "pocketclip.fit": 3,
    "pocketclip.pipeline_folder": 3,
    "pocketclip.plan": 3,
    "pocketclip.publish": 3,
    "pocketclip.quickstart": 3,
    "pocketclip.search": 3,
    "pocketclip.sweep_scales": 3,
    "pocketclip.upcycling": 3,
    "pocketclip.serve": 4,
    "pocketclip.cli": 5,
    "pocketclip.__main__": 5,
    "pocketclip.train.__main__": 5,  # what torchrun starts: the verb of the command line
}
# Layer 1 without torch: a MODEL argument is understood in the base install.
TORCH_FREE = {
    "pocketclip.checkpoint", "pocketclip.checkpoint.hub", "pocketclip.checkpoint.hub_cache",
    "pocketclip.checkpoint.hub_client", "pocketclip.checkpoint.hub_files",
    "pocketclip.checkpoint.names", "pocketclip.checkpoint.operations",
    "pocketclip.checkpoint.parameters", "pocketclip.checkpoint.resolve",
    "pocketclip.checkpoint.safe_load", "pocketclip.checkpoint.stored",
}  # fmt: skip
# Layers 3 and 4 without torch: a bundle is enough to embed, to fit labels, to search, to serve.
TORCH_FREE_ROOMS = {
    "pocketclip.embed", "pocketclip.fit", "pocketclip.search", "pocketclip.serve"
}  # fmt: skip
TORCH = {"torch", "safetensors.torch"}
# Recipes are read and checked in an install without torch.
TORCH_FREE_TRAINING = {
    "pocketclip.train.recipe", "pocketclip.train.recipe_settings", "pocketclip.train.sections"
}  # fmt: skip
# Published embeddings are torch files: read and written inside two functions of this module.
MAY_ASK_FOR_TORCH = {"pocketclip.shards.codec"}
SIBLINGS = {
    # Exports are checked, and calibrated, by what will run them.
    ("pocketclip.export", "pocketclip.infer"),
    # One module scores the checkpoints of a run; the loop itself takes any function.
    ("pocketclip.train", "pocketclip.train.evaluation"),
    ("pocketclip.train.evaluation", "pocketclip.train"),
    ("pocketclip.train.evaluation", "pocketclip.evaluate"),
    ("pocketclip.train.evaluation", "pocketclip.infer"),
}


def _name(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def _tree(name):
    return ast.parse(MODULES[name].read_text("utf-8"))


def _layer(name):
    while name not in LAYERS:
        name, _, rest = name.rpartition(".")
        assert rest, "a module without a layer"
    return LAYERS[name], name


def _statements(node, *, early):
    """Yield the import statements below a node, and whether each runs at import time."""
    is_later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, early and not is_later
        elif not isinstance(child, ast.expr):
            yield from _statements(child, early=early and not is_later)


def _imports(tree, known):
    """Yield (imported module, whether at import time) of a syntax tree."""
    for node, early in _statements(tree, early=True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, early
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module, early


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    layer, room = _layer(name)
    for imported, early in _imports(_tree(name), MODULES.keys()):
        torch_free = layer == 0 or name in TORCH_FREE or room in TORCH_FREE_ROOMS
        if imported in TORCH and torch_free and (early or name not in MAY_ASK_FOR_TORCH):
            pytest.fail(f"{name} is torch-free and imports {imported}")
        if imported.partition(".")[0] == "torch" and early:
            trains = room == "pocketclip.train" and name not in TORCH_FREE_TRAINING
            assert layer in (1, 3) or trains, f"{name} imports torch when it is imported itself"
        if imported.partition(".")[0] != "pocketclip":
            continue
        other, other_room = _layer(imported)
        if name == "pocketclip":
            continue  # the front door: lazily, everything
        assert imported != "pocketclip", f"{name} imports the front door"
        assert other <= layer, f"{name} (layer {layer}) imports {imported} (layer {other})"
        if layer == other == 2:
            allowed = room == other_room or (room, other_room) in SIBLINGS
            assert allowed, f"{name} imports its sibling {imported}"


def _graph(trees):
    """Return which modules each module imports, anywhere in it: in functions and for typing too.

    A module of a package does not count as importing the package's `__init__`: Python imports
    that anyway.
    """
    packages = {name for name in trees if any(other.startswith(f"{name}.") for other in trees)}
    graph = {}
    for name, tree in trees.items():
        targets = set()
        for imported, _ in _imports(tree, set(trees)):
            while imported and imported not in trees:
                imported = imported.rpartition(".")[0]
            own_package = imported in packages and name.startswith(f"{imported}.")
            if imported and imported != name and not own_package:
                targets.add(imported)
        graph[name] = targets
    return graph


def _circle(graph):
    """Return the modules of one circle, or an empty list; by repeatedly removing the leaves."""
    graph = {name: set(targets) for name, targets in graph.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    if not graph:
        return []
    path = [min(graph)]
    while path[-1] not in path[:-1]:
        path.append(min(graph[path[-1]] & graph.keys()))
    return path[path.index(path[-1]) :]


def test_there_is_no_import_circle():
    assert _circle(_graph({name: _tree(name) for name in MODULES})) == []


def test_a_circle_would_be_noticed():
    sources = {
        "pocketclip": "",
        "pocketclip.a": "from pocketclip import b\n",
        "pocketclip.b": "def f():\n    from pocketclip.c import g\n",
        "pocketclip.c": "if TYPE_CHECKING:\n    import pocketclip.a\n",
        "pocketclip.d": "from pocketclip import a\n",
    }
    graph = _graph({name: ast.parse(source) for name, source in sources.items()})
    assert sorted(set(_circle(graph))) == ["pocketclip.a", "pocketclip.b", "pocketclip.c"]
    assert _circle(_graph({"pocketclip.d": ast.parse(sources["pocketclip.d"])})) == []


def test_no_file_is_long():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {n: count for n, count in lines.items() if count > 500} == {}


def test_the_rule_would_notice():
    tree = ast.parse("from pocketclip.cli import main\ndef f():\n    import torch\n")
    known = {"pocketclip.cli.main"}
    assert list(_imports(tree, known)) == [("pocketclip.cli.main", True), ("torch", False)]


def test_every_layer_exists():
    assert set(LAYERS) <= MODULES.keys()
