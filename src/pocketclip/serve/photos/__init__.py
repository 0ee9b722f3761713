"""A library behind a server: searches, photographs and thumbnails."""
