"""Images to embeddings: in order, checked, decoded ahead in a bounded memory."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pocketclip
from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, MissingDependencyError, StorageError
from pocketclip.evaluate.datasets.examples import Example, TaskData
from pocketclip.evaluate.prefetch import LOADING, READING, prefetch
from pocketclip.evaluate.stream import (
    RunOptions,
    default_cache,
    embed_images,
    embed_texts,
    features,
)
from pocketclip.storage.stores import NotThereError
from tests.evaluate.dummy import COLOURS, ColourEncoder, PixelColourEncoder
from tests.evaluate.sets import colour_photo, photo

KINDS = pytest.mark.parametrize("kind", [ColourEncoder, PixelColourEncoder])


def _examples(count, bad=()):
    colours = list(COLOURS.values())
    for i in range(count):
        image = b"no image" if i in bad else colour_photo(colours[i % len(colours)])
        yield Example(name=f"set row {i}", image=image, label=i % len(colours))


def _run(encoder, examples, **options):
    skipped = []
    batches = list(
        embed_images(encoder, examples, lambda e: e.image, RunOptions(**options), skipped)
    )
    names = [example.name for batch, _ in batches for example in batch]
    rows = np.concatenate([rows for _, rows in batches]) if batches else np.empty((0, 4))
    return names, rows, skipped


def _until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to this"
        time.sleep(0.001)


def _threads():
    return [t for t in threading.enumerate() if t.name.startswith("pocketclip-")]


@KINDS
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (7, 3), (64, None)])
def test_order_and_values_do_not_depend_on_batches_or_workers(kind, batch_size, workers):
    encoder = kind()
    names, rows, skipped = _run(encoder, _examples(20), batch_size=batch_size, workers=workers)
    assert names == [f"set row {i}" for i in range(20)]
    assert not skipped
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    expected = np.stack([encoder._unit(c) / 3 for c in COLOURS.values()])
    np.testing.assert_allclose(rows, expected[np.arange(20) % 6], atol=1e-6)
    assert max(encoder.batches) <= batch_size


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "pixels"])
def test_embeddings_are_those_of_the_model_itself(bare):
    """Against torch, on the real `tiny` model, by either way into an encoder."""
    import torch
    from torch.nn import functional

    encoder = pocketclip.load("random:tiny")

    class Bare:
        embed_dim = encoder.embed_dim
        encode_image = staticmethod(lambda images: encoder.encode_image(images, normalize=False))

    images = [photo(i, (30 + 20 * i, 90 - 10 * i)) for i in range(7)]
    pixels = torch.from_numpy(np.stack([encoder.preprocess(image) for image in images]))
    with torch.inference_mode():
        expected = functional.normalize(encoder.model.encode_image(pixels), dim=-1).numpy()
    examples = [Example(name=str(i), image=image) for i, image in enumerate(images)]
    for size in (3, 7):
        _, rows, _ = _run(Bare() if bare else encoder, examples, batch_size=size)
        np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_reading_goes_a_bounded_way_ahead():
    size = 5
    bound = size * (1 + LOADING + READING)  # the batch at hand, and those behind it
    read = loads = done = furthest = 0

    def counted():
        nonlocal read, furthest
        for example in _examples(200):
            read += 1
            furthest = max(furthest, read - done)
            yield example

    def image_of(example):
        nonlocal loads
        loads += 1
        return example.image

    options = RunOptions(batch_size=size, workers=1)
    for batch, _ in embed_images(ColourEncoder(), counted(), image_of, options, []):
        if done == 50:  # time enough to run away
            _until(lambda: read == 50 + bound)
            time.sleep(0.05)
            assert loads == done + size * (1 + LOADING)
        done += len(batch)
    assert done == loads == 200
    assert furthest == bound


def test_a_long_set_takes_the_memory_of_the_batches_ahead():
    import tracemalloc

    large = [colour_photo(c, (100, 100)) for c in COLOURS.values()]
    image, size, count = 120_000, 4, 400  # bytes: this encoder's pixels keep the whole image
    encoder = PixelColourEncoder()
    examples = (Example(name=str(i), image=large[i % 6]) for i in range(count))
    batches = embed_images(
        encoder, examples, lambda e: e.image, RunOptions(batch_size=size, workers=2), []
    )
    tracemalloc.start()
    for _ in batches:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # How far the threads are ahead depends on the machine; how far they may be does not.
    assert size * image < peak < 3 * size * (1 + LOADING) * image < count * image / 10


def test_the_next_images_are_decoded_and_read_while_a_batch_is_encoded():
    """Encoding a batch does not return before all those that may be ahead are there."""
    size, count = 4, 24
    read = decoded = 0
    seen = []

    class Slow(PixelColourEncoder):
        def prepare(self, image):
            nonlocal decoded
            prepared = super().prepare(image)
            decoded += 1
            return prepared

        def encode_prepared(self, pixels):
            begun = size * len(seen)
            _until(lambda: decoded == min(count, begun + size * (1 + LOADING)))
            _until(lambda: read == min(count, begun + size * (1 + LOADING + READING)))
            seen.append(decoded)
            return super().encode_prepared(pixels)

    def counted():
        nonlocal read
        for example in _examples(count):
            read += 1
            yield example

    names, _, _ = _run(Slow(), counted(), batch_size=size, workers=1)
    assert len(names) == count
    assert seen == [12, 16, 20, 24, 24, 24]


def test_unreadable_images_fail_the_task_and_are_named():
    encoder = ColourEncoder()
    with pytest.raises(DataError) as caught:
        _run(encoder, _examples(30, bad=(6, 17)), batch_size=4)
    assert str(caught.value) == (
        "2 unreadable images: set row 6 (not an image, or in a format that Pillow cannot read); "
        "set row 17 (not an image, or in a format that Pillow cannot read). Fix or remove "
        "them, or pass --skip-bad."
    )
    assert encoder.images == 4  # what comes after is only looked at


@pytest.mark.parametrize(("bad", "count"), [(1, "1"), (10, "10"), (40, "1[1-4] or more")])
def test_at_most_ten_are_named(bad, count):
    plural = "" if bad == 1 else "s"
    with pytest.raises(DataError, match=f"^{count} unreadable image{plural}: ") as caught:
        _run(ColourEncoder(), _examples(60, bad=range(bad)), batch_size=4)
    assert str(caught.value).count("set row") == min(bad, 10)
    assert ("; ..." in str(caught.value)) is (bad > 10)


def test_looking_for_more_bad_images_ends_where_reading_does():
    def cut():
        yield from _examples(30, bad=(1, 20))
        raise DataError("set.tar: the tar is cut")

    with pytest.raises(DataError, match=r"^2 or more .*row 20 .* Further, set.tar: .* cut$"):
        _run(ColourEncoder(), cut(), batch_size=4)


@KINDS
def test_unreadable_images_are_left_out_when_asked(kind):
    bad = (0, 5, 8, 9, 10, 11)  # a whole batch among them
    names, rows, skipped = _run(kind(), _examples(14, bad), batch_size=4, skip_bad=True)
    assert [s.name for s in skipped] == [f"set row {i}" for i in bad]
    assert {s.reason for s in skipped} == {"not an image, or in a format that Pillow cannot read"}
    good = [i for i in range(14) if i not in bad]
    assert names == [f"set row {i}" for i in good]
    np.testing.assert_array_equal(rows, _run(kind(), _examples(14))[1][good])


def test_a_missing_file_is_a_bad_image(tmp_path):
    example = Example(name="t.csv row 2", image=str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match=r"1 unreadable image: t.csv row 2 \(.*gone.jpg"):
        _run(ColourEncoder(), [example])


def test_a_store_that_is_out_of_reach_is_no_bad_image(monkeypatch):
    """Else a set would shrink with the network."""
    objects = {"s3://b/0.png": colour_photo((255, 0, 0)), "s3://b/2.png": None}

    def read(path):
        if path not in objects:
            raise NotThereError(f"{path}: no such object; check the path")
        if objects[path] is None:
            raise StorageError(f"{path}: the store cannot be reached")
        return objects[path]

    monkeypatch.setattr(storage, "read_bytes", read)
    examples = [Example(name=f"row {i}", image=f"s3://b/{i}.png") for i in range(3)]
    names, _, skipped = _run(ColourEncoder(), examples[:2], skip_bad=True)
    assert names == ["row 0"]
    assert [(s.name, s.reason) for s in skipped] == [
        ("row 1", "s3://b/1.png: no such object; check the path")
    ]
    with pytest.raises(StorageError, match=r"2\.png: the store cannot be reached"):
        _run(ColourEncoder(), examples, skip_bad=True)


def test_a_missing_extra_is_no_bad_image():
    class NoHeic(PixelColourEncoder):
        def prepare(self, image):
            raise MissingDependencyError(f"HEIC images need pillow-heif ({len(image)} bytes)")

    with pytest.raises(MissingDependencyError, match=r"^set row 0: HEIC images need"):
        _run(NoHeic(), _examples(3), skip_bad=True)


def test_what_was_read_before_an_error_comes_before_it():
    def broken():
        yield from _examples(6)
        raise DataError("set row 6: the label 9 is out of range")

    seen = []
    with pytest.raises(DataError, match="row 6"):
        seen.extend(
            len(batch)
            for batch, _ in embed_images(
                ColourEncoder(), broken(), lambda e: e.image, RunOptions(batch_size=4), []
            )
        )
    assert seen == [4, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@KINDS
def test_embeddings_that_are_no_numbers_are_named(kind, value):
    with pytest.raises(DataError, match=r"^set row 8: its embedding is not finite") as caught:
        _run(kind(poison="blue", value=value), itertools.islice(_examples(9), 3, 9), batch_size=4)
    assert "weights" in str(caught.value)
    texts = ["blue", "a red hat"]
    with pytest.raises(DataError, match=r"^row 1: its embedding is not finite"):
        embed_texts(ColourEncoder(poison="hat", value=value), texts, ["row 0", "row 1"])


def test_zero_and_misshapen_embeddings_are_refused():
    with pytest.raises(DataError, match="set row 0: its embedding is zero"):
        _run(ColourEncoder(length=0.0), _examples(3))

    class Wide(ColourEncoder):
        embed_dim = 5

    with pytest.raises(DataError, match=r"\(3, 4\) for 3 .* row 0 on; expected \(3, 5\)"):
        _run(Wide(), _examples(3))
    with pytest.raises(DataError, match=r"\(2, 4\) for 2 inputs from a on; expected \(2, 5\)"):
        embed_texts(Wide(), ["red", "blue"], ["a", "b"])

    class Lost(ColourEncoder):
        def encode_image(self, images):
            return super().encode_image(images)[:-1]

    with pytest.raises(
        DataError, match=r"\(2, 4\) for 3 inputs from set row 0 on; expected \(3, 4\)"
    ):
        _run(Lost(), _examples(3))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("length", [1e-3, 1.0, 6e4])
def test_any_length_and_precision_comes_out_as_unit_float32(length, dtype):
    class Other(ColourEncoder):
        def encode_image(self, images):
            return super().encode_image(images).astype(dtype)

        def encode_text(self, texts):
            return super().encode_text(texts).astype(dtype)

    for rows in (
        _run(Other(length=length), _examples(6))[1],
        embed_texts(Other(length=length), list(COLOURS), list(COLOURS)),
    ):
        assert rows.dtype == np.float32
        expected = _run(ColourEncoder(length=1.0), _examples(6))[1]
        np.testing.assert_allclose(rows, expected, atol=1e-3 if dtype == np.float16 else 1e-6)


def test_texts_are_embedded_in_parts():
    encoder = ColourEncoder()
    texts = [f"{name} {i}" for i in range(100) for name in COLOURS]
    rows = embed_texts(encoder, texts, texts)
    few = embed_texts(ColourEncoder(), texts[:6], texts[:6])
    np.testing.assert_array_equal(rows, few[np.arange(600) % 6])
    assert max(encoder.text_batches) <= 256
    assert encoder.texts == 600
    assert embed_texts(encoder, [], []).shape == (0, 4)


def test_leaving_early_stops_the_threads_and_closes_the_files():
    read, closed = 0, threading.Event()

    def counted():
        nonlocal read
        try:
            for example in _examples(500):
                read += 1
                yield example
        finally:
            closed.set()

    stream = embed_images(
        ColourEncoder(), counted(), lambda e: e.image, RunOptions(batch_size=2), []
    )
    next(stream)
    stream.close()
    assert closed.is_set()
    assert read <= 2 * (1 + LOADING + READING)
    _until(lambda: not _threads())


def test_an_interrupt_does_not_wait_for_what_is_queued():
    loads = 0

    class Interrupted(PixelColourEncoder):
        def prepare(self, image):
            nonlocal loads
            loads += 1
            time.sleep(0.02 if loads <= 8 else 0.5)
            return super().prepare(image)

        def encode_prepared(self, _pixels):
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _run(Interrupted(), _examples(100), batch_size=8, workers=1)
    assert time.monotonic() - begun < 2  # sixteen more are queued, of half a second each
    _until(lambda: not _threads())
    assert loads <= 11


def test_reading_stops_within_a_batch():
    read, slow = 0, threading.Event()

    def counted():
        nonlocal read
        for number in range(4000):
            read += 1
            if number >= 3000:
                slow.set()
                time.sleep(0.01)
            yield number

    batches = prefetch(counted(), str, size=1000, workers=1)
    next(batches)
    assert slow.wait(10)  # the batch beyond those that are loaded is being read
    batches.close()
    _until(lambda: not _threads())
    assert read < 3500


def test_reading_that_hangs_does_not_hold_up_an_interrupt():
    hanging = threading.Event()

    def stalled():
        yield from range(12)
        hanging.wait(20)

    batches = prefetch(stalled(), str, size=3, workers=1)
    assert next(batches) == [(0, "0"), (1, "1"), (2, "2")]
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 5
    hanging.set()
    _until(lambda: not _threads())


def test_progress_counts_every_image():
    seen = []
    options = RunOptions(batch_size=4, skip_bad=True, advance=seen.append)
    for _ in embed_images(ColourEncoder(), _examples(10, bad=(1,)), lambda e: e.image, options, []):
        pass
    assert seen == [4, 4, 2]


def test_options_are_checked():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        RunOptions(batch_size=0)
    with pytest.raises(ConfigError, match="workers must be at least 1, not 0"):
        replace(RunOptions(), workers=0)


def test_where_classifiers_are_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert RunOptions().cache == default_cache() == tmp_path / "pocketclip" / "classifiers"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "pocketclip" / "classifiers"

    def nobody(_path):
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert RunOptions().cache is None


def _data(samples):
    return TaskData(path="set", kind="classification", samples=samples, identity="x")


def test_features_are_embeddings_with_labels():
    options = RunOptions(batch_size=4, skip_bad=True)
    rows, labels, skipped = features(
        ColourEncoder(), _data(lambda: _examples(11, bad=(2,))), options
    )
    good = [i for i in range(11) if i != 2]
    np.testing.assert_array_equal(rows, _run(ColourEncoder(), _examples(11))[1][good])
    assert (rows.dtype, labels.dtype) == (np.float32, np.int64)
    assert labels.tolist() == [i % 6 for i in good]
    assert [s.name for s in skipped] == ["set row 2"]


def test_features_of_nothing_or_without_labels_are_refused():
    with pytest.raises(DataError, match=r"^set: no image to score: 3 were skipped, .*set row 0"):
        features(
            ColourEncoder(),
            _data(lambda: _examples(3, bad=range(3))),
            RunOptions(skip_bad=True),
        )
    unlabelled = [Example(name="row 0", image=colour_photo((255, 0, 0)))]
    with pytest.raises(DataError, match=r"^row 0 has no label"):
        features(ColourEncoder(), _data(lambda: iter(unlabelled)), RunOptions())
