"""Convert a sample to the members of a tar, and back.

    sample, dtype = parse({"jpg": b"...", "txt": b"...", "npz": b"..."}, "00000042")
    members = build(sample, dtype="bfloat16")

| member | holds |
|---|---|
| `jpg` (`png`, `webp`, ...) | the image file |
| `txt` | the ground-truth caption, `captions["text"][0]` |
| `syn.json` | every other list of captions by key |
| `paug.json` | `{"param_aug": [...]}`, one entry per augmentation |
| `view0`, `view1`, ... | of a materialised set, in place of the image: the augmented images |
| `npz` or `pth.gz` | embeddings by key, see `codec` |
| `url.txt`, `json` | the URL of the image; other metadata |

Published sets have one of two layouts. `named` (v2): the embeddings of captions K are in `K_emb`.
`v1`: `text_emb` has the rows of the ground truth, followed by those of the synthetic captions.
Parsed samples are always named.

Shapes: A augmentations, n captions under one key, D width.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pocketclip.errors import DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.shards.codec import MEMBERS, decode, encode
from pocketclip.storage.photos import IMAGE_EXTENSIONS
from pocketclip.types import Embeddings, Sample

LAYOUTS = ("named", "v1")
MAX_JSON = 1 << 24
"""Most bytes of a sample's JSON, and of a caption: 16 MiB."""
MAX_JSON_MEMORY = 1 << 28
"""Most bytes of the objects of a sample's JSON, as estimated: 256 MiB."""
IMAGE_KEYS = tuple(dict.fromkeys(("jpg", "png", *IMAGE_EXTENSIONS)))
"""Keys of an image, the first that a sample has is taken; the order is that of older readers."""
VIEW_KEYS = tuple(f"view{number}" for number in range(256))
"""Keys of the views of a materialised set, in order. They have no suffix of an image: other readers
would take each for a sample of its own."""
PART_OF = {
    **dict.fromkeys(VIEW_KEYS, "views"),
    **dict.fromkeys(IMAGE_EXTENSIONS, "image"),
    **dict.fromkeys(MEMBERS, "embeddings"),
    "txt": "captions",
    "syn.json": "captions",
    "paug.json": "augmentations",
    "url.txt": "meta",
    "json": "meta",
}
"""The part that a member's bytes are reported under."""
MORE = "text_more"
"""The key of ground-truth captions after the first; `txt` holds one."""
CAPTIONS = re.compile(r"syn_text|_captions|^text_")
"""Matches keys of captions in files that hold other values too."""
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP  ", "jp2"),
)


def image_key(data: bytes) -> str | None:
    """Return the member key of an image file by its first bytes, or None if they are unknown."""
    for magic, key in _MAGIC:
        if data.startswith(magic):
            return key
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return "avif" if data[8:12] in (b"avif", b"avis") else "heic"
    return None


def parse(members: Mapping[str, bytes], uid: str) -> tuple[Sample, str]:
    """Return the sample of `members` (contents by member key), and its embeddings' stored dtype.

    The dtype is "" without embeddings. Other members are ignored.

    Raises:
        DataError: a member is damaged; the message begins with its key.
        MissingDependencyError: there is a `pth.gz`, and torch is not installed.
    """
    sample = Sample(uid=uid, image=next((members[k] for k in IMAGE_KEYS if k in members), None))
    if "txt" in members:
        sample.captions["text"] = [_text(members, "txt")]
    if "url.txt" in members:
        sample.url = _text(members, "url.txt").strip()
    if "json" in members:
        sample.meta = _object(members, "json")
    if "syn.json" in members:
        _add_captions(sample, _object(members, "syn.json"))
    if "paug.json" in members:
        record = _object(members, "paug.json")
        if "param_aug" not in record:
            raise DataError("paug.json: param_aug is missing")
        sample.param_aug = parameters(record["param_aug"])
    if VIEW_KEYS[0] in members:
        count = sum(key.startswith("view") and key in PART_OF for key in members)
        missing = next((key for key in VIEW_KEYS[:count] if key not in members), None)
        if missing is not None:
            raise DataError(f"{missing}: it is missing, but there are later views")
        sample.views = [members[key] for key in VIEW_KEYS[:count]]
    dtype = ""
    member = next((k for k in MEMBERS if k in members), None)
    if member is not None:
        try:
            sample.embeddings, dtype = decode(member, members[member])
            separate(sample)
        except DataError as error:
            raise DataError(f"{member}: {error}") from error
    return sample, dtype


