"""The models that a browser may run, as `models.json` of a site names them.

    models = group_bundles([read("phone/"), read("phone-int8/")])
    models_json([model.entry() for model in models])

ONNX bundles of one embedding space are one model, and each of them a variant of it. A server and a
static site have the same entries, but for how files are stored. The address of a file changes with
its bundle, so that files of two bundles are never mixed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip import zoo
from pocketclip.errors import BundleError
from pocketclip.formats.escaping import dump_json
from pocketclip.graph.ports import Kind
from pocketclip.infer.bundle import TOKENIZER, Bundle
from pocketclip.infer.license import license_of_bundle
from pocketclip.label_set import LabelSet
from pocketclip.license import FILE as LICENCE
from pocketclip.license import License

VERSION = 1
FOLDER = "model-files"
"""Where the files of all models are, in a site; `models/` is the server's for OpenAI's clients."""
RUNTIMES = ("webgpu", "wasm")
_PRECISE = ("fp32", "fp16", "int8")
_DIGITS = 12  # of a hash, in addresses
_LONGEST = 60  # of a name, in addresses
_FILE = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """A file that pages fetch, inflate and verify."""

    name: str
    url: str
    """Relative to the site."""
    size: int
    """In bytes, inflated."""
    sha256: str
    """Of the inflated bytes."""
    source: Path | bytes
    """The file, or its content."""
    encoding: str | None = None
    """`gzip`, or None: it is stored as it is."""
    download_bytes: int | None = None
    """As it is stored; None: `size`."""

    @classmethod
    def of(cls, url: str, content: bytes) -> SiteFile:
        """Return a file with this content."""
        return cls(
            name=url.rpartition("/")[2], url=url, size=len(content), source=content,
            sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip

    def packed(self, download_bytes: int) -> SiteFile:
        """Return it as it is stored when it was compressed."""
        return dataclasses.replace(
            self, url=f"{self.url}.gz", encoding="gzip", download_bytes=download_bytes
        )

    def facts(self) -> dict[str, Any]:
        """Return its entry in `models.json`."""
        travels = self.size if self.download_bytes is None else self.download_bytes
        return {
            "name": self.name, "url": self.url, "bytes": self.size, "sha256": self.sha256,
            "encoding": self.encoding, "download_bytes": travels,
        }  # fmt: skip


Store = Callable[[SiteFile], SiteFile]
"""Tells where a file is stored, and how; what it returns stands in `models.json`."""


def _as_it_is(file: SiteFile) -> SiteFile:
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class WebModel:
    """The bundles of one embedding space."""

    id: str
    """For addresses: letters, digits, `.`, `_` and `-`."""
    bundles: tuple[Bundle, ...]

    @property
    def space_id(self) -> str:
        """The embedding space."""
        return self.bundles[0].space_id

    @property
    def most_precise(self) -> Bundle:
        """The bundle whose text tower embeds the presets."""
        return min(self.bundles, key=lambda bundle: _PRECISE.index(bundle.precision))

    @property
    def license(self) -> License:
        """The licence of the weights: of bundles that differ, what asks for most.

        Raises:
            ChangedBundleError: the file with its text was changed.
        """
        found = [license_of_bundle(bundle) for bundle in self.bundles]
        return max(found, key=lambda one: (one.restricted, one.is_known, one.text is not None))

    def files(self) -> list[SiteFile]:
        """Return every file of the bundles that a page may fetch."""
        return [file for bundle in self.bundles for file in _files(self.id, bundle).values()]

    def file(self, name: str, content: bytes) -> SiteFile:
        """Return a file of the model that is in no bundle."""
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        return SiteFile.of(f"{FOLDER}/{self.id}/{digest}/{name}", content)

    def entry(
        self,
        *,
        presets: SiteFile | None = None,
        label_sets: Sequence[tuple[str, LabelSet, SiteFile]] = (),
        stored: Store = _as_it_is,
    ) -> dict[str, Any]:
        """Return the entry of the model in `models.json`.

        Args:
            presets: the embeddings of the presets; None while there are none.
            label_sets: name, content and file of label sets; those of other spaces are left out.
            stored: where each file is, and how.

        Raises:
            ChangedBundleError: the file with the licence was changed.
        """
        config = self.bundles[0].config
        return {
            "id": self.id, "name": zoo.describe(config), "space_id": self.space_id,
            "embed_dim": config.embed_dim, "image_size": config.image_size,
            "context_length": config.text.context_length,
            "logit_scale": self.most_precise.logit_scale,
            "preprocess": zoo.to_dict(config)["preprocess"],
            "licence": self._licence_entry(stored),
            "presets": None if presets is None else stored(presets).facts(),
            "label_sets": [
                {"name": name, "label_count": len(one.labels), "file": stored(file).facts()}
                for name, one, file in label_sets
                if one.space_id == self.space_id
            ],
            "variants": [self._variant(bundle, stored) for bundle in self.bundles],
        }  # fmt: skip

    def _licence_entry(self, stored: Store) -> dict[str, Any]:
        known = self.license
        text = None
        if known.text is not None:
            content = known.text.encode("utf-8", "replace")
            text = stored(self.file(LICENCE, content)).url
        return {
            "name": known.name, "url": known.url, "text": text, "restricted": known.restricted
        }  # fmt: skip

    def _variant(self, bundle: Bundle, stored: Store) -> dict[str, Any]:
        files = _files(self.id, bundle)
        frame = bundle.check_frame
        check = frame and {
            "pixels": stored(files[frame.pixels]).facts(),
            "size": [frame.width, frame.height],
            "embedding": list(frame.embedding),
        }
        return {
            "precision": bundle.precision, "runtimes": list(runtimes(bundle)),
            "normalized": bundle.normalized, "variant": bundle.variant,
            "image": {
                **_tower(bundle, "image", files, stored), "image_input": bundle.image_input
            },
            "text": _tower(bundle, "text", files, stored),
            "tokenizer": stored(files[TOKENIZER]).facts(),
            "check": check,
        }  # fmt: skip


def check_offerable(bundle: Bundle) -> None:
    """Refuse a bundle that no browser can run.

    Raises:
        BundleError: it is for another runtime, or prepares photographs in a way of its own.
    """
    if bundle.target != "onnx" or bundle.image_input not in ("preprocessed", "photo"):
        raise BundleError(
            f"{bundle.folder} is a bundle for {bundle.target}, which browsers cannot run: export "
            "the model with --format onnx"
        )
    if bundle.precision not in _PRECISE:
        raise BundleError(
            f"{bundle.folder} has the precision {bundle.precision}, which browsers cannot run: "
            f"export the model in {', '.join(_PRECISE)}"
        )
    if bundle.config.preprocess.resize != "shortest":
        raise BundleError(
            f"{bundle.folder} resizes photographs without regard to their shape "
            f"({bundle.config.preprocess.resize}), which the pages do not: offer another model"
        )
    for name in _served_names(bundle):
        if not _FILE.fullmatch(name):
            raise BundleError(
                f"{bundle.folder} names the file {name!r}, which was not written by `pocketclip "
                "export`: export the bundle again"
            )


def runtimes(bundle: Bundle) -> tuple[str, ...]:
    """Return what runs a bundle in a browser, the fastest first.

    WebGPU has no QuantizeLinear, which int8 needs, and no resize for photographs of any size. It
    has no NonZero either, with which mixtures of experts sort tokens, and was not tried with
    experts without tokens.
    """
    if bundle.precision == "int8" or bundle.image_input == "photo" or zoo.is_sparse(bundle.config):
        return ("wasm",)
    return RUNTIMES


def group_bundles(bundles: Iterable[Bundle]) -> list[WebModel]:
    """Return the models of bundles, in their order; of equal bundles one is kept.

    Raises:
        BundleError: one cannot be run in a browser.
    """
    spaces: dict[str, dict[str, Bundle]] = {}
    for bundle in bundles:
        check_offerable(bundle)
        spaces.setdefault(bundle.space_id, {}).setdefault(_digest(bundle), bundle)
    taken, models = set[str](), []
    for space_id, found in spaces.items():
        name = slug(next(iter(found.values())).config.name)
        if name.lower() in taken:  # some file systems do not tell the case apart
            name = f"{name}-{hashlib.sha256(space_id.encode()).hexdigest()[:_DIGITS]}"
        taken.add(name.lower())
        models.append(WebModel(id=name, bundles=tuple(found.values())))
    return models


def public_label_set(labels: LabelSet) -> bytes:
    """Return the file of a label set for others: without what is known of how it was made."""
    return dump_json({**labels.as_json(), "made": {}}).encode()


def models_json(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Return `models.json`."""
    return dump_json({"version": VERSION, "models": list(entries)}).encode()


