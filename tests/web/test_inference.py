"""Models in the page: its embeddings are Python's, and what goes wrong is said or mended."""

from __future__ import annotations

import base64
import gzip
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketclip.export.quantize_onnx import quantize_onnx
from pocketclip.infer import bundle as bundles
from pocketclip.infer.backends import onnx_session
from pocketclip.infer.check_frame import frame_entry
from pocketclip.infer.encoder import load
from pocketclip.preprocess import Preprocess
from tests.bundles import rewritten
from tests.search.conftest import draw_photo
from tests.web.site_models import SiteModels

pytestmark = pytest.mark.usefixtures("vendor")

_MODULES = """
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const at = (name) => import(new URL(`${assets}app/inference/${name}.js`, document.baseURI).href);
  const { listModels } = await at("models");
  const { openFile, isCached, listKept, removeFiles } = await at("files");
  const { ImageEncoder } = await at("image_encoder");
  const fileOf = (text) => new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]);
  const open = async (options) => ImageEncoder.open((await listModels())[0], options);
  const facts = ({ check, notes, restarts, runtime, threads }) =>
    ({ check, notes, restarts, runtime, threads });
  const tried = (work) => work.then((value) => value, ({ code, message }) => ({ code, message }));
"""


def run(page: Any, body: str, argument: Any = None) -> Any:
    """Run statements of an async function in the page, with the modules and `argument`."""
    return page.evaluate(f"async (argument) => {{ {_MODULES} {body} }}", argument)


@pytest.fixture(scope="module")
def picture(encoder, tmp_path_factory):
    """A photograph as PNG, as large as the model reads, and its embedding in Python."""
    side = encoder.config.image_size
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    data = draw_photo(path, 3, size=(side, side)).read_bytes()
    return base64.b64encode(data).decode(), encoder.encode_image([data])[0]


@pytest.fixture
def page(open_page):
    """A page without the service worker, whose requests no test can answer."""
    return open_page(service_workers="block")


@pytest.fixture
def models(bundle):
    return SiteModels([bundles.read(bundle)])


@pytest.fixture
def site(page, server, models):
    """A page of the site, which offers the small model."""
    models.serve(page)
    page.goto(server.url)
    return page


def as_base64(image: Image.Image, format: str = "PNG", **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return base64.b64encode(stream.getvalue()).decode()


def test_embeddings_are_those_of_python(site, encoder):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 70, 4), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = noise.convert("RGB").resize((300, 200), Image.Resampling.BICUBIC)
    files = [
        as_base64(noise.convert("RGB").resize((123, 457))),
        as_base64(noise),  # translucent
        as_base64(smooth, "JPEG", quality=95, exif=turned),
    ]
    found = run(site, """
      const encoder = await open();
      const out = [];
      for (const text of argument) out.push(await encoder.encode(fileOf(text), { exact: true }));
      encoder.close();
      for (const one of out) one.embedding = [...one.embedding];
      return { ...facts(encoder), out };
    """, files)  # fmt: skip
    assert found["check"]["passed"]
    assert found["check"]["cosine"] > 0.99999
    assert (found["runtime"], found["notes"], found["restarts"]) == ("wasm", [], 0)
    expected = encoder.encode_image([base64.b64decode(text) for text in files])
    embeddings = np.array([one["embedding"] for one in found["out"]])
    assert (embeddings * expected).sum(1).min() > 0.9999
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() < 1e-6
    assert [one["frame"] for one in found["out"]] == [1, 2, 3]
    assert all(one["exact"] and one["encodeMs"] > 0 for one in found["out"])


