"""Images to embeddings: in order, checked, decoded ahead in a bounded memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.examples import Example
from pocketclip.evaluate.stream import RunOptions, embed_images, embed_texts
from tests.evaluate.dummy import COLOURS, ColourEncoder, PixelColourEncoder
from tests.evaluate.sets import colour_photo


def _examples(count, bad=()):
    colours = list(COLOURS.values())
    for i in range(count):
        image = b"no image" if i in bad else colour_photo(colours[i % len(colours)])
        yield Example(name=f"set row {i}", image=image)


def _run(encoder, examples, **options):
    skipped = []
    found = list(embed_images(encoder, examples, lambda e: e.image, RunOptions(**options), skipped))
    names = [example.name for batch, _ in found for example in batch]
    rows = np.concatenate([rows for _, rows in found]) if found else np.empty((0, 4))
    return names, rows, skipped


@pytest.mark.parametrize("kind", [ColourEncoder, PixelColourEncoder])
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


def test_reading_goes_a_bounded_way_ahead():
    read = done = furthest = 0

    def counted():
        nonlocal read
        for example in _examples(200):
            read += 1
            yield example

    options = RunOptions(batch_size=5, workers=2)
    for batch, _ in embed_images(ColourEncoder(), counted(), lambda e: e.image, options, []):
        furthest = max(furthest, read - done)
        done += len(batch)
    assert done == 200
    assert furthest <= 15


def test_decoding_overlaps_with_encoding():
    """While a batch is encoded, the next one is being decoded."""
    decoding = threading.Event()
    seen = []

    class Slow(PixelColourEncoder):
        def preprocess(self, image):
            decoding.set()
            return super().preprocess(image)

        def encode_pixels(self, pixels):
            decoding.clear()
            found = super().encode_pixels(pixels)
            # All batches that may be ahead were submitted: some thread must come by, unless the
            # set is at its end.
            seen.append(decoding.wait(0.2))
            return found

    def slowly():
        for example in _examples(24):
            time.sleep(0.001)
            yield example

    class Sleepy(Slow):
        def preprocess(self, image):
            time.sleep(0.01)
            return super().preprocess(image)

    _run(Sleepy(), slowly(), batch_size=4, workers=1)
    assert sum(seen[:4]) >= 3


def test_unreadable_images_fail_the_task_and_are_named():
    with pytest.raises(DataError) as caught:
        _run(ColourEncoder(), _examples(30, bad=(3, 17)), batch_size=4)
    assert "2 unreadable images" in str(caught.value)
    assert "set row 3 " in str(caught.value)
    assert "set row 17 " in str(caught.value)
    assert "--skip-bad" in str(caught.value)


def test_at_most_ten_are_named():
    with pytest.raises(DataError, match="10 or more unreadable images") as caught:
        _run(ColourEncoder(), _examples(60, bad=range(40)), batch_size=4)
    assert str(caught.value).count("set row") == 10


def test_unreadable_images_are_left_out_when_asked():
    names, rows, skipped = _run(
        ColourEncoder(), _examples(12, bad=(0, 5, 6, 7, 8)), batch_size=4, skip_bad=True
    )
    assert [s.name for s in skipped] == [f"set row {i}" for i in (0, 5, 6, 7, 8)]
    assert all("not an image" in s.reason for s in skipped)
    assert len(names) == len(rows) == 7


def test_a_missing_file_is_a_bad_image(tmp_path):
    example = Example(name="t.csv row 2", image=str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match=r"1 unreadable image: t.csv row 2 \(.*gone.jpg"):
        _run(ColourEncoder(), [example])


def test_embeddings_that_are_no_numbers_are_named():
    with pytest.raises(DataError, match="set row 2: its embedding is not finite"):
        _run(ColourEncoder(poison="blue"), _examples(6))
    with pytest.raises(DataError, match=r"the prompt 'a red hat'.*not finite"):
        embed_texts(ColourEncoder(poison="hat"), ["blue", "a red hat"], "the prompt")


def test_zero_and_misshapen_embeddings_are_refused():
    with pytest.raises(DataError, match="set row 0: its embedding is zero"):
        _run(ColourEncoder(length=0.0), _examples(3))

    class Wide(ColourEncoder):
        embed_dim = 5

    with pytest.raises(DataError, match=r"\(3, 4\) for 3 inputs from set row 0 on, not \(3, 5\)"):
        _run(Wide(), _examples(3))


def test_leaving_early_stops_the_threads():
    before = threading.active_count()
    stream = embed_images(
        ColourEncoder(), _examples(500), lambda e: e.image, RunOptions(batch_size=2), []
    )
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_progress_counts_every_image():
    seen = []
    options = RunOptions(batch_size=4, skip_bad=True, advance=seen.append)
    skipped = []
    list(
        embed_images(ColourEncoder(), _examples(10, bad=(1,)), lambda e: e.image, options, skipped)
    )
    assert sum(seen) == 10


def test_options_are_checked():
    with pytest.raises(ValueError, match="at least 1"):
        RunOptions(batch_size=0)
    with pytest.raises(ValueError, match="at least 1"):
        replace(RunOptions(), workers=0)
