"""The job: one shard of pairs in, one reinforced shard out.

    run(open_pairs("pairs.csv"), load_recipe(teachers=["vit-b16"]), "reinforced")

A shard is a pure function of its pairs and the recipe, and it is written whole or not at all, so
that a run can be killed at any moment and started again. Beside `NAME.tar` stand
`NAME.report.json`, the mark that the shard is finished, and `NAME.bad.jsonl`, which names each
pair that was left out. Source: MobileCLIP (arXiv 2311.17049), section 4.1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.pairs import PairShard
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.local import Workers
from pocketclip.reinforce.prepare import Prepared
from pocketclip.reinforce.recipe import Recipe, digest
from pocketclip.shards import Index, ShardStats, write_index
from pocketclip.types import Bad, Pair

RECIPE = "recipe.json"
REPORT = ".report.json"

OnPairs = Callable[[int, int], None]
"""Told how many pairs were done, and how many of them were bad."""
OnShard = Callable[[int], None]
"""Told how many pairs a finished shard had."""
OnStart = Callable[[int, int, int], None]
"""Told how many shards there are, how many are finished already, and how many pairs those had."""


def ignore(*_: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of one shard; as JSON it is the mark that the shard is finished."""

    name: str
    fingerprint: str
    """Of the pairs that it was made from."""
    config_hash: str
    samples: int
    bad: int
    captions_cut: int
    """Captions longer than a teacher reads; they are stored whole and embedded cut."""
    stats: dict[str, Any]


def run_shard(
    shard: PairShard,
    engine: Engine,
    workers: Workers,
    out: str,
    on_pairs: OnPairs = ignore,
) -> Report:
    """Reinforce one shard of pairs into `out`, a folder or an object store.

    Raises:
        PocketclipError: nothing of this shard was written.
        OSError: the disk is full or cannot be written to; nothing of this shard was written.
    """
    bad: list[Bad] = []
    seen: set[str] = set()
    cut = 0
    try:
        with engine.writer(_target(shard.name, engine.recipe.format, out)) as sink:
            for chunk in _chunks(workers.map(shard, engine.plan), engine.recipe.batch_size):
                good, failed = _sorted(chunk, seen)
                samples = engine.reinforce(good) if good else []
                for sample in samples:
                    try:
                        sink.write(sample)
                    except DataError as error:
                        failed.append(Bad(uid=sample.uid, reason=str(error)))
                cut += engine.cut(samples)
                bad += failed
                on_pairs(len(chunk), len(failed))
            _check_claim(out, engine.config_hash)
    except DataError:
        _write_bad(shard.name, bad, out)  # so that a run stopped by them shows which they were
        raise
    _write_bad(shard.name, bad, out)
    report = Report(
        name=shard.name,
        fingerprint=shard.fingerprint,
        config_hash=engine.config_hash,
        samples=sink.stats.samples,
        bad=len(bad),
        captions_cut=cut,
        stats=dataclasses.asdict(sink.stats),
    )
    _write_json(storage.join(out, shard.name + REPORT), dataclasses.asdict(report))
    return report


def _sorted(
    chunk: Iterable[tuple[Pair | Bad, Prepared | Bad]], seen: set[str]
) -> tuple[list[tuple[Pair, Prepared]], list[Bad]]:
    """Return what can be used and what cannot; `seen` grows by the uids of this chunk."""
    good, bad = [], []
    for pair, ready in chunk:
        if isinstance(ready, Bad) or isinstance(pair, Bad):
            assert isinstance(ready, Bad)
            bad.append(ready)
        elif pair.uid in seen:
            bad.append(Bad(uid=pair.uid, reason="duplicate uid; the first one was kept"))
        else:
            seen.add(pair.uid)
            good.append((pair, ready))
    return good, bad


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def _target(name: str, form: str, out: str) -> str:
    return storage.join(out, f"{name}.{'tar' if form == 'tar' else 'jsonl.gz'}")


