"""Classification, ours and Hugging Face's: equal to the library's, by its own client."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder, load
from pocketclip.label_set import LabelSet, NoneOfThese
from tests.search.conftest import draw_photo
from tests.serve.conftest import Client, Server

LABELS = ["a red circle", "ein Hühnchen", "{}", "noise"]
TEMPLATES = ["a photo of {}.", "{c}, drawn"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [draw_photo(folder / f"{seed}.jpg", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def photos(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def label_set(encoder: Encoder, photos: list[bytes]) -> LabelSet:
    """Labels at random; one of the three photographs is none of them."""
    weights = np.random.default_rng(0).standard_normal((3, encoder.embed_dim)).astype(np.float32)
    labels = LabelSet(
        labels=("apple", "pear", "plum"), weights=weights, biases=np.zeros(3, np.float32),
        space_id=encoder.space_id, model="tiny", temperature=0.7,
    )  # fmt: skip
    best = np.sort(labels.probabilities(encoder.encode_image(photos)).max(axis=1))
    return dataclasses.replace(
        labels, none=NoneOfThese(score="probability", below=float(best[:2].mean()), error=0.05)
    )


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def classified(client: Client, **request: Any) -> list[Any]:
    answer = client.post("/classify", **request)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["space_id"]) == (
        client.services.engine.encoder.config.name, client.services.engine.encoder.space_id,
    )  # fmt: skip
    return list(body["results"])


def refused(client: Client, status: int, url: str = "/classify", **request: Any) -> str:
    answer = client.post(url, **request)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def probabilities(result: Any) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in result["labels"]}


def same_order(answer: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether both have the same labels with the same probabilities, in the same order."""
    return list(answer) == list(expected) and np.allclose(
        list(answer.values()), list(expected.values()), atol=1e-6
    )


def test_hugging_face_client(
    server: Server, encoder: Encoder, paths: list[Path], photos: list[bytes]
) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=f"{server.url}/hf/zero-shot", token="any")
    for template, used in ((None, "This is a photo of {}."), ("{} or not", "{} or not")):
        for image in (photos[0], paths[0], str(paths[0])):
            answer = client.zero_shot_image_classification(
                image, LABELS, hypothesis_template=template
            )
            [expected] = encoder.classify(photos[0], LABELS, used)
            assert same_order({one.label: one.score for one in answer}, expected)
    with pytest.raises(HfHubHTTPError, match=r"candidate_labels\[1\] is the same as"):
        client.zero_shot_image_classification(photos[0], ["a", "a"])
    with pytest.raises(HfHubHTTPError, match=r"has no \{\}"):
        client.zero_shot_image_classification(photos[0], LABELS, hypothesis_template="a photo")


def test_json_and_forms_answer_as_the_library(
    client: Client, encoder: Encoder, photos: list[bytes]
) -> None:
    plain = encoder.classify(photos, LABELS)
    prompted = encoder.classify(photos, LABELS, TEMPLATES)
    sent = [text(photos[0]), f"data:image/jpeg;base64,{text(photos[1])}", text(photos[2])]
    files = [("image", (f"{n}.jpg", data)) for n, data in enumerate(photos)]
    one = encoder.classify(photos[0], LABELS)
    for request, expected in [
        ({"json": {"images": sent, "labels": LABELS}}, plain),
        ({"json": {"images": sent, "labels": LABELS, "templates": TEMPLATES}}, prompted),
        ({"json": {"image": sent[0], "labels": LABELS, "templates": "{}"}}, one),
        ({"files": files, "data": {"labels": LABELS}}, plain),
        (
            {"files": files, "data": {"labels": json.dumps(LABELS), "templates": TEMPLATES}},
            prompted,
        ),
    ]:  # fmt: skip
        results = classified(client, **request)
        assert len(results) == len(expected)
        for result, row in zip(results, expected, strict=True):
            assert same_order(probabilities(result), row)
            assert result["is_none"] is None
    classifier = encoder.classifier(LABELS, TEMPLATES)
    cosines = encoder.encode_image(photos[:1]) @ classifier.T
    [result] = classified(
        client, json={"image": sent[0], "labels": LABELS, "templates": TEMPLATES, "top": 2}
    )
    assert same_order(probabilities(result), dict(list(prompted[0].items())[:2]))
    for one_label in result["labels"]:
        assert one_label["cosine"] == pytest.approx(
            cosines[0, LABELS.index(one_label["label"])], abs=1e-6
        )


