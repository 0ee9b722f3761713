"""A library as a whole over HTTP: its state, all its photographs, their facts, its duplicates."""

from __future__ import annotations

import threading
import time

import pytest

from pocketclip.search.indexing.activity import read_activity, recorded
from pocketclip.search.library import Library
from pocketclip.search.records import IndexReport
from pocketclip.search.similar import DuplicateLimits
from pocketclip.serve.photos import duplicate_jobs
from tests.search.conftest import draw_photo
from tests.serve.libraries import HOSTILE, NAMES, make_library


@pytest.fixture
def client(make_client, library):
    return make_client(library=library)


@pytest.fixture
def ask(client, folder):
    """Ask, and return the answer, which must not name a folder of this machine."""

    def run(path, status=200, /, **body):
        answer = client.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert str(folder) not in answer.text
        return answer.json()

    return run


@pytest.fixture
def own_library(tmp_path, encoder):
    """A library that the test may change."""
    with make_library(tmp_path, encoder) as opened:
        yield opened


def scores_of(answer):
    """The scores of the hits by their ids, which are in the same order."""
    return {hit["id"]: hit["score"] for hit in answer["hits"]}


def test_all_photographs_the_newest_first(ask, ids):
    # The files' times ascend by a second in the order of their names' list.
    expected = [ids[name] for name in reversed(NAMES)]
    assert ask("/browse") == {"ids": expected, "total": 6}
    inside = ask("/browse", filters={"in": ["trip"]})
    assert inside["ids"] == [ids[HOSTILE], ids["trip/e.jpg"]]
    assert ask("/browse", filters={"since": "2030"}) == {"ids": [], "total": 0}
    assert "secret" not in str(ask("/browse", 400, filters={"since": "secret"}))
    assert ask("/browse", 422, filters={"nothing": 1})


