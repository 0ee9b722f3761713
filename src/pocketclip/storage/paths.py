"""Local files and object stores, through one set of functions.

    with storage.write_whole("s3://bucket/out/00000000.tar") as local:
        local.write_bytes(b"...")
    data = storage.read_bytes("s3://bucket/out/00000000.tar")

A path is a string. With a scheme (`s3://`, `gs://`, `https://`, ...) it goes through `fsspec`,
`hf://` (see `hub_store`) included; otherwise it is local. fsspec's file systems read credentials,
endpoints and proxies from the environment (`s3fs`: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws,
...). Nothing stays open between calls, so paths can be passed to spawned or forked processes:
fsspec makes a new client in each.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

from pocketclip.errors import NO_ROOM, ParseError, StorageError
from pocketclip.formats.json_text import load_json
from pocketclip.storage import local as files
from pocketclip.storage.hub_store import refuse_writing
from pocketclip.storage.photos import is_hidden, walk_files
from pocketclip.storage.stores import (
    NotThereError,
    RemoteFile,
    ask,
    connect,
    explained,
    is_broken,
    list_below,
    missing_bucket,
    protocols,
    put,
    with_scheme,
)
from pocketclip.storage.temporary import scratch_folder

MAX_BYTES = 1 << 28
"""Default limit on a local file that is read whole: 256 MiB."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_DISK_ERRORS = NO_ROOM | {errno.EIO, errno.EROFS}


_FILE_URL = re.compile(r"^file:(?://(?:localhost(?=/))?)?(?=.)", re.IGNORECASE)


def _local(path: str) -> Path:
    """Return a local path or that of a `file:` URL, in which `%20` is a space."""
    scheme = _FILE_URL.match(path)
    if scheme is None or not path[5:].startswith("/"):
        return Path(path)
    encoded = path[scheme.end() :]
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(encoded)))
    if os.name == "nt" and re.match(r"/[A-Za-z][:|]", decoded):
        decoded = f"{decoded[1]}:{decoded[3:]}"
    # Many people write the name without percent-encoding it.
    if decoded != encoded and not os.path.lexists(decoded) and os.path.lexists(encoded):
        return Path(encoded)
    return Path(decoded)


def is_remote(path: str) -> bool:
    """Return whether `path` has a scheme, like `s3://`; `file://` counts as local."""
    scheme = _SCHEME.match(path)
    return scheme is not None and scheme[1].lower() != "file"


def is_absolute(path: str) -> bool:
    """Return whether `path` does not depend on a folder: it is absolute or has a scheme."""
    return is_remote(path) or path[:6].lower() == "file:/" or Path(path).is_absolute()


def join(base: str, *parts: str) -> str:
    """Return `parts` appended to `base`, with slashes in a store and as the system does locally."""
    if is_remote(base):
        return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])
    return str(_local(base).joinpath(*parts))


def absolute(path: str) -> str:
    """Return the absolute form of a local path; remote paths are returned unchanged."""
    return path if is_remote(path) else str(_local(path).absolute())


def exists(path: str) -> bool:
    """Return whether a file or folder exists at `path`.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not is_remote(path):
        return _local(path).exists()
    fs, name = connect(path)
    return ask(path, "look for", fs, name, lambda: _exists(fs, name))


def _exists(fs: Any, name: str) -> bool:
    # fsspec's own `exists` takes a web server that fails for a file that is not there.
    if not set(protocols(fs)) & {"http", "https"}:
        return bool(fs.exists(name))
    try:
        fs.info(name)
    except FileNotFoundError as error:
        if is_broken(error):
            raise
        return False
    return True


def is_folder(path: str) -> bool:
    """Return whether `path` is a folder; in a store, whether there are objects below it.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not is_remote(path):
        return _local(path).is_dir()
    fs, name = connect(path)
    return ask(path, "look for", fs, name, lambda: bool(fs.isdir(name)))


