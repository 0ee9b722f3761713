"""Using a model: the friendly encoder on top of a backend."""
