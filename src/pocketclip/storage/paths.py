"""Local files and object stores, through one set of functions.

    with storage.write_whole("s3://bucket/out/00000000.tar") as local:
        local.write_bytes(b"...")
    data = storage.read_bytes("s3://bucket/out/00000000.tar")

A path is a string: one with a scheme (`s3://`, `gs://`, `https://`, ...) goes through `fsspec`,
any other is local. Credentials, endpoints and proxies are those that fsspec's own file systems
take from the environment (for `s3fs`: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws, ...).
Nothing open is kept between calls, so that paths can be handed to other processes, spawned or
forked: fsspec makes a new client in each.
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
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

from pocketclip.errors import ParseError, StorageError
from pocketclip.formats.json_text import load_json
from pocketclip.storage import local as files
from pocketclip.storage.photos import is_hidden, walk_files
from pocketclip.storage.stores import (
    RemoteFile,
    connect,
    explained,
    missing_bucket,
    put,
    with_scheme,
)
from pocketclip.storage.temporary import scratch_folder

MAX_BYTES = 1 << 28
"""The largest local file that is read whole: 256 MiB."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


_FILE_URL = re.compile(r"^file:(?://(?:localhost(?=/))?)?(?=.)", re.IGNORECASE)


def _local(path: str) -> Path:
    """Return a local path, or that of a `file:` URL, whose `%20` is a space."""
    found = _FILE_URL.match(path)
    if found is None or not path[5:].startswith("/"):
        return Path(path)
    rest = path[found.end() :]
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(rest)))
    if os.name == "nt" and re.match(r"/[A-Za-z][:|]", decoded):
        decoded = f"{decoded[1]}:{decoded[3:]}"
    # Many write the name as it is, without encoding it.
    if decoded != rest and not os.path.lexists(decoded) and os.path.lexists(rest):
        return Path(rest)
    return Path(decoded)


def is_remote(path: str) -> bool:
    """Return whether `path` has a scheme, like `s3://`; `file://` counts as local."""
    found = _SCHEME.match(path)
    return found is not None and found[1].lower() != "file"


def is_absolute(path: str) -> bool:
    """Return whether `path` means the same whatever folder it stands in: also with a scheme."""
    return is_remote(path) or path[:6].lower() == "file:/" or Path(path).is_absolute()


def join(base: str, *parts: str) -> str:
    """Return `parts` below `base`: with slashes in a store, as the system does it locally."""
    if is_remote(base):
        return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])
    return str(_local(base).joinpath(*parts))


def absolute(path: str) -> str:
    """Return `path` so that it means the same in every folder of this machine."""
    return path if is_remote(path) else str(_local(path).absolute())


def exists(path: str) -> bool:
    """Return whether there is a file or folder at `path`.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not is_remote(path):
        return _local(path).exists()
    fs, name = connect(path)
    with explained(path, "look for"):
        return bool(fs.exists(name))


def is_folder(path: str) -> bool:
    """Return whether `path` is a folder; in a store: whether something lies below it.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not is_remote(path):
        return _local(path).is_dir()
    fs, name = connect(path)
    with explained(path, "look for"):
        return bool(fs.isdir(name))


def size(path: str) -> int:
    """Return the bytes of the file at `path`.

    Raises:
        StorageError: it is missing, or the store cannot be reached.
    """
    if not is_remote(path):
        with explained(path, "read"):
            return _local(path).stat().st_size
    fs, name = connect(path)
    with explained(path, "read", fs, name):
        found = fs.size(name)
    if found is None:
        raise StorageError(f"{path}: the server does not say how large it is; download it first")
    return int(found)


_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "VersionId"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "created"),
)
"""What the stores' clients call the mark, or the time, of an object's content."""


def version(path: str) -> str | None:
    """Return what changes when the file at `path` is replaced: its mark in the store, or its time.

    Returns:
        None where the store says neither.

    Raises:
        StorageError: it is missing, or the store cannot be reached.
    """
    if not is_remote(path):
        with explained(path, "read"):
            return str(_local(path).stat().st_mtime_ns)
    fs, name = connect(path)
    with explained(path, "read", fs, name):
        found = fs.info(name)
    return next((f"{key} {found[key]}" for key in _VERSIONS if found.get(key)), None)


def remove(path: str) -> None:
    """Remove the file at `path`; one that is missing is no error.

    Raises:
        StorageError: it cannot be removed.
    """
    with explained(path, "remove"), contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            _local(path).unlink(missing_ok=True)
        else:
            fs, name = connect(path)
            fs.rm_file(name)


def open_read(path: str) -> BinaryIO:
    """Return the file at `path`, open for reading and seeking; from a store, in blocks of 8 MiB.

    Raises:
        StorageError: it is missing, or cannot be reached, now or while it is read; or it is a
            pipe or device, which cannot be sought in, and could let the reader wait for ever.
    """
    if not is_remote(path):
        with explained(path, "read"):
            mode = _local(path).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StorageError(f"{path}: a pipe, socket or device, not a file")
            return _local(path).open("rb")
    fs, name = connect(path)
    with explained(path, "read", fs, name):
        return io.BufferedReader(RemoteFile(path, fs, name), 1 << 20)


