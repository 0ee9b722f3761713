"""clip-retrieval's service over a library, with its own client."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import shutil

import httpx
import pytest

from pocketclip.search.library import Library
from tests.search.conftest import draw_photo
from tests.serve.libraries import HOSTILE, ids_of


@pytest.fixture
def client(make_client, library):
    return make_client(library=library)


@pytest.fixture(scope="module")
def clip_client():
    """The client's module, loaded alone: its package imports faiss, pandas and more."""
    pytest.importorskip("requests")
    try:
        package = importlib.metadata.distribution("clip-retrieval")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-retrieval is not installed")
    file = package.locate_file("clip_retrieval/clip_client.py")
    spec = importlib.util.spec_from_file_location("clip_client", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_real_client(running_server, library, folder, clip_client, encoder, tmp_path):
    server = running_server(library=library)
    asked = clip_client.ClipClient(
        url=f"{server.url}/knn-service", indice_name="photos", num_images=4
    )
    found, expected = asked.query(text="a circle"), library.search("a circle", top=4).hits
    assert [one["id"] for one in found] == [hit.content for hit in expected]
    assert [one["similarity"] for one in found] == pytest.approx(
        [hit.score for hit in expected], abs=1e-6
    )
    names = [str(hit.path.relative_to(folder / "Pictures")) for hit in expected]
    assert [one["caption"] for one in found] == names
    for one, hit in zip(found, expected, strict=True):
        assert one["url"] == f"{server.url}/photos/{hit.content}"
        assert httpx.get(one["url"]).content == hit.path.read_bytes()
        assert httpx.get(one["thumbnail"]).headers["content-type"] == "image/jpeg"
    image = draw_photo(tmp_path / "query.jpg", 100)
    by_image = asked.query(image=str(image))
    expected = library.search(image=image, top=4).hits
    assert [one["id"] for one in by_image] == [hit.content for hit in expected]
    row = encoder.encode_image(image)[0]
    assert asked.query(embedding_input=row.tolist()) == by_image
    assert asked.query(embedding_input=(3 * row).tolist())[0]["id"] == by_image[0]["id"]
    refused = asked.query(image="https://example.org/a.jpg")
    assert "fetches no images" in refused["error"]["message"]
    assert httpx.get(f"{server.url}/indices-list").json() == ["photos"]


def test_results_beyond_the_images_are_ids(client, library):
    body = {"text": "a circle", "num_images": 2, "num_result_ids": 5, "indice_name": None}
    found = client.post("/knn-service", content=json.dumps(body)).json()
    assert [set(one) for one in found] == [
        {"id", "similarity", "url", "thumbnail", "caption"}
    ] * 2 + [{"id", "similarity"}] * 3  # fmt: skip
    assert [one["id"] for one in found] == [
        hit.content for hit in library.search("a circle", top=5).hits
    ]
    many = client.post("/knn-service", json={"text": "a circle", "num_images": 1 << 31}).json()
    assert len(many) == 6
    by_id = {one["id"]: one["caption"] for one in many}
    assert by_id[ids_of(library)[HOSTILE]] == HOSTILE


def test_near_duplicates(make_client, encoder, tmp_path):
    root = tmp_path / "Pictures"
    big = draw_photo(root / "big.jpg", 1, size=(400, 300))
    shutil.copy2(big, root / "copy.jpg")
    draw_photo(root / "small.jpg", 1, size=(200, 150), quality=60)
    draw_photo(root / "other.jpg", 5)
    with Library.open(tmp_path / "l.sqlite", create=True) as library:
        library.index([root], encoder=encoder)
        client = make_client(library=library)

        def scores(**more):
            body = {"text": "a circle", "num_images": 10, **more}
            return [one["similarity"] for one in client.post("/knn-service", json=body).json()]

        every = scores()
        assert len(every) == 3
        assert every == sorted(every, reverse=True)
        assert scores(num_images=2) == every[:2]
        unlike = scores(deduplicate=True)
        assert len(unlike) == 2
        assert set(unlike) <= set(every)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400), ({"text": ""}, 400), ({"text": " "}, 400), ({"text": "a", "num_images": 0}, 422),
        ({"text": "a", "indice_name": "laion"}, 404), ({"text": "a", "modality": "text"}, 400),
        ({"text": "a", "use_mclip": True}, 400), ({"text": ["a"]}, 422), ([], 422),
        ({"image": "/etc/passwd"}, 400), ({"image_url": "http://169.254.169.254/"}, 400),
        ({"image": base64.b64encode(b"no image").decode()}, 400), ({"embedding_input": []}, 400),
        ({"embedding_input": [0.0] * 64}, 400), ({"embedding_input": [1.0] * 3}, 400),
        ({"embedding_input": ["x"]}, 422), ({"embedding_input": [10**400] * 64}, 400),
        ({"embedding_input": [1e300] * 64}, 200),
    ],
)  # fmt: skip
def test_what_is_refused(client, folder, encoder, body, status):
    if isinstance(body, dict) and len(body.get("embedding_input", ())) == 64:
        body = {"embedding_input": body["embedding_input"][:1] * encoder.embed_dim}
    answer = client.post("/knn-service", content=json.dumps(body))
    assert answer.status_code == status, answer.text
    for word in ("passwd", "laion", "169.254", str(folder)):
        assert word not in answer.text


def test_a_text_is_literal(client, library):
    """The client knows no grammar: no sign, weight or path means anything."""
    for text in ("./a.jpg", "- a circle", "2:a"):
        answer = client.post("/knn-service", json={"text": text, "num_images": 3})
        expected = library.search(text, literal=True, top=3).hits
        assert [one["id"] for one in answer.json()] == [hit.content for hit in expected]


def test_without_a_library(make_client):
    client = make_client()
    for answer in (client.post("/knn-service", json={"text": "a"}), client.get("/indices-list")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_library")