@pytest.mark.slow
def test_every_source_is_encoded_and_stays_the_callers(site, picture):
    text, expected = picture
    found = run(site, """
      const encoder = await open();
      const file = fileOf(argument);
      const bitmap = await createImageBitmap(file);
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      const frame = new VideoFrame(canvas, { timestamp: 0 });
      const video = document.createElement("video");
      video.muted = true;
      video.srcObject = canvas.captureStream();
      const none = await tried(encoder.encode(video));
      await video.play();
      const embeddings = {};
      for (const [name, source] of Object.entries({ file, bitmap, canvas, frame, video })) {
        const twice = [await encoder.encode(source), await encoder.encode(source)];
        embeddings[name] = [...twice[1].embedding];
      }
      const wide = [bitmap.width, frame.displayWidth];
      const bad = await tried(encoder.encode(new Blob(["no picture"])));
      const worse = await tried(encoder.encode(new Blob(["no picture"]), { exact: true }));
      const all = Array.from({ length: 4 }, () => tried(encoder.encode(file)));
      const waited = (await Promise.all(all)).map((one) => one.code ?? one.frame);
      frame.close();
      encoder.close();
      const closed = await tried(encoder.encode(file));
      return { waited, embeddings, wide, codes: [none, bad, worse, closed].map((one) => one.code),
               restarts: encoder.restarts };
    """, text)  # fmt: skip
    for name, embedding in found["embeddings"].items():
        # Videos are stored as YUV.
        assert np.dot(embedding, expected) > (0.98 if name == "video" else 0.9999), name
    assert min(found["wide"]) > 0
    assert found["codes"] == ["bad_image", "bad_image", "bad_image", "closed"]
    assert found["waited"] == [11, "superseded", "superseded", 12]  # the newest of those that wait
    assert found["restarts"] == 0


def test_files_are_verified_before_they_are_used(site, models):
    urls = {name: models.url(name) for name in ("image.onnx", "image.onnx.data", "text.onnx")}
    good = {name: models.files[url] for name, url in urls.items()}
    body = """
      const [{ variants: [{ image, text, tokenizer }] }] = await listModels();
      const files = [...image.files, text.files[0]];
      const progress = [];
      const out = [];
      for (const file of files) {
        const got = await tried(openFile(file, { onProgress: (...far) => progress.push(far) }));
        out.push(got.code === undefined ? got.length === file.bytes : [got.code, got.message]);
      }
      return { out, progress, cached: await Promise.all(files.map(isCached)) };
    """
    models.files[urls["image.onnx"]] = gzip.compress(
        b"x" * len(gzip.decompress(good["image.onnx"]))
    )
    models.files[urls["image.onnx.data"]] = good["image.onnx.data"][:-1000]
    models.files[urls["text.onnx"]] = gzip.compress(bytes(10_000_000))
    damaged = run(site, body)
    assert [one[0] for one in damaged["out"]] == ["damaged"] * 3
    assert damaged["out"][0][1].startswith("image.onnx is not the file that this site lists")
    assert damaged["cached"] == [False] * 3
    assert models.requests == [name for name in urls for _ in range(2)]  # each is tried again
    del models.files[urls["image.onnx"]]
    models.files[urls["image.onnx.data"]] = good["image.onnx.data"]
    # A host that declares the compression: the browser has inflated it.
    models.files[urls["text.onnx"]] = gzip.decompress(good["text.onnx"])
    site.expected.append("404")
    mended = run(site, body)
    assert [one if one is True else one[0] for one in mended["out"]] == ["not_found", True, True]
    assert mended["cached"] == [False, True, True]
    assert mended["progress"][-1][0] == mended["progress"][-1][1] > 0


def test_an_error_of_one_file_gives_up_the_others(site, models):
    del models.files[models.url("image.onnx")]
    site.route("**/text.onnx*", lambda _: None)  # never answered
    site.expected.append("404")
    with site.expect_event("requestfailed", lambda request: "text.onnx" in request.url):
        found = run(site, """
          const { openFiles } = await at("files");
          const [{ variants: [{ image, text }] }] = await listModels();
          return tried(openFiles([text.files[0], image.files[0]]));
        """)  # fmt: skip
    assert found["code"] == "not_found"


