"""Resuming a reinforcement: which shards are finished, and whether a folder belongs to this recipe.

The shard `NAME.tar` has two files beside it: `NAME.report.json` marks the shard as finished, and
`NAME.bad.jsonl` lists the pairs that were left out and why. `recipe.json` holds the facts
of the recipe that the folder's shards were made with. A shard is skipped if its report and its
size agree with the file, and its recipe and pairs are still the same.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.pairs import PairShard
from pocketclip.pairs.base import check_shard_names
from pocketclip.reinforce.recipe import digest
from pocketclip.shards import Index, ShardStats, read_index, write_index
from pocketclip.types import Bad

log = logging.getLogger(__name__)

RECIPE = "recipe.json"
REPORT = ".report.json"

OnPairs = Callable[[int, int], None]
"""Called with the number of pairs done since the last call, and how many of them were bad."""
OnShard = Callable[[int], None]
"""Called with the number of pairs of a shard when it is finished."""
OnStart = Callable[[int, int, int], None]
"""Called once: number of shards, of those already finished, and of pairs in the latter."""


def ignore(*_: int) -> None:
    """Do nothing: the default callback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one shard; stored as JSON, it marks the shard as finished."""

    name: str
    fingerprint: str
    """Identifies the pairs that the shard was made from."""
    config_hash: str
    samples: int
    bad: int
    captions_cut: int
    """Captions longer than a teacher's context; they are stored whole and embedded truncated."""
    stats: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Limit:
    """The number or share of bad pairs at which a run stops."""

    count: int | None = None
    share: float | None = None
    seen: int = 0
    bad: int = 0
    _MIN_PAIRS = 100  # a share of fewer pairs says little

    @classmethod
    def parse(cls, text: str | None) -> Limit:
        """Return the limit for `100`, `5%` or None (no limit).

        Raises:
            ConfigError: the text is neither a number nor a percentage.
        """
        if text is None:
            return cls()
        try:
            if text.endswith("%"):
                share = float(text[:-1]) / 100
                if 0 <= share <= 1:
                    return cls(share=share)
            elif int(text) >= 0:
                return cls(count=int(text))
        except ValueError:
            pass
        raise ConfigError(
            f"--max-bad takes a number of pairs or a percentage from 0% to 100%, not {text!r}"
        )

    def add(self, done: int, bad: int) -> None:
        """Count pairs.

        Raises:
            DataError: the limit is exceeded.
        """
        self.seen += done
        self.bad += bad
        exceeded = self.count is not None and self.bad > self.count
        if self.share is not None and self.seen >= self._MIN_PAIRS:
            exceeded |= self.bad > self.share * self.seen
        if exceeded:
            raise DataError(
                f"{self.bad} of {self.seen} pairs were bad, more than --max-bad allows; the "
                ".bad.jsonl files beside the shards say why, finished shards are kept"
            )


def shard_path(name: str, extension: str, out: str) -> str:
    """Return the path of the reinforced shard `name`.

    Args:
        name: of the shard of pairs.
        extension: the recipe's `format`, `tar` or `jsonl`.
        out: a folder or an object store.
    """
    return storage.join(out, f"{name}.{'tar' if extension == 'tar' else 'jsonl.gz'}")


def resume(
    shards: Sequence[PairShard],
    facts: dict[str, Any],
    out: str,
    limit: Limit,
    on_start: OnStart,
) -> tuple[dict[str, Report], list[PairShard]]:
    """Claim `out`; return the reports of finished shards by name, and the unfinished shards.

    Raises:
        ConfigError: `out` holds files of another recipe or another program.
        DataError: there are no shards, two have the same name, or one was made from other pairs.
    """
    if not shards:
        raise DataError("no pairs: the input is empty")
    check_shard_names(shards, "reinforce")
    sizes = claim_folder(out, facts)
    config_hash = digest(facts)
    made = []
    for shard in shards:
        target = shard_path(shard.name, facts["format"], out)
        path = storage.join(out, shard.name + REPORT)
        if path in sizes and target in sizes:
            made.append((shard, target, path))
    finished = {}
    reports = _read_reports([path for _, _, path in made])
    for (shard, target, _), report in zip(made, reports, strict=True):
        _check_report(report, shard, config_hash, target)
        if sizes[target] == report.stats["bytes"]:
            finished[shard.name] = report
            limit.add(report.samples + report.bad, report.bad)
    on_start(len(shards), len(finished), limit.seen)
    return finished, [shard for shard in shards if shard.name not in finished]


def _check_report(report: Report, shard: PairShard, config_hash: str, target: str) -> None:
    if report.config_hash != config_hash:
        raise DataError(f"{target} was made with another recipe: choose another --out")
    if report.fingerprint != shard.fingerprint:
        raise DataError(
            f"{target} was made from other pairs than {shard.name} holds now: choose another "
            "--out, or remove that shard and its report to make it again"
        )


