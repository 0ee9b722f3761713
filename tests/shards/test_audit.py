from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pocketclip import shards
from pocketclip.shards import audit, read_index
from pocketclip.shards.tar import ending, entry
from tests.shards.making import GOLDEN, failure, folder, photo, sample, tar, unit, write


def members(path):
    import tarfile

    with tarfile.open(path) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive]


def rewrite(path, change):
    """Write a shard again with other members, as `change` makes them of the old ones."""
    data = b"".join(entry(name, data) for name, data in change(members(path)))
    path.write_bytes(data + ending(len(data)))


def replaced(name, data):
    return lambda files: [(n, data if n == name else d) for n, d in files]


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path):
    return folder(
        tmp_path / "set", [[sample(n) for n in range(4)], [sample(n) for n in range(4, 7)]]
    )


def kinds(report):
    return {
        kind: [(problem.file[7:8], problem.uid[-1:]) for problem in problems]
        for kind, problems in report.problems.items()
    }


@pytest.mark.parametrize(
    "first", ["", "import pocketclip.shards.audit.run", "from pocketclip.shards.audit import drift"]
)
def test_the_function_has_the_name_of_its_package(first):
    code = (
        f"{first}\n"
        "from pocketclip import shards\n"
        "import pocketclip.shards.audit.inspect\n"
        "assert shards.audit.__module__ == 'pocketclip.shards.audit.run'\n"
        "shards.audit('/nowhere')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == (
        "pocketclip.errors.DataError: /nowhere: no such folder; audit takes a folder of shards"
    )


def test_a_clean_set(dataset):
    seen = []
    report = audit(str(dataset), on_progress=seen.append)
    assert report.clean
    assert (report.shards, report.samples, report.indexed) == (2, 7, True)
    assert set(report.columns.values()) == {7}
    assert report.bytes == sum(path.stat().st_size for path in dataset.glob("*.tar"))
    assert sum(report.parts.values()) == report.bytes
    assert report.parts == read_index(str(dataset)).parts
    assert seen == [1, 1]


def test_processes_find_the_same(dataset):
    (dataset / "00000001.tar").write_bytes((dataset / "00000001.tar").read_bytes()[:3000])
    assert audit(str(dataset), workers=2) == audit(str(dataset))


def test_a_published_folder(tmp_path):
    for path in GOLDEN.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report = audit(str(tmp_path))
    # The golden shards have the same four uids, and other keys.
    assert set(report.counts) == {"duplicate"}
    assert report.counts["duplicate"] == 4
    assert not report.indexed
    (tmp_path / "v2_float32.tar").unlink()
    assert audit(str(tmp_path)).clean


def test_a_damaged_member(dataset):
    rewrite(dataset / "00000000.tar", replaced("00000002.npz", b"PK"))
    report = audit(str(dataset))
    assert kinds(report)["unreadable"] == [("0", "2")]
    assert set(report.counts) - {"size"} == {"unreadable", "hash"}
    assert "npz: damaged npz" in report.problems["unreadable"][0].reason


@pytest.mark.parametrize("end", [700, 10_000, -10240, -9000])
def test_a_cut_tar(dataset, end):
    path = dataset / "00000000.tar"
    path.write_bytes(path.read_bytes()[:end])
    report = audit(str(dataset))
    assert {"tar", "size", "hash"} <= set(report.counts)
    assert "truncated" in report.problems["tar"][0].reason
    assert report.problems["tar"][0].file == "00000000.tar"


def test_shards_and_the_index(dataset):
    (dataset / "00000001.tar").rename(dataset / "00000009.tar")
    report = audit(str(dataset))
    assert report.problems["absent"][0].file == "00000001.tar"
    assert report.problems["undeclared"][0].file == "00000009.tar"
    path = dataset / "00000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # inside an image: nothing but the hash can tell
    path.write_bytes(bytes(data))
    (dataset / "00000009.tar").rename(dataset / "00000001.tar")
    assert "hash" in audit(str(dataset), decode_images=False).counts


def test_samples_that_are_missing(dataset):
    rewrite(dataset / "00000000.tar", lambda files: [f for f in files if "00000001." not in f[0]])
    assert audit(str(dataset)).counts == {"count": 1, "hash": 1, "size": 1}


def test_missing_keys(dataset):
    gone = ("00000001.jpg", "00000002.paug.json")
    rewrite(dataset / "00000000.tar", lambda files: [f for f in files if f[0] not in gone])
    report = audit(str(dataset))
    assert {(p.uid, p.reason) for p in report.problems["missing"]} == {
        ("00000001", "lacks image"),
        ("00000002", "lacks param_aug"),
        ("00000002", "image_emb cannot be replayed: there is no paug.json"),
    }


