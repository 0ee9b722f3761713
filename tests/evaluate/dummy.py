"""Encoders whose answers are known: an image is its mean colour, a text its colour words."""

from __future__ import annotations

import numpy as np

from pocketclip.images import open_image

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "violet": (255, 0, 255),
    "cyan": (0, 255, 255),
}


class ColourEncoder:
    """The bare protocol; embeddings are of length `length`, so that users must normalise.

    `poison` is a word, or a colour's name, whose embedding is `value`: not a number.
    """

    embed_dim = 4
    logit_scale = 10.0

    def __init__(self, *, length=3.0, poison=None, value=np.nan, space_id="space-colours"):
        self.length = length
        self.poison = poison
        self.value = value
        self.space_id = space_id
        self.images = self.texts = 0
        self.batches = []
        self.text_batches = []

    def encode_image(self, images):
        self.images += len(images)
        self.batches.append(len(images))
        return np.stack([self._image(np.asarray(open_image(image))) for image in images])

    def encode_text(self, texts):
        self.texts += len(texts)
        self.text_batches.append(len(texts))
        return np.stack([self._text(text) for text in texts])

    def _image(self, pixels):
        vector = self._unit(pixels.reshape(-1, 3).mean(axis=0))
        if self.poison in COLOURS and np.allclose(vector, self._unit(COLOURS[self.poison])):
            vector[-1] = self.value
        return vector

    def _text(self, text):
        words = [np.array(rgb) for name, rgb in COLOURS.items() if name in text.lower()]
        vector = self._unit(np.sum(words, axis=0) if words else np.array([1.0, 1.0, 1.0]))
        if self.poison and self.poison in text:
            vector[-1] = self.value
        return vector

    def _unit(self, rgb):
        rgb = np.append(np.asarray(rgb, np.float32) / 255, 0.1)
        return (self.length * rgb / np.linalg.norm(rgb)).astype(np.float32)


class PixelColourEncoder(ColourEncoder):
    """The same, with preprocessing that can run ahead."""

    def prepare(self, image):
        return np.asarray(open_image(image), np.float32).transpose(2, 0, 1)[:, :8, :8]

    def encode_prepared(self, pixels):
        self.batches.append(len(pixels))
        return np.stack([self._image(image.transpose(1, 2, 0)) for image in pixels])

    def encode_image(self, images):
        raise AssertionError(f"encode_prepared is to be used for {len(images)} images")
