"""A thousand damaged files: each is read rightly, counted as bad, or refused in one line."""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from tests.fuzz_kinds import KINDS
from tests.fuzzing import Child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    seeds_of, mutation, suffix, reader, count = KINDS[kind]
    rng = random.Random(zlib.crc32(kind.encode()))
    seeds = seeds_of(tmp_path)
    child, faults, seen = Child("tests.fuzz_kinds"), [], dict[str, int]()
    try:
        for number in range(count):
            path = tmp_path / f"input{suffix}"
            path.write_bytes(mutation(rng, rng.choice(seeds), rng.choice(seeds)))
            outcome, details = child.outcome(reader, path)
            seen[outcome] = seen.get(outcome, 0) + 1
            if outcome not in ("ok", "refused"):
                kept = path.rename(tmp_path / f"fault{number}{suffix}")
                faults.append(f"{kept}: {outcome}: {details}")
                if outcome in ("crash", "hang"):
                    child.close()
                    child = Child("tests.fuzz_kinds")
    finally:
        child.close()
    print(kind, seen)
    assert not faults, "\n".join(faults[:5])
    assert seen.get("ok", 0) + seen.get("refused", 0) == count


def test_there_are_a_thousand():
    assert sum(count for *_, count in KINDS.values()) >= 1000
