"""Materialised sets: the loader gives what the original gives; every other reader says what it is.

The samples are those of `making_shards`, whose embeddings tell which view was chosen.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketclip import storage
from pocketclip.errors import ConfigError, StorageError
from pocketclip.images import open_image
from pocketclip.pairs import open_pairs
from pocketclip.shards import JsonlWriter, ShardWriter, audit, join, read, read_index
from pocketclip.shards.codec import encode, first_rows, without_deflation
from pocketclip.train import size_estimate
from pocketclip.train.materialise import LEFT_OUT, STATE, materialise
from tests.cli import inside
from tests.test_schemas import check
from tests.train.making_shards import AUGMENTATION, SIZE, photo, sample, unit, write_shards
from tests.train.test_loader import MODEL, failure, open_loader, same, take


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dr")
    return write_shards(folder, [[sample(i) for i in range(s, s + 7)] for s in (0, 7)])


def make(source, out, **options):
    options.setdefault("workers", 0)
    return materialise(source, str(out), **{"size": SIZE, **options})


@pytest.fixture(scope="module")
def lossless(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "webp"
    make(original, out, encoding="webp")
    return str(out)


@pytest.fixture(scope="module")
def lossy(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "jpeg"
    report = make(original, out)
    return str(out), report


# --- training


@pytest.mark.parametrize("options", [
    {}, {"captions": "mix", "truth_ratio": 0.3}, {"augmentation": "sequential"},
    {"captions": "random"}, {"balance": 0.5}, {"embeddings": False}, {"workers": 1},
    {"seed": 3, "rank": 1, "world": 2},
])  # fmt: skip
def test_lossless_views_give_the_batches_of_the_exact_replay(original, lossless, options):
    ours, theirs = (take(12, source, **options) for source in (lossless, original))
    for a, b in zip(ours, theirs, strict=True):
        if options.get("embeddings", True):
            assert same(a, b)
        else:
            assert a.uids == b.uids
            assert a.texts == b.texts
            assert torch.equal(a.images, b.images)
    assert take(1, lossless, start=5, **options)[0].uids == theirs[5].uids


def test_a_student_of_another_size_than_the_stored_crops(original, tmp_path):
    from pocketclip import zoo

    model = zoo.override(MODEL, image_size=SIZE * 2)
    out = tmp_path / "large"
    make(original, out, size=SIZE * 2, encoding="webp")
    ours, theirs = (take(4, source, model=model) for source in (str(out), original))
    assert all(map(same, ours, theirs))
    message = failure(open_loader, str(out), kind=ConfigError)
    assert "32 x 32 pixels, but the model takes 16 x 16" in message
    assert "pocketclip materialise SOURCE --size 16" in message


def test_jpeg_views_are_near_the_exact_ones(original, lossy):
    folder, report = lossy
    errors = []
    for a, b in zip(take(8, folder), take(8, original), strict=True):
        assert a.uids == b.uids
        assert a.texts == b.texts
        assert torch.equal(a.teacher_image, b.teacher_image)
        errors.append((a.images.float() - b.images).square().mean(dim=(1, 2, 3)))
    measured = 10 * torch.log10(255**2 / torch.cat(errors))
    assert 25 < report.psnr_lowest < report.psnr_mean < 60
    assert measured.min() >= report.psnr_lowest - 1e-3
    assert report.views == 14 * 3


def test_only_the_chosen_view_is_read(lossless, monkeypatch):
    from pocketclip.train import sources

    taken = []
    plain = sources._Views.__getitem__
    monkeypatch.setattr(
        sources._Views, "__getitem__", lambda views, n: taken.append(n) or plain(views, n)
    )
    take(1, lossless)
    assert len(taken) == 4 + 1  # the loader looks at the first sample when it is opened


def test_what_training_refuses(lossless):
    message = failure(open_loader, lossless, reinforced=False)
    assert "rendered views in place of its images" in message
    message = failure(open_loader, lossless, min_image_side=8, kind=ConfigError)
    assert "data.min_image_side" in message
    for replay in ("fast", "device"):
        message = failure(open_loader, lossless, replay=replay, kind=ConfigError)
        assert f"data.replay={replay} has nothing to replay" in message


def test_a_damaged_view_is_replaced_by_another_sample(lossless, tmp_path):
    from tests.train.making_shards import rewrite_member

    folder = tmp_path / "copy"
    shutil.copytree(lossless, folder)
    for key in (".view0", ".view1", ".view2"):
        rewrite_member(folder / "00000000.tar", key, b"no picture")
    (batch,) = take(1, str(folder), batch_size=14)
    assert "00000000" in {uid for uid, _ in batch.skipped}
    assert "00000000" not in batch.uids
    report = audit(str(folder))
    assert report.counts["image"] == 3
    assert "view 0" in report.problems["image"][0].reason


def test_sets_of_views_are_not_mixed_with_others(original, lossless, lossy):
    assert "how its views were rendered" in failure(open_loader, (original, lossless))
    assert "how its views were rendered" in failure(open_loader, (lossless, lossy[0]))


# --- what is written


def test_captions_and_embeddings_are_carried_along(original, lossless):
    for one, made in zip(read(original), read(lossless), strict=True):
        assert made.image is None
        assert (made.uid, made.captions, made.param_aug) == (one.uid, one.captions, one.param_aug)
        assert made.embeddings.keys() == one.embeddings.keys()
        for key, rows in one.embeddings.items():
            assert np.array_equal(rows, made.embeddings[key])
        for data, packed in zip(made.views, one.param_aug, strict=True):
            right = AUGMENTATION.apply(open_image(one.image), packed)
            assert np.array_equal(np.asarray(open_image(data)), right)


def test_the_index_says_what_it_is(original, lossy):
    folder, report = lossy
    index = read_index(folder)
    assert (index.materialised.size, index.materialised.encoding) == (SIZE, "jpeg")
    assert index.materialised.quality == 90
    with open_loader(original) as loader:
        assert index.materialised.source == loader.index_hash
    assert index.teachers == read_index(original).teachers
    assert json.loads((Path(folder) / "index.json").read_text())["version"] == 2
    assert "materialised" not in json.loads((Path(original) / "index.json").read_text())
    assert report.bytes == sum(s for _, s in storage.list_sizes(folder, (".tar",)))
    assert report.source_bytes == sum(s for _, s in storage.list_sizes(original, (".tar",)))
    assert audit(folder).clean


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int6"])
def test_fewer_views(tmp_path, dtype):
    source = write_shards(tmp_path, [[sample(i) for i in range(3)]], dtype=dtype)
    report = make(source, tmp_path / "two", views=2, encoding="webp")
    assert report.views == 6
    for one, made in zip(read(source), read(str(tmp_path / "two")), strict=True):
        assert len(made.views) == len(made.param_aug) == 2
        assert np.array_equal(made.embeddings["image_emb"], one.embeddings["image_emb"][:2])
        assert np.array_equal(made.embeddings["text_emb"], one.embeddings["text_emb"])
    assert read_index(str(tmp_path / "two")).materialised.views == 2


def test_first_rows_keeps_the_other_arrays():
    rng = np.random.default_rng(0)
    arrays = {"image_emb": unit(rng, 5), "text_emb": unit(rng, 1)}
    _, data = encode(arrays, "int8", (8, 4))
    _, fewer = encode({**arrays, "image_emb": arrays["image_emb"][:3]}, "int8", (8, 4))
    assert first_rows(data, "image_emb", 3) == fewer


def test_samples_that_cannot_be_rendered_are_left_out_and_named(tmp_path):
    samples = [sample(i) for i in range(5)]
    samples[1].image = b"\xff\xd8\xffno picture"
    samples[3].param_aug[1] = [[0, 0, 400, 400], None]
    source = write_shards(tmp_path / "dr", [samples, [sample(9, image=photo(1)[:200])]])
    result = inside.run(
        "materialise", source, "--size", SIZE, "--out", tmp_path / "out", "--workers", 0
    )
    assert result.returncode == 1, result.stderr
    assert "3 samples left out" in result.stdout
    lines = (tmp_path / "out" / LEFT_OUT).read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == ["00000001", "00000003", "00000009"]
    assert all(json.loads(line)["reason"] for line in lines)
    assert [one.uid for one in read(str(tmp_path / "out"))] == ["00000000", "00000002", "00000004"]
    assert audit(str(tmp_path / "out")).clean


# --- resuming, and what is refused


def test_a_stopped_run_goes_on_with_whole_files(original, lossy, tmp_path):
    out, done = tmp_path / "out", []

    def stop(count):
        done.append(count)
        if len(done) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(original, out, on_progress=stop)
    names = {path.name for path in out.iterdir()}
    assert names == {STATE, "00000000.tar", "00000000.tar.materialise.json"}
    first = (out / "00000000.tar").stat()
    again = []
    report = make(original, out, on_progress=again.append)
    assert again[0] == 7
    assert sum(again) == 14
    assert (out / "00000000.tar").stat().st_mtime_ns == first.st_mtime_ns
    whole = {
        path.name: path.read_bytes() for path in Path(lossy[0]).iterdir() if path.name != STATE
    }
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != STATE} == whole
    assert report == make(original, out)  # finished: at once
    assert "other sets or settings" in failure(make, original, out, quality=50)


def test_worker_processes_give_the_same_bytes(original, lossy, tmp_path):
    make(original, tmp_path / "out", workers=1)
    for path in Path(lossy[0]).glob("*.tar"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_where_it_may_not_be_written(original, tmp_path):
    assert "the dataset itself" in failure(make, original, original)
    assert "the dataset itself" in failure(make, f"{original}/00000000.tar", f"{original}/.")
    (tmp_path / "notes.txt").write_text("mine")
    assert "notes.txt" in failure(make, original, tmp_path)


def test_a_disk_that_is_too_small_is_noticed_before_it_begins(original, tmp_path, monkeypatch):
    monkeypatch.setattr(size_estimate, "_free_bytes", lambda _folder: 10_000)
    message = failure(make, original, tmp_path / "out", kind=StorageError)
    assert "needs about" in message
    assert "--views" in message
    assert not (tmp_path / "out").exists()


def test_the_estimate_is_near(original, tmp_path):
    told = []
    report = make(original, tmp_path / "out", on_start=told.append)
    assert told[0].samples == 14
    assert abs(told[0].bytes - report.bytes) < 0.1 * report.bytes + 2 * 10_240


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"size": 0}, "size must be"),
        ({"encoding": "png"}, "unknown encoding png"),
        ({"encoding": "webp", "quality": 90}, "no quality"),
        ({"quality": 101}, "from 1 to 100"),
        ({"views": 0}, "number of views"),
    ],
)
def test_bad_arguments(original, tmp_path, options, part):
    assert part in failure(make, original, tmp_path / "out", kind=ConfigError, **options)
    assert not (tmp_path / "out").exists()


def test_sets_that_cannot_be_rendered(lossless, tmp_path):
    assert "views already" in failure(make, lossless, tmp_path / "a")
    bare = write_shards(tmp_path, [[sample(0, image=None)]])
    message = failure(make, bare, tmp_path / "b")
    assert "it has no image" in message
    assert "pocketclip join" in message
    assert not (tmp_path / "b").exists()


# --- the other users of shards


def test_who_needs_the_images_says_so(lossless, original, tmp_path):
    for message in (
        failure(open_pairs, lossless),
        failure(open_pairs, f"{lossless}/*.tar"),
        failure(join, lossless, original, str(tmp_path / "a")),
        failure(join, original, lossless, str(tmp_path / "b")),
    ):
        assert "rendered views of 16 pixels in place of its images" in message
        assert "give the set that it was made of" in message


@pytest.mark.parametrize(
    "command",
    [
        ("reinforce", "DR", "--teacher", "random:vit-tiny", "--out", "OUT"),
        ("caption", "DR", "--model", "random:coca-tiny", "--out", "OUT"),
        ("finetune", "random:tiny", "--data", "DR", "--out", "OUT"),
        ("eval", "random:tiny", "--data", "DR"),
        ("audit", "DR", "--recompute", "2", "--teacher", "random:vit-tiny"),
    ],
)
def test_verbs_that_need_the_images(lossless, tmp_path, command):
    names = {"DR": lossless, "OUT": tmp_path / "out"}
    result = inside.run(*(names.get(word, word) for word in command))
    assert result.returncode == 2, result.stdout
    assert "rendered views" in result.stderr.splitlines()[-1]


def test_a_repaired_copy_is_materialised_too(lossless, tmp_path):
    audit(lossless, repair=str(tmp_path / "copy"))
    assert read_index(str(tmp_path / "copy")).materialised == read_index(lossless).materialised
    assert same(take(1, str(tmp_path / "copy"))[0], take(1, lossless)[0])


def test_views_of_another_size_are_found(lossless, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(lossless, folder)
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"size": 16', '"size": 24'))
    report = audit(str(folder))
    assert report.counts["image"] == 14 * 3
    assert "16 x 16 pixels, index.json says 24 x 24" in report.problems["image"][0].reason


def test_show_draws_the_views(lossless, tmp_path):
    result = inside.run("show", lossless, "--out", tmp_path / "page.png", "--samples", 2)
    assert result.returncode == 0, result.stderr
    assert open_image(tmp_path / "page.png").width > 300


def test_jsonl_holds_no_views(lossless, tmp_path):
    with JsonlWriter(str(tmp_path / "a.jsonl")) as writer:
        message = failure(writer.write, next(iter(read(lossless))))
    assert "no views" in message


def test_views_are_counted_with_the_parameters(lossless, tmp_path):
    one = next(iter(read(lossless)))
    one.views = list(one.views)[:2]
    with ShardWriter(str(tmp_path / "a.tar"), dtype="float32") as writer:
        message = failure(writer.write, one)
        one.views = None
        writer.write(one)
    assert "2 views for 3 augmentations" in message


def test_an_older_reader_is_told_by_the_version(lossless, monkeypatch):
    from pocketclip.shards import index

    monkeypatch.setattr(index, "MATERIALISED_VERSION", 1)
    assert "upgrade pocketclip" in failure(read_index, lossless)


# --- the command line


def test_the_size_of_a_recipe(original, tmp_path):
    result = inside.run(
        "materialise", original, "--recipe", "grocery-small", "--out", tmp_path / "out",
        "--workers", 0, "--views", 1, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["size"] == read_index(str(tmp_path / "out")).materialised.size
    assert facts["complete"]
    assert facts["views"] == 14


@pytest.mark.parametrize("options", [(), ("--size", 16, "--recipe", "grocery-small")])
def test_one_of_size_and_recipe(original, tmp_path, options):
    result = inside.run("materialise", original, "--out", tmp_path / "out", *options)
    assert result.returncode == 2
    assert "--size PIXELS, or --recipe" in result.stderr


def test_it_reports_what_it_made(original, tmp_path):
    result = inside.run(
        "materialise", original, "--size", 16, "--out", tmp_path / "out", "--workers", 0
    )
    assert result.returncode == 0, result.stderr
    assert "42 views of 16 x 16 pixels as jpeg of quality 90" in result.stdout
    assert "PSNR to the exact views" in result.stdout
    assert "GB are free" in result.stderr


def test_stored_embeddings_are_not_deflated():
    import gzip

    arrays = {"image_emb": unit(np.random.default_rng(0), 40)}
    key, data = encode(arrays, "bfloat16")
    same_key, plain = without_deflation((key, data))
    assert (same_key, gzip.decompress(plain)) == (key, gzip.decompress(data))
    assert len(plain) > len(data)
    assert without_deflation(("npz", b"any")) == ("npz", b"any")


def test_object_stores(s3, original, lossy, tmp_path):
    for path in Path(original).iterdir():
        s3.put(f"bucket/dr/{path.name}", path.read_bytes())
    told = []
    report = make("s3://bucket/dr", "s3://bucket/views", on_start=told.append)
    assert told[0].free is None
    assert report.samples == 14
    for path in Path(lossy[0]).glob("*.tar"):
        assert storage.read_bytes(f"s3://bucket/views/{path.name}") == path.read_bytes()
    remote = take(2, "s3://bucket/views", cache_dir=str(tmp_path / "cache"))
    assert all(map(same, remote, take(2, lossy[0])))
    assert "the dataset itself" in failure(make, "s3://bucket/dr", "s3://bucket/dr/")


def test_the_index_fits_its_schema(lossless, lossy):
    for folder in (lossless, lossy[0]):
        check("index", json.loads((Path(folder) / "index.json").read_text("utf-8")))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_whole_files(tmp_path):
    source = write_shards(tmp_path / "dr", [[sample(i) for i in range(n, n + 40)] for n in (0, 40)])
    command = [sys.executable, "-m", "pocketclip", "materialise", source, "--size", "1024"]
    command += ["--out", str(tmp_path / "out"), "--encoding", "webp", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert "samples of about" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {STATE}
