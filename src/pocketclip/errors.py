"""The errors that pocketclip raises on purpose.

Each message is one line that says what is wrong and what to do next. The command line prints it and
exits with code 2. Any other exception that escapes is a bug.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""`errno` of a disk without space, or without any left for this user."""
NO_ROOM = DISK_FULL | {errno.EFBIG}
"""And of a file larger than the disk or the process may have."""
NOT_STORED = NO_ROOM | {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG,
}  # fmt: skip
"""And of a folder that cannot be written to: another folder would do."""


class PocketclipError(Exception):
    """A problem with the input or the environment that the caller can fix."""


class UnknownModelError(PocketclipError):
    """A model name that does not exist."""


class ParseError(PocketclipError, ValueError):
    """JSON or YAML that cannot be read, or lacks required fields."""


class ConfigError(PocketclipError):
    """A configuration with a field that does not exist, or a value out of range."""


class AugmentationError(PocketclipError):
    """An augmentation configuration, or stored parameters, that cannot be replayed."""


class DataError(PocketclipError):
    """Pairs, shards or data sets that cannot be read or are malformed."""


class StorageError(PocketclipError):
    """A file or object store that cannot be reached, read or written."""


class CheckpointError(PocketclipError):
    """A weight file or checkpoint that cannot be read or written, or does not fit the model."""


class TrainingError(PocketclipError):
    """A training run that cannot start or continue, or whose results are no longer valid."""


class DivergedError(TrainingError):
    """A training whose loss, weights or scores are not finite."""


class LibraryError(PocketclipError):
    """A photo library that cannot be opened, read or written, or does not fit the model."""


class QueryError(PocketclipError):
    """A query, or a filter, that cannot be understood or matches no folder of the library.

    Attributes:
        reason: the message without the words of the query, for a server, which does not repeat
            them.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class ExportError(PocketclipError):
    """A model that cannot be exported as requested, or whose export gives other results."""


class DriftError(ExportError):
    """An export whose results differ from the model's."""


class BundleError(PocketclipError):
    """A bundle that is damaged, was modified, does not fit, or cannot be run here."""


class ChangedBundleError(BundleError):
    """A bundle with a missing or modified file."""


class HubError(PocketclipError):
    """A weight file that could not be found on, or fetched from, the model hub."""


class EmbeddingError(PocketclipError):
    """An embedding that is not finite or is zero; the message names its input.

    Attributes:
        reason: the message without the name.
        index: position of the input, counted from 0.
    """

    def __init__(self, name: str, reason: str, index: int = 0) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.index = index

    def __reduce__(self) -> tuple[type[EmbeddingError], tuple[str, str, int]]:
        name = str(self).removesuffix(f": {self.reason}")
        return type(self), (name, self.reason, self.index)  # can be pickled


class ImageError(PocketclipError):
    """An image that cannot be opened or decoded.

    Attributes:
        index: position of the image among several, counted from 0; None if there is one.
    """

    index: int | None = None


class TokenizerError(PocketclipError):
    """A text, or a context length, that cannot be tokenized."""


class MissingDependencyError(PocketclipError, ImportError):
    """An optional package is not installed; the message names the extra to install."""


class ImageSupportError(ImageError, MissingDependencyError):
    """An image whose format needs an optional package; other formats work without it."""


def one_line(error: object, limit: int = 200) -> str:
    """Return a whole message in one line, cut after `limit` characters; its type if it is empty."""
    text = " ".join(str(error).split())
    return text[:limit] if text else type(error).__name__


def first_line(error: object, limit: int = 300) -> str:
    """Return the first line of a message that is not blank; the error's type if there is none."""
    return one_line(next(_lines(error), error), limit)


def last_line(error: object, limit: int = 300) -> str:
    """Return the last line of a message that is not blank; the error's type if there is none."""
    return one_line(next(reversed([*_lines(error)]), error), limit)


def _lines(error: object) -> Iterator[str]:
    return (line for line in str(error).splitlines() if line.strip())


def how_to_install(extra: str) -> str:
    """Return how to install an extra of pocketclip, for the end of a message."""
    return f"pip install 'pocketclip[{extra}]', or '.[{extra}]' in a clone"


def count_of(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun: "1 shard", "2 shards"; `plural` if it is not singular + s."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