def bad_embeddings(change):
    one = sample(2)
    arrays = {key: array.copy() for key, array in one.embeddings.items()}
    change(arrays)
    return npz(**arrays)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("nan", lambda a: a["image_emb"].__setitem__((1, 3), np.nan), "image_emb has values"),
        ("norm", lambda a: a["text_emb"].__imul__(1.1), "a row of length 1.1 where 1 was"),
        ("norm", lambda a: a["image_emb"][:, :8].__imul__(0.98), "length 0.98"),
        ("shape", lambda a: a.update(image_emb=a["image_emb"][:1]), "1 rows for 2 augmentations"),
        ("shape", lambda a: a.update(syn_text_emb=a["syn_text_emb"][:2]), "2 rows for 3 captions"),
        ("shape", lambda a: a.update(image_emb=a["image_emb"][:, :8]), "the width 8, not 12"),
        ("missing", lambda a: a.pop("text_emb"), "lacks text_emb"),
    ],
)
def test_embeddings(dataset, kind, change, reason):
    rewrite(dataset / "00000000.tar", replaced("00000002.npz", bad_embeddings(change)))
    report = audit(str(dataset))
    assert [p.uid for p in report.problems[kind]] == ["00000002"]
    assert reason in report.problems[kind][0].reason


@pytest.mark.parametrize("dims", [(12,), (8, 4), (4, 4, 4)])
def test_norms_where_teachers_are_not_known(tmp_path, dims):
    dataset = folder(tmp_path, [[sample(n, dims=dims) for n in range(3)]], index=False)
    assert audit(str(dataset)).clean
    one = sample(5, dims=dims)
    one.embeddings["text_emb"] *= 1.2
    write(dataset / "00000001.tar", [one])
    assert kinds(audit(str(dataset))) == {"norm": [("1", "5")]}


def test_a_width_of_its_own_without_an_index(tmp_path):
    samples = [sample(n) for n in range(3)] + [sample(3, dims=(8, 8))]
    dataset = folder(tmp_path, [samples], index=False)
    report = audit(str(dataset))
    assert kinds(report) == {"shape": [("0", "3")]}
    assert "not 12 wide" in report.problems["shape"][0].reason


@pytest.mark.parametrize("broken", [b"", b"no image", photo()[:200], b"\xff\xd8\xff"])
def test_images(dataset, broken):
    rewrite(dataset / "00000001.tar", replaced("00000005.jpg", broken))
    report = audit(str(dataset))
    assert kinds(report)["image"] == [("1", "5")]
    if broken:
        assert "image" not in audit(str(dataset), decode_images=False).counts


def test_duplicates_within_and_across(tmp_path):
    one = [entry(f"00000001.{k}", b"a") for k in ("txt", "json", "txt")]
    one[1] = entry("00000001.json", b"{}")
    data = b"".join(one)
    (tmp_path / "a.tar").write_bytes(data + ending(len(data)))
    write(tmp_path / "b.tar", [replace(sample(1), image=None)])
    report = audit(str(tmp_path))
    assert [(p.file, p.uid, p.position) for p in report.problems["duplicate"]] == [
        ("a.tar", "00000001", 1),
        ("b.tar", "00000001", 0),
    ]


def test_parameters(dataset):
    packed = json.dumps({"param_aug": [[[0, 0, 8, 8]], [[0, 0]]]}).encode()
    rewrite(dataset / "00000000.tar", replaced("00000001.paug.json", packed))
    report = audit(str(dataset))
    assert kinds(report)["params"] == [("0", "1")]
    assert report.problems["params"][0].reason.startswith("augmentation 1: ")


def test_captions_and_uids(tmp_path):
    files = [("0.txt", b" "), ("1.txt", b"a"), ("2.syn.json", b'{"syn_text": ["a", ""]}')]
    tar(tmp_path / "a.tar", [*files, ("3\n.txt", b"a")])
    report = audit(str(tmp_path))
    assert [p.uid for p in report.problems["captions"]] == ["0", "2"]
    assert len(report.problems["uid"]) == 1


def test_members_that_nobody_reads_are_told(dataset):
    rewrite(dataset / "00000000.tar", lambda files: [*files, ("00000003.cls", b"7")])
    assert audit(str(dataset)).ignored == {"cls": 1}


def test_nothing_to_audit(tmp_path):
    assert "no such folder" in failure(audit, str(tmp_path / "nowhere"))
    assert "no shards" in failure(audit, str(tmp_path))
    (tmp_path / "index.json").write_text("{")
    assert "index.json is damaged" in failure(audit, str(tmp_path))


def spoil(dataset):
    """Make one of nearly everything wrong."""
    first = dataset / "00000000.tar"
    rewrite(first, replaced("00000001.jpg", b"no image"))
    rewrite(first, replaced("00000002.npz", b"PK"))
    path = dataset / "00000001.tar"
    path.write_bytes(path.read_bytes()[:12_000])
    write(dataset / "00000002.tar", [sample(0), sample(8)])


