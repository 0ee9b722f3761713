"""A model as a bundle: from the user's cache, or converted now and kept there, without torch.

    bundle = open_ready(resolve_model("mobileclip2-s0"))

One process converts; others that want the same model wait for it and use its bundle. Where bundles
are kept and when they count: `pocketclip.infer.model_cache`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip.checkpoint import hub_cache
from pocketclip.checkpoint.hub_cache import HubFile
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.checkpoint.weight_license import license_of_hub_file
from pocketclip.errors import (
    NOT_STORED,
    BundleError,
    ChangedBundleError,
    CheckpointError,
    PocketclipError,
    StorageError,
)
from pocketclip.infer import bundle as bundles
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.model_cache import (
    CONVERTER,
    Place,
    find,
    fingerprint,
    hub_place,
    local_place,
    model_files,
    read_refs,
    remember,
    shown,
)
from pocketclip.license import License
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.storage import locks
from pocketclip.storage.local import OwnFiles, digest_file, files_in, remove_abandoned

if TYPE_CHECKING:
    from pocketclip.checkpoint.stored import StoredModel
    from pocketclip.infer.convert import Attempt

KINDS = ("hub", "file", "checkpoint")
"""The kinds of sources that are converted."""
_LOCK = ".lock"
_SHA256 = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)

Write = Callable[[Path], Bundle]
"""Writes a bundle to a folder, whole or not at all, and returns it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A weight file or checkpoint here, and the place of its bundle."""

    source: ModelSource
    """The file or folder; never `hub`."""
    name: str | None
    """The zoo name that the weights must fit; None if they name it themselves."""
    place: Place
    facts: Mapping[str, Any]
    """The `source` entry of the bundle's manifest."""
    license: License | None = None
    """Of weights from the hub; None: what the weights themselves say."""

    def check_downloaded(self) -> None:
        """Refuse a damaged file of the hub's cache, whose name is its hash.

        Its bundle would count for as long as the commit does, even if the file is mended.

        Raises:
            CheckpointError: it does not have this hash.
        """
        assert self.source.path is not None
        blob = self.source.path.resolve()
        is_named_by_hash = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
        if is_named_by_hash and digest_file(blob) != blob.name:
            raise CheckpointError(
                f"{blob} is not the file that was downloaded (its hash differs): remove it, and "
                "it is downloaded again"
            )

    def check_unchanged(self) -> None:
        """Refuse a file that was replaced while it was read.

        Raises:
            CheckpointError: it was.
        """
        before = self.place.origin.get("fingerprint")
        assert self.source.path is not None
        if before not in (None, fingerprint(self.source.path, self.name)):
            raise CheckpointError(f"{self.source.text} was changed while it was read: try again")


class _Log(ProgressReporter):
    """Writes remarks to the log."""

    def remark(self, text: str) -> None:
        log.info("%s", text)


