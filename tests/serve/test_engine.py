"""The engine against the library: equal answers, turns, limits, and what is dropped."""

from __future__ import annotations

import asyncio
import gc
import io
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import BundleError, EmbeddingError, ImageError
from pocketclip.images import open_image
from pocketclip.infer.encoder import Encoder, load
from pocketclip.serve.encoding import image_queue
from pocketclip.serve.encoding.engine import Engine
from pocketclip.serve.errors import RequestError
from pocketclip.serve.settings import Limits


def draw(seed: int, size: tuple[int, int] = (90, 70), kind: str = "JPEG", **options: Any) -> bytes:
    """Return an image file."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a test on an event loop of its own, for at most a minute."""
    return asyncio.run(asyncio.wait_for(work(), 60))


class Slow(Encoder):
    """The model, whose towers wait to be let, and note what they get."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.may_run = {"image": threading.Semaphore(1000), "text": threading.Semaphore(1000)}
        self.images: list[int] = []
        self.texts: list[int] = []

    def hold(self) -> None:
        """Let the towers wait from now on."""
        self.may_run = {"image": threading.Semaphore(0), "text": threading.Semaphore(0)}

    def let(self, calls: int = 1000) -> None:
        """Let each tower run so many times more."""
        for one in self.may_run.values():
            one.release(calls)

    def encode_prepared(self, inputs: Any, *, normalize: bool = True) -> Any:
        assert self.may_run["image"].acquire(timeout=30)
        self.images.append(len(inputs))
        return super().encode_prepared(inputs, normalize=normalize)

    def encode_ids(self, ids: Any, *, normalize: bool = True) -> Any:
        assert self.may_run["text"].acquire(timeout=30)
        self.texts.append(len(ids))
        return super().encode_ids(ids, normalize=normalize)


@pytest.fixture
def slow(bundle):
    return Slow(bundle, "onnxruntime", threads=1)


def test_images_are_embedded_as_by_the_library_to_the_bit(encoder):
    photos = [draw(i, (60 + 7 * i, 80)) for i in range(40)]
    lists = [photos, photos[:1], photos[3:6], photos[:33]]

    async def work():
        engine = Engine(encoder)
        found = await asyncio.gather(*(engine.embed_images(images) for images in lists))
        assert (await engine.embed_images([])).shape == (0, encoder.embed_dim)
        await engine.close()
        return found

    for found, images in zip(run(work), lists, strict=True):
        np.testing.assert_array_equal(found, encoder.encode_image(images))


def test_texts_are_embedded_as_by_the_library(bundle, encoder):
    own = load(bundle, backend="onnxruntime", threads=1)
    lists = [["a dog", "a cat", "a dog", ""], [f"{i} cats" for i in range(100)], ["a dog"]]

    async def work():
        engine = Engine(own)
        found = await asyncio.gather(*(engine.embed_texts(texts) for texts in lists))
        again = await engine.embed_texts(lists[1])
        assert (await engine.embed_texts([])).tokens == 0
        return found, again, engine.stats()

    found, again, stats = run(work)
    for (rows, tokens), texts in zip(found, lists, strict=True):
        np.testing.assert_allclose(rows, encoder.encode_text(texts), atol=1e-6)
        ids = encoder.tokenizer(texts, encoder.config.text.context_length)
        assert tokens == int((ids.argmax(1) + 1).sum())
    np.testing.assert_array_equal(again.embeddings, found[1].embeddings)
    assert again.tokens == found[1].tokens
    assert stats.texts.encoded == 103
    assert stats.cache.entries == 103


@pytest.mark.parametrize(
    "data",
    [
        draw(1, (900, 700)),
        draw(2, (300, 900), progressive=True),
        draw(3, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        draw(4, kind="PNG"),
        draw(5, kind="GIF"),
        draw(6, kind="WEBP"),
    ],
)
def test_an_image_that_is_opened_first_gives_the_same_pixels(encoder, data):
    found = encoder.preprocess(open_image(data, max_pixels=1 << 20))
    np.testing.assert_array_equal(found, encoder.preprocess(data))


def test_a_bad_image_fails_its_call_alone_and_is_named(encoder):
    photos = [draw(i) for i in range(5)]
    bad = [*photos[:2], b"not an image", photos[3], b"", photos[4]]

    async def work():
        engine = Engine(encoder, Limits(image_bytes=1 << 16, image_pixels=10_000))
        results = [
            await asyncio.gather(
                engine.embed_images(images), engine.embed_images(photos), return_exceptions=True
            )
            for images in (bad, [*photos, draw(6, (101, 100))], [bytes(1 << 17)])
        ]
        assert engine.stats().images.waiting == engine.stats().images.dropped == 0
        return results

    results = run(work)
    for _, good in results:
        np.testing.assert_array_equal(good, encoder.encode_image(photos))
    (first, _), (second, _), (third, _) = results
    assert isinstance(first, ImageError)
    assert str(first).startswith("image 2 (counted from 0): not an image")
    assert isinstance(second, ImageError)
    assert str(second).startswith("image 5 (counted from 0): 101 x 100 pixels exceed the limit")
    assert isinstance(third, RequestError)
    assert third.status == 413


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not condition():
        await asyncio.sleep(0.002)


def test_a_request_of_many_delays_another_by_one_call(slow):
    many, one = [draw(i) for i in range(64)], draw(99)

    async def work():
        engine = Engine(slow)
        slow.hold()
        long = asyncio.create_task(engine.embed_images(many))
        labels = asyncio.create_task(engine.embed_texts([f"text {i}" for i in range(600)]))
        await until(lambda: engine.stats().images.running and engine.stats().texts.running)
        short = asyncio.create_task(engine.embed_images([one]))
        text = asyncio.create_task(engine.embed_texts(["a text"]))
        await asyncio.sleep(0.05)
        slow.let(2)  # the calls that run, and one more
        await asyncio.gather(short, text)
        assert not long.done()
        assert not labels.done()
        slow.let()
        await asyncio.gather(long, labels)

    run(work)


def test_what_is_cancelled_is_dropped_before_it_is_encoded(slow):
    photos = [draw(i) for i in range(3)]

    async def work():
        engine = Engine(slow)
        slow.hold()
        first = asyncio.create_task(engine.embed_images(photos[:1]))
        words = asyncio.create_task(engine.embed_texts(["first"]))
        await until(lambda: engine.stats().images.running and engine.stats().texts.running)
        given_up = [
            asyncio.create_task(engine.embed_images(photos[:3])),
            asyncio.create_task(engine.embed_texts([f"text {i}" for i in range(3)])),
        ]
        await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        slow.let()
        await asyncio.gather(first, words)
        stats = engine.stats()
        assert (stats.images.dropped, stats.texts.dropped) == (3, 3)
        assert (stats.images.encoded, stats.texts.encoded) == (1, 1)
        assert stats.images.waiting == stats.texts.waiting == 0
        assert await engine.embed_images(photos[:2]) is not None
        assert engine._images._held == 0

    run(work)
    assert sum(slow.images) == 3
    assert sum(slow.texts) == 1


def test_a_full_queue_refuses_or_lets_wait_in_turn(slow):
    photo = draw(0)

    async def work():
        engine = Engine(slow, Limits(waiting_images=3, waiting_texts=3))
        slow.hold()
        running = asyncio.create_task(engine.embed_images([photo]))
        await until(lambda: engine.stats().images.running == 1)
        accepted = asyncio.create_task(engine.embed_images([photo] * 10))  # none waited
        await until(lambda: engine.stats().images.waiting == 10)
        with pytest.raises(RequestError) as refused:
            await engine.embed_images([photo])
        assert refused.value.status == 429
        assert 1 <= refused.value.retry_after <= 60
        order: list[int] = []

        async def patient(number):
            await engine.embed_images([photo] * 2, wait=True)
            order.append(number)

        waiting = [asyncio.create_task(patient(number)) for number in range(4)]
        await asyncio.sleep(0.02)
        waiting.pop(1).cancel()
        slow.let()
        await asyncio.gather(running, accepted, *waiting)
        assert order == [0, 2, 3]
        assert engine.stats().images.refused == 1
        assert engine.stats().images.dropped == 2
        await engine.embed_texts([str(i) for i in range(5)])

    run(work)


def test_the_end_is_told_to_those_who_wait(slow):
    async def work():
        engine = Engine(slow, Limits(waiting_images=1))
        slow.hold()
        calls = [
            asyncio.create_task(engine.embed_images([draw(i)] * 2, wait=True)) for i in range(3)
        ]
        calls.append(asyncio.create_task(engine.embed_texts(["a"])))
        await until(lambda: engine.stats().images.running > 0 < engine.stats().texts.running)
        await engine.close()
        slow.let()
        errors = [*await asyncio.gather(*calls, return_exceptions=True)]
        with pytest.raises(RequestError):
            await engine.embed_texts(["b"])
        return errors

    for error in run(work):
        assert isinstance(error, RequestError)
        assert error.status == 503


def test_a_model_is_replaced_under_load(bundle, other_bundle):
    old, new = (load(folder, backend="onnxruntime", threads=1) for folder in (bundle, other_bundle))
    photos = [draw(i) for i in range(12)]
    before, after = old.encode_image(photos), new.encode_image(photos)
    freed = weakref.ref(old.backend)

    async def work(old):
        engine = Engine(old)
        calls = [asyncio.create_task(engine.embed_images(photos)) for _ in range(4)]
        texts = [asyncio.create_task(engine.embed_texts([f"{i} dogs"])) for i in range(4)]
        await asyncio.sleep(0)
        pinned = old
        await engine.replace(new)
        assert engine.encoder is new
        late = await engine.embed_images(photos)
        same = await engine.embed_images(photos, encoder=pinned)
        assert engine.stats().cache.misses == 4
        results = await asyncio.gather(*calls), late, same
        await asyncio.gather(*texts)
        assert engine.stats().cache.entries == 0
        return results

    calls, late, same = asyncio.run(asyncio.wait_for(work(old), 60))
    for found in (*calls, same):
        np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(late, after)
    del old
    gc.collect()
    assert freed() is None


def test_a_model_that_does_not_work_replaces_nothing(encoder, bundle, tmp_path):
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    (damaged / "text.onnx").write_bytes(b"damaged")
    bad = Encoder(damaged, "onnxruntime", threads=1)

    async def work():
        engine = Engine(encoder)
        with pytest.raises(BundleError):
            await engine.replace(bad)
        assert engine.encoder is encoder

    run(work)


def test_an_embedding_that_is_not_finite_fails_its_text_alone(slow, monkeypatch):
    honest = slow.backend.text
    bad = slow.tokenizer(["private words"], slow.config.text.context_length)[0]

    def text(ids):
        rows = honest(ids).copy()
        width = ids.shape[1]
        rows[(ids == bad[:width]).all(1)] = np.nan
        return rows

    monkeypatch.setattr(slow.backend, "text", text)

    async def work():
        engine = Engine(slow)
        texts = ["a", "b", "private words"]
        calls = [engine.embed_texts(texts), engine.embed_texts(["a", "c"])]
        return await asyncio.gather(*calls, return_exceptions=True)

    failed, good = run(work)
    assert isinstance(failed, EmbeddingError)
    assert str(failed).startswith("text 2 (counted from 0): its embedding is not finite")
    assert good.embeddings.shape == (2, slow.embed_dim)


def test_whole_photographs_are_bounded_together(exported, monkeypatch):
    whole = Encoder(exported("teacher-a", preprocessing=True), threads=1)
    photos = [draw(i, (40 + i // 3, 50)) for i in range(12)]

    async def work():
        engine = Engine(whole)
        found = await engine.embed_images(photos)
        monkeypatch.setattr(image_queue, "MAX_MEMORY", 15_000)
        with pytest.raises(RequestError, match="send fewer at a time"):
            await engine.embed_images(photos)
        assert engine._images._held == 0
        return found, await engine.embed_images(photos[:1])

    found, one = run(work)
    np.testing.assert_array_equal(found, whole.encode_image(photos))
    np.testing.assert_array_equal(one, whole.encode_image(photos[:1]))