def test_a_file_that_was_damaged_on_the_device_is_fetched_again(site, models):
    found = run(site, """
      const [{ variants: [{ image: { files: [file] } }] }] = await listModels();
      const several = await Promise.all([openFile(file), openFile(file)]); // share a download
      const cache = await caches.open((await caches.keys())[0]);
      const [key] = await cache.keys();
      await cache.put(key, new Response(new Uint8Array(file.bytes)));
      const again = await openFile(file);
      const same = again.every((byte, i) => byte === several[0][i]);
      await openFile(file);
      const controller = new AbortController();
      const pending = tried(openFile({ ...file, sha256: "0" }, { signal: controller.signal }));
      controller.abort();
      const { named, others } = await listKept([file]);
      const none = await listKept([]);
      await removeFiles([file]);
      return {
        same, name: (await pending).message, named: named.map(({ name, bytes }) => [name, bytes]),
        others: [others.length, none.others.length], kept: await isCached(file), bytes: file.bytes,
      };
    """)  # fmt: skip
    assert found.pop("named") == [["image.onnx", found.pop("bytes")]]
    assert found == {
        "same": True, "name": "The work was given up.", "others": [0, 1], "kept": False
    }  # fmt: skip
    assert models.requests.count("image.onnx") in (2, 3)  # the third one was given up


def test_a_full_device_and_a_model_that_cannot_be_checked(page, server, models, picture):
    page.add_init_script("""
      Cache.prototype.put = async () => { throw new DOMException("full", "QuotaExceededError"); };
    """)
    models.model["variants"][0]["check"] = None
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const encoder = await open({ runtime: "webgpu" });
      const { embedding } = await encoder.encode(fileOf(argument));
      for (const file of encoder.variant.image.files) await openFile(file);
      return { ...facts(encoder), embedding: [...embedding] };
    """, picture[0])  # fmt: skip
    assert np.dot(found["embedding"], picture[1]) > 0.9999
    assert (found["check"], found["runtime"]) == (None, "wasm")
    no_webgpu, not_checked, full = found["notes"]
    assert no_webgpu.endswith("The model runs on the processor.")
    assert "could not be checked" in not_checked
    assert "storage is full" in full
    assert models.requests.count("image.onnx.data") == 1  # it is in memory


@pytest.mark.slow
def test_an_origin_that_is_not_secure(page, running_server, models, picture):
    """No crypto.subtle, no cache, no threads, no WebGPU; models run all the same."""
    server = running_server(allow_hosts=("phone.test",))
    page.expected.append("Cross-Origin-Opener-Policy header has been ignored")
    models.serve(page)
    page.goto(server.url.replace("127.0.0.1", "phone.test"))
    found = run(page, """
      const encoder = await open({ runtime: "webgpu" });
      const { embedding } = await encoder.encode(fileOf(argument), { exact: true });
      const absent = [isSecureContext, crypto.subtle !== undefined, "caches" in globalThis];
      return { ...facts(encoder), embedding: [...embedding], absent };
    """, picture[0])  # fmt: skip
    assert found["absent"] == [False, False, False]
    assert np.dot(found["embedding"], picture[1]) > 0.9999
    assert (found["runtime"], found["threads"]) == ("wasm", 1)
    assert "WebGPU needs a page over https" in found["notes"][0]
    assert "until the page is closed only" in found["notes"][1]


_WATCHED_WORKERS = """
  window.workers = [];
  window.Worker = class extends Worker {
    constructor(...options) { super(...options); window.workers.push(this); }
    postMessage(message, ...options) {
      window.onPost?.(message);
      super.postMessage(message, ...options);
    }
  };