def open_ready(
    source: ModelSource,
    model: str | None = None,
    *,
    offline: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> Bundle:
    """Return a model as a bundle: the one in the user's cache, or a new one that is kept there.

    A bundle whose files turn out to be damaged makes itself again (`Bundle.renew`).

    Args:
        source: of one of `KINDS`.
        model: the zoo name of a weight file that does not name its model itself.
        offline: make no request.
        reporter: receives a remark if a conversion begins or is waited for; None: they are logged.

    Raises:
        HubError: there is no bundle, and the weights could not be fetched.
        CheckpointError: the weights are damaged or do not fit.
        DriftError: the converted model does not compute what its weights do.
        StorageError: the cache is full or not writable.
    """
    from pocketclip.checkpoint.stored import expected_name

    if source.note:
        log.warning("%s", source.note)
        source = dataclasses.replace(source, note="")
    report = _Log() if reporter is None else as_reporter(reporter)
    name = expected_name(source, model)

    def get(*, checked: bool) -> Bundle:
        found = find(source, name)
        if found is not None and not (checked and damage_of(found)):
            return found
        weights = fetch_weights(source, name, offline=offline)
        half = found is not None and found.precision == "fp16"  # as it was pulled

        def write(folder: Path) -> Bundle:
            return convert_weights(weights, folder, report, precision="fp16" if half else "fp32")

        return keep(weights, write, reporter=report)

    def renew() -> Bundle:
        try:
            return get(checked=True)
        except PocketclipError as error:
            raise BundleError(
                f"the converted {source.text} is damaged, and it cannot be converted again: {error}"
            ) from error

    return dataclasses.replace(get(checked=False), renew=renew)


def convert_weights(
    weights: Weights,
    folder: Path,
    reporter: ProgressReporter,
    *,
    precision: str = "fp32",
    preprocessing: bool = False,
    normalize: bool = False,
    replaceable: OwnFiles = files_in,
    more: Mapping[str, Any] | None = None,
    attempts_of: Callable[[StoredModel], Sequence[Attempt]] = lambda _stored: (),
) -> Bundle:
    """Convert weights to a bundle in a folder.

    Args:
        weights: what to convert.
        folder: the bundle's.
        reporter: receives a stage per step.
        precision: see `pocketclip.infer.convert.convert`.
        preprocessing: likewise; in the cache, never.
        normalize: likewise.
        replaceable: returns the files of an older folder that may be replaced; in the cache, all.
        more: further facts for the `source` entry of the manifest.
        attempts_of: returns the `attempts` of `pocketclip.infer.convert.convert`.

    Raises:
        CheckpointError: the weights were replaced meanwhile, or damaged since they were
            downloaded; an older bundle stays.
        PocketclipError: see `pocketclip.infer.convert.convert`.
    """
    from pocketclip.checkpoint.stored import read_stored
    from pocketclip.infer.convert import convert

    weights.check_downloaded()
    stored = read_stored(weights.source, weights.name)
    return convert(
        stored, folder, precision=precision, preprocessing=preprocessing, normalize=normalize,
        reporter=reporter, replaceable=replaceable,
        about={"source": {**weights.facts, **(more or {})}}, attempts=attempts_of(stored),
        before_keeping=weights.check_unchanged, license=weights.license,
    )  # fmt: skip


def fetch_weights(source: ModelSource, name: str | None, *, offline: bool = False) -> Weights:
    """Return the weights that a source means, fetched from the hub if they are not here.

    Raises:
        CheckpointError: the file is gone.
        HubError: see `pocketclip.checkpoint.hub.fetch`.
    """
    if source.kind != "hub":
        return local_weights(source, name)
    from pocketclip.checkpoint.stored import fetch_source

    return hub_weights(source, name, fetch_source(source, offline=offline))


def local_weights(source: ModelSource, name: str | None) -> Weights:
    """Return the weights of a file or checkpoint here.

    Raises:
        CheckpointError: it is gone.
        StorageError: there is no cache.
    """
    place = local_place(source, name)
    assert source.path is not None
    size = sum(file.stat().st_size for file in model_files(source.path))
    facts = {"file": source.path.name, "bytes": size, **place.origin, "converter": CONVERTER}
    return Weights(source=source, name=name, place=place, facts=facts)


def hub_weights(source: ModelSource, name: str | None, file: HubFile) -> Weights:
    """Return the weights that were fetched from the hub.

    Raises:
        StorageError: there is no cache.
    """
    here = dataclasses.replace(source, kind="file", path=file.path, suggested=None)
    license = license_of_hub_file(file)
    facts = {
        "repo": file.repo,
        "revision": file.revision,
        "file": file.filename,
        "bytes": file.path.stat().st_size,
        **({} if file.license is None else {"license": file.license}),
        "converter": CONVERTER,
    }
    sure = file.revision and hub_cache.cached(file.repo, revision=file.revision)
    if not file.revision or not sure or sure.path != file.path:
        # The hub might name another file of this commit: these weights are known as a file.
        place = dataclasses.replace(local_place(here, name), title=file.repo)
        return Weights(
            source=here, name=name, place=place, facts={**facts, **place.origin}, license=license
        )
    place = hub_place(source, name, file.repo, file.revision)
    return Weights(source=here, name=name, place=place, facts=facts, license=license)


def keep(
    weights: Weights,
    write: Write,
    *,
    accepts: Callable[[Bundle], bool] = lambda _bundle: True,
    reporter: ProgressReporter,
) -> Bundle:
    """Return the bundle of weights from the user's cache, written now if there is none.

    Of several processes one writes, and the others wait for it.

    Args:
        weights: what it is made of.
        write: writes it.
        accepts: whether a bundle that is there, of the same weights, need not be replaced.
        reporter: receives a remark before the bundle is written, or waited for.

    Raises:
        StorageError: the cache is full or not writable.
        PocketclipError: as `write`.
    """
    place = weights.place
    with storage_errors(place), _held(place, reporter):
        found = place.read()
        if found is not None and accepts(found) and damage_of(found) is None:
            return found
        reporter.remark(_announcement(place))
        remove_abandoned(place.folder.parent)
        written = write(place.folder)
        remember(place)
        return written


def confirm(place: Place, accepts: Callable[[Bundle], bool]) -> Bundle | None:
    """Return the bundle at a place if it is intact and accepted, else None.

    The cache then records that the place's revision means this commit, if it can be written.
    """
    found = place.read()
    if found is None or not accepts(found) or damage_of(found) is not None:
        return None
    parent = place.folder.parent
    if place.revision is not None and place.origin["revision"] != read_refs(parent).get(
        place.revision
    ):
        with contextlib.suppress(OSError), _held(place, ProgressReporter()):
            remember(place)
    return found


@contextlib.contextmanager
def storage_errors(place: Place) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into one that says what to do.

    Raises:
        StorageError: in place of such an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, PocketclipError) or error.errno not in NOT_STORED:
            raise
        raise StorageError(
            f"cannot keep the converted {place.title} in {shown(place.folder)}: "
            f"{error.strerror}; make room, choose another cache with POCKETCLIP_CACHE, or "
            "write it elsewhere with `pocketclip pull MODEL --out DIR`"
        ) from error