def size(path: str) -> int:
    """Return the size of the file at `path` in bytes.

    Raises:
        StorageError: the file is missing, or the store cannot be reached.
    """
    if not is_remote(path):
        with explained(path, "read"):
            return _local(path).stat().st_size
    fs, name = connect(path)
    byte_count = ask(path, "read", fs, name, lambda: fs.size(name))
    if byte_count is None:
        raise StorageError(f"{path}: the server does not report its size; download it first")
    return int(byte_count)


_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "VersionId"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "created"),
)
"""Fields in which the stores' clients report the version or the time of an object."""


def version(path: str) -> str | None:
    """Return a text that changes when the file at `path` is replaced, from its ETag or time.

    Returns:
        The text, or None if the store reports neither.

    Raises:
        StorageError: the file is missing, or the store cannot be reached.
    """
    if not is_remote(path):
        with explained(path, "read"):
            return str(_local(path).stat().st_mtime_ns)
    fs, name = connect(path)
    info: dict[str, Any] = ask(path, "read", fs, name, lambda: fs.info(name))
    return next((f"{key} {info[key]}" for key in _VERSIONS if info.get(key)), None)


def remove(path: str) -> None:
    """Remove the file at `path`, if it exists.

    Raises:
        StorageError: the file cannot be removed.
    """
    refuse_writing(path)
    if not is_remote(path):
        with explained(path, "remove"):
            _local(path).unlink(missing_ok=True)
        return
    fs, name = connect(path)
    with contextlib.suppress(NotThereError):
        ask(path, "remove", fs, name, lambda: fs.rm_file(name))


def open_read(path: str) -> BinaryIO:
    """Open the file at `path` for reading and seeking; a store is read in blocks of 8 MiB.

    Raises:
        StorageError: the file is missing, or is a pipe or device; or the store cannot be reached,
            now or while reading.
    """
    if not is_remote(path):
        with explained(path, "read"):
            mode = _local(path).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StorageError(f"{path}: this is a pipe, socket or device, not a file")
            return _local(path).open("rb")
    fs, name = connect(path)
    raw = ask(path, "read", fs, name, lambda: RemoteFile(path, fs, name))
    return io.BufferedReader(raw, 1 << 20)


def read_bytes(path: str, *, max_bytes: int = MAX_BYTES, regular: bool = False) -> bytes:
    """Return the whole file at `path`.

    Args:
        path: local or in an object store.
        max_bytes: limit on a local file; a larger one is refused.
        regular: refuse local pipes and devices, which have no size.

    Raises:
        StorageError: the file is missing or refused, or the store cannot be reached.
    """
    if not is_remote(path):
        with explained(path, "read"):
            file = _local(path)
            state = file.stat()
            if regular and not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
                raise StorageError(f"{path}: this is a pipe or a device, not a file")
            data = b""
            if state.st_size <= max_bytes or stat.S_ISDIR(state.st_mode):
                with file.open("rb") as stream:
                    data = stream.read(max_bytes + 1)
            if max(state.st_size, len(data)) > max_bytes:
                raise StorageError(f"{path}: larger than {max_bytes:,} bytes")
            return data
    fs, name = connect(path)
    return cast(bytes, ask(path, "read", fs, name, lambda: fs.cat_file(name)))


def remove_abandoned(folder: str) -> None:
    """Remove temporary files that killed processes left in a local folder.

    Raises:
        StorageError: the path is empty, for example from an unset variable, and would mean the
            current folder; or it is on the hub, which is only read.
    """
    refuse_writing(folder)
    if not folder:
        raise StorageError('the path is empty: name a folder to write to ("." for the current one)')
    if not is_remote(folder):
        files.remove_abandoned(_local(folder))


def write_bytes(path: str, data: bytes, *, tidy: bool = True) -> None:
    """Write `data` to `path`, whole or not at all; missing folders are created.

    Args:
        path: the file.
        data: its content.
        tidy: as for `write_whole`.

    Raises:
        StorageError: the disk is full, or `path` is not writable.
    """
    with write_whole(path, tidy=tidy) as local:
        local.write_bytes(data)


