"""What the verbs take: photographs by path, folder or pattern; text files; models; extras."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip.cli._progress import Notes, progress
from pocketclip.cli.output import note
from pocketclip.errors import MissingDependencyError, PocketclipError, how_to_install
from pocketclip.formats.escaping import argument_text

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.types import Embeddings


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
    from pocketclip.infer.own_process import load_for_process

    return load_for_process(
        model, model_name, threads=threads, revision=revision, offline=offline, backend=backend,
        device=device, batch_size=batch_size, low_latency_start=low_latency_start,
        reporter=Notes(),
    )  # fmt: skip


def convert_at_first_use(
    model: str, model_name: str | None = None, *, revision: str | None = None, offline: bool = False
) -> None:
    """Convert a model now if its first use would, so that this is not measured.

    Raises:
        PocketclipError: see `pocketclip.infer.ready.open_ready`.
    """
    from pocketclip.checkpoint.resolve import resolve_model
    from pocketclip.infer.open_model import is_converted

    source = resolve_model(model, revision=revision)
    if is_converted(source):
        from pocketclip.infer.ready import open_ready

        open_ready(source, model_name, offline=offline, reporter=Notes())


def import_with_extra(
    module: str, work: str, extra: str, packages: Collection[str] = ("pydantic", "torch", "yaml")
) -> Any:
    """Import a module of ours that needs packages of an extra.

    Args:
        module: the module.
        work: what needs it, for the message, such as "training".
        extra: the extra of pocketclip that installs the packages.
        packages: the packages that the extra installs and the module needs.

    Raises:
        MissingDependencyError: a package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        raise MissingDependencyError(
            f"{work} needs {error.name}: {how_to_install(extra)}"
        ) from error


def photographs(inputs: Sequence[str]) -> list[Path]:
    """Return the files that `inputs` name: files, folders (searched at any depth) and patterns.

    Other files in the folders are counted on standard error.

    Raises:
        PocketclipError: an empty input; a folder or pattern without any photograph.
        OSError: a folder cannot be read.
    """
    from pocketclip.storage.photos import find_photographs

    listing = find_photographs(inputs)
    for sentence in listing.passed_over:
        note(sentence)
    return listing.paths


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, which end at LF or CR LF and nowhere else.

    Raises:
        PocketclipError: it is not UTF-8 text, is larger than `storage.MAX_BYTES`, or holds too
            many lines.
        OSError: it cannot be read.
    """
    from pocketclip.formats.lines import load_lines
    from pocketclip.storage import MAX_BYTES

    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1) if path.stat().st_size <= MAX_BYTES else None
    if data is None or len(data) > MAX_BYTES:
        raise PocketclipError(f"{path} is larger than {MAX_BYTES:,} bytes; split it into parts")
    return load_lines(data, what=str(path))


def encode_photographs(
    encoder: Encoder, photos: Sequence[Path]
) -> Iterator[tuple[list[Path], Embeddings, list[tuple[Path, str]]]]:
    """Yield, per batch, the photographs that were read, their embeddings, and the bad ones."""
    with progress(len(photos), "photographs") as advance:
        for good, embeddings, bad in encoder.encode_stream(photos):
            read = [photos[i] for i in good]
            yield read, embeddings, [(photos[i], str(error)) for i, error in bad]
            advance(len(good) + len(bad))


def report_bad(good: Sequence[object], bad: Sequence[tuple[Path, str]]) -> None:
    """Name each skipped input on standard error; refuse to go on where no photograph could be read.

    Raises:
        PocketclipError: there are bad ones and no good ones.
    """
    if bad and not good and len(bad) == 1:
        raise PocketclipError(f"nothing was done: {bad[0][1]}")
    for _, reason in bad:
        note(f"skipped: {reason}")
    if bad and not good:
        raise PocketclipError(f"nothing was done: none of the {len(bad)} photographs could be read")


def text_arguments(arguments: Sequence[str], what: str) -> list[str]:
    """Return arguments of the command line that are texts, not paths, in any locale.

    Raises:
        PocketclipError: one is not UTF-8.
    """
    texts = []
    for argument in arguments:
        text = argument_text(argument)
        if text is None:
            raise PocketclipError(f"{what} {argument} is not UTF-8 text")
        texts.append(text)
    return texts
