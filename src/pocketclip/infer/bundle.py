"""Bundles: folders with an exported model and everything that a device needs to use it.

    bundle.json     model, space, target, precision, inputs, outputs, verification, hashes
    image.*         the image tower
    text.*          the text tower
    tokenizer.json  the tokenizer, in the format of the `tokenizers` library
    features.*      of ONNX bundles on request: the image tower's feature maps
    check.rgb       of ONNX bundles: the pixels of the stored frame
    LICENCE.txt     the licence of the weights, if its text is known

    bundle = read("phone/")
    bundle.check()

`bundle.json` has the SHA-256 of every file, and its own in its last field. A bundle in which
anything was changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip import license, zoo
from pocketclip._deprecated import renamed_attribute
from pocketclip.checkpoint import resolve
from pocketclip.errors import (
    BundleError,
    ChangedBundleError,
    ConfigError,
    ExportError,
    ParseError,
)
from pocketclip.feature_maps import feature_maps
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.formats.fields import reason_of
from pocketclip.formats.json_text import digest_json, read_json
from pocketclip.formats.lfs import check_lfs_pointer
from pocketclip.graph.ports import Kind
from pocketclip.infer.check_frame import PIXELS, CheckFrame, read_frame
from pocketclip.storage import local as files
from pocketclip.tokenizer import fingerprint

MANIFEST = resolve.MANIFEST
TOKENIZER = "tokenizer.json"
FEATURES = "features"
"""The name of the file with the feature maps, without its suffix, and of its entry."""
VERSION = 1
TOWERS: tuple[Kind, ...] = ("image", "text")
IMAGE_INPUTS = ("preprocessed", "photo", "image")
"""Inputs of an image tower: `preprocessed`, float pixels (B, 3, S, S); `photo`, uint8 (B, H, W, 3)
of any size, with the whole evaluation transform in the graph; `image`, the operating system's image
type at S x S (Core ML)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk, of which only the manifest is loaded."""

    folder: Path
    config: zoo.ModelConfig
    space_id: str
    logit_scale: float
    """The multiplier of cosine similarities before a softmax."""
    target: str
    """`onnx`, `openvino`, `coreml`, `executorch` or `litert`."""
    precision: str
    image_input: str
    """One of `IMAGE_INPUTS`."""
    normalized: bool
    """Whether the towers return unit embeddings."""
    towers: Mapping[str, Mapping[str, Any]]
    """`image` and `text`: file, input, output, whether the batch is dynamic."""
    files: Mapping[str, Mapping[str, Any]]
    """SHA-256 and bytes by name."""
    verification: Mapping[str, Any]
    source: Mapping[str, Any] = field(default_factory=dict)
    """Of a converted bundle, the weights that it was made of; see `pocketclip.infer.ready`."""
    licence: Mapping[str, str] | None = None
    """Licence of the weights: `name`, `url` and the `file` with its text, each if it is known; see
    `pocketclip.infer.license`. None: earlier bundles, and weights that were trained from scratch.
    """
    features: Mapping[str, Any] | None = None
    """Of a bundle with feature maps: file, input, maps, tokens, verification; see
    `pocketclip.infer.features`."""
    check_frame: CheckFrame | None = None
    """What devices check their runtime with; None: other targets than ONNX, and earlier bundles."""
    renew: Callable[[], Bundle] | None = field(default=None, repr=False, compare=False)
    """Of a bundle in the user's cache: makes it again, if a file of it was changed or removed."""

    def path(self, tower: str) -> Path:
        """Return the path of a tower's file (or package folder)."""
        return self.folder / str(self.towers[tower]["file"])

    @property
    def variant(self) -> str:
        """Target, precision and hash: tells exports of one `space_id` apart.

        What does not change embeddings is not hashed: the stored frame, the licence, the features.
        """
        hashed = self.files.keys() - {PIXELS, license.FILE}
        names = sorted(name for name in hashed if not name.startswith(f"{FEATURES}."))
        digests = "".join(str(self.files[name]["sha256"]) for name in names)
        return f"{self.target} {self.precision} {hashlib.sha256(digests.encode()).hexdigest()[:8]}"

    form = renamed_attribute("form", "variant")

    @property
    def bytes(self) -> int:
        """Size on disk, without the manifest."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def check(self, prefix: str = "") -> None:
        """Compare the files whose names start with `prefix` with their hashes.

        Raises:
            ChangedBundleError: a file is missing or was changed.
        """
        names = [name for name in self.files if name.startswith(prefix)]
        for name in names:
            file, entry = self.folder / name, self.files[name]
            if not file.is_file():
                raise ChangedBundleError(
                    f"{self.folder}: {name} is missing; export the bundle again"
                )
            if file.stat().st_size != entry["bytes"]:
                check_lfs_pointer(file, ChangedBundleError)
                raise ChangedBundleError(_changed(self.folder, name))
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
            digests = pool.map(lambda name: files.digest_file(self.folder / name), names)
            for name, digest in zip(names, digests, strict=True):
                if digest != self.files[name]["sha256"]:
                    raise ChangedBundleError(_changed(self.folder, name))


def _changed(folder: Path, name: str) -> str:
    return (
        f"{folder}: {name} is not the file that was exported (its hash differs); copy the bundle "
        "again, or export it again"
    )


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a folder with a bundle's manifest."""
    files.recover(path)
    return (Path(path) / MANIFEST).is_file()