@contextlib.contextmanager
def write_whole(path: str, *, tidy: bool = True) -> Iterator[Path]:
    """Yield a local file to write; after the block it appears at `path`, complete.

    A local file is written next to `path`, flushed to disk and renamed; missing folders are
    created. A file for a store is written in the temporary folder (TMPDIR) and uploaded after the
    block: up to 32 MiB in one request, beyond that as a multipart upload, which readers see only
    when it is complete. If the block raises or the process is killed, an older file at `path`
    remains. Several processes may write the same path: the last one wins.

    Args:
        path: the file.
        tidy: locally, remove temporary files that killed processes left of the same file. To
            write many files into one folder, call `remove_abandoned` once instead.

    Raises:
        StorageError: the disk is full, or `path` is not writable.
    """
    refuse_writing(path)
    if not is_remote(path):
        target = _local(path)
        with explained(path, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _explain_disk_errors(path, str(target)),
            files.write_whole(target, tidy=tidy) as temporary,
        ):
            yield temporary
        return
    fs, name = connect(path)
    own_prefix = str(Path(tempfile.gettempdir()) / "pocketclip-")
    with _explain_disk_errors(path, own_prefix), scratch_folder("upload") as folder:
        local = folder / "whole"
        yield local
        ask(path, "write", fs, name, lambda: put(fs, str(local), name))


