"""What pages get to run a model themselves: models.json, its files, presets and label sets."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import time

import httpx
import numpy as np
import pytest

from pocketclip.errors import BundleError, ChangedBundleError
from pocketclip.infer.bundle import read
from pocketclip.infer.encoder import Encoder, load
from pocketclip.label_set import LabelSet
from pocketclip.pages.presets import preset_prompts
from pocketclip.serve import ServerSettings
from pocketclip.serve.model_offer import read_web_models
from pocketclip.serve.process.opening import model_source, open_services


def files_of(model):
    """Every file that an entry of models.json names."""
    found = [one["file"] for one in model["label_sets"]]
    if model["presets"] is not None:
        found.append(model["presets"])
    for variant in model["variants"]:
        found += [*variant["image"]["files"], *variant["text"]["files"], variant["tokenizer"]]
        if variant["check"] is not None:
            found.append(variant["check"]["pixels"])
    return found


def fruit(encoder, **changed):
    rng = np.random.default_rng(0)
    return LabelSet(**{
        "labels": ["apple", "kiwi"], "space_id": encoder.space_id, "model": encoder.config.name,
        "weights": rng.normal(size=(2, encoder.embed_dim)).astype(np.float32),
        "biases": np.zeros(2, np.float32), "made": {"photos": "/home/somebody/photos"}, **changed,
    })  # fmt: skip


@pytest.fixture
def offering(make_services, encoder, other_bundle):
    """Services with a second model, and label sets of the first and of neither."""
    services = make_services(
        label_sets={"fruit": fruit(encoder), "other": fruit(encoder, space_id="another")}
    )
    services.web_bundles = read_web_models([other_bundle])
    return services


def test_every_file_is_there_as_its_entry_says(make_client, offering):
    client = make_client(offering)
    models = client.get("/models.json").json()["models"]
    assert len({model["id"] for model in models}) == len(models) == 2
    assert [len(model["label_sets"]) for model in models] == [1, 0]
    for file in (file for model in models for file in files_of(model)):
        answer = client.get(f"/{file['url']}")
        assert len(answer.content) == file["bytes"] == file["download_bytes"]
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        head = client.request("HEAD", f"/{file['url']}") if "model-files" in file["url"] else None
        assert head is None or head.headers["content-length"] == str(file["bytes"])


def test_an_entry_says_how_a_model_is_used(make_client, offering, encoder):
    model = make_client(offering).get("/models.json").json()["models"][0]
    bundle = encoder.bundle
    assert (model["space_id"], model["embed_dim"]) == (encoder.space_id, encoder.embed_dim)
    assert (model["logit_scale"], model["image_size"]) == (
        encoder.logit_scale, encoder.config.image_size,
    )  # fmt: skip
    assert model["preprocess"]["size"] == encoder.config.image_size
    variant = model["variants"][0]
    assert (variant["variant"], variant["precision"]) == (bundle.variant, "fp32")
    assert variant["runtimes"] == ["webgpu", "wasm"]
    assert [file["name"] for file in variant["image"]["files"]] == [
        "image.onnx", "image.onnx.data",
    ]  # fmt: skip
    assert variant["image"]["input"] == bundle.towers["image"]["input"]["name"]
    assert variant["check"]["embedding"] == list(bundle.check_frame.embedding)
    assert model["licence"] == {"name": None, "url": None, "text": None, "restricted": False}


def test_models_need_the_key(make_client, offering):
    url = make_client(offering).get("/models.json").json()["models"][0]["presets"]
    client = make_client(api_key="a key of 16 letters".replace(" ", "-"))
    assert client.get("/models.json").status_code == 401
    assert client.get("/model-files/a/b/image.onnx").status_code == 401
    assert client.get("/label-sets/fruit").status_code == 401
    assert client.get("/camera.html").status_code == 200
    assert url is None  # nobody has embedded them here


def test_what_the_client_has_is_not_sent_again(make_client, offering):
    client = make_client(offering)
    first = client.get("/models.json")
    again = client.get("/models.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    file = first.json()["models"][0]["variants"][0]["tokenizer"]
    answer = client.get(f"/{file['url']}", headers={"if-none-match": f'"{file["sha256"]}"'})
    assert answer.status_code == 304
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "path", ["model-files/", "model-files/../../bundle.json", "model-files/x/image.onnx",
             "label-sets/none"],
)  # fmt: skip
def test_other_paths_are_not_found(make_client, offering, path):
    assert make_client(offering).get(f"/{path}").status_code == 404


def test_a_label_set_is_sent_without_how_it_was_made(make_client, offering, encoder):
    answer = make_client(offering).get("/label-sets/fruit")
    assert answer.json()["made"] == {}
    assert "somebody" not in answer.text
    assert answer.json()["space_id"] == encoder.space_id


@pytest.fixture
def own(bundle, tmp_path):
    """A bundle that a test may change."""
    return shutil.copytree(bundle, tmp_path / "own")


def test_a_file_that_is_not_the_one_that_was_offered_is_refused(make_client, own):
    client = make_client(encoder=load(own, backend="onnxruntime", threads=1))
    file = client.get("/models.json").json()["models"][0]["variants"][0]["image"]["files"][0]
    assert client.get(f"/{file['url']}").status_code == 200
    path = own / "image.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (1e9, 1e9))
    answer = client.get(f"/{file['url']}")
    assert answer.status_code == 409
    assert str(own) not in answer.text
    path.unlink()
    assert client.get(f"/{file['url']}").status_code == 409


def test_bundles_for_pages_are_checked_at_the_start(exported, own, bundle):
    with pytest.raises(BundleError, match="openvino, which browsers cannot run"):
        read_web_models([exported("teacher-a", "openvino")])
    (own / "text.onnx.data").write_bytes(b"")
    settings = ServerSettings(web_models=(own,))
    with pytest.raises(ChangedBundleError):
        open_services(bundle, None, settings)


def test_a_bundle_that_is_made_again_at_the_start_is_offered_as_it_is_then(
    running_server, own, bundle
):
    (own / "text.onnx.data").write_bytes(b"")  # as a file of the user's cache may be damaged
    damaged = dataclasses.replace(read(own), renew=lambda: read(bundle))
    server = running_server(encoder=Encoder(damaged, "onnxruntime", threads=1))
    [model] = httpx.get(f"{server.url}/models.json").json()["models"]
    for file in model["variants"][0]["text"]["files"]:
        assert len(httpx.get(f"{server.url}/{file['url']}").content) == file["bytes"]


def test_presets_come_after_the_start(running_server, encoder):
    server = running_server()
    for _ in range(200):
        model = httpx.get(f"{server.url}/models.json").json()["models"][0]
        if model["presets"] is not None:
            break
        time.sleep(0.05)
    raw = httpx.get(f"{server.url}/{model['presets']['url']}").json()
    assert raw["prompts"] == list(preset_prompts())
    assert "A photo of stapler" in raw["prompts"]
    assert "A person waving" in raw["prompts"]
    rows = np.frombuffer(base64.b64decode(raw["embeddings"]), "<f4").reshape(-1, raw["embed_dim"])
    np.testing.assert_allclose(rows, encoder.encode_text(raw["prompts"]), atol=1e-6)


def test_a_reload_offers_other_addresses(running_server, exported, own):
    encoder = load(own, backend="onnxruntime", threads=1)
    server = running_server(encoder=encoder, source=model_source(own, None))

    def tokenizer():
        models = httpx.get(f"{server.url}/models.json").json()["models"]
        return models[0]["variants"][0]["tokenizer"]["url"]

    before = tokenizer()
    shutil.rmtree(own)
    shutil.copytree(exported("teacher-a", precision="fp16"), own)
    assert read(own).space_id == encoder.space_id
    server.running.reload()
    for _ in range(200):
        if tokenizer() != before:
            break
        time.sleep(0.05)
    assert httpx.get(f"{server.url}/{before}").status_code == 404
    assert httpx.get(f"{server.url}/{tokenizer()}").status_code == 200
    assert json.loads(httpx.get(f"{server.url}/models.json").text)["models"][0]["presets"]
