"""What runs a bundle: the choice of a backend, threads, remembered texts."""

from __future__ import annotations

import dataclasses
import functools
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pocketclip import Encoder
from pocketclip.errors import BundleError, MissingDependencyError
from pocketclip.infer import backends
from pocketclip.infer.bundle import read
from pocketclip.infer.comparison import CAPTIONS, own_photos
from pocketclip.infer.encoder import load
from tests.bundles import manifest, model, rewritten

BOTH = ("onnxruntime", "openvino")


def _measured(folder, **changes):
    """Write other figures into a bundle's record; `ms` per backend, or None for one that failed."""
    verification = manifest(folder)["verification"]
    for name, ms in changes.items():
        verification["backends"][name] |= {"ms": ms or 1.0, "passed": ms is not None}
    return rewritten(folder, verification=verification)


@pytest.fixture
def folder(exported, tmp_path):
    return exported.copy(tmp_path / "bundle")


@pytest.mark.parametrize(("times", "first"), [((1, 9), "onnxruntime"), ((9, 1), "openvino")])
def test_the_faster_one_is_taken(folder, times, first):
    _measured(folder, onnxruntime=times[0], openvino=times[1])
    assert backends.candidates(read(folder))[0] == first
    assert Encoder(folder).backend.name == first
    # For a few texts what counts is who begins first.
    assert backends.candidates(read(folder), low_latency_start=True)[0] == "onnxruntime"


def test_one_that_failed_the_verification_is_not_taken(folder):
    _measured(folder, onnxruntime=None, openvino=50)
    assert backends.candidates(read(folder)) == ["openvino"]
    _measured(folder, onnxruntime=None, openvino=None)
    with pytest.raises(BundleError, match="did not reproduce the model"):
        Encoder(folder)


def test_one_that_was_not_there_at_the_verification_comes_last(folder):
    verification = manifest(folder)["verification"]
    del verification["backends"]["openvino"]
    assert backends.candidates(read(rewritten(folder, verification=verification))) == list(BOTH)


