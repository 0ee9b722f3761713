"""Towers and models in torch: the only layer that defines modules."""