def _add_captions(sample: Sample, record: Mapping[str, Any]) -> None:
    """Add lists of texts as captions, and other values as metadata."""
    for key, value in record.items():
        if key == "text" and key in sample.captions:
            sample.meta.setdefault(key, value)  # `txt` is the ground truth
        elif isinstance(value, list) and all(isinstance(text, str) for text in value):
            sample.captions[key] = value
        elif isinstance(value, list) and CAPTIONS.search(key):
            raise DataError(f"syn.json: {key} is not a list of captions")
        elif isinstance(value, str) and CAPTIONS.search(key):
            sample.captions[key] = [value]
        else:
            sample.meta.setdefault(key, value)


def parameters(value: Any) -> list[Any] | None:
    """Return `param_aug`, which published sets store as a list or as its JSON text.

    Raises:
        DataError: it is neither of them nor null.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = json_of(value, "paug.json: param_aug is text that")
    if not isinstance(value, list):
        raise DataError("paug.json: param_aug is not a list")
    return value


def separate(sample: Sample) -> None:
    """Give each key of captions its own embeddings, in place.

    Raises:
        DataError: `text_emb` has rows of several keys, and their number differs from the captions.
    """
    embeddings, captions = sample.embeddings, sample.captions
    synthetic = [k for k in captions if k not in ("text", MORE) and f"{k}_emb" not in embeddings]
    rows = embeddings.get("text_emb")
    truths = len(captions.get("text", [0]))
    if rows is not None and rows.ndim == 2 and len(rows) > truths and synthetic:
        counts = [len(captions[k]) for k in synthetic]
        ends = [truths, *(truths + total for total in itertools.accumulate(counts))]
        if len(rows) not in ends:  # the last keys may have no embeddings
            texts = f"{truths} + {' + '.join(map(str, counts))}"
            raise DataError(f"text_emb has {len(rows)} rows, but there are {texts} captions")
        embeddings["text_emb"] = rows[:truths]
        for k, begin, end in zip(synthetic, ends[:-1], ends[1:], strict=True):
            if end <= len(rows):
                embeddings[f"{k}_emb"] = rows[begin:end]
    if MORE in captions:
        captions["text"] = captions.get("text", []) + captions.pop(MORE)
    if f"{MORE}_emb" in embeddings and "text_emb" in embeddings:
        embeddings["text_emb"] = np.concatenate(
            [embeddings["text_emb"], embeddings.pop(f"{MORE}_emb")]
        )


def build(
    sample: Sample,
    *,
    dtype: str = "bfloat16",
    layout: str = "named",
    teacher_dims: Sequence[int] = (),
    packed: tuple[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Return the bytes of `sample` by member key, in the order to write them.

    Args:
        sample: a sample without `faults`.
        dtype: the type to store embeddings in, one of `codec.DTYPES`.
        layout: `named` or `v1`.
        teacher_dims: see `codec.encode`.
        packed: the embeddings' member (key, bytes) of another shard, to be written unchanged.

    Raises:
        DataError: the sample does not fit the layout or the dtype.
    """
    captions = dict(sample.captions)
    embeddings = dict(sample.embeddings)
    if layout == "v1":
        _join_rows(captions, embeddings)
    out: dict[str, bytes] = {}
    if sample.image is not None:
        out[image_key(sample.image) or "jpg"] = sample.image
    if sample.views is not None:
        if len(sample.views) > len(VIEW_KEYS):
            raise DataError(f"has {len(sample.views)} views, more than {len(VIEW_KEYS)}")
        out |= zip(VIEW_KEYS, sample.views, strict=False)
    if sample.meta:
        out["json"] = dump(finite(sample.meta))
    if sample.param_aug is not None:
        out["paug.json"] = dump({"param_aug": sample.param_aug})
    texts = captions.pop("text", [])
    if len(texts) > 1:
        captions[MORE] = texts[1:]
        if "text_emb" in embeddings:
            rows = embeddings["text_emb"]
            embeddings["text_emb"], embeddings[f"{MORE}_emb"] = rows[:1], rows[1:]
    if packed is not None:
        out[packed[0]] = packed[1]
    elif embeddings:
        member, data = encode(embeddings, dtype, teacher_dims)
        out[member] = data
    if captions:
        out["syn.json"] = dump(captions)
    if texts:
        out["txt"] = texts[0].encode()
    if sample.url is not None:
        out["url.txt"] = sample.url.encode()
    return out


