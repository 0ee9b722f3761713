"""A thumbnail's pixels and file: small, upright, without the photograph's metadata."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 320
"""The longer side of a thumbnail, in pixels."""
_MAX_PROFILE = 1 << 13  # bytes
_QUALITY = 80


def encode_thumbnail(image: Image, profile: bytes | None) -> bytes:
    """Return an image as the JPEG of a thumbnail; the image is made smaller.

    Args:
        image: upright RGB, as `open_image` returns it.
        profile: what `colour_profile` returned for its header.
    """
    from PIL import Image

    # Pillow's default gap, 2, takes half as long again for a photograph of a camera.
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=1.5)
    image.info = {}  # Pillow would write the comment again
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, icc_profile=profile)
    return stream.getvalue()


def colour_profile(header: Image) -> bytes | None:
    """Return what the colours of an RGB image mean, as phones note it; without it they are dull."""
    profile = header.info.get("icc_profile")
    if header.mode != "RGB" or not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
        return None
    return profile if len(profile) <= _MAX_PROFILE else None