"""


@pytest.mark.slow
def test_a_worker_that_fails_is_started_again(page, server, models, picture):
    page.add_init_script(_WATCHED_WORKERS)
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const fail = () => window.workers.at(-1).dispatchEvent(
        new ErrorEvent("error", { message: "out of memory", cancelable: true }));
      const encoder = await open();
      const pending = encoder.encode(fileOf(argument));
      await new Promise((resolve) => setTimeout(resolve));
      fail();
      const { embedding, frame } = await pending;
      return { embedding: [...embedding], frame, ...facts(encoder) };
    """, picture[0])  # fmt: skip
    assert np.dot(found["embedding"], picture[1]) > 0.9999
    assert (found["frame"], found["restarts"]) == (1, 1)
    assert found["notes"] == ["The model was started again after an error: out of memory."]


@pytest.mark.slow
def test_a_worker_that_fails_again_and_again_is_given_up(page, server, models, picture):
    page.add_init_script(_WATCHED_WORKERS)
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const encoder = await open();
      window.onPost = ({ name, values }) => {
        if (name !== "encode" || values.pixels) return;
        setTimeout(() => window.workers.at(-1).dispatchEvent(
          new ErrorEvent("error", { message: "out of memory", cancelable: true })));
      };
      const failed = await tried(encoder.encode(fileOf(argument)));
      const closed = await tried(encoder.encode(fileOf(argument)));
      return { failed, closed: closed.code, workers: window.workers.length };
    """, picture[0])  # fmt: skip
    assert found["failed"]["code"] == "failed"
    assert "stopped 4 times in a row (out of memory)" in found["failed"]["message"]
    assert (found["closed"], found["workers"]) == ("closed", 4)


_THREE_CORES = """
  Object.defineProperty(navigator, "hardwareConcurrency", { get: () => 3 });
  const spoil = (values) => (values.preprocess = { ...values.preprocess, mean: [2, 0, 0] });
"""


@pytest.mark.parametrize("part", ["script", "loader"])
def test_a_missing_script_of_the_runtime_is_named_without_its_address(page, server, models, part):
    page.add_init_script(_WATCHED_WORKERS)
    page.expected.append("404")
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      window.onPost = ({ name, values }) => {
        if (name === "open") values[argument] = new URL("gone.mjs", values[argument]).href;
      };
      return tried(open({ runtime: "wasm" }));
    """, part)  # fmt: skip
    assert found["code"] == "damaged"
    assert found["message"].startswith("gone.mjs could not be loaded: check the connection")
    assert "://" not in found["message"]


def test_a_runtime_with_another_embedding_is_not_used(page, server, models):
    page.add_init_script(
        _WATCHED_WORKERS
        + _THREE_CORES
        + """
      window.onPost = ({ name, values }) => {
        if (name === "open" && values.threads > 1) spoil(values);
      };
    """
    )
    models.serve(page)
    page.goto(server.url)
    found = run(page, "return facts(await open());")
    assert (found["threads"], found["check"]["passed"]) == (1, True)
    (note,) = found["notes"]
    assert "with 2 threads is not used" in note
    assert "wrong (cosine" in note


