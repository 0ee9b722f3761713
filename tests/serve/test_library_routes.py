"""Search over HTTP: the library's own answers, and nothing of the machine's files."""

from __future__ import annotations

import base64
import json
import os
import shutil

import pytest

from pocketclip.search.background import NEUTRAL_TEXTS
from pocketclip.search.filters import Filters
from pocketclip.search.library import Library
from pocketclip.serve.photos import photo_library
from tests.search.conftest import draw_photo
from tests.serve.libraries import HOSTILE, make_library


@pytest.fixture
def client(make_client, library):
    return make_client(library=library)


@pytest.fixture
def ask(client, folder):
    """Search, and return the answer, which must not name a folder of this machine."""

    def run(status=200, /, **body):
        answer = client.post("/search", json=body)
        assert answer.status_code == status, answer.text
        assert str(folder) not in answer.text
        return answer.json()

    return run


def jpeg(seed, tmp_path):
    return draw_photo(tmp_path / f"query-{seed}.jpg", 100 + seed).read_bytes()


def assert_same(answer, result):
    """The answer is the library's result, to the bit."""
    assert [hit["id"] for hit in answer["hits"]] == [hit.content for hit in result.hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
        [hit.score for hit in result.hits], abs=1e-6
    )
    for name in ("fits", "reason", "searched", "gone", "unencoded"):
        assert answer[name] == getattr(result, name)
    assert answer["lead"] == (None if result.lead is None else pytest.approx(result.lead, abs=1e-3))


def test_the_answer_is_that_of_the_library(ask, library, tmp_path, ids):
    first, second = jpeg(1, tmp_path), jpeg(2, tmp_path)
    text = base64.b64encode(second).decode()
    uri = f"data:image/jpeg;base64,{base64.b64encode(first).decode()}"
    assert_same(ask(query="a circle"), library.search("a circle"))
    query = '2:a circle + "rock + roll" - a square'
    assert_same(ask(query=query), library.search(query))
    assert_same(ask(query="- a", literal=True), library.search("- a", literal=True))
    assert_same(ask(image=uri), library.search(image=first))
    assert_same(
        ask(query="a circle", images=[uri, {"image": text, "weight": -1}]),
        library.search("a circle", image=first, unlike=[second]),
    )
    root = tmp_path / "none"
    assert not root.exists()
    near = library.search("a circle", top=1).hits[0]
    assert_same(
        ask(like=[near.content], unlike=[ids["c.png"]], top=3),
        library.search(
            like=[near.path], unlike=[near.path.with_name("c.png")]
            if near.path.parent.name == "Pictures" else [near.path.parent.with_name("c.png")],
            top=3,
        ),
    )  # fmt: skip
    asked = {"query": "a circle", "top": 2, "min_score": -0.5}
    assert_same(ask(**asked), library.search("a circle", top=2, min_score=-0.5))
    weighted = ask(texts=[{"text": "a circle", "weight": 2}, {"text": "a b", "weight": -0.5}])
    assert_same(weighted, library.search("2:a circle - 0.5:a b"))


def test_filters(ask, library, folder):
    inside = ask(query="a circle", filters={"in": ["trip"]})
    assert_same(
        inside, library.search("a circle", filters=Filters(folders=folder / "Pictures/trip"))
    )
    assert len(inside["hits"]) == 2
    assert len(ask(query="a circle", filters={"in": ["Pictures"]})["hits"]) == 6
    none = ask(query="a circle", filters={"since": "2030"})
    assert (none["hits"], none["searched"]) == ([], 0)
    assert none["removed"]["since"] == 6
    messages = set()
    for name in (
        str(folder), str(folder / "Pictures" / "trip"), "/", "..", "../Pictures", "~", "nothing",
        "trip/../..", "/etc", "/nothing/of/this",
    ):  # fmt: skip
        messages.add(ask(400, query="a circle", filters={"in": [name]})["error"]["message"])
    assert len(messages) == 1
    for filters in ({"since": "secret"}, {"since": "2025", "until": "2024"}, {"camera": " "}):
        assert "secret" not in str(ask(400, query="a", filters=filters))


def test_what_is_said_of_a_photograph(ask, ids, library):
    answer = ask(query="a circle", top=6)
    assert (answer["library"], answer["away"], answer["below_score"]) == ("photos", 0, False)
    assert answer["space_id"] == library.encoder().space_id
    hits = {hit["id"]: hit for hit in answer["hits"]}
    hit = hits[ids["a.jpg"]]
    assert (hit["name"], hit["root"]) == ("a.jpg", "Pictures")
    assert (hit["width"], hit["height"], hit["format"]) == (96, 72, "JPEG")
    assert (hit["time_from"], hit["changed"], hit["copies"]) == ("file", False, 0)
    assert hit["photo"] == f"/photos/{hit['id']}"
    assert hit["thumbnail"] == f"/thumbnails/{hit['id']}"
    hostile = hits[ids[HOSTILE]]
    assert hostile["name"] == HOSTILE  # JSON restores it: the bytes are there as escapes


