"""The routes about the server itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("fastapi")

from pocketclip._version import __version__
from pocketclip.label_set import LabelSet, NoneOfThese
from pocketclip.search.library import Library
from tests.search.conftest import draw_photo


def test_info_is_of_the_model_that_answers(client, encoder):
    about = client.get("/info").json()
    assert about["model"] == encoder.config.name
    assert about["space_id"] == encoder.space_id
    assert about["embed_dim"] == encoder.embed_dim
    assert about["image_size"] == encoder.config.image_size
    assert about["context_length"] == encoder.config.text.context_length
    assert about["logit_scale"] == pytest.approx(encoder.logit_scale)
    assert (about["backend"], about["precision"]) == ("onnxruntime", "fp32")
    assert about["variant"] == encoder.variant
    assert about["version"] == __version__
    assert about["license"] == {"name": None, "repository": None, "url": None, "restricted": False}
    assert (about["library"], about["label_sets"]) == (None, [])
    assert about["protocols"] == ["openai", "hugging face", "classify"]


def test_info_names_the_licence_of_converted_weights(make_client, encoder, monkeypatch):
    monkeypatch.setattr(
        "pocketclip.checkpoint.weight_license.get_endpoint", lambda: "https://hub.example"
    )
    source = {"repo": "apple/MobileCLIP2-S0", "license": "apple-amlr"}
    changed = dataclasses.replace(encoder.bundle, source=source)
    monkeypatch.setattr(encoder, "bundle", changed)
    assert make_client().get("/info").json()["license"] == {
        "name": "apple-amlr", "repository": "apple/MobileCLIP2-S0",
        "url": "https://hub.example/apple/MobileCLIP2-S0", "restricted": True,
    }  # fmt: skip


def test_info_lists_what_is_offered_and_no_path(make_client, encoder, tmp_path):
    fruit = LabelSet(
        labels=["apple", "fig"], weights=np.ones((2, encoder.embed_dim), np.float32),
        biases=np.zeros(2, np.float32), space_id=encoder.space_id, model="m",
        none=NoneOfThese(score="logit", below=0.0, error=0.05),
    )  # fmt: skip
    for seed in range(3):
        draw_photo(tmp_path / "photos" / f"{seed}.jpg", seed)
    with Library.open(tmp_path / "holiday.sqlite", create=True) as library:
        library.index([tmp_path / "photos"], encoder=encoder)
        client = make_client(
            library=library, label_sets={"fruit": fruit}, immich=("127.0.0.1", 3003)
        )
        answer = client.get("/info")
    about = answer.json()
    assert about["library"] == {"name": "holiday", "photos": 3}
    assert about["label_sets"] == [{"name": "fruit", "label_count": 2, "can_be_none": True}]
    assert about["protocols"][-3:] == ["search", "clip-retrieval", "immich"]
    assert about["limits"] == {
        "body_bytes": 32 << 20, "texts": 2048, "text_characters": 122_880, "images": 64,
        "image_bytes": 20 << 20, "image_pixels": 100_000_000, "deadline": 60.0,
    }  # fmt: skip
    assert str(tmp_path) not in answer.text
    assert str(encoder.bundle.folder) not in answer.text


def test_ready_is_not_live(make_client):
    client = make_client(is_ready=False)
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 503
    client.services.is_ready = True
    assert client.get("/readyz").json() == {"status": "ok"}
    client.services.is_draining = True
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").json() == {"status": "unavailable"}


def test_metrics_count_the_requests_before(make_client):
    client = make_client()
    client.get("/livez")
    client.get("/no such path/of the user")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    route = 'method="GET",port="main",route='
    assert f'pocketclip_requests_total{{{route}"/livez",status="200"}} 1.0' in answer.text
    assert f'pocketclip_requests_total{{{route}"other",status="404"}} 1.0' in answer.text
    assert "of the user" not in answer.text


def test_there_are_no_pages_that_load_scripts_from_elsewhere(client):
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