def test_repair(dataset, tmp_path):
    spoil(dataset)
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}
    out = tmp_path / "clean"
    report = audit(str(dataset), repair=str(out))
    assert not report.clean
    assert report.repaired == str(out)
    uids = [one.uid[-1] for one in shards.read(out)]
    assert uids == ["0", "3", "4", "5", "8"][: len(uids)] or uids == ["0", "3", "4", "8"]
    assert report.kept == len(uids)
    again = audit(str(out))
    assert again.clean
    assert again.indexed
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    named = {(note["file"], note["uid"][-1:]) for note in dropped}
    assert {("00000000.tar", "1"), ("00000000.tar", "2"), ("00000002.tar", "0")} <= named
    cut = next(note for note in dropped if note["file"] == "00000001.tar" and not note["uid"])
    assert any("truncated" in reason for reason in cut["reasons"])
    assert all(note["reasons"] for note in dropped)
    assert read_index(str(out)).teacher_dims == (8, 4)
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before
    assert "is not empty" in failure(audit, str(dataset), repair=str(out))


def test_repair_drops_what_cannot_be_written(tmp_path):
    files = [("0.txt", b"a"), ("0.syn.json", b'{"syn_text": ["\\ud800"]}'), ("1.txt", b"a")]
    files.append(("1.syn.json", b'{"syn_text": ["b"]}'))
    (tmp_path / "set").mkdir()
    tar(tmp_path / "set" / "a.tar", files)
    report = audit(str(tmp_path / "set"), repair=str(tmp_path / "clean"))
    assert (report.kept, report.dropped) == (1, 1)
    assert "half of a surrogate pair" in (tmp_path / "clean" / "dropped.jsonl").read_text()


def test_repairing_what_is_clean_changes_nothing(dataset, tmp_path):
    report = audit(str(dataset), repair=str(tmp_path / "clean"))
    assert (report.kept, report.dropped) == (7, 0)
    for path in dataset.glob("*.tar"):
        assert (tmp_path / "clean" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines(tmp_path, suffix):
    dataset = tmp_path / "set"
    with shards.JsonlWriter(str(dataset / f"0{suffix}")) as writer:
        for number in range(3):
            one = sample(number)
            if number == 1:
                one.image = b"no image"
            writer.write(one)
    report = audit(str(dataset), repair=str(tmp_path / "clean"))
    assert report.counts == {"image": 1}
    assert [one.uid[-1] for one in shards.read(tmp_path / "clean")] == ["0", "2"]
    assert audit(str(tmp_path / "clean")).clean


def embed(samples, indices):
    return np.stack([s.embeddings["image_emb"][k] for s, k in zip(samples, indices, strict=True)])


def test_recompute(dataset):
    report = audit(str(dataset), recompute=(5, embed))
    assert report.clean
    assert [(drift.teacher, drift.compared) for drift in report.drift] == [(0, 5), (1, 5)]
    assert all(abs(drift.largest) < 1e-6 for drift in report.drift)
    asked = []

    def note(samples, indices):
        asked.append([(s.uid, k) for s, k in zip(samples, indices, strict=True)])
        return embed(samples, indices)

    for seed in (0, 0, 1):
        audit(str(dataset), recompute=(4, note), seed=seed)
    assert asked[0] == asked[1] != asked[2]
    assert len(set(asked[0])) == 4


def test_stale_embeddings_show(dataset):
    def other(samples, indices):
        rows = embed(samples, indices)
        for row, one in zip(rows, samples, strict=True):
            if one.uid.endswith("3"):
                row[8:] = unit(np.random.default_rng(99), 1)[0, 8:]  # the second teacher
        return rows

    report = audit(str(dataset), recompute=(100, other))
    assert [p.uid for p in report.problems["drift"]] == ["00000003"]
    assert "teacher 1" in report.problems["drift"][0].reason
    assert report.drift[0].largest < 1e-6
    assert report.drift[1].uid == "00000003"
    assert report.drift[1].largest > 0.01
    assert audit(str(dataset), recompute=(100, other), tolerance=3).clean


def test_recomputing_something_else(dataset):
    message = failure(audit, str(dataset), recompute=(2, lambda s, _: np.ones((len(s), 5))))
    assert "of width 5, the stored ones have width 12" in message
    nan = audit(str(dataset), recompute=(2, lambda s, _: np.full((len(s), 12), np.nan)))
    assert nan.counts["drift"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_an_object_store(tmp_path):
    dataset = folder(tmp_path / "set", [[sample(0), sample(1)]])
    from pocketclip import storage

    for path in dataset.iterdir():
        storage.write_bytes(f"s3://bucket/set/{path.name}", path.read_bytes())
    report = audit("s3://bucket/set", repair="s3://bucket/clean")
    assert report.clean
    assert audit("s3://bucket/clean").clean