def read_bytes(path: str, *, max_bytes: int = MAX_BYTES, regular: bool = False) -> bytes:
    """Return the whole file at `path`.

    Args:
        path: local, or of an object store.
        max_bytes: a larger local file is refused; not more of it is read.
        regular: refuse what is local and has no size, a pipe or a device, instead of reading it.

    Raises:
        StorageError: it is missing, cannot be reached, or is refused.
    """
    if not is_remote(path):
        with explained(path, "read"):
            place = _local(path)
            facts = place.stat()
            if regular and not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
                raise StorageError(f"{path}: this is a pipe or a device, not a file")
            data = b""
            if facts.st_size <= max_bytes or stat.S_ISDIR(facts.st_mode):
                with place.open("rb") as stream:
                    data = stream.read(max_bytes + 1)
            if max(facts.st_size, len(data)) > max_bytes:
                raise StorageError(f"{path}: larger than {max_bytes:,} bytes")
            return data
    fs, name = connect(path)
    with explained(path, "read", fs, name):
        return cast(bytes, fs.cat_file(name))


def remove_abandoned(folder: str) -> None:
    """Remove what killed processes left half-written in a local folder; a store has no such.

    Raises:
        StorageError: the path is empty, as of an unset variable; it would be
            the current folder.
    """
    if not folder:
        raise StorageError('an empty path: name a folder to write to ("." for this one)')
    if not is_remote(folder):
        files.remove_abandoned(_local(folder))


def write_bytes(path: str, data: bytes, *, tidy: bool = True) -> None:
    """Write `data` to `path`, whole or not at all; missing folders are made.

    Args:
        path: the file.
        data: its content.
        tidy: as `write_whole` has it.

    Raises:
        StorageError: the disk is full, or the place cannot be written to.
    """
    with write_whole(path, tidy=tidy) as local:
        local.write_bytes(data)


