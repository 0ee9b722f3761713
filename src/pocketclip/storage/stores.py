"""Object stores through fsspec: clients, files, and their errors in plain words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from pocketclip.errors import (
    DISK_FULL,
    MissingDependencyError,
    PocketclipError,
    StorageError,
    how_to_install,
    one_line,
)
from pocketclip.storage import hub_store
from pocketclip.storage.retries import RETRY_STATUS, patiently

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK_BYTES = 8 << 20
"""Bytes per read from a store; the 50 MiB of s3fs add up when many shards are open."""
PART_BYTES = 16 << 20
"""Part size of multipart uploads; objects of less than two parts use a single request."""

_PARTS_AT_ONCE = 4
_S3 = ("s3", "s3a")
_BUCKETS = (*_S3, "gs", "gcs", "az", "abfs", "abfss")
OBJECT_STORES = frozenset({*_BUCKETS, "adl", "oss", "oci", "hf", "hdfs", "webhdfs"})
"""The schemes that image paths in tables may have."""
_FOLDERS = ("memory", "file", "local", "sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs")
# An unreachable store should be reported within seconds. botocore's retries (of connections)
# multiply those of s3fs (of slow answers).
_S3_CONFIG = {
    "connect_timeout": 3,
    "read_timeout": 15,
    "retries": {"total_max_attempts": 2, "mode": "standard"},
}
# Exception types of the clients, by name, as the clients may not be installed.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
}
_NO_CONNECTION = {
    "EndpointConnectionError",
    "ConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionClosedError",
    "ProxyConnectionError",
    "SSLError",
    "HTTPClientError",
    "FSTimeoutError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ClientOSError",  # a reset
    "ClientPayloadError",  # a cut body
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "TimeoutError",
}
_T = TypeVar("_T")


class NotThereError(StorageError):
    """No file or object exists at this path."""


def connect(path: str) -> tuple[Any, str]:
    """Return fsspec's file system for `path`, and the path's name in it.

    fsspec caches one client per process and set of options, so this takes microseconds; a forked
    process gets its own. Callers do not keep the file system beyond one call, except open files.

    Raises:
        MissingDependencyError: fsspec, or its package for this scheme, is not installed.
        StorageError: the scheme is unknown, or its client cannot be set up.
    """
    if hub_store.is_hub(path):
        return hub_store.connect(path)
    scheme = path.partition("://")[0].lower()
    try:
        from fsspec.config import conf
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingDependencyError(
            f"{path}: object stores need fsspec: {how_to_install('reinforce')}"
        ) from None
    # Listings must not be cached: other processes write too.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in _S3:
        options["config_kwargs"] = {**_S3_CONFIG, **conf.get("s3", {}).get("config_kwargs", {})}
    try:
        if scheme in _S3:
            from pocketclip.storage.s3_file_system import PatientS3

            fs = PatientS3(**{**PatientS3._get_kwargs_from_urls(path), **options})
            return fs, str(fs._strip_protocol(path))
        fs, name = url_to_fs(path, **options)
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: {_reason(error)}; {_how_to_install(scheme)}"
        ) from error
    except Exception as error:
        raise StorageError(f"{path}: cannot set up {scheme}://: {_reason(error)}") from error
    return fs, str(name)


def _how_to_install(scheme: str) -> str:
    if scheme in ("gs", "gcs"):
        return "pip install gcsfs"
    if scheme in _S3:
        return how_to_install("reinforce")
    return f"install the fsspec package for {scheme}://"


def protocols(fs: Any) -> tuple[str, ...]:
    """Return the schemes of a file system."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def with_scheme(fs: Any, like: str, name: str) -> str:
    """Return the path of `name` in `fs`, with the scheme of the path `like`."""
    if hub_store.is_hub(like):
        return hub_store.restore(like, name)
    if set(protocols(fs)) & {*_BUCKETS, "memory"}:
        return f"{like.partition('://')[0]}://{name.lstrip('/')}"
    return str(fs.unstrip_protocol(name))


