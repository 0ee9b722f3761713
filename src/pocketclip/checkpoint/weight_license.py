"""The licence of weights on disk: of a checkpoint, of a file from the hub, of any other file.

A checkpoint says it itself. Of other weights it is what lies beside them says (the file `LICENSE`,
the card `README.md` of a repository), and what is known of the published ones.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketclip import license, zoo
from pocketclip.checkpoint.hub_cache import HubFile
from pocketclip.checkpoint.resolve import CONFIG, ModelSource
from pocketclip.errors import CheckpointError, PocketclipError
from pocketclip.formats.fields import field, typed
from pocketclip.formats.json_text import load_json
from pocketclip.formats.yaml_text import load_yaml
from pocketclip.license import License
from pocketclip.storage.hub_settings import get_endpoint, hide_credentials
from pocketclip.storage.local import digest_file

CARD = "README.md"
"""The file with a repository's description, which begins with its facts in YAML."""
METADATA = "pocketclip_licence"
"""The key of a licence in the metadata of a safetensors file that we write."""
_MAX_CARD = 256 << 10
_CARD_FACTS = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)
_APPLES_FILE = re.compile(r"mobileclip2?_(s[0-4]|b|blt|l_?14)", re.IGNORECASE)


def published_license(repo: str) -> License:
    """Return what is known of the licence of a repository's weights without asking the hub.

    Its name is known of the published weights of the zoo, its page of all.
    """
    known = zoo.name_of_repository(repo)
    name = None if known is None else zoo.entry(known).license
    return License(name=name, url=f"{hide_credentials(get_endpoint())}/{repo}")


def name_on_card(facts: Mapping[str, Any]) -> str | None:
    """Return the licence in the facts of a repository's card, as a short name; None if none is."""
    value = license.clean_name(facts.get("license"))
    return (license.clean_name(facts.get("license_name")) or value) if value == "other" else value


def license_of_hub_file(file: HubFile) -> License:
    """Return the licence of weights in the hub's cache, as the repository says it."""
    folder = file.path.parents[file.filename.count("/")]
    return _license_in(folder, name=file.license, repo=file.repo)


def license_of_file(source: ModelSource, path: Path, metadata: Mapping[str, str]) -> License:
    """Return the licence of a weight file, as far as something says it.

    Args:
        source: of the file.
        path: of the file.
        metadata: in the file.
    """
    if METADATA in metadata:
        return _of_metadata(metadata[METADATA], path)
    repo = None
    folder = path.absolute().parent
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        repo = folder.parents[1].name.removeprefix("models--").replace("--", "/")
    elif source.suggested is not None:
        repo = zoo.entry(source.suggested).hub[0]
    elif _APPLES_FILE.fullmatch(path.stem) and "pocketclip" not in metadata:
        entry = zoo.find(path.stem.lower().replace("_blt", "_b_lt"))
        repo = entry.hub[0] if entry is not None and entry.hub else None
    return _license_in(folder, repo=repo)


def license_of_checkpoint(folder: Path, raw: object) -> License:
    """Return the licence of a checkpoint of ours.

    Args:
        folder: of the checkpoint.
        raw: the entry `licence` of its configuration.

    Raises:
        ValueError: the entry is damaged.
        CheckpointError: the file with the text is missing or was changed.
    """
    entry = license.check_entry(raw)
    if entry is None:
        return license.UNKNOWN
    assert isinstance(raw, Mapping)
    file, text = entry.pop("file", None), None
    if file is not None:
        path = folder / file
        text = license.read_text(path)
        if text is None or digest_file(path) != raw.get("sha256"):
            raise CheckpointError(
                f"{path} is not the licence that was saved with {CONFIG}: copy the checkpoint again"
            )
    return License(**entry, text=text)


def license_files(raw: object) -> set[str]:
    """Return the names of the files that the configuration of a checkpoint says are its licence."""
    entry = raw.get("licence") if isinstance(raw, Mapping) else None
    has_text = isinstance(entry, Mapping) and entry.get("file") == license.FILE
    return {license.FILE} if has_text else set()


def write_license(of: License, folder: Path) -> dict[str, Any]:
    """Write a licence's text into a checkpoint's folder; return what its configuration says.

    Returns:
        The entry `licence`, or nothing where nothing is known.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    entry = license.write_entry(of, folder)
    if entry is None:
        return {}
    if "file" in entry:
        entry["sha256"] = digest_file(folder / entry["file"])
    return {"licence": entry}


def license_metadata(of: License) -> dict[str, str]:
    """Return what the metadata of a safetensors file says of a licence."""
    known = {"name": of.name, "url": of.url, "text": of.text}
    if known == dict.fromkeys(known):
        return {}
    return {METADATA: json.dumps({k: v for k, v in known.items() if v is not None})}


def _of_metadata(value: str, path: Path) -> License:
    try:
        raw = typed(load_json(value), dict, what="the licence")
        entry = license.check_entry(raw) or {}
        text = field(raw, "text", str, what="the licence", default=None)
        if text is not None and not license.is_text(text):
            raise ValueError("the text of the licence is empty or too long")
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error
    entry.pop("file", None)
    return License(**entry, text=text)


def _license_in(folder: Path, *, name: str | None = None, repo: str | None = None) -> License:
    text = license.find_text(folder)
    name = name or _name_on_card_in(folder)
    known = license.UNKNOWN if repo is None else published_license(repo)
    name = name or known.name
    if name is None and text is not None:
        name = license.name_of_text(text)
    return License(name=name, url=known.url, text=text)


def _name_on_card_in(folder: Path) -> str | None:
    """Return the licence in the card of a downloaded repository; None if there is none."""
    with contextlib.suppress(OSError, PocketclipError):
        with (folder / CARD).open("rb") as stream:
            text = stream.read(_MAX_CARD).decode("utf-8", "replace")
        found = _CARD_FACTS.match(text)
        facts = None if found is None else load_yaml(found[1], what=CARD)
        return name_on_card(facts) if isinstance(facts, Mapping) else None
    return None