def test_a_package_that_is_missing(exported, monkeypatch):
    bundle, other = read(exported()), read(exported(target="openvino"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert backends.candidates(bundle) == ["onnxruntime"]
    for call in (lambda: Encoder(other), lambda: Encoder(bundle, "openvino")):
        with pytest.raises(MissingDependencyError, match=r"pip install 'pocketclip\[openvino\]'"):
            call()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install 'onnxruntime'"):
        Encoder(bundle)


def test_what_cannot_run_it(exported):
    for name in ("tensorrt", "torch", ""):
        with pytest.raises(
            BundleError, match=r"cannot run this onnx bundle: use onnxruntime or openvino"
        ):
            Encoder(exported(), name)
    with pytest.raises(BundleError, match="cannot run this openvino bundle: use openvino"):
        Encoder(exported(target="openvino"), "onnxruntime")
    with pytest.raises(BundleError, match="a model in torch is run by torch"):
        Encoder(model(), "onnxruntime")
    with pytest.raises(BundleError, match=r"export it with `pocketclip export random:tiny"):
        load("random:tiny", backend="openvino")
    with pytest.raises(BundleError, match="precision is fp32 or bf16"):
        Encoder(exported(), precision="fp64")
    for options in ({"threads": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Encoder(exported(), **options)


def test_openvino_does_not_resize_as_onnx_says(folder):
    photo = dataclasses.replace(read(folder), image_input="photo")
    assert backends.candidates(photo) == ["onnxruntime"]
    with pytest.raises(BundleError, match="cannot run this onnx bundle: use onnxruntime"):
        Encoder(photo, "openvino")


def test_bf16_leaves_only_openvino(folder):
    _measured(folder, onnxruntime=1, openvino=9)
    assert Encoder(folder, precision="bf16").backend.name == "openvino"
    assert Encoder(folder, precision="fp32").backend.name == "onnxruntime"
    with pytest.raises(BundleError, match="only OpenVINO computes in bf16"):
        Encoder(folder, "onnxruntime", precision="bf16")


def test_auto_goes_on_with_the_next_if_one_cannot_load(folder, monkeypatch, caplog):
    _measured(folder, onnxruntime=1, openvino=9)

    def fail(*_args, **_options):
        raise RuntimeError("this processor is too old\nno kernel")

    monkeypatch.setattr(backends, "onnx_session", fail)
    encoder = Encoder(folder, threads=1)
    with caplog.at_level(logging.WARNING):
        actual = encoder.encode_text("a cat")
    assert encoder.backend.name == "openvino"
    assert "no kernel; trying openvino" in caplog.text
    np.testing.assert_allclose(actual, Encoder(model()).encode_text("a cat"), atol=1e-4)
    with pytest.raises(BundleError, match="onnxruntime cannot load it: no kernel"):
        Encoder(folder, "onnxruntime").encode_text("a cat")


def test_an_input_that_does_not_fit_is_our_error(exported):
    for name in BOTH:
        encoder = Encoder(exported(), name, threads=1)
        with pytest.raises(BundleError, match="image tower"):
            encoder.encode_pixels(np.zeros((1, 3, 20, 20), np.float32))
        assert encoder.encode_pixels(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 64)


@pytest.mark.parametrize("name", BOTH)
def test_threads_and_precision_reach_the_runtime(exported, monkeypatch, name):
    bundle, seen = exported(), []
    if name == "onnxruntime":
        import onnxruntime

        honest = onnxruntime.InferenceSession

        def session(path, options, **more):
            seen.append(options.intra_op_num_threads)
            return honest(path, options, **more)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    else:
        import openvino

        honest = openvino.Core.compile_model

        def compile_model(self, path, device, settings):
            seen.append(settings["INFERENCE_NUM_THREADS"])
            hint = settings["INFERENCE_PRECISION_HINT"]
            able = "BF16" in self.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            assert hint == ("bf16" if able else "f32")
            return honest(self, path, device, settings)

        monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    encoder = Encoder(bundle, name, threads=3, precision="bf16" if name == "openvino" else None)
    encoder.load("text")
    assert seen == [3]


@pytest.mark.parametrize("name", BOTH)
def test_eight_threads_at_once(exported, name):
    """Each thread gets the answers to its own photographs and texts."""
    photos = [*own_photos(), np.zeros((70, 90, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)]
    texts = [f"{caption} {i}" for i in range(3) for caption in CAPTIONS[:-1]]  # the last is cut
    encoder = Encoder(exported(), name, threads=1)
    serial = Encoder(exported(), name, threads=1)
    expected = (
        [serial.encode_image(photo) for photo in photos],
        [serial.encode_text(t) for t in texts],
    )

    def work(number):
        if number % 2:
            return [encoder.encode_image(photos[(number + i) % 6]) for i in range(6)]
        return [encoder.encode_text(texts[(number + i) % len(texts)]) for i in range(12)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for number, actual in enumerate(results):
        kind = expected[0] if number % 2 else expected[1]
        for i, row in enumerate(actual):
            np.testing.assert_allclose(row, kind[(number + i) % len(kind)], atol=1e-5)


def test_no_more_images_than_the_encoder_says_go_through_in_one_go(exported, monkeypatch):
    """Also where whole batches come prepared, as they do in an evaluation."""
    encoder = load(exported(), backend="onnxruntime")
    encoder.load("image")
    encoder.batch_size = 64
    sizes = []
    image = encoder.backend.image
    monkeypatch.setattr(encoder.backend, "image", lambda x: sizes.append(len(x)) or image(x))
    most = 256 * 256 // encoder.config.image_size**2
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (70, 70, 3), np.uint8) for _ in range(most + 3)]
    whole = encoder.encode_image(photos)
    prepared = encoder.encode_prepared([encoder.prepare(photo) for photo in photos])
    assert sizes == [most, 3] * 2
    np.testing.assert_array_equal(prepared, whole)


def test_text_embeddings_are_cached_and_dropped(exported, monkeypatch):
    encoder = Encoder(exported(), threads=1)
    asked = []
    honest = encoder.backend.text

    def text(ids):
        asked.append(len(ids))
        return honest(ids)

    monkeypatch.setattr(encoder.backend, "text", text)
    first = encoder.encode_text(["a", "b", "a"])
    assert asked == [2]
    again = encoder.encode_text(["b", "a"])
    assert asked == [2]
    np.testing.assert_array_equal(again, first[1::-1])
    again[:] = 0  # the caller's own
    np.testing.assert_array_equal(encoder.encode_text("b"), first[1:2])
    raw = encoder.encode_text(["b"], normalize=False)
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)


def test_without_the_memory_arena_it_computes_the_same(exported, monkeypatch):
    sessions = []
    make = backends.onnx_session

    def noted(*arguments, **options):
        sessions.append(make(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(backends, "onnx_session", noted)
    found = []
    for arena in (True, False):
        encoder = Encoder(exported(), "onnxruntime", threads=1, memory_arena=arena)
        for one in (encoder, encoder.one_threaded()):
            found.append(one.encode_text(["a", "a photo of a dog"]))
        np.testing.assert_array_equal(found[-1], found[0])
    arenas = [session.get_session_options().enable_cpu_mem_arena for session in sessions]
    assert arenas == [True, False]


def test_a_model_in_torch_has_its_own_precision():
    with pytest.raises(BundleError, match="'bf16' is for bundles"):
        Encoder(model(), precision="bf16")


def test_a_model_in_torch_caches_nothing():
    encoder = Encoder(model())
    encoder.encode_text("a")
    assert not encoder.text_cache.lookup(["a"])


def test_preloading_says_nothing_of_what_goes_wrong(folder, capfd):
    (folder / "image.onnx").unlink()
    encoder = Encoder(folder, threads=1)
    encoder.preload("image", "text")
    assert encoder.encode_text("a cat").shape == (1, 64)
    with pytest.raises(BundleError, match=r"image\.onnx is missing"):
        encoder.encode_image(own_photos()[0])
    assert capfd.readouterr().err == ""


def test_there_is_one_core_whoever_asks_first(monkeypatch):
    monkeypatch.setattr(backends, "_the_core", functools.cache(backends._the_core.__wrapped__))
    together = threading.Barrier(4)

    def ask(_number):
        together.wait()
        return backends.openvino_core()

    with ThreadPoolExecutor(4) as pool:
        cores = list(pool.map(ask, range(4)))
    assert len({id(core) for core in cores}) == 1


def test_the_runtimes_report_nothing():
    code = """
import os
from pocketclip.infer.backends import import_onnxruntime, import_openvino

import_onnxruntime()
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
import_openvino()
from openvino.tools.ovc import convert_impl

assert convert_impl.tm.__name__ == "openvino.tools.ovc.telemetry_stub", convert_impl.tm
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="only there OpenVINO has a stack for signals")
def test_a_signal_after_runners_that_went_in_any_order(exported):
    """Each core of OpenVINO used to leave its stack for signals behind; Ctrl-C then crashed."""
    code = """
import gc, signal, sys
from pocketclip.infer.backends import openvino_runner

first = openvino_runner(sys.argv[1], 1)
second = openvino_runner(sys.argv[1], 1)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
signal.raise_signal(signal.SIGUSR1)
"""
    path = exported(target="openvino") / "image.xml"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