def claim_folder(out: str, facts: dict[str, Any]) -> dict[str, int]:
    """Write the recipe's facts to `out`, so that no other recipe writes there.

    Returns:
        The files that were in `out`, with their sizes.

    Raises:
        ConfigError: it holds files of another recipe or another program.
    """
    storage.remove_abandoned(out)
    path = storage.join(out, RECIPE)
    files = dict(storage.list_sizes(out))
    names = list(map(_file_name, files))
    if RECIPE not in names:
        others = [n for n in names if n.endswith((".tar", ".gz", ".jsonl", REPORT, "index.json"))]
        if others:
            raise ConfigError(
                f"{out} holds {others[0]}, which this job did not write: choose another --out"
            )
    elif any(name.endswith(REPORT) for name in names):
        stored = _read_json(path)
        if digest(stored) != digest(facts):
            keys = sorted(facts.keys() | stored.keys())
            changed = [key for key in keys if stored.get(key) != facts.get(key)]
            raise ConfigError(
                f"{out} holds shards of another recipe ({', '.join(changed)} changed): choose "
                "another --out, or remove that folder first"
            )
        return files
    write_json(path, facts)
    return files


def check_claim(out: str, config_hash: str) -> None:
    """Check that no other run has claimed `out` for another recipe in the meantime.

    Raises:
        ConfigError: one has.
    """
    path = storage.join(out, RECIPE)
    if storage.exists(path) and digest(_read_json(path)) != config_hash:
        raise ConfigError(
            f"another run with another recipe has started in {out}: choose another --out for one "
            "of them"
        )


def write_report(report: Report, out: str) -> None:
    """Mark a shard as finished."""
    write_json(storage.join(out, report.name + REPORT), dataclasses.asdict(report))


def write_bad(name: str, bad: Sequence[Bad], out: str) -> None:
    """Write the list of a shard's bad pairs; without any, remove that of an earlier attempt."""
    path = storage.join(out, f"{name}.bad.jsonl")
    if bad:
        lines = [_json(dataclasses.asdict(pair), None) for pair in bad]
        storage.write_bytes(path, b"\n".join(lines) + b"\n", tidy=False)
    else:
        storage.remove(path)


def write_set_index(
    out: str,
    facts: dict[str, Any],
    known: Mapping[str, Report],
    earlier: Sequence[dict[str, Any]] = (),
) -> Index:
    """Write the index of all finished shards in `out`, including those of other runs.

    Args:
        out: the folder or object store of the shards.
        facts: the recipe's, as `Engine.facts`.
        known: reports that need not be read again, by the shard's name.
        earlier: the captioners whose captions the pairs had already.

    Raises:
        ConfigError: a shard was made with another recipe.
    """
    storage.remove_abandoned(out)  # of actors that died
    try:
        before = read_index(out, others=False)  # of runs over other pairs of this job
    except DataError as error:
        log.warning("%s; it is written anew from the reports of the shards", error)
        before = None
    captioners = {
        captioner["key"]: captioner
        for captioner in [*(before.captioners if before else ()), *earlier, *facts["captioners"]]
        if captioner.get("key")
    }
    index = Index(
        teachers=facts["teachers"],
        captioners=list(captioners.values()),
        augmentation=facts["augmentation"],
        config_hash=digest(facts),
    )
    paths = {_file_name(path).removesuffix(REPORT): path
             for path in storage.list_files(out, (REPORT,))}  # fmt: skip
    unknown = [name for name in paths if name not in known]
    others = dict(zip(unknown, _read_reports([paths[name] for name in unknown]), strict=True))
    for name in paths:
        report = known[name] if name in known else others[name]
        if report.config_hash != index.config_hash:
            raise ConfigError(
                f"{out}: {name} was made with another recipe, by a run at the same time: remove "
                "it and its report, and run again"
            )
        index.add([ShardStats(**report.stats)])
    write_index(out, index)
    return index


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _read_reports(paths: Sequence[str]) -> Iterator[Report]:
    """Yield the reports in order; they are read in parallel, as there may be 100,000."""
    for path, data in zip(paths, storage.read_many(paths), strict=True):
        try:
            report = Report(**_json_of(data, path))
            ShardStats(**report.stats)
        except TypeError as error:
            raise DataError(f"{path} is damaged ({error}): remove it and run again") from error
        yield report


def _read_json(path: str) -> dict[str, Any]:
    return _json_of(storage.read_bytes(path), path)


def _json_of(data: bytes, path: str) -> dict[str, Any]:
    try:
        value = load_json(data, what=path)
    except ParseError as error:
        raise DataError(f"{error}: remove it and run again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object: remove it and run again")
    return value


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    storage.write_bytes(path, _json(value, 1) + b"\n", tidy=False)


def _json(value: Any, indent: int | None) -> bytes:
    # File names may hold bytes that are not UTF-8.
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")