def put(fs: Any, local: str, name: str) -> None:
    """Copy a local file to `name`; in an object store it appears only when complete."""
    if is_s3(fs):
        fs.put_file(local, name, chunksize=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
        return
    if set(protocols(fs)) & set(_FOLDERS):
        fs.makedirs(name.rsplit("/", 1)[0] or "/", exist_ok=True)
    fs.put_file(local, name)


def is_s3(fs: Any) -> bool:
    """Return whether a file system speaks S3's language."""
    return bool(set(protocols(fs)) & set(_S3))


def missing_bucket(fs: Any, name: str) -> str | None:
    """Return the bucket of `name` if the store has buckets and this one does not exist."""
    bucket = name.lstrip("/").partition("/")[0]
    if not bucket or not set(protocols(fs)) & set(_BUCKETS):
        return None
    with contextlib.suppress(Exception):  # only improves an error message
        try:
            fs.info(bucket)
        except FileNotFoundError:
            return bucket
    return None


def ask(path: str, verb: str, fs: Any, name: str, call: Callable[[], _T]) -> _T:
    """Return what `call` returns, a request to the store of `path`; errors are explained.

    It is repeated after errors that may pass: a broken connection, a late or cut answer, an answer
    like 503. The file systems of S3 and of the hub repeat each of their requests by themselves.

    Raises:
        StorageError: the last attempt failed, or the first one for a reason that does not pass.
    """
    with explained(path, verb, fs, name):
        repeats = hub_store.is_hub(path) or is_s3(fs)
        return patiently(
            call, lambda e: isinstance(e, _CutShortError) or (not repeats and is_broken(e))
        )


def list_below(folder: str, fs: Any, name: str, *, recursive: bool) -> dict[str, dict[str, Any]]:
    """Return what is known of the objects below a folder, by name; it may not exist.

    Raises:
        StorageError: the store cannot be reached, or the folder cannot be listed.
    """
    at_once = hub_store.is_hub(folder) or set(protocols(fs)) & set(_BUCKETS)
    if recursive and at_once:  # without a request per folder
        return dict(ask(folder, "list", fs, name, lambda: fs.find(name, detail=True)))
    try:
        # Not `fs.find`, which takes a folder that cannot be listed for an empty one.
        listed = ask(folder, "list", fs, name, lambda: fs.ls(name, detail=True))
    except NotThereError:
        return {}
    found = {str(info["name"]): info for info in listed}
    for below, info in list(found.items()) if recursive else ():
        if info.get("type") == "directory" and below.strip("/") != name.strip("/"):
            found |= list_below(folder, fs, below, recursive=True)
    return found


class _CutShortError(OSError):
    """Fewer bytes came than were announced."""


def is_broken(error: BaseException) -> bool:
    """Return whether a store did not answer, or answered that it cannot now."""
    if getattr(error, "status", None) in RETRY_STATUS:
        return True
    if isinstance(error, FileNotFoundError):
        # fsspec reports any failed look for a file on a web server as one that is not there.
        return error.__cause__ is not None and is_broken(error.__cause__)
    return bool({kind.__name__ for kind in type(error).__mro__} & _NO_CONNECTION)


class RemoteFile(io.RawIOBase):
    """A file in a store, open for reading; errors of later reads are explained too."""

    def __init__(self, path: str, fs: Any, name: str) -> None:
        super().__init__()
        self._path, self._fs, self._name = path, fs, name
        self._file = fs.open(name, "rb", block_size=BLOCK_BYTES)

    def readinto(self, buffer: Buffer) -> int:
        """Read up to the length of `buffer` into it."""
        view = memoryview(buffer).cast("B")
        data = ask(self._path, "read", self._fs, self._name, lambda: self._read(len(view)))
        view[: len(data)] = data
        return len(data)

    def _read(self, count: int) -> bytes:
        data: bytes = self._file.read(count)
        size = self._file.size
        if count and not data and size is not None and self._file.tell() < size:
            raise _CutShortError(f"received {self._file.tell():,} of {size:,} bytes")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, which may be beyond the end."""
        if whence == 2 and self._file.size is None:
            raise io.UnsupportedOperation("the server does not report the size of the file")
        base = (0, self._file.tell(), self._file.size)[whence]
        return int(self._file.seek(base + offset))

    def tell(self) -> int:
        """Return the current position."""
        return int(self._file.tell())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the server supports seeking."""
        return bool(self._file.seekable())

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def explained(path: str, verb: str, fs: Any = None, name: str = "") -> Iterator[None]:
    """Convert exceptions into a StorageError with one line about `path`.

    Clients raise exceptions of their own, so any type is caught; for local paths only OSError and
    ValueError are.
    """
    try:
        yield
    except PocketclipError:
        raise
    except Exception as error:
        if "://" not in path and not isinstance(error, (OSError, ValueError)):
            raise
        if hub_store.is_hub(path):
            missing, text = hub_store.explain(path, verb, error)
            raise (NotThereError if missing else StorageError)(text) from error
        missing = isinstance(error, FileNotFoundError) and not is_broken(error)
        kind = NotThereError if missing else StorageError
        raise kind(_explanation(path, verb, error, fs, name)) from error


def _explanation(path: str, verb: str, error: Exception, fs: Any, name: str) -> str:
    remote, cause = "://" in path, error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and is_broken(error):
        error = cause
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        if not remote:
            return f"{path}: no such file or folder; check the path"
        bucket = missing_bucket(fs, name) if fs is not None else None
        if bucket:
            return f"{path}: there is no bucket {bucket!r}; check its name and AWS_ENDPOINT_URL"
        return f"{path}: no such object; check the path"
    if kinds & _NO_CREDENTIALS:
        return (
            f"{path}: no credentials for this store; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (or a profile, or GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if isinstance(error, PermissionError):
        if remote:
            return f"{path}: access denied ({_reason(error)}); check credentials and permissions"
        return f"{path}: cannot {verb}: permission denied; check its owner and permissions"
    if remote and (kinds & _NO_CONNECTION or (isinstance(error, OSError) and error.errno is None)):
        of_web = path.startswith(("http://", "https://"))
        return (
            f"{path}: the store cannot be reached ({_reason(error)}); check the network and "
            f"{'the address' if of_web else 'AWS_ENDPOINT_URL'}"
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{path}: cannot {verb}: the disk is full; free some space and run the command again"
    return f"{path}: cannot {verb}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "strerror", None) or error, limit=300).rstrip(".")