def slug(name: str) -> str:
    """Return a name for addresses: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:_LONGEST].strip(".-") or "model"


def _digest(bundle: Bundle) -> str:
    """Return a hash of all files of a bundle; `Bundle.variant` leaves some out."""
    names = sorted(bundle.files)
    text = "".join(f"{name}\0{bundle.files[name]['sha256']}\n" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _files(model_id: str, bundle: Bundle) -> dict[str, SiteFile]:
    """Return the files of a bundle that pages may fetch, by name."""
    place = f"{FOLDER}/{model_id}/{bundle.precision}-{_digest(bundle)}"
    return {
        name: SiteFile(
            name=name, url=f"{place}/{name}", size=int(bundle.files[name]["bytes"]),
            sha256=str(bundle.files[name]["sha256"]), source=bundle.folder / name,
        )
        for name in _served_names(bundle)
    }  # fmt: skip


def _served_names(bundle: Bundle) -> list[str]:
    names = [TOKENIZER, *_tower_files(bundle, "image"), *_tower_files(bundle, "text")]
    return names if bundle.check_frame is None else [*names, bundle.check_frame.pixels]


def _tower_files(bundle: Bundle, tower: Kind) -> list[str]:
    """Return the files of a tower: its graph, and the weights beside it."""
    graph = str(bundle.towers[tower]["file"])
    more = (name for name in bundle.files if name.startswith(f"{graph}."))
    return [graph, *sorted(more)]


def _tower(
    bundle: Bundle, tower: Kind, files: Mapping[str, SiteFile], stored: Store
) -> dict[str, Any]:
    about = bundle.towers[tower]
    return {
        "input": about["input"]["name"],
        "output": about["output"]["name"],
        "files": [stored(files[name]).facts() for name in _tower_files(bundle, tower)],
    }
