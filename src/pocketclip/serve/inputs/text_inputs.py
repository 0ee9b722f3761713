"""Texts in requests: how many, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.image_inputs import looks_like_image
from pocketclip.serve.settings import Limits


def check_texts(values: Mapping[str, Any], limits: Limits) -> list[str]:
    """Return the texts of a request.

    Args:
        values: what the request has, by the names of their fields, such as `input[3]`.
        limits: for their number and length.

    Raises:
        RequestError: 400, one is no text, empty, too long, or an image; or there are too many.
    """
    if len(values) > limits.texts:
        raise RequestError(
            400, f"{len(values):,} texts in one request; the limit is {limits.texts:,}: send "
            "several requests", param="input",
        )  # fmt: skip
    for name, text in values.items():
        if not isinstance(text, str):
            raise RequestError(400, f"{name} is not a text", param=name)
        if not text:
            raise RequestError(400, f"{name} is an empty text: leave it out", param=name)
        if len(text) > limits.text_characters:
            raise RequestError(
                400, f"{name} has {len(text):,} characters; the limit is "
                f"{limits.text_characters:,}, and the model reads only the first sentences",
                param=name,
            )  # fmt: skip
        if looks_like_image(text):
            raise RequestError(
                400, f'{name} is an image, but texts are expected here: say "modality": "image", '
                'or send {"image": "..."} instead of a text', param=name,
            )  # fmt: skip
    return list(values.values())
