"""The errors that pocketclip raises on purpose.

Each message is one line that says what is wrong and what to do next. The command line prints it
as it is and exits with code 2; anything else that escapes is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Iterator


class PocketclipError(Exception):
    """Something about the input or the environment that the caller can put right."""


class UnknownModelError(PocketclipError):
    """A model name that does not exist."""


class ParseError(PocketclipError, ValueError):
    """JSON or YAML that cannot be read, or does not hold what it should."""


class ConfigError(PocketclipError):
    """A configuration with a field that does not exist, or a value that makes no sense."""


class AugmentationError(PocketclipError):
    """An augmentation configuration, or stored parameters, that cannot be replayed."""


class DataError(PocketclipError):
    """Pairs or shards that cannot be read, or do not hold what they should."""


class StorageError(PocketclipError):
    """A file or object store that cannot be reached, read or written."""


class CheckpointError(PocketclipError):
    """A weight file or checkpoint folder that cannot be read, written or does not fit."""


class TrainingError(PocketclipError):
    """A training run that cannot begin, go on, or be trusted any longer."""


class ExportError(PocketclipError):
    """A model that cannot be exported as asked, or whose export computes something else."""


class DriftError(ExportError):
    """An export that computes something else than the model."""


class BundleError(PocketclipError):
    """A bundle that is damaged, was changed, does not fit, or cannot be run here."""


class ChangedBundleError(BundleError):
    """A bundle with a file that is missing or is not the one that was exported."""


class HubError(PocketclipError):
    """A weight file that could not be found on, or fetched from, the model hub."""


class EmbeddingError(PocketclipError):
    """An embedding that is not finite, or has no direction; the message names its input.

    Attributes:
        reason: the message without the name.
        index: which of the inputs that were given, counted from 0.
    """

    def __init__(self, name: str, reason: str, index: int = 0) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.index = index

    def __reduce__(self) -> tuple[type[EmbeddingError], tuple[str, str, int]]:
        name = str(self).removesuffix(f": {self.reason}")
        return type(self), (name, self.reason, self.index)  # crosses between processes


class ImageError(PocketclipError):
    """An image that cannot be opened or decoded."""


class TokenizerError(PocketclipError):
    """A text, or a context length, that cannot be tokenised."""


class MissingDependencyError(PocketclipError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class ImageSupportError(ImageError, MissingDependencyError):
    """An image whose format needs an optional package; others may be read all the same."""


def one_line(error: object, limit: int = 200) -> str:
    """Return a whole message in one line, cut after `limit` characters; its type if it is empty."""
    text = " ".join(str(error).split())
    return text[:limit] if text else type(error).__name__


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of a message that is not blank; the error's type if there is none."""
    return one_line(next(_lines(error), error), limit)


def last_line(error: BaseException, limit: int = 300) -> str:
    """Return the last line of a message that is not blank; the error's type if there is none."""
    return one_line(next(reversed([*_lines(error)]), error), limit)


def _lines(error: BaseException) -> Iterator[str]:
    return (line for line in str(error).splitlines() if line.strip())