def _write_bad(name: str, bad: Sequence[Bad], out: str) -> None:
    path = storage.join(out, f"{name}.bad.jsonl")
    if bad:
        lines = [_json(dataclasses.asdict(one), None) for one in bad]
        storage.write_bytes(path, b"\n".join(lines) + b"\n", tidy=False)
    else:
        storage.remove(path)  # of an earlier attempt


def _write_json(path: str, value: Any) -> None:
    storage.write_bytes(path, _json(value, 1) + b"\n", tidy=False)


def _json(value: Any, indent: int | None) -> bytes:
    # File names may hold what UTF-8 cannot.
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def begin(out: str, facts: dict[str, Any]) -> None:
    """Mark `out` as holding shards of this recipe.

    Raises:
        ConfigError: it holds something else already.
    """
    storage.remove_abandoned(out)
    path = storage.join(out, RECIPE)
    inside = [name.replace("\\", "/").rpartition("/")[2] for name in storage.list_files(out)]
    if RECIPE not in inside:
        others = [n for n in inside if n.endswith((".tar", ".gz", ".jsonl", REPORT, "index.json"))]
        if others:
            raise ConfigError(
                f"{out} holds {others[0]}, which this job did not write: choose another --out"
            )
    elif any(name.endswith(REPORT) for name in inside):
        before = _read_json(path)
        if digest(before) != digest(facts):
            names = sorted(facts.keys() | before.keys())
            changed = [name for name in names if before.get(name) != facts.get(name)]
            raise ConfigError(
                f"{out} holds shards of another recipe ({', '.join(changed)} changed): choose "
                "another --out, or remove that folder first"
            )
        return
    _write_json(path, facts)


def _check_claim(out: str, config_hash: str) -> None:
    """Refuse to go on if another run has begun in `out` with another recipe meanwhile.

    Raises:
        ConfigError: it has.
    """
    path = storage.join(out, RECIPE)
    if storage.exists(path) and digest(_read_json(path)) != config_hash:
        raise ConfigError(
            f"another run has begun in {out} with another recipe: choose another --out for one of "
            "them"
        )


def _read_json(path: str) -> dict[str, Any]:
    try:
        found = load_json(storage.read_bytes(path), what=path)
    except ParseError as error:
        raise DataError(f"{error}: remove it and run again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} does not hold an object: remove it and run again")
    return found


def _read_report(path: str) -> Report:
    try:
        report = Report(**_read_json(path))
        ShardStats(**report.stats)
    except TypeError as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run again") from error
    return report


def finish(out: str, facts: dict[str, Any], known: Mapping[str, Report]) -> Index:
    """Write the index of all finished shards in `out`, those of other runs too.

    Args:
        out: where they are.
        facts: what decides them.
        known: reports that need not be read again, by the shard's name.

    Raises:
        ConfigError: one of them was made by another recipe.
    """
    storage.remove_abandoned(out)  # of actors that died
    index = Index(
        teachers=facts["teachers"],
        captioners=facts["captioners"],
        augmentation=facts["augmentation"],
        config_hash=digest(facts),
    )
    for path in storage.list_files(out, (REPORT,)):
        name = path.replace("\\", "/").rpartition("/")[2].removesuffix(REPORT)
        report = known[name] if name in known else _read_report(path)
        if report.config_hash != index.config_hash:
            raise ConfigError(
                f"{out}: {name} was made by another recipe, in a run at the same time: remove it "
                "and its report, and run again"
            )
        index.add([ShardStats(**report.stats)])
    write_index(out, index)
    return index


