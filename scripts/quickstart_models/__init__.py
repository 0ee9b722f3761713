"""Training of the small models that `pocketclip quickstart` uses as teachers and captioner."""