def test_a_hostile_name_is_escaped(client):
    answer = client.post("/search", json={"query": "a circle"})
    assert answer.headers["content-type"] == "application/json"
    for harmful in (b"\xff", "\u202e".encode(), b"\n"):
        assert harmful not in answer.content
    assert b"\\udcff" in answer.content


def test_copies_and_near_duplicates(make_client, encoder, tmp_path):
    root = tmp_path / "Pictures"
    big = draw_photo(root / "big.jpg", 1, size=(400, 300))
    shutil.copy2(big, root / "copy.jpg")
    draw_photo(root / "small.jpg", 1, size=(200, 150), quality=60)
    with Library.open(tmp_path / "l.sqlite", create=True) as library:
        library.index([root], encoder=encoder)
        answer = make_client(library=library).post("/search", json={"query": "a circle"}).json()
        [hit], [expected] = answer["hits"], library.search("a circle").hits
        assert (hit["id"], hit["copies"]) == (expected.content, len(expected.copies))
        assert hit["similar_photos"] == 1
        assert [one["id"] for one in hit["similar"]] == [expected.similar[0].content]


@pytest.mark.parametrize(
    "query", ["./a.jpg", "/etc/passwd", "~/secret.jpg", "a circle - ../secret.png", "secret.jpg"]
)
def test_a_query_never_names_a_file(ask, monkeypatch, query):
    opened, look_up = [], os.stat

    def stat(path, **options):
        opened.append(path)
        return look_up(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    message = ask(400, query=query)["error"]["message"]
    assert "files of this machine are not read" in message
    assert "literal" in message
    assert "secret" not in message
    assert "etc" not in message
    assert not [path for path in opened if "secret" in str(path) or "etc" in str(path)]
    assert ask(query=query, literal=True)["searched"] == 6
    assert ask(texts=[{"text": query}])["searched"] == 6


def test_a_photograph_that_is_not_encoded_yet(make_client, tmp_path, encoder):
    """While a library is rebuilt, its photographs are still known: 503, and not 404."""
    with make_library(tmp_path, encoder) as opened:
        with opened.database.reading() as connection:
            rows = connection.execute("SELECT id FROM contents ORDER BY id").fetchall()
        (first,), (second,), *_ = rows
        with opened.database.writing() as connection:
            connection.execute("UPDATE contents SET vector = NULL WHERE id = ?", (first,))
        client = make_client(library=opened)
        answer = client.post("/search", json={"like": [first]})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unencoded_photo"
        assert answer.headers["retry-after"]
        assert client.post("/search", json={"like": [second]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400), ({"query": ""}, 400), ({"query": " "}, 400), ({"query": "- a"}, 400),
        ({"query": "a + + b"}, 400), ({"unlike": [1]}, 400), ({"query": "a - a"}, 400),
        ({"query": "https://x/y.jpg"}, 400), ({"image": "https://x/y.jpg"}, 400),
        ({"image": "/etc/passwd"}, 400), ({"image": "file:///etc/passwd"}, 400),
        ({"image": base64.b64encode(b"no image").decode()}, 400), ({"image": ""}, 400),
        ({"like": [10**9]}, 404), ({"like": [0]}, 422), ({"like": [-1]}, 422),
        ({"like": [1 << 63]}, 422), ({"like": ["1"]}, 422), ({"like": [True]}, 422),
        ({"like": [1.5]}, 422), ({"query": "a", "top": 0}, 422), ({"query": "a", "top": 201}, 422),
        ({"query": "a", "top": True}, 422), ({"query": "a", "top": "3"}, 422),
        ({"query": "a", "min_score": 2}, 422), ({"query": 1}, 422), ({"query": "a", "x": 1}, 422),
        ({"query": "a", "filters": {"folders": ["/"]}}, 422), ({"texts": ["a"]}, 422),
        ({"texts": [{"text": "a", "weight": 0}]}, 400),
        ({"texts": [{"text": "a", "weight": 1e9}]}, 422), ({"texts": [{"text": " "}]}, 400),
        ({"texts": [{"text": "a"}] * 65}, 400), ({"query": " + ".join("a" * 65)}, 400),
        ({"query": "a" * 200_000}, 400), ([], 422),
    ],
)  # fmt: skip
def test_what_is_refused(client, folder, body, status):
    answer = client.post("/search", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    for word in ("passwd", str(folder), "--text"):
        assert word not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b'{"query": NaN}', b"\xff", b'"' + b"[" * 100_000])
def test_a_body_that_is_no_json(client, body):
    answer = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", None])