def _join_rows(captions: Mapping[str, list[str]], embeddings: dict[str, Embeddings]) -> None:
    others = [k for k in captions if k != "text"]
    if len(others) > 1 or len(captions.get("text", [0])) > 1:
        raise DataError(
            "layout v1 holds one ground truth and one key of captions: use layout named"
        )
    for key in others:
        if f"{key}_emb" in embeddings:
            rows = embeddings.pop(f"{key}_emb")
            embeddings["text_emb"] = np.concatenate([embeddings.get("text_emb", rows[:0]), rows])


def _text(members: Mapping[str, bytes], key: str) -> str:
    if len(members[key]) > MAX_JSON:
        raise DataError(f"{key}: has {len(members[key])} bytes, more than the limit of {MAX_JSON}")
    try:
        return members[key].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{key}: not UTF-8 text (byte {error.start})") from error


def _object(members: Mapping[str, bytes], key: str) -> dict[str, Any]:
    value = json_of(members[key], f"{key}:", surrogates=key == "json")
    if value is None and key == "json":
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{key}: JSON with a {type(value).__name__}, not an object")
    return value


def json_of(
    text: bytes | str, what: str, max_bytes: int = MAX_JSON, *, surrogates: bool = False
) -> Any:
    """Return the value of JSON that may hold NaN, as third-party metadata do.

    Args:
        text: the JSON.
        what: the name of the text, which begins messages.
        max_bytes: most bytes of the text.
        surrogates: whether lone surrogates are allowed, which no caption may hold.

    Raises:
        DataError: the text is not JSON, or too large; the message begins with `what`.
    """
    try:
        return load_json(
            text,
            what=what,
            max_bytes=max_bytes,
            max_memory=MAX_JSON_MEMORY,
            constants=True,
            surrogates=surrogates,
        )
    except ParseError as error:
        raise DataError(str(error)) from error


def finite(value: Any) -> Any:
    """Return a JSON value with None for NaN, which third-party metadata hold and JSON does not."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value


def _of_numpy(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def plain(sample: Sample) -> Sample:
    """Return `sample` with float32 arrays as embeddings, as the reader yields it.

    Raises:
        DataError: its uid is no text, or a value cannot be converted.
    """
    if not isinstance(sample.uid, str):
        raise DataError(f"the uid {sample.uid!r} is of type {type(sample.uid).__name__}, not str")
    embeddings = {}
    for key, array in sample.embeddings.items():
        try:
            if hasattr(array, "detach"):  # a tensor; numpy has no bfloat16
                array = array.detach().cpu().float().numpy()
            with np.errstate(over="ignore"):
                embeddings[key] = np.asarray(array, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{sample.uid!r}: {key} is not an array of floats") from error
    params = parameters(sample.param_aug) if isinstance(sample.param_aug, str) else sample.param_aug
    return replace(sample, embeddings=embeddings, param_aug=params)


def dump(value: Any) -> bytes:
    """Return `value` as one line of JSON.

    Raises:
        DataError: it has a value that JSON cannot hold.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "), default=_of_numpy
        )
        return text.encode()
    except (TypeError, ValueError) as error:  # ValueError: NaN or a lone surrogate
        raise DataError(f"cannot be written as JSON ({error})") from error