@contextlib.contextmanager
def write_whole(path: str, *, tidy: bool = True) -> Iterator[Path]:
    """Yield a local file to write; once the block is done it appears at `path`, whole.

    Locally it lies beside `path` and is renamed into place, after it is on the disk; missing
    folders are made. For a store it lies in the temporary folder (TMPDIR) and is put there
    afterwards: up to 32 MiB in one request, larger ones as a multipart upload, which no reader
    sees before it is complete. If the block raises, or the process is killed, whatever stood at
    `path` before is untouched. Any number of processes can write one path: the last one wins.

    Args:
        path: the file.
        tidy: locally, remove what killed processes left of the same file. Whoever writes many
            files into one folder calls `remove_abandoned` once instead.

    Raises:
        StorageError: the disk is full, or the place cannot be written to.
    """
    if not is_remote(path):
        target = _local(path)
        with explained(path, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _about_disk(path, str(target)), files.write_whole(target, tidy=tidy) as temporary:
            yield temporary
        return
    fs, name = connect(path)
    ours = str(Path(tempfile.gettempdir()) / "pocketclip-")
    with _about_disk(path, ours), scratch_folder("upload") as folder:
        local = folder / "whole"
        yield local
        with explained(path, "write", fs, name):
            put(fs, str(local), name)


@contextlib.contextmanager
def _about_disk(path: str, ours: str) -> Iterator[None]:
    """Explain errors of the disk, and of files whose paths begin with `ours`; no others."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS or str(error.filename or "").startswith(ours):
            with explained(path, "write"):
                raise
        raise


def list_files(
    folder: str, suffixes: tuple[str, ...] = (), *, recursive: bool = False
) -> list[str]:
    """Return the paths of the files in `folder` whose names end in one of `suffixes`, sorted.

    Without suffixes, all of them. Hidden files and folders (`photos.is_hidden`) are left out: so
    are those that a killed process left half-written. Linked folders are followed, each folder
    once. A folder that is not there has no files.

    Raises:
        StorageError: the folder, or the store, cannot be read, or it is a file.
    """
    return [path for path, _ in list_sizes(folder, suffixes, recursive=recursive)]


def list_sizes(
    folder: str, suffixes: tuple[str, ...] = (), *, recursive: bool = False
) -> list[tuple[str, int]]:
    """Return what `list_files` does, each with its size in bytes.

    Raises:
        StorageError: the folder, or the store, cannot be read.
    """
    if not is_remote(folder) and _local(folder).is_file():
        raise StorageError(f"{folder} is a file: give the folder that it is in")
    with explained(folder, "list"):
        found = list(_listed(folder, recursive=recursive))
    endings = tuple(suffix.lower() for suffix in suffixes)
    return sorted((p, s) for p, s in found if not endings or p.lower().endswith(endings))


def _listed(folder: str, *, recursive: bool) -> Iterator[tuple[str, int]]:
    if not is_remote(folder):
        root = _local(folder)
        if root.exists():
            for entry in walk_files(str(root), recursive=recursive):
                yield entry.path.removeprefix("./"), _size_of(entry)
        return
    fs, name = connect(folder)
    prefix = name.rstrip("/") + "/"
    found = fs.find(prefix, maxdepth=None if recursive else 1, detail=True)
    if not found and missing_bucket(fs, name):
        with explained(folder, "list", fs, name):
            raise FileNotFoundError(errno.ENOENT, "no such bucket", name)
    for path, info in found.items():
        below = path.lstrip("/").removeprefix(prefix.lstrip("/"))
        if info.get("type") == "file" and not any(map(is_hidden, below.split("/"))):
            yield join(folder, below), int(info.get("size") or 0)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link that leads nowhere: whoever reads it says so
        return 0


def expand(source: str) -> list[str]:
    """Return the paths that `source` stands for.

    - `shard-{00000..00012}.tar` and `{train,val}.csv` are spelt out, in the order given; what
      they lead to is not looked for.
    - `*`, `?`, `[...]` match the files and folders that are there, sorted; `**` any depth.
    - A `.json` file is a list of paths, relative to its own folder: a list of strings, or a
      mapping with such a list under `shards`, `files`, `urls`, `paths` or `shardlist`, where an
      entry may also be a mapping with `url`, `path`, `file`, `filename` or `name`.
    - Anything else stands for itself.

    Raises:
        StorageError: a pattern that matches nothing, or a list that cannot be read.
    """
    if not is_remote(source) and _local(source).exists() and not source.endswith(".json"):
        return [str(_local(source))]
    paths: list[str] = []
    for spelt in _spell_braces(source):
        if re.search(r"[*?\[]", spelt) and not spelt.lower().startswith(("http://", "https://")):
            paths += _matched(spelt)
        elif spelt.lower().endswith(".json"):
            paths += _list_of_paths(spelt)
        else:
            paths.append(spelt if is_remote(spelt) else str(_local(spelt)))
    return paths


def _spell_braces(pattern: str) -> list[str]:
    for found in re.finditer(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            width = len(numbers[1]) if numbers[1].startswith("0") else 0
            step = 1 if last >= first else -1
            choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in found[1]:
            choices = found[1].split(",")
        else:
            continue
        head, tail = pattern[: found.start()], pattern[found.end() :]
        return [spelt for choice in choices for spelt in _spell_braces(head + choice + tail)]
    return [pattern]


def _matched(pattern: str) -> list[str]:
    with explained(pattern, "list"):
        if is_remote(pattern):
            fs, name = connect(pattern)
            found = [with_scheme(fs, pattern, path) for path in fs.glob(name)]
        else:
            path = _local(pattern)
            root = Path(path.anchor)
            found = [str(p) for p in root.glob(str(path.relative_to(path.anchor)))]
    # A pattern does not mean hidden files, nor what lies in hidden folders, unless it says so.
    parts = pattern.split("/") if is_remote(pattern) else _local(pattern).parts
    fixed = next(at for at, part in enumerate(parts) if re.search(r"[*?\[]", part))
    if not any(part.startswith(".") for part in parts[fixed:]):
        found = [
            p for p in found if not any(map(is_hidden, re.split(r"[/\\]", p.rstrip("/"))[fixed:]))
        ]
    if not found:
        raise StorageError(f"{pattern}: nothing matches this pattern; check its folder and quotes")
    return sorted(found)


def _list_of_paths(path: str) -> list[str]:
    folder = path.rsplit("/", 1)[0] if is_remote(path) else str(_local(path).parent)
    try:
        listing = load_json(read_bytes(path), what=path)
    except ParseError as error:
        raise StorageError(f"{error}; a .json source lists shards") from error
    if isinstance(listing, dict):
        keys = ("shards", "shardlist", "files", "urls", "paths")
        lengths = listing.get("lengths")  # the reference generator's: samples by path
        found = [listing[key] for key in keys if isinstance(listing.get(key), list)]
        found += [list(lengths)] if isinstance(lengths, dict) else []
        listing = found[0] if found else None
    names = [_named(entry) for entry in listing] if isinstance(listing, list) else []
    if not names or not all(names):
        raise StorageError(
            f"{path}: not a list of shards; expected a list of paths, or a mapping that has one "
            "under shards, files or urls (rows of a table belong in a .jsonl file)"
        )
    paths: list[str] = []
    for name in cast("list[str]", names):
        for spelt in _spell_braces(name):
            paths.append(spelt if is_absolute(name) else join(folder, spelt))
    return paths


def _named(entry: object) -> str | None:
    if isinstance(entry, dict):
        keys = ("url", "path", "file", "filename", "name")
        entry = next((entry[key] for key in keys if isinstance(entry.get(key), str)), None)
    return entry if isinstance(entry, str) and entry else None
