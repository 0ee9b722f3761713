"""The options of every verb that takes a MODEL, and how it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

MODEL_HELP = (
    "A model name (see `pocketclip models`), training run, checkpoint, bundle, weight file, "
    "NAME=FILE, hub id OWNER/NAME, or random:NAME. A folder here comes before a name: see "
    "docs/how-to/naming-models.md."
)
MODEL_NAME_HELP = "The model that a bare weight file holds, if the file does not say; as NAME=FILE."
BACKEND_HELP = "What runs a bundle: auto, onnxruntime or openvino."
DEVICE_HELP = "Where a model in torch computes: cpu, cuda, cuda:1, mps or auto."
THREADS_HELP = "Threads of the processor that the model uses; all cores if not given."
REVISION_HELP = "Of a hub id: a branch, tag or commit. OWNER/NAME@REVISION says the same."


def load_encoder(
    model: str,
    model_name: str | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    revision: str | None = None,
    offline: bool = False,
    low_latency_start: bool = False,
) -> Encoder:
    """Return the model of a verb's arguments, ready for use; see `pocketclip.load`.

    Raises:
        PocketclipError: see `pocketclip.load`.
    """
    from pocketclip import devices
    from pocketclip.checkpoint.resolve import resolve_model
    from pocketclip.infer.encoder import load

    source = resolve_model(model, revision=revision)
    if threads is not None and source.kind != "bundle":
        devices.set_threads(threads)  # of the whole process, which is ours
        threads = None
    return load(
        source, model_name, offline=offline, backend=backend, device=device, threads=threads,
        batch_size=batch_size, low_latency_start=low_latency_start,
    )  # fmt: skip
