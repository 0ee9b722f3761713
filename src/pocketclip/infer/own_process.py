"""Loads a model for a process that does nothing else: a verb, or an actor of a cluster."""

from __future__ import annotations

from typing import Any

from pocketclip import devices
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.infer.encoder import Encoder, load
from pocketclip.infer.open_model import is_converted


def load_for_process(
    model: str,
    model_name: str | None = None,
    *,
    threads: int | None = None,
    revision: str | None = None,
    **options: Any,
) -> Encoder:
    """Return a model that is ready for use.

    Args:
        model: as `pocketclip.load` takes it.
        model_name: the model of a weight file that does not store one.
        threads: CPU threads; for a model in torch those of the whole process. None: all cores.
        revision: as for `pocketclip.load`.
        options: further arguments of `pocketclip.load`.

    Raises:
        PocketclipError: see `pocketclip.load`.
    """
    source = resolve_model(model, revision=revision)
    if threads is not None and source.kind != "bundle" and not is_converted(source):
        devices.set_threads(threads)
        threads = None
    return load(source, model_name, threads=threads, **options)