@pytest.mark.slow
def test_threads_are_used_where_the_page_is_isolated(page, server, models, picture):
    page.add_init_script(_WATCHED_WORKERS + _THREE_CORES)
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const threaded = await open();
      const { embedding } = await threaded.encode(fileOf(argument));
      window.onPost = ({ name, values }) => {
        if (name === "open") values.preprocess = { ...values.preprocess, mean: [2, 0, 0] };
      };
      const none = await tried(open());
      return { ...facts(threaded), embedding: [...embedding], none };
    """, picture[0])  # fmt: skip
    assert (found["threads"], found["check"]["passed"]) == (2, True)
    assert np.dot(found["embedding"], picture[1]) > 0.9999
    assert found["none"]["code"] == "check_failed"
    assert found["none"]["message"].startswith("The model cannot be used in this browser")


@pytest.mark.slow
def test_a_package_without_the_runtime_says_what_is_missing(page, server, models):
    models.serve(page)

    def without(route: Any) -> None:
        text = route.fetch().text()
        front, vendor, rest = re.split(r'("vendor": ?\{.*?\}\}.*?\})', text, maxsplit=1)
        assert vendor.count("{") == vendor.count("}")
        route.fulfill(body=f'{front}"vendor": null{rest}', content_type="text/html")

    page.route(f"{server.url}/", without)
    page.goto(server.url)
    found = run(page, "return tried(open());")
    assert found["code"] == "no_vendor"
    assert "npm" in found["message"]


@pytest.fixture(scope="module")
def int8_bundle(bundle, tmp_path_factory):
    """The small model with its image tower in int8."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("int8") / "bundle"))
    opened = bundles.read(bundle)
    side = opened.config.image_size
    photos = [draw_photo(folder.parent / f"{i}.png", i, size=(side, side)) for i in range(8)]
    pixels = Preprocess(opened.config.preprocess).batch(photos)
    quantize_onnx(opened.path("image"), folder / opened.path("image").name, [pixels])
    run_int8 = onnx_session(str(folder / opened.path("image").name), 1).run
    stored = np.frombuffer((folder / opened.check_frame.pixels).read_bytes(), np.uint8)
    frame = Preprocess(opened.config.preprocess)(stored.reshape(side, side, 3))
    (embedding,) = run_int8(None, {opened.towers["image"]["input"]["name"]: frame[None]})[0]
    return rewritten(folder, precision="int8", check=frame_entry(side, embedding))


def test_int8_is_taken_first_and_equals_python(page, server, bundle, int8_bundle, picture):
    models = SiteModels([bundles.read(bundle), bundles.read(int8_bundle)])
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const encoder = await open();
      const { embedding } = await encoder.encode(fileOf(argument), { exact: true });
      const { precision } = encoder.variant;
      return { precision, check: encoder.check, embedding: [...embedding] };
    """, picture[0])  # fmt: skip
    assert (found["precision"], found["check"]["passed"]) == ("int8", True)
    python = load(int8_bundle, backend="onnxruntime", threads=1)
    expected = python.encode_image([base64.b64decode(picture[0])])[0]
    assert np.dot(found["embedding"], expected) > 0.9999 > np.dot(picture[1], expected)


@pytest.mark.slow
def test_webgpu_gives_the_same_embeddings(open_page, server, models, picture):
    flags = (
        "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"
    )  # fmt: skip
    page = open_page(flags=flags, service_workers="block")
    models.serve(page)
    page.goto(server.url)
    found = run(page, """
      const wasm = await open();
      wasm.close();
      const encoder = await open({ runtime: "webgpu" });
      const { embedding } = await encoder.encode(fileOf(argument), { exact: true });
      return { ...facts(encoder), embedding: [...embedding] };
    """, picture[0])  # fmt: skip
    assert (found["runtime"], found["check"]["passed"]) == ("webgpu", True)
    assert np.dot(found["embedding"], picture[1]) > 0.9999
    assert found["notes"][0].startswith("WebGPU takes ")


@pytest.mark.slow
def test_a_graph_that_resizes_gets_the_square_itself(page, server, exported, picture):
    folder = exported("teacher-a", preprocessing=True)
    models = SiteModels([bundles.read(folder)])
    models.serve(page)
    page.goto(server.url)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8))
    large = as_base64(noise.resize((400, 300), Image.Resampling.BICUBIC))
    found = run(page, """
      const encoder = await open();
      const out = [];
      for (const [text, exact] of argument) out.push(await encoder.encode(fileOf(text), { exact }));
      return { check: encoder.check, out: out.map(({ embedding }) => [...embedding]) };
    """, [[picture[0], True], [picture[0], False], [large, True], [large, False]])  # fmt: skip
    assert found["check"]["passed"]
    python = load(folder, backend="onnxruntime", threads=1)
    expected = python.encode_image([base64.b64decode(text) for text in (picture[0], large)])
    cosines = (np.array(found["out"]) * expected[[0, 0, 1, 1]]).sum(1)
    assert cosines[:3].min() > 0.9999
    assert cosines[3] > 0.995  # scaled by the graph, which does not round between the passes
