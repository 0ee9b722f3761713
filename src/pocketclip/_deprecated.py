"""Old names of modules, arguments and attributes, which work for one release with a warning.

import pocketclip.files  # DeprecationWarning: pocketclip.files is now pocketclip.storage.local
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
MOVED = {
    "archive": "formats.torch_zip",
    "augment_config": "augment.config",
    "augment_params": "augment.params",
    "escaping": "formats.escaping",
    "evaluate.confusion": "evaluate.report.confusion",
    "evaluate.counts": "evaluate.metrics.counts",
    "evaluate.data": "evaluate.datasets.find",
    "evaluate.examples": "evaluate.datasets.examples",
    "evaluate.folders": "evaluate.datasets.folders",
    "evaluate.latency": "evaluate.report.latency",
    "evaluate.page": "evaluate.report.page",
    "evaluate.report.render": "pages.render",
    "evaluate.report.svg": "pages.svg",
    "evaluate.rows": "evaluate.datasets.rows",
    "evaluate.runs": "evaluate.report.runs",
    "evaluate.scores": "evaluate.metrics.scores",
    "evaluate.tables": "evaluate.datasets.tables",
    "evaluate.webdataset": "evaluate.datasets.webdataset",
    "exchange": "storage.atomic_swap",
    "export.gates": "infer.gates",
    "export.verify": "infer.verify",
    "fetch": "storage.http",
    "files": "storage.local",
    "generation": "caption_settings",
    "hub": "checkpoint.hub",
    "image_metadata": "formats.image_metadata",
    "locks": "storage.locks",
    "naming": "checkpoint.names",
    "network": "storage.network",
    "nn.inference": "nn.cpu_optimize",
    "nn.identity": "embedding_space",
    "nn.space": "embedding_space",
    "npyfile": "formats.npy",
    "parsing": "formats",
    "photos": "storage.photos",
    "pixel_ops": "augment.pixel_ops",
    "quickstart.run": "quickstart.pipeline",
    "reinforce.foreign": "reinforce.hf",
    "reinforce.foreign_towers": "reinforce.hf_towers",
    "reinforce.foreign_writer": "reinforce.hf_captioner",
    "reinforce.local": "reinforce.workers",
    "reinforce.replaying": "reinforce.audit",
    "reinforce.squares": "reinforce.teacher_preprocess",
    "resolve": "checkpoint.resolve",
    "shards.auditing": "shards.audit.run",
    "shards.foreign": "shards.jsonl",
    "shards.inspecting": "shards.audit.inspect",
    "shards.mapped": "shards.random_access",
    "shards.recomputing": "shards.audit.drift",
    "shards.repairing": "shards.audit.repair",
    "shards.sample": "shards.layout",
    "stores": "storage.stores",
    "tarfiles": "formats.tar",
    "temporary": "storage.temporary",
    "train.affinities": "train.loss_terms",
    "train.canvas": "augment.fast_ops",
    "train.data": "train.loader",
    "train.loss": "train.losses",
    "train.rawpairs": "train.raw_pairs",
    "train.remote": "train.shard_cache",
    "train.samples": "train.batches",
    "train.saving": "train.checkpoints",
    "train.views": "train.replay",
    "weights": "checkpoint.safe_load",
}
"""New module paths by old ones, relative to `pocketclip`."""


# Not a subclass of importlib.abc's classes, whose import takes 20 ms.
class _Finder:
    """Finds the modules of `MOVED`: returns the module at the new path, not a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        is_moved = fullname.removeprefix("pocketclip.") in MOVED and fullname.startswith(
            "pocketclip."
        )
        return ModuleSpec(fullname, self) if is_moved else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = "pocketclip." + MOVED[spec.name.removeprefix("pocketclip.")]
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just assigned the spec of the old path.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let `import` find the modules of `MOVED`; existing modules come first."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def renamed_arguments(**new_names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that accepts keyword arguments under their old names too.

    Args:
        **new_names: each old name with its new one.

    Raises:
        TypeError: from the decorated function, if an argument is passed under both names.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def accept(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                name = function.__qualname__
                if new in kwargs:
                    raise TypeError(f"{name}(): {old}= is the old name of {new}=; pass only {new}=")
                warnings.warn(f"{name}(): {old}= is now {new}=", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return accept

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that reads the attribute `new` under its old name."""

    def read(self: object) -> Any:
        warnings.warn(
            f"{type(self).__name__}.{old} is now {type(self).__name__}.{new}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, new)

    return property(read, doc=f"The old name of `{new}`.")