def test_the_order_is_by_the_camera_s_clock_and_follows_the_library(
    make_client, own_library, tmp_path, encoder
):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0132] = exif.get_ifd(0x8769)[0x9003] = "2025:01:02 03:04:05"
    client = make_client(library=own_library)
    before = client.post("/browse", json={}).json()["ids"]
    draw_photo(tmp_path / "Pictures" / "new.jpg", 7, exif=exif)
    (tmp_path / "Pictures" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    (tmp_path / "Pictures" / "a.jpg").unlink()
    own_library.index(encoder=encoder)
    after = client.post("/browse", json={}).json()["ids"]
    assert after[1:] == before[:-1]
    [photo] = client.post("/photo-facts", json={"ids": after[:1]}).json()["photos"]
    assert (photo["name"], photo["time"]) == ("new.jpg", "2025-01-02T03:04:05")
    unreadable = client.get("/library/unreadable").json()
    assert unreadable["total"] == 1
    [file] = unreadable["files"]
    assert (file["root"], file["name"]) == ("Pictures", "broken.jpg")
    assert file["reason"]
    assert str(tmp_path) not in str(unreadable)


def test_facts_of_photographs_by_their_ids(ask, ids):
    asked = [ids["c.png"], 999_999, ids[HOSTILE], ids["c.png"]]
    first, second = ask("/photo-facts", ids=asked)["photos"]
    assert (first["id"], first["name"], first["root"]) == (ids["c.png"], "c.png", "Pictures")
    assert (first["width"], first["height"], first["format"]) == (96, 72, "PNG")
    assert (first["copies"], first["other_files"], first["changed"]) == (0, [], False)
    assert second["name"] == HOSTILE
    assert ask("/photo-facts", 422, ids=[])
    assert ask("/photo-facts", 422, ids=[1] * 201)
    assert ask("/photo-facts", 422, ids=[True])


def test_a_search_goes_on_after_its_hits(ask, library):
    whole = ask("/search", query="a circle", top=6)
    cut = ask("/search", query="a circle", top=2, following=10)
    assert whole["following"] == []
    assert [one["id"] for one in cut["hits"] + cut["following"]] == [
        hit["id"] for hit in whole["hits"]
    ]
    assert [one["score"] for one in cut["following"]] == pytest.approx(
        [hit["score"] for hit in whole["hits"][2:]]
    )
    assert len(ask("/search", query="a circle", top=2, following=3)["following"]) == 3
    least = whole["hits"][3]["score"]
    limited = ask("/search", query="a circle", top=1, following=10, min_score=least)
    assert len(limited["following"]) == 3
    assert ask("/search", 422, query="a", following=100_001)
    result = library.search("a circle", top=1, following=5)
    assert [content for content, _ in result.following] == [hit["id"] for hit in whole["hits"][1:]]


def test_what_follows_the_photographs_that_are_looked_through_for_groups(ask, monkeypatch):
    from pocketclip.search import ranking

    whole = ask("/search", query="a circle", top=6)["hits"]
    monkeypatch.setattr(ranking, "_MOST_GROUPED", 2)
    monkeypatch.setattr(ranking, "_LEAST", 1)
    monkeypatch.setattr(ranking, "_SPARE", 1)
    monkeypatch.setattr(ranking, "_MOST", 1)
    cut = ask("/search", query="a circle", top=1, following=10)
    assert [one["id"] for one in cut["hits"] + cut["following"]] == [hit["id"] for hit in whole]


def test_an_image_is_embedded_once_and_searched_for_again(client, ask, library, tmp_path):
    import base64

    data = draw_photo(tmp_path / "query.jpg", 101).read_bytes()
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    body = {"input": uri, "modality": "image"}
    vector = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    space = library.encoder().space_id
    given = ask("/search", vectors=[{"vector": vector}], space_id=space)
    assert scores_of(given) == pytest.approx(scores_of(ask("/search", image=uri)))
    mixed = ask(
        "/search", query="a circle", vectors=[{"vector": vector, "weight": -1}], space_id=space
    )
    sent = ask("/search", query="a circle", images=[{"image": uri, "weight": -1}])
    assert scores_of(mixed) == pytest.approx(scores_of(sent))
    assert ask("/search", 400, vectors=[{"vector": vector}])["error"]["param"] == "space_id"
    other = ask("/search", 409, vectors=[{"vector": vector}], space_id="space-of-another")
    assert other["error"]["code"] == "other_space"
    assert ask("/search", 400, vectors=[{"vector": [1.0]}], space_id=space)


def test_the_state_of_the_library(client, library, folder):
    found = client.get("/library").json()
    assert (found["name"], found["files"], found["photos"], found["encoded"]) == ("photos", 6, 6, 6)
    assert (found["unencoded"], found["unreadable"]) == (0, 0)
    assert found["roots"] == [{"name": "Pictures", "files": 6, "away": False}]
    assert found["space_id"] == library.encoder().space_id
    run = found["run"]
    assert (run["outcome"], run["encoded"], run["failed"]) == ("done", 6, 0)
    assert str(folder) not in str(found)
    choices = client.get("/library/choices").json()
    assert choices["folders"] == [{"name": "Pictures", "files": 6}, {"name": "trip", "files": 2}]
    assert (choices["cameras"], choices["years"], choices["more_folders"]) == ([], [], 0)


def test_the_run_of_another_process_is_seen(make_client, own_library):
    client = make_client(library=own_library)
    location, report = own_library.location, IndexReport(encoded=5)

    def run_of():
        return client.get("/library").json()["run"]

    with recorded(location, duplicate_jobs.ProgressReporter(), report) as reporter:
        reporter.stage("reading 40 files")
        assert (run_of()["outcome"], run_of()["stage"]) == ("running", "reading 40 files")
        time.sleep(1.1)
        reporter.progress(10, 40)
        found = run_of()
        assert (found["done"], found["total"], found["encoded"]) == (10, 40, 5)
        assert found["rate"] == pytest.approx(9, abs=5)
        assert found["seconds_left"] == pytest.approx(30 / found["rate"])
        kept = location.progress.read_bytes()
    assert run_of()["outcome"] == "done"
    report.interrupted = True
    with recorded(location, reporter, report):
        pass
    assert run_of()["outcome"] == "interrupted"
    with pytest.raises(ValueError, match="a bug"), recorded(location, reporter, report):
        raise ValueError("a bug")
    assert run_of()["outcome"] == "failed"
    location.progress.write_bytes(kept)  # as a killed run leaves it
    assert run_of()["outcome"] == "killed"
    for damaged in (b"", b"nothing", b'{"outcome": "done"}', b'{"a": 1}'):
        location.progress.write_bytes(damaged)
        assert read_activity(location) is None
    location.progress.unlink()
    assert run_of() is None


def test_duplicates_are_listed_in_pages(make_client, own_library, tmp_path, encoder):
    pictures = tmp_path / "Pictures"
    for seed in (0, 1, 2):
        for copy in range(2):
            draw_photo(pictures / f"copies/{seed}-{copy}.jpg", seed)
    draw_photo(pictures / "larger.jpg", 3, size=(192, 144), quality=95)
    own_library.index(encoder=encoder)
    client = make_client(library=own_library)

    def ask(status=200, **body):
        answer = client.post("/duplicates", json=body)
        assert answer.status_code == status, answer.text
        assert str(tmp_path) not in answer.text
        return answer.json()

    found = ask()
    while found["state"] == "running":
        found = ask(report=found["report"])
    expected = own_library.duplicates()
    counts = {kind: len(expected.of_kind(kind)) for kind in ("exact", "near", "burst")}
    assert found["counts"] == counts
    assert counts["exact"] >= 3
    assert not found["outdated"]
    assert [one["total"] for one in found["groups"]] == [
        len(group.photographs) for group in expected.of_kind("exact")
    ]
    shown = found["groups"][0]
    assert shown["room"] == expected.of_kind("exact")[0].room
    assert shown["photos"][0]["root"] == "Pictures"
    page = ask(report=found["report"], offset=1, top=1)
    assert page["groups"] == found["groups"][1:2]
    assert ask(report=found["report"], offset=50)["groups"] == []
    near = ask(report=found["report"], kind="near")
    assert {one["kind"] for one in near["groups"]} <= {"near"}
    (pictures / "copies/0-0.jpg").unlink()
    own_library.index(encoder=encoder)
    assert ask(report=found["report"])["outdated"]
    again = ask(again=True)
    assert again["report"] != found["report"]
    assert ask(410, report="nothing")["error"]["code"] == "unknown_report"
    assert ask(422, kind="other")
    assert ask(422, limits={"near_distance": 64})


def test_a_search_for_duplicates_that_nobody_asks_about_is_given_up(library, monkeypatch, on_loop):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*, limits, reporter):
        assert limits == DuplicateLimits()
        begun.set()
        assert go_on.wait(30)
        reporter.progress(1, 2)
        raise AssertionError("it goes on")

    monkeypatch.setattr(library, "duplicates", slow)
    jobs = duplicate_jobs.DuplicateJobs(library)
    try:
        job = jobs.ask(DuplicateLimits())
        assert jobs.ask(DuplicateLimits()) is job
        assert begun.wait(30)
        on_loop(job.wait(0.01))
        assert job.report is None
        monkeypatch.setattr(duplicate_jobs, "_FORGOTTEN_SECONDS", 0.0)
        go_on.set()
        with pytest.raises(duplicate_jobs._GivenUpError):
            on_loop(job.wait(30))
        assert jobs.find(job.id) is None
        assert jobs.ask(DuplicateLimits()) is not job
    finally:
        jobs.close()


def test_without_a_library_there_is_nothing_to_browse(make_client):
    client = make_client()
    for path in ("/library", "/library/unreadable", "/library/choices"):
        assert client.get(path).json()["error"]["code"] == "no_library"
    for path in ("/browse", "/duplicates"):
        assert client.post(path, json={}).json()["error"]["code"] == "no_library"
    assert client.post("/photo-facts", json={"ids": [1]}).status_code == 404


def test_an_empty_library_is_browsed(make_client, tmp_path, encoder):
    (tmp_path / "empty").mkdir()
    with Library.open(tmp_path / "library" / "photos.sqlite", create=True) as library:
        library.index([tmp_path / "empty"], encoder=encoder)
        client = make_client(library=library)
        assert client.post("/browse", json={}).json() == {"ids": [], "total": 0}
        found = client.get("/library").json()
        assert (found["files"], found["roots"][0]["away"]) == (0, True)
        assert client.post("/duplicates", json={}).json()["counts"] == {
            "exact": 0, "near": 0, "burst": 0
        }  # fmt: skip