def check_runtime_path(folder: Path) -> None:
    """Refuse a folder that runtimes cannot open files in.

    Raises:
        ExportError: its path is not UTF-8.
    """
    if escape_surrogates(str(folder.absolute())) != str(folder.absolute()):
        raise ExportError(f"{folder}: the runtimes open only paths in UTF-8; choose another name")


def own_files(folder: Path) -> set[str]:
    """Return the files of a bundle of any version and state; none if `folder` is not a bundle.

    A folder with no other files may be replaced by another bundle.
    """
    try:
        raw = read_json(folder / MANIFEST)
        return {MANIFEST, *raw["files"]} if raw["format"] == "pocketclip-bundle" else set()
    except (OSError, ParseError, KeyError, TypeError):
        return set()


def read(path: str | os.PathLike[str], *, space_id: str | None = None) -> Bundle:
    """Read a bundle's manifest.

    Args:
        path: the bundle's folder.
        space_id: refuse bundles of other embedding spaces.

    Raises:
        BundleError: the bundle is damaged, was changed, has another version or another space.
    """
    folder = Path(path)
    files.recover(folder)
    check_lfs_pointer(folder / MANIFEST, BundleError)
    try:
        raw = read_json(folder / MANIFEST, what="its text")
        if not isinstance(raw, dict) or raw.get("format") != "pocketclip-bundle":
            raise BundleError(f"{folder / MANIFEST} was not written by `pocketclip export`")
        if raw["version"] != VERSION:
            raise BundleError(
                f"{folder} is a bundle of version {raw['version']}, and this pocketclip reads "
                f"version {VERSION}: update pocketclip, or export the model again"
            )
        if raw.pop("sha256") != digest_json(raw):
            raise ChangedBundleError(_changed(folder, MANIFEST))
        config, hashed = zoo.from_dict(raw["model"]), _files(raw["files"])
        bundle = Bundle(
            folder=folder,
            config=config,
            space_id=str(raw["space_id"]),
            logit_scale=_positive(raw["logit_scale"], "logit_scale"),
            target=str(raw["target"]),
            precision=str(raw["precision"]),
            image_input=_one_of(raw["image_input"], IMAGE_INPUTS, "image_input"),
            normalized=bool(raw["normalized"]),
            towers={tower: dict(raw[tower]) for tower in TOWERS},
            files=hashed,
            verification=_verification(raw["verification"]),
            source=dict(raw.get("source", {})),
            licence=_licence(raw.get("licence"), hashed),
            features=_features(raw.get(FEATURES), config, hashed),
            check_frame=read_frame(raw.get("check"), config.image_size, config.embed_dim, hashed),
        )
        same_tokenizer = raw["tokenizer"] == fingerprint()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(
            f"{folder / MANIFEST} is damaged: {reason_of(error)}; copy the bundle again, or export "
            "it again"
        ) from error
    _check_paths(bundle)
    if not same_tokenizer:
        raise BundleError(
            f"{folder} was exported with another tokenizer than this pocketclip has: texts would "
            "get other embeddings; export it again with this version"
        )
    if space_id is not None and bundle.space_id != space_id:
        raise BundleError(
            f"{folder} has the embedding space {bundle.space_id}, not {space_id}: their "
            "embeddings cannot be compared"
        )
    return bundle