@contextlib.contextmanager
def _held(place: Place, reporter: ProgressReporter) -> Iterator[None]:
    """Let only one process at a time convert into the parent of a place."""
    parent = place.folder.parent
    parent.mkdir(parents=True, exist_ok=True)

    def on_wait() -> None:
        reporter.remark(f"another process is converting {place.title}: waiting for it")

    name = _LOCK if place.revision is not None else f".{place.folder.name}.lock"
    with locks.exclusive(parent / name, on_wait):
        parent.mkdir(parents=True, exist_ok=True)  # another process may have emptied the cache
        yield


def _announcement(place: Place) -> str:
    """Return that a conversion begins, and why, if there was a bundle of other weights."""
    rest = f"for ONNX Runtime, once: it will be in {shown(place.folder)}"
    if place.revision is None:
        with contextlib.suppress(BundleError):
            if bundles.read(place.folder).source.get("fingerprint") != place.origin["fingerprint"]:
                return f"{place.title} was changed since it was converted; converting it {rest}"
        return f"converting {place.title} {rest}"
    before = read_refs(place.folder.parent).get(place.revision)
    now = place.origin["revision"]
    if before not in (None, now):
        return (
            f"{place.title} has changed ({place.revision} was {before[:8]}, and is {now[:8]}); "
            f"converting it {rest}"
        )
    return f"converting {place.title} {rest}"


def damage_of(bundle: Bundle) -> ChangedBundleError | None:
    """Return why a bundle is not as it was written, or None; all of its files are hashed."""
    try:
        bundle.check()
    except ChangedBundleError as error:
        return error
    return None
