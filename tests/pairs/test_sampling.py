from __future__ import annotations

import csv

import pytest
from PIL import Image

from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.sampling import sample_pairs


@pytest.fixture
def table(tmp_path):
    """Rows 0 to 59; the image of each fifth is no image, row 7 has no caption."""
    with (tmp_path / "pairs.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["filepath", "caption", "uid"])
        for i in range(60):
            path = tmp_path / f"{i}.png"
            if i % 5:
                Image.new("RGB", (2, 2), (i, i, i)).save(path)
            else:
                path.write_bytes(b"broken")
            rows.writerow([path.name, "" if i == 7 else f"text {i}", f"u{i}"])
    return str(tmp_path / "pairs.csv")


def _uids(shards, count, **options):
    return [pair.uid for pair in sample_pairs(shards, count, purpose="test", **options)]


def test_the_sample_depends_on_names_only(table):
    small, large = (
        open_pairs(table, PairOptions(uid_column="uid", shard_size=size)) for size in (7, 60)
    )
    uids = _uids(small, 20)
    assert _uids(small, 20) == uids
    assert len(set(uids)) == len(uids)
    # 20 are chosen, and those that cannot be opened are left out.
    assert 10 <= len(uids) < 20
    assert {int(uid[1:]) % 5 for uid in uids} == {1, 2, 3, 4}
    assert len(_uids(large, 1000)) == 47  # all that can be opened and have a caption
    assert _uids(large, 10) != _uids(large, 1000)[:10]


def test_only_some_shards_of_a_large_set_are_read(table, monkeypatch):
    shards = open_pairs(table, PairOptions(uid_column="uid", shard_size=1))
    read = []
    cls = type(shards[0])
    drafts = cls.drafts
    monkeypatch.setattr(cls, "drafts", lambda self: read.append(self.name) or drafts(self))
    monkeypatch.setattr("pocketclip.pairs.sampling._LOOKED_AT", 1)
    assert sample_pairs(shards, 1, purpose="test", accept=lambda pair: pair.uid != "u3")
    assert len(set(read)) <= 20


def test_pairs_that_are_not_accepted_are_not_chosen(table):
    shards = open_pairs(table, PairOptions(uid_column="uid"))
    assert set(_uids(shards, 60, accept=lambda pair: pair.uid in ("u1", "u5", "u6"))) == {
        "u1", "u6"
    }  # fmt: skip
