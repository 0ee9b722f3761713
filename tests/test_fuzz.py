"""Two thousand damaged files: each is read rightly, counted as bad, or refused in one line."""

from __future__ import annotations

import functools
import importlib
import random
import sys
import zlib

import pytest

from tests.fuzzing import Child, put

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does"),
]
MODULES = ("tests.fuzz_kinds", "tests.fuzz_models", "tests.fuzz_texts")
KINDS = [(name, kind) for name in MODULES for kind in importlib.import_module(name).KINDS]


@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_damaged_files(module, kind, tmp_path):
    seeds_of, mutation, suffix, reader, count = importlib.import_module(module).KINDS[kind]
    rng = random.Random(zlib.crc32(kind.encode()))
    (tmp_path / "made").mkdir()
    seeds = seeds_of(tmp_path / "made")
    good = [tmp_path / f"good{number}{suffix}" for number in range(len(seeds))]
    for path, seed in zip(good, seeds, strict=True):
        put(path, seed)
    start = functools.partial(Child, module, reader, good if module != MODULES[0] else ())
    child, faults, seen = start(), [], dict[str, int]()
    try:
        for number in range(count):
            path = tmp_path / f"input{suffix}"
            put(path, mutation(rng, rng.choice(seeds), rng.choice(seeds)))
            outcome, details = child.outcome(reader, path)
            seen[outcome] = seen.get(outcome, 0) + 1
            if outcome not in ("ok", "refused"):
                saved = path.rename(tmp_path / f"fault{number}{suffix}")
                faults.append(f"{saved}: {outcome}: {details}")
                if outcome in ("crash", "hang"):
                    child.close()
                    child = start()
    finally:
        child.close()
    print(kind, seen)
    assert not faults, "\n".join(faults[:5])
    assert seen.get("ok", 0) + seen.get("refused", 0) == count


def test_there_are_two_thousand():
    counts = [
        count for name in MODULES for *_, count in importlib.import_module(name).KINDS.values()
    ]
    assert sum(counts) >= 2000