@dataclass(slots=True, kw_only=True)
class Limit:
    """When a run has gone wrong: too many bad pairs, as a number or a share."""

    count: int | None = None
    share: float | None = None
    seen: int = 0
    bad: int = 0
    _SURE = 100  # a share says little about fewer pairs

    @classmethod
    def parse(cls, text: str | None) -> Limit:
        """Return the limit that `100`, `5%` or None stand for.

        Raises:
            ConfigError: it is none of them.
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
        raise ConfigError(f"--max-bad is a number of pairs or a percentage, not {text!r}")

    def add(self, done: int, bad: int) -> None:
        """Count pairs.

        Raises:
            DataError: there are too many bad ones.
        """
        self.seen += done
        self.bad += bad
        too_many = self.count is not None and self.bad > self.count
        if self.share is not None and self.seen >= self._SURE:
            too_many |= self.bad > self.share * self.seen
        if too_many:
            raise DataError(
                f"{self.bad} of {self.seen} pairs were bad, more than --max-bad allows; the "
                ".bad.jsonl files beside the shards say why, finished shards are kept"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a whole run made."""

    index: Index
    reports: list[Report]
    skipped: int
    """Shards that were finished before."""


def resume(
    shards: Sequence[PairShard],
    facts: dict[str, Any],
    out: str,
    limit: Limit,
    on_start: OnStart,
) -> tuple[dict[str, Report], list[PairShard]]:
    """Claim `out`; return the reports of finished shards by name, and the shards still to do.

    Raises:
        ConfigError: `out` holds something else already.
        DataError: there are no shards, two have the same name, or one was made from other pairs.
    """
    if not shards:
        raise DataError("no pairs: the input holds nothing")
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two input shards are named {twice}: reinforce their folders one by one")
    begin(out, facts)
    config_hash = digest(facts)
    sizes = dict(storage.list_sizes(out))
    done = {}
    for shard in shards:
        target = _target(shard.name, facts["format"], out)
        report = _finished(shard, config_hash, target, out, sizes)
        if report is not None:
            done[shard.name] = report
            limit.add(report.samples + report.bad, report.bad)
    on_start(len(shards), len(done), limit.seen)
    return done, [shard for shard in shards if shard.name not in done]


def _finished(
    shard: PairShard, config_hash: str, target: str, out: str, sizes: Mapping[str, int]
) -> Report | None:
    """Return the report of a shard that needs no more work."""
    path = storage.join(out, shard.name + REPORT)
    if path not in sizes or target not in sizes:
        return None
    report = _read_report(path)
    if report.config_hash != config_hash:
        raise DataError(f"{target} was made by another recipe: choose another --out")
    if report.fingerprint != shard.fingerprint:
        raise DataError(
            f"{target} was made from other pairs than {shard.name} holds now: choose another "
            "--out, or remove that shard and its report to make it again"
        )
    return report if sizes[target] == report.stats["bytes"] else None


def run(
    shards: Sequence[PairShard],
    recipe: Recipe,
    out: str,
    *,
    workers: int | None = None,
    limit: Limit | None = None,
    on_start: OnStart = ignore,
    on_pairs: OnPairs = ignore,
    on_shard: OnShard = ignore,
) -> Summary:
    """Reinforce shards on this machine, skipping those that are finished.

    Args:
        shards: what `pocketclip.pairs.open_pairs` gave.
        recipe: what to do.
        out: a folder or an object store.
        workers: processes that decode and augment; as many as there are cores if None.
        limit: when to stop for bad pairs.
        on_start: told what there is to do.
        on_pairs: told of progress.
        on_shard: told of each finished shard.

    Raises:
        PocketclipError: bad input; finished shards are kept.
    """
    with Workers(workers, ahead=2 * recipe.batch_size) as pool:
        engine = Engine(recipe)
        limit = limit or Limit()
        done, todo = resume(shards, engine.facts, out, limit, on_start)
        skipped = len(done)

        def count(pairs: int, bad: int) -> None:
            on_pairs(pairs, bad)
            limit.add(pairs, bad)

        for shard in todo:
            done[shard.name] = run_shard(shard, engine, pool, out, count)
            on_shard(done[shard.name].samples + done[shard.name].bad)
    reports = [done[shard.name] for shard in shards]
    return Summary(index=finish(out, engine.facts, done), reports=reports, skipped=skipped)
