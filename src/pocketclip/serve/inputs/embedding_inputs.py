"""The `input` of an embeddings request: OpenAI's strings, infinity's images, Jina's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.image_inputs import check_count
from pocketclip.serve.inputs.text_inputs import check_texts
from pocketclip.serve.settings import Limits


class Inputs(NamedTuple):
    """What is to be embedded, by the names of the fields: `input[3]`."""

    texts: Mapping[str, str]
    images: Mapping[str, str]
    order: Sequence[str]
    """The names of both, as the request has them."""


def read_inputs(value: Any, modality: Any, limits: Limits) -> Inputs:
    """Return the inputs of a request; images are not decoded yet.

    Args:
        value: of `input`.
        modality: what strings are.
        limits: for their number and size.

    Raises:
        RequestError: 400, something is no input, or there are too many.
    """
    if modality not in (None, "text", "image"):
        raise RequestError(
            400, "modality must be text or image: this model has no other towers",
            param="modality",
        )  # fmt: skip
    is_list = isinstance(value, list)
    values = value if is_list else [value]
    if not values:
        raise RequestError(400, "input is an empty list: give at least one", param="input")
    if len(values) > limits.texts + limits.images:
        raise RequestError(
            400, f"{len(values):,} inputs in one request; the limits are {limits.texts:,} texts "
            f"and {limits.images:,} images: send several requests", param="input",
        )  # fmt: skip
    texts, images = dict[str, Any](), dict[str, Any]()
    for position, item in enumerate(values):
        name = f"input[{position}]" if is_list else "input"
        kind, content = _read(item, modality or "text", name)
        (images if kind == "image" else texts)[name] = content
    check_count(len(images), limits)
    if texts:
        check_texts(texts, limits)
    order = [f"input[{position}]" for position in range(len(values))] if is_list else ["input"]
    return Inputs(texts, images, order)


def _read(item: Any, modality: str, name: str) -> tuple[str, Any]:
    """Return whether an input is a `text` or an `image`, and what it holds."""
    if isinstance(item, str):
        return modality, item
    if isinstance(item, (int, list)) and not isinstance(item, bool):
        raise RequestError(
            400, f"{name} holds token ids, which this model does not have in common with OpenAI's: "
            "send the text (in LangChain: check_embedding_ctx_length=False)", param=name,
            code="token_ids",
        )  # fmt: skip
    if not isinstance(item, Mapping):
        raise RequestError(400, f"{name} is neither a text nor an object", param=name)
    given = [(kind, item[kind]) for kind in ("text", "image") if item.get(kind) is not None]
    if len(given) != 1:
        raise RequestError(
            400, f'{name} must have either "text" or "image": each has an embedding of its own',
            param=name,
        )  # fmt: skip
    return given[0]
