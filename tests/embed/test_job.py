"""Embedding many images into a folder: the files, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketclip.embed import job
from pocketclip.embed.job import Settings
from pocketclip.errors import ConfigError, DataError, StorageError
from pocketclip.infer.own_process import load_for_process
from pocketclip.pairs import PairOptions
from pocketclip.pairs.photographs import open_image_shards
from tests.cli import inside

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
MODEL = Settings(model="random:tiny", batch_size=2)


@pytest.fixture
def photos(tmp_path):
    """Five photographs; the third cannot be read."""
    home = tmp_path / "photos"
    home.mkdir()
    for i, photo in enumerate([*sorted(PHOTOS.glob("*.jpg"))[:4], "broken"]):
        name = home / ["a.jpg", "b.jpg", "d.jpg", "e.jpg", "c.jpg"][i]
        if photo == "broken":
            name.write_bytes(b"no picture")
        else:
            shutil.copy(photo, name)
    return home


def shards_of(*sources, **options):
    return open_image_shards([str(source) for source in sources], PairOptions(**options))[0]


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def rows_of(folder):
    tables = [parquet.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture
def loads(monkeypatch):
    """Load the model once for all tests."""
    monkeypatch.setattr(job, "load_for_process", _loaded)


def _loaded(cached=[], **settings):  # noqa: B006
    if not cached:
        cached.append(load_for_process(**settings))
    return cached[0]


@pytest.mark.usefixtures("loads")
def test_rows_are_the_models_embeddings(photos, tmp_path):
    out = tmp_path / "out"
    summary = job.run(shards_of(photos, shard_size=2), MODEL, str(out))
    assert [(r.samples, r.bad) for r in summary.reports] == [(2, 0), (1, 1), (1, 0)]
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["a", "b", "d", "e"]
    assert [row["path"] for row in rows] == [str(photos / f"{row['id']}.jpg") for row in rows]
    encoder = _loaded()
    assert {row["space_id"] for row in rows} == {encoder.space_id}
    expected = encoder.encode_image([row["path"] for row in rows])
    assert np.abs(np.array([row["embedding"] for row in rows]) - expected).max() < 1e-3
    [bad] = out.glob("*.bad.jsonl")
    [line] = map(json.loads, bad.read_text().splitlines())
    assert line["id"] == "c"
    assert line["path"] == str(photos / "c.jpg")
    schema = parquet.read_schema(next(out.glob("*.parquet")))
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: halffloat>[{64}]"
    assert schema.metadata[b"pocketclip.space_id"] == encoder.space_id.encode()


@pytest.mark.usefixtures("loads")
def test_only_missing_files_are_made_again_and_are_the_same(photos, tmp_path, monkeypatch):
    out, shards = tmp_path / "out", shards_of(photos, shard_size=2)
    job.run(shards, MODEL, str(out))
    whole = contents(out)
    next(out.glob("00000001-*.parquet")).unlink()
    starts, made = [], []
    embed = job.embed_shard
    monkeypatch.setattr(job, "embed_shard", lambda *a: made.append(a[0].name) or embed(*a))
    summary = job.run(shards, MODEL, str(out), on_start=lambda *n: starts.append(n))
    assert made == ["00000001"]
    assert starts == [(3, 2, 3)]
    assert contents(out) == whole
    assert summary.skipped == 2
    assert [report.bad for report in summary.reports] == [0, 1, 0]


@pytest.mark.usefixtures("loads")
def test_a_picture_that_became_readable_is_not_named_any_more(photos, tmp_path):
    out = tmp_path / "out"
    job.run(shards_of(photos), MODEL, str(out))
    shutil.copy(photos / "a.jpg", photos / "c.jpg")
    next(out.glob("*.parquet")).unlink()
    job.run(shards_of(photos), MODEL, str(out))
    assert len(rows_of(out)) == 5
    assert not list(out.glob("*.bad.jsonl"))


@pytest.mark.usefixtures("loads")
def test_an_interrupted_run_leaves_whole_files_only(photos, tmp_path):
    shards = shards_of(photos, shard_size=2)
    job.run(shards, MODEL, str(tmp_path / "whole"))
    seen, out = [], tmp_path / "out"

    def interrupt(done, _bad):
        seen.append(done)
        if sum(seen) > 2:  # within the second file
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(shards, MODEL, str(out), on_progress=interrupt)
    assert [name.partition("-")[0] for name in contents(out)] == ["00000000", "embeddings.json"]
    job.run(shards, MODEL, str(out))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("loads")
def test_another_listing_another_model_and_foreign_files_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    job.run(shards_of(photos), MODEL, str(out))
    before = contents(out)
    (photos / "e.jpg").unlink()
    with pytest.raises(DataError, match=r"00000000-.*was made from other images"):
        job.run(shards_of(photos), MODEL, str(out))
    facts = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps({**facts, "space_id": "another"}))
    with pytest.raises(ConfigError, match=r"another model \(space_id changed\)"):
        job.run(shards_of(photos), MODEL, str(out))
    (out / "embeddings.json").unlink()
    with pytest.raises(ConfigError, match="which this job did not write"):
        job.run(shards_of(photos), MODEL, str(out))
    assert {k: v for k, v in before.items() if k != "embeddings.json"} == contents(out)


@pytest.mark.usefixtures("loads")
def test_a_damaged_file_is_named(photos, tmp_path):
    out = tmp_path / "out"
    job.run(shards_of(photos), MODEL, str(out))
    [path] = out.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"\.parquet is damaged .*run again"):
        job.run(shards_of(photos), MODEL, str(out))


@pytest.mark.usefixtures("loads")
def test_tables_and_tars_need_no_captions(photos, tmp_path):
    import io
    import tarfile

    with (photos / "t.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["filepath"], ["a.jpg"], ["missing.jpg"], ["b.jpg"]])
    with tarfile.open(photos / "u.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            data = (photos / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    summary = job.run(shards_of(photos / "t.csv", photos / "u.tar"), MODEL, str(tmp_path / "out"))
    assert [(r.samples, r.bad) for r in summary.reports] == [(2, 1), (2, 0)]
    table, tar = (
        [row for row in rows_of(tmp_path / "out") if row["path"].endswith(suffix)]
        for suffix in (".jpg", ".tar")
    )
    assert [row["id"] for row in tar] == ["a", "b"]
    assert [row["embedding"] for row in tar] == [row["embedding"] for row in table]


@pytest.mark.usefixtures("loads")
def test_from_a_store_into_a_store(photos, s3):
    for photo in photos.iterdir():
        s3.put(f"bucket/photos/{photo.name}", photo.read_bytes())
    out = "s3://bucket/vectors"
    shards = shards_of("s3://bucket/photos", shard_size=2)
    summary = job.run(shards, MODEL, out)
    assert [(r.samples, r.bad) for r in summary.reports] == [(2, 0), (1, 1), (1, 0)]
    assert job.run(shards, MODEL, out).skipped == 3
    s3.put("bucket/texts/a.txt", b"no photograph")
    with pytest.raises(DataError, match="no photographs in this folder"):
        shards_of("s3://bucket/texts")
    with pytest.raises(StorageError, match="no such object"):
        shards_of("s3://bucket/nothing")
    with pytest.raises(StorageError, match="there is no bucket"):
        shards_of("s3://nowhere/photos")


def test_the_verb_counts_and_names(photos, tmp_path):
    out = tmp_path / "out"
    made = inside.run("embed", photos, "-o", out, "-m", "random:tiny", "--json")
    assert made.returncode == 1
    assert "1 image was left out" in made.stderr
    facts = json.loads(made.stdout)
    assert (facts["rows"], facts["bad"], facts["files"]) == (4, 1, 1)
    again = inside.run("embed", photos, "-o", out, "-m", "random:tiny", "--json")
    assert json.loads(again.stdout)["files_finished_before"] == 1
    assert again.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "-o", "{out}", "-m", "no-such-model"], "no-such-model"),
        (["{photos}", "-o", "s3://bucket/x.npy"], "give a folder"),
        (["{photos}", "-o", "{out}.npy", "--ray"], "--ray needs a folder"),
        (["{photos}", "-o", "{out}.npy", "--where", "a=b"], "--where needs a folder"),
        (["{photos}/x.txt", "-o", "{out}"], "embeddings of texts go to one"),
        (["{empty}", "-o", "{out}"], "no photographs in this folder"),
        (["{photos}", "{table}", "-o", "{out}"], "give one kind at a time"),
        (["{photos}", "-o", "{out}", "--ray", "--min-actors", "0"], "--min-actors 0"),
        (["{photos}", "-o", "{out}", "--ray", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_line(photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("filepath\na.jpg\n")
    names = {
        "photos": photos, "out": tmp_path / "out", "empty": tmp_path / "empty",
        "table": tmp_path / "t.csv",
    }  # fmt: skip
    done = inside.run("embed", *(text.format(**names) for text in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_needs_no_torch(bundle, photos, tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None)\n"
        "from pocketclip.embed.job import Settings, run\n"
        "from pocketclip.pairs import PairOptions\n"
        "from pocketclip.pairs.photographs import open_image_shards\n"
        f"shards, _ = open_image_shards([{str(photos)!r}], PairOptions())\n"
        f"run(shards, Settings(model={str(bundle)!r}), {str(tmp_path / 'out')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(rows_of(tmp_path / "out")) == 4
