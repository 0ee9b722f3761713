"""Towers and models in torch: the only layer that defines modules."""

from pocketclip.nn import clip, mci, reparam, text, transformer, vit

__all__ = ["clip", "mci", "reparam", "text", "transformer", "vit"]