def _positive(value: Any, what: str) -> float:
    number = float(value)
    if not 0 < number < math.inf:  # NaN fails this comparison
        raise ValueError(f"{what} cannot be {number}")
    return number


def _one_of(value: Any, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"{what} cannot be {value!r}")
    return str(value)


def _files(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    for name, entry in raw.items():
        if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise ValueError(f"the size or hash of {name} has the wrong type")
    return {name: dict(entry) for name, entry in raw.items()}


def _licence(raw: object, hashed: Mapping[str, Any]) -> dict[str, str] | None:
    entry = license.check_entry(raw)
    if entry is not None and "file" in entry and entry["file"] not in hashed:
        raise ValueError(f"{entry['file']} is not one of its files")
    return entry


def _features(
    raw: object, config: zoo.ModelConfig, hashed: Mapping[str, Any]
) -> dict[str, Any] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise TypeError("its entry features is not an object")
    file = raw["file"]
    if file not in hashed or not str(file).startswith(f"{FEATURES}."):
        raise ValueError(f"{file!r} is not its file of features")
    if [m["name"] for m in raw["maps"]] != [m.name for m in feature_maps(config.image)]:
        raise ValueError("its feature maps are not those of its model")
    return dict(raw)


def _verification(raw: Mapping[str, Any]) -> dict[str, Any]:
    for name, figures in dict(raw.get("backends", {})).items():
        _positive(figures.get("ms", 1.0), f"ms of {name}")
    return dict(raw)


def _check_paths(bundle: Bundle) -> None:
    """Raise a BundleError for a file outside of the bundle, or a file without a hash."""
    for name in bundle.files:
        if not _is_inside(bundle.folder, name):
            raise BundleError(
                f"{bundle.folder / MANIFEST} names the file {name!r}, which is outside of the "
                "bundle: do not use it, it was not written by `pocketclip export`"
            )
    for tower in TOWERS:
        file = bundle.towers[tower].get("file")
        hashed = isinstance(file, str) and any(
            name == file or name.startswith(f"{file}/") for name in bundle.files
        )
        if not hashed or not str(file).startswith(f"{tower}."):
            raise BundleError(
                f"{bundle.folder / MANIFEST} names the file {file!r} for the {tower} tower, which "
                "is not one of its files: export the bundle again"
            )


def _is_inside(folder: Path, name: str) -> bool:
    """Return whether a file name, in any system's syntax, is a path within `folder`."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0"):
        return False
    home, path = folder.resolve(), (folder / name).resolve()
    if path.is_relative_to(home):
        return True
    # The hub's cache has links to its blobs, which are beside the snapshots of a repository.
    return home.parent.name == "snapshots" and path.parent == home.parents[1] / "blobs"


def unwritten_bundle(
    folder: Path, about: Mapping[str, Any], verification: Mapping[str, Any] | None = None
) -> Bundle:
    """Return the bundle that a folder becomes, before its manifest is written; it has no hashes.

    Args:
        folder: with the towers.
        about: the entries of the manifest.
        verification: figures, where they are known.
    """
    return Bundle(
        folder=folder,
        config=zoo.from_dict(about["model"]),
        towers={tower: about[tower] for tower in TOWERS},
        files={},
        verification=verification or {},
        features=about.get(FEATURES),
        **{
            name: about[name]
            for name in (
                "space_id", "logit_scale", "target", "precision", "image_input", "normalized"
            )
        },
    )  # fmt: skip


def write_manifest(folder: Path, about: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write `bundle.json` into `folder`, with the hashes of the files `names` (relative)."""
    hashed = {
        name: {"sha256": files.digest_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }
    raw = {
        "format": "pocketclip-bundle",
        "version": VERSION,
        **about,
        "tokenizer": fingerprint(),
        "files": hashed,
    }
    raw["sha256"] = digest_json(raw)
    (folder / MANIFEST).write_text(
        json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
