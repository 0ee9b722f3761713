"""What pages may run themselves: the files of ONNX bundles, the presets, and the label sets.

    offer = ModelOffer([encoder.bundle, *further], label_sets)
    offer.models_json

An offer never changes. A server whose models are read again gets another one, with other
addresses.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pocketclip.errors import BundleError, ChangedBundleError
from pocketclip.infer.bundle import read
from pocketclip.infer.web_models import (
    SiteFile,
    WebModel,
    check_offerable,
    group_bundles,
    models_json,
    public_label_set,
)
from pocketclip.storage.local import FileStamp, file_stamp

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle
    from pocketclip.infer.encoder import Encoder
    from pocketclip.label_set import LabelSet

LABEL_SETS = "label-sets"
"""Where label sets are, by name."""


class ModelOffer:
    """The models that pages may run.

    Args:
        bundles: ONNX bundles.
        label_sets: by the name that requests use.
        presets: files with the embeddings of the presets, by `space_id`.

    Raises:
        BundleError: a bundle cannot be run in a browser.
        ChangedBundleError: a file of a bundle is missing, or has another size.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        label_sets: Mapping[str, LabelSet],
        presets: Mapping[str, bytes] | None = None,
    ) -> None:
        self.models = group_bundles(bundles)
        self.presets = dict(presets or {})
        self._stamps: dict[Path, FileStamp] = {}
        for model in self.models:
            for file in model.files():
                assert isinstance(file.source, Path)
                self._stamps[file.source] = _stamp(file.source, file.size)
        self._label_sets = [
            (name, one, SiteFile.of(f"{LABEL_SETS}/{quote(name)}", public_label_set(one)))
            for name, one in sorted(label_sets.items())
        ]
        self._complete()

    def _complete(self) -> None:
        files = dict[str, SiteFile]()

        def remember(file: SiteFile) -> SiteFile:
            files[file.url] = file
            return file

        self.models_json = models_json(
            model.entry(
                presets=self._presets_of(model), label_sets=self._label_sets, stored=remember
            )
            for model in self.models
        )
        self.files: Mapping[str, SiteFile] = files
        """Every file that stands in `models_json`, by address."""

    def _presets_of(self, model: WebModel) -> SiteFile | None:
        content = self.presets.get(model.space_id)
        return None if content is None else model.file("presets.json", content)

    @property
    def label_sets(self) -> dict[str, SiteFile]:
        """The files of all label sets, by name."""
        return {name: file for name, _, file in self._label_sets}

    def with_presets(self, space_id: str, content: bytes) -> ModelOffer:
        """Return the offer with the presets of one more embedding space."""
        made = copy.copy(self)
        made.presets = {**self.presets, space_id: content}
        made._complete()
        return made

    @property
    def etag(self) -> str:
        """Of `models_json`."""
        return f'"{hashlib.sha256(self.models_json).hexdigest()}"'

    def is_unchanged(self, path: Path, about: os.stat_result) -> bool:
        """Return whether an opened file of a bundle is the one that was offered."""
        return self._stamps[path] == file_stamp(about)


def make_offer(
    encoder: Encoder,
    further: Sequence[Bundle],
    label_sets: Mapping[str, LabelSet],
    presets: Mapping[str, bytes] | None = None,
) -> ModelOffer:
    """Return the offer of a server: its model, if browsers can run it, and further bundles."""
    own = [] if encoder.bundle is None else [encoder.bundle]
    try:
        for bundle in own:
            check_offerable(bundle)
    except BundleError:
        own = []
    return ModelOffer([*own, *further], label_sets, presets)


def read_web_models(folders: Sequence[str | os.PathLike[str]]) -> list[Bundle]:
    """Return bundles that are offered to pages, verified.

    Raises:
        BundleError: one is damaged, or cannot be run in a browser.
    """
    bundles = []
    for folder in folders:
        bundle = read(folder)
        check_offerable(bundle)
        bundle.check()
        bundles.append(bundle)
    return bundles


def _stamp(path: Path, size: int) -> FileStamp:
    try:
        about = path.stat()
    except OSError as error:
        raise ChangedBundleError(f"{path} is missing; export the bundle again") from error
    if about.st_size != size:
        raise ChangedBundleError(f"{path} is not the file that was exported: its size differs")
    return file_stamp(about)