def test_label_sets_answer_as_the_library(
    make_client: Callable[..., Client], encoder: Encoder, photos: list[bytes], label_set: LabelSet
) -> None:
    client = make_client(label_sets={"fruit": label_set})
    rows = encoder.encode_image(photos)
    expected, none = label_set.rank(rows), label_set.is_none(rows).tolist()
    assert sorted(none) == [False, False, True]
    for request in (
        {"json": {"images": [text(photo) for photo in photos], "label_set": "fruit"}},
        {"files": [("image", photo) for photo in photos], "data": {"label_set": "fruit"}},
    ):
        results = classified(client, **request)
        assert [probabilities(result) for result in results] == expected
        assert [result["is_none"] for result in results] == none
        assert all(one["cosine"] is None for result in results for one in result["labels"])
    [about] = client.get("/label-sets").json()["label_sets"]
    assert about == {
        "name": "fruit", "labels": ["apple", "pear", "plum"], "can_be_none": True,
        "digest": label_set.digest,
    }  # fmt: skip
    assert "GET /label-sets" in refused(
        client, 404, json={"image": text(photos[0]), "label_set": "vegetables"}
    )
    assert "leave out" in refused(
        client, 400, json={"image": text(photos[0]), "label_set": "fruit", "labels": LABELS}
    )


def test_faults_are_named(client: Client, photos: list[bytes]) -> None:
    image = text(photos[0])
    two = ["a", "b"]
    for status, about, body in [
        (400, "either image or images", {"labels": two}),
        (400, "either image or images", {"labels": two, "image": image, "images": [image]}),
        (400, "images is an empty list", {"labels": two, "images": []}),
        (400, "either labels or label_set", {"image": image}),
        (400, "at least one text", {"image": image, "labels": []}),
        (400, r"labels[1] is not a text, or empty", {"image": image, "labels": ["a", " "]}),
        (400, "labels[2] is the same as labels[0]", {"image": image, "labels": [*two, "a"]}),
        (400, "templates[0] has no {}", {"image": image, "labels": two, "templates": ["photo"]}),
        (400, "more than 2,048 texts", {"image": image, "labels": [str(n) for n in range(1025)],
                                        "templates": ["{}", "a {}"]}),
        (400, "makes prompts of more than", {"image": image, "labels": ["x" * 1000],
                                             "templates": ["{}" * 1000]}),
        (400, "all prompts together", {"image": image, "labels": [str(n) for n in range(400)],
                                       "templates": ["x" * 100_000 + "{}"]}),
        (400, "images[1] is not base64", {"images": [image, "?"], "labels": two}),
        (422, "labels", {"image": image, "labels": "a,b"}),
        (422, "label", {"image": image, "label": two}),
        (422, "top", {"image": image, "labels": two, "top": 0}),
        (422, "dictionary", [1]),
    ]:  # fmt: skip
        message = refused(client, status, json=body)
        assert about in message, message
        assert image[:40] not in message
    file = {"image": photos[0]}
    for status, about, request in [
        (400, "no part with the name image", {"files": {"photo": b"x"}}),
        (400, "unknown name", {"files": {**file, "label": b"x"}}),
        (400, "one part per label", {"files": file, "data": {"labels": "a cat,a dog"}}),
        (400, "labels is not JSON", {"files": file, "data": {"labels": "[a, b"}}),
        (422, "labels[1]", {"files": file, "data": {"labels": '["a", 2]'}}),
        (422, "top", {"files": file, "data": {"labels": two, "top": "many"}}),
        (400, "given 2 times", {"files": file, "data": {"labels": two, "top": ["1", "2"]}}),
        (415, "multipart/form-data", {"content": b"x", "headers": {"content-type": "image/png"}}),
        (400, "not JSON", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ]:
        assert about in refused(client, status, **request)


def test_an_answer_is_bounded(
    make_client: Callable[..., Client], encoder: Encoder, photos: list[bytes]
) -> None:
    count = 3000
    labels = LabelSet(
        labels=tuple(map(str, range(count))),
        weights=np.zeros((count, encoder.embed_dim), np.float32),
        biases=np.arange(count, dtype=np.float32), space_id=encoder.space_id, model="tiny",
    )  # fmt: skip
    client = make_client(label_sets={"many": labels})
    body = {"images": [text(photos[0])] * 50, "label_set": "many"}
    assert "by `top`" in refused(client, 400, json=body)
    results = classified(client, json={**body, "top": 2})
    assert [list(probabilities(one)) for one in results] == [["2999", "2998"]] * 50


def test_another_model_in_between_does_not_mix_spaces(
    make_client: Callable[..., Client], encoder: Encoder, other_bundle: Path, photos: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = make_client()
    engine, other = client.services.engine, load(other_bundle, threads=1)
    real = engine.embed_texts

    async def late(texts: Any, **options: Any) -> Any:
        await engine.replace(other)
        return await real(texts, **options)

    monkeypatch.setattr(engine, "embed_texts", late)
    answer = client.post("/classify", json={"image": text(photos[0]), "labels": LABELS})
    assert engine.encoder is other
    assert answer.json()["space_id"] == encoder.space_id != other.space_id
    [expected] = encoder.classify(photos[0], LABELS)
    assert same_order(probabilities(answer.json()["results"][0]), expected)