@contextlib.contextmanager
def _explain_disk_errors(path: str, own_prefix: str) -> Iterator[None]:
    """Explain disk errors, and errors of files whose paths begin with `own_prefix`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS or str(error.filename or "").startswith(own_prefix):
            with explained(path, "write"):
                raise
        raise


def list_files(
    folder: str, suffixes: tuple[str, ...] = (), *, recursive: bool = False
) -> list[str]:
    """Return the sorted paths of files in `folder`.

    Hidden files and folders (`photos.is_hidden`) are left out, and with them the temporary files
    of killed processes. Linked folders are followed, each folder once. A folder that does not
    exist has no files.

    Args:
        folder: local or in an object store.
        suffixes: endings of the names to list; empty for all.
        recursive: list subfolders too.

    Raises:
        StorageError: the folder or the store cannot be read, or `folder` is a file.
    """
    return [path for path, _ in _list(folder, suffixes, recursive=recursive, sizes=False)]


def list_sizes(
    folder: str, suffixes: tuple[str, ...] = (), *, recursive: bool = False
) -> list[tuple[str, int]]:
    """Return what `list_files` returns, each path with its size in bytes.

    A store's listing tells the sizes; locally, each file of these `suffixes` is looked up.

    Raises:
        StorageError: the folder or the store cannot be read, or `folder` is a file.
    """
    return _list(folder, suffixes, recursive=recursive, sizes=True)


def _list(
    folder: str, suffixes: tuple[str, ...], *, recursive: bool, sizes: bool
) -> list[tuple[str, int]]:
    """Return the sorted files with their sizes; those of local files are 0 without `sizes`."""
    if not is_remote(folder) and _local(folder).is_file():
        raise StorageError(f"{folder} is a file: give its folder")
    endings = tuple(suffix.lower() for suffix in suffixes)
    with explained(folder, "list"):
        return sorted(_walk(folder, endings, recursive=recursive, sizes=sizes))


def _walk(
    folder: str, endings: tuple[str, ...], *, recursive: bool, sizes: bool
) -> Iterator[tuple[str, int]]:
    if not is_remote(folder):
        root = _local(folder)
        if root.exists():
            for entry in walk_files(str(root), recursive=recursive):
                if not endings or entry.name.lower().endswith(endings):
                    yield entry.path.removeprefix("./"), _size_of(entry) if sizes else 0
        return
    fs, name = connect(folder)
    prefix = name.rstrip("/") + "/"
    objects = list_below(folder, fs, prefix, recursive=recursive)
    if not objects and missing_bucket(fs, name):
        with explained(folder, "list", fs, name):
            raise FileNotFoundError(errno.ENOENT, "no such bucket", name)
    base = prefix.lstrip("/")
    for path, info in objects.items():
        own, below = path.lstrip("/").startswith(base), path.lstrip("/").removeprefix(base)
        if endings and not below.lower().endswith(endings):
            continue
        if own and info.get("type") == "file" and not any(map(is_hidden, below.split("/"))):
            yield join(folder, below), int(info.get("size") or 0)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: reading it fails with a better message
        return 0


def expand(source: str) -> list[str]:
    """Return the paths that a path or pattern expands to.

    - `shard-{00000..00012}.tar` and `{train,val}.csv` are expanded in the given order, whether
      or not the files exist.
    - `*`, `?`, `[...]` match existing files and folders, sorted; `**` matches any depth.
    - A `.json` file is a list of paths relative to its folder: a list of strings, or a mapping
      with such a list under `shards`, `files`, `urls`, `paths` or `shardlist`. An entry may also
      be a mapping with `url`, `path`, `file`, `filename` or `name`.
    - Any other path is returned as it is.

    Raises:
        StorageError: a pattern matches nothing, or a list cannot be read.
    """
    if not is_remote(source) and _local(source).exists() and not source.endswith(".json"):
        return [str(_local(source))]
    paths: list[str] = []
    for path in _expand_braces(source):
        if re.search(r"[*?\[]", path) and not path.lower().startswith(("http://", "https://")):
            paths += _match(path)
        elif path.lower().endswith(".json"):
            paths += _list_of_paths(path)
        else:
            paths.append(path if is_remote(path) else str(_local(path)))
    return paths


def _expand_braces(pattern: str) -> list[str]:
    for braces in re.finditer(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            width = len(numbers[1]) if numbers[1].startswith("0") else 0
            step = 1 if last >= first else -1
            choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in braces[1]:
            choices = braces[1].split(",")
        else:
            continue
        head, tail = pattern[: braces.start()], pattern[braces.end() :]
        return [path for choice in choices for path in _expand_braces(head + choice + tail)]
    return [pattern]


def _match(pattern: str) -> list[str]:
    with explained(pattern, "list"):
        if is_remote(pattern):
            fs, name = connect(pattern)
            found = ask(pattern, "list", fs, name, lambda: fs.glob(name))
            matches = [with_scheme(fs, pattern, path) for path in found]
        else:
            path = _local(pattern)
            root = Path(path.anchor)
            matches = [str(p) for p in root.glob(str(path.relative_to(path.anchor)))]
    # Patterns do not match hidden files or files in hidden folders unless they start with a dot.
    parts = pattern.split("/") if is_remote(pattern) else _local(pattern).parts
    fixed = next(at for at, part in enumerate(parts) if re.search(r"[*?\[]", part))
    if not any(part.startswith(".") for part in parts[fixed:]):
        matches = [
            p for p in matches if not any(map(is_hidden, re.split(r"[/\\]", p.rstrip("/"))[fixed:]))
        ]
    if not matches:
        raise StorageError(f"{pattern}: nothing matches this pattern; check its folder and quotes")
    return sorted(matches)


def _list_of_paths(path: str) -> list[str]:
    folder = path.rsplit("/", 1)[0] if is_remote(path) else str(_local(path).parent)
    try:
        listing = load_json(read_bytes(path), what=path)
    except ParseError as error:
        raise StorageError(f"{error}; a .json source lists shards") from error
    if isinstance(listing, dict):
        keys = ("shards", "shardlist", "files", "urls", "paths")
        lengths = listing.get(
            "lengths"
        )  # written by the published generator: number of samples by path
        lists = [listing[key] for key in keys if isinstance(listing.get(key), list)]
        lists += [list(lengths)] if isinstance(lengths, dict) else []
        listing = lists[0] if lists else None
    names = [_path_of(entry) for entry in listing] if isinstance(listing, list) else []
    if not names or not all(names):
        raise StorageError(
            f"{path}: not a list of shards; expected a list of paths, or a mapping with one "
            "under shards, files or urls (put rows of a table into a .jsonl file)"
        )
    paths: list[str] = []
    for name in cast("list[str]", names):
        for expanded in _expand_braces(name):
            paths.append(expanded if is_absolute(name) else join(folder, expanded))
    return paths


def _path_of(entry: object) -> str | None:
    if isinstance(entry, dict):
        keys = ("url", "path", "file", "filename", "name")
        entry = next((entry[key] for key in keys if isinstance(entry.get(key), str)), None)
    return entry if isinstance(entry, str) and entry else None