def test_a_body_that_does_not_say_that_it_is_json(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post("/search", content=b'{"query": "a"}', headers=headers)
    assert answer.status_code == 415


def test_multipart(client, library, tmp_path, ids):
    data = jpeg(1, tmp_path)
    answer = client.post(
        "/search",
        files=[("image", ("x.jpg", data)), ("image", ("y.jpg", jpeg(2, tmp_path)))],
        data={"query": "a circle", "top": "3", "like": [str(ids["a.jpg"])], "in": ["Pictures"]},
    )
    assert answer.status_code == 200, answer.text
    like = [data, jpeg(2, tmp_path)]
    near = [hit.path for hit in library.search("a").hits if hit.content == ids["a.jpg"]]
    assert_same(answer.json(), library.search("a circle", like=[*like, *near], top=3))
    plain = client.post("/search", files={"image": data}, data={"query": "", "min_score": "-1"})
    assert_same(plain.json(), library.search(image=data))
    for fields in ({"top": "x"}, {"like": "x"}, {"quary": "a"}, {"top": ["1", "2"]}):
        refused = client.post("/search", files={"image": data}, data=fields)
        assert refused.status_code in (400, 422)


def test_there_is_no_get_and_no_library(client, make_client):
    assert client.get("/search?q=secret").status_code == 405
    bare = make_client()
    for answer in (bare.post("/search", json={"query": "a"}), bare.get("/photos/1")):
        assert answer.status_code == 404
        assert "--library" in answer.json()["error"]["message"]


def test_a_search_runs_no_model_in_its_thread(make_client, library, encoder, monkeypatch, on_loop):
    """The engine does, also for the texts that a query is judged against."""
    client = make_client(library=library)
    asked = []
    embed = client.services.engine.embed_texts

    async def embed_texts(texts, **options):
        asked.append(list(texts))
        return await embed(texts, **options)

    class Other:
        """The encoder, which must not be used itself."""

        def __getattr__(self, name):
            assert name not in ("encode_text", "encode_image", "load")
            return getattr(encoder, name)

    monkeypatch.setattr(client.services.engine, "embed_texts", embed_texts)
    with library.database.writing(), library.database.transaction() as connection:
        connection.execute("DELETE FROM facts WHERE name = 'neutral_texts'")
    photos = client.services.photos
    monkeypatch.setattr(photos.library, "_encoder", None)
    monkeypatch.setattr(type(client.services.engine), "encoder", property(lambda _: Other()))
    on_loop(photos.prepare())
    assert asked == [list(NEUTRAL_TEXTS)]
    for query in ("a circle", "a square"):
        answer = client.post("/search", json={"query": query}).json()
        assert answer["lead"] is not None
    assert asked[1:] == [["a circle"], ["a square"]]
    monkeypatch.undo()
    assert_same(answer, library.search("a square"))


@pytest.fixture
def own(tmp_path, encoder):
    """A library that a test may harm."""
    with make_library(tmp_path, encoder) as opened:
        yield opened


def unavailable(client, tmp_path, caplog):
    caplog.clear()
    answer = client.post("/search", json={"query": "a circle"})
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text
    assert str(tmp_path) not in caplog.text
    return caplog.text


def test_a_library_that_another_model_takes_over(make_client, own, other_bundle, tmp_path, caplog):
    client = make_client(library=own)
    assert client.post("/search", json={"query": "a circle"}).status_code == 200
    with Library.open(own.location.file) as writer:
        writer.index(model=other_bundle, rebuild=True)
    assert "holds vectors of" in unavailable(client, tmp_path, caplog)


def test_a_library_that_is_gone_or_damaged(make_client, own, tmp_path, caplog):
    client = make_client(library=own)
    assert client.post("/search", json={"query": "a circle"}).status_code == 200
    moved = own.location.file.with_name("moved")
    own.location.file.rename(moved)
    assert "removed or replaced" in unavailable(client, tmp_path, caplog)
    for path in ("/photos/1", "/thumbnails/1"):
        assert client.get(path).status_code == 503
    moved.rename(own.location.file)
    assert client.post("/search", json={"query": "a circle"}).status_code == 200
    with own.database.writing(), own.database.transaction() as connection:
        connection.execute("UPDATE contents SET vector = x'0011' WHERE id = 1")
    unavailable(client, tmp_path, caplog)


def test_a_library_without_photographs(make_client, own, tmp_path, on_loop):
    own.forget(roots=[tmp_path / "Pictures"])
    client = make_client(library=own)
    on_loop(client.services.photos.prepare())
    answer = client.post("/search", json={"query": "a circle"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "empty_library")


def test_an_absent_drive(make_client, own, tmp_path):
    client = make_client(library=own)
    (tmp_path / "Pictures").rename(tmp_path / "elsewhere")
    answer = client.post("/search", json={"query": "a circle"}).json()
    assert (answer["hits"], answer["away"], answer["searched"]) == ([], 1, 0)


def test_too_many_searches_are_refused(make_client, library, monkeypatch):
    client = make_client(library=library)
    workers = client.services.photos._searches
    monkeypatch.setattr(workers, "_most", 0)
    answer = client.post("/search", json={"query": "a circle"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_the_document_describes_it(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert "$ref" not in json.dumps(body)
    fields = body["application/json"]["schema"]["properties"]
    assert fields["filters"]["properties"]["in"]
    assert photo_library.MAX_PARTS == 64
