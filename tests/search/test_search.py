"""What a search finds, in which order, and what it leaves out."""

from __future__ import annotations

import datetime
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import ImageError, LibraryError, QueryError
from pocketclip.search import Library, background
from pocketclip.search.filters import Filters
from pocketclip.search.query import Part
from pocketclip.search.searching import search
from tests.search.conftest import draw_photo
from tests.search.rows import add_content, add_file, add_root


def names(result, root):
    return [str(hit.path.relative_to(root)) for hit in result.hits]


@pytest.fixture
def indexed(library, photos, encoder):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 10:30:00"
    draw_photo(photos / "a.jpg", 0, exif=exif)
    library.index([photos], encoder=encoder)
    return library


def test_the_order_is_that_of_the_similarities(indexed, photos, encoder):
    files = ["a.jpg", "b.jpg", "c.png", "d.webp", "trip/e.jpg", "trip/f.jpg"]
    scores = encoder.encode_image([photos / f for f in files]) @ encoder.encode_text("a circle")[0]
    result = indexed.search("a circle")
    assert names(result, photos) == [files[i] for i in np.argsort(-scores)]
    found = [hit.score for hit in result.hits]
    assert found == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    assert result.searched == 6
    assert indexed.search("a circle") == result
    assert indexed.search("a circle", top=2).hits == result.hits[:2]


def test_a_photograph_finds_itself(indexed, photos):
    for query in (str(photos / "b.jpg"), None):
        result = indexed.search(query, image=None if query else photos / "b.jpg", top=1)
        assert names(result, photos) == ["b.jpg"]
        assert result.hits[0].score == pytest.approx(1, abs=2e-3)
        assert result.fits is None
    pixels = np.asarray(Image.open(photos / "c.png"))
    assert names(indexed.search(image=pixels, top=1), photos) == ["c.png"]
    away = indexed.search(like=[photos / "b.jpg"], unlike=[photos / "a.jpg"])
    assert names(away, photos)[-1] == "a.jpg"
    with pytest.raises(ImageError):
        indexed.search(image=photos / "nothing.jpg")
    with pytest.raises(QueryError):
        indexed.search()
    with pytest.raises(QueryError, match="top must be at least 1"):
        indexed.search("a", top=0)
    with pytest.raises(QueryError, match="not a number"):
        indexed.search("a", min_score=float("nan"))


def test_a_photograph_of_the_library_is_not_encoded(indexed, photos, encoder, monkeypatch):
    expected = indexed.search(like=[photos / "b.jpg"], unlike=[photos / "a.jpg"])
    encoded = []
    encode = encoder.encode_image
    monkeypatch.setattr(encoder, "encode_image", lambda one: encoded.append(one) or encode(one))
    shutil.copy(photos / "b.jpg", photos / "copy.jpg")
    found = indexed.search(like=[photos / "copy.jpg"], unlike=[str(photos / "a.jpg")])
    assert found.hits == expected.hits
    assert not encoded
    indexed.search(image=draw_photo(photos / "new.jpg", 70))
    assert encoded == [[photos / "new.jpg"]]


def test_no_score_is_above_one(indexed, photos):
    for photo in photos.glob("*.*"):
        assert 0.999 < indexed.search(image=photo).hits[0].score <= 1


def test_parts_can_be_given(indexed):
    parts = [Part(2, "a red circle"), Part(-1, "a square")]
    assert indexed.search(parts) == indexed.search("2:a red circle - a square")
    for weight in (float("nan"), 0.0, float("inf"), 1e9):
        with pytest.raises(QueryError, match="weight"):
            indexed.search([Part(weight, "a")])


def test_copies_are_one_hit(indexed, photos, encoder):
    shutil.copy(photos / "b.jpg", photos / "trip" / "copy.jpg")
    indexed.index(encoder=encoder)
    [hit] = indexed.search(image=photos / "b.jpg", top=1).hits
    assert (hit.path, hit.copies) == (photos / "b.jpg", (photos / "trip" / "copy.jpg",))
    filters = Filters(folders=[photos / "trip"])
    [hit] = indexed.search(image=photos / "b.jpg", top=1, filters=filters).hits
    assert (hit.path, hit.copies) == (photos / "trip" / "copy.jpg", (photos / "b.jpg",))
    query = photos / "b.jpg"
    data = query.read_bytes()
    query.unlink()  # without another run of indexing
    result = indexed.search(image=data, top=1)
    assert (result.hits[0].path, result.hits[0].copies) == (photos / "trip" / "copy.jpg", ())
    assert result.gone == 0


def test_what_is_gone_is_left_out_and_counted(indexed, photos):
    data = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").unlink()
    (photos / "b.jpg").mkdir()
    result = indexed.search(image=data, top=5)
    assert len(result.hits) == 5
    assert photos / "b.jpg" not in [hit.path for hit in result.hits]
    assert result.gone == 1
    worst = indexed.search("a circle").hits[-1].path
    worst.unlink()
    assert indexed.search("a circle", top=1).gone <= 1, "only better ones count"


def test_a_file_that_became_a_link_out_of_its_root_is_left_out(indexed, photos, tmp_path):
    outside = draw_photo(tmp_path / "outside.jpg", 50)
    (photos / "b.jpg").unlink()
    (photos / "b.jpg").symlink_to(outside)
    (photos / "trip/e.jpg").unlink()
    (photos / "trip/e.jpg").symlink_to(photos / "a.jpg")
    found = {str(hit.path.relative_to(photos)): hit for hit in indexed.search("a circle").hits}
    assert sorted(found) == ["a.jpg", "c.png", "d.webp", "trip/e.jpg", "trip/f.jpg"]
    assert not found["trip/e.jpg"].current


def test_a_root_that_is_away_is_said(indexed, photos, encoder, tmp_path):
    other = tmp_path / "other"
    draw_photo(other / "x.jpg", 20)
    indexed.index([other], encoder=encoder)
    photos.rename(tmp_path / "elsewhere")
    photos.mkdir()  # as an empty mount point
    result = indexed.search("a circle")
    assert names(result, other) == ["x.jpg"]
    assert (result.searched, result.gone, result.away) == (1, 0, (photos,))
    (other / "x.jpg").unlink()
    result = indexed.search("a circle")
    assert not result.hits
    assert result.away == (other, photos)
    assert result.removed == {"absent": 0, "away": 7}
    photos.rmdir()
    (tmp_path / "elsewhere").rename(photos)
    assert len(indexed.search("a circle").hits) == 6


def test_filters_apply_before_the_ranking(indexed, photos):
    result = indexed.search("a circle", top=1, filters=Filters(folders=["trip"]))
    assert names(result, photos)[0].startswith("trip/")
    assert result.searched == 2
    [hit] = indexed.search("a circle", filters=Filters(until="2024-05-01", since="2024-05-01")).hits
    assert hit.path == photos / "a.jpg"
    assert hit.date_from == "camera"
    assert (
        hit.date == datetime.datetime(2024, 5, 1, 10, 30, tzinfo=datetime.timezone.utc).timestamp()
    )
    others = [hit for hit in indexed.search("a circle").hits if hit.path != photos / "a.jpg"]
    assert {hit.date_from for hit in others} == {"file"}


def test_nothing_left_by_the_filters_is_an_answer(indexed):
    result = indexed.search("a circle", filters=Filters(folders=["trip"], since="2020", camera="x"))
    assert not result.hits
    assert (result.searched, result.fits) == (0, None)
    assert result.removed == {"absent": 0, "in": 4, "since": 0, "camera": 2}


def test_the_least_score(indexed):
    every = indexed.search("a circle")
    limit = every.hits[2].score
    result = indexed.search("a circle", min_score=limit)
    assert result.hits == every.hits[:3]
    assert result.below_score
    assert not every.below_score
    nothing = indexed.search("a circle", min_score=2)
    assert not nothing.hits
    assert nothing.below_score
    assert not nothing.removed
    with pytest.raises(QueryError, match="not a number"):
        indexed.search("a circle", min_score=float("nan"))


def test_a_file_that_changed_is_said(indexed, photos):
    assert all(hit.current for hit in indexed.search("a circle").hits)
    draw_photo(photos / "b.jpg", 99)
    changed = [hit.path for hit in indexed.search("a circle").hits if not hit.current]
    assert changed == [photos / "b.jpg"]


def test_an_empty_library_and_another_model(indexed, encoder, other_bundle, tmp_path):
    from pocketclip.infer.encoder import load

    other = load(other_bundle, backend="onnxruntime", threads=1)
    with pytest.raises(LibraryError, match=encoder.space_id):
        indexed.search("a circle", encoder=other)
    with (
        Library.open(tmp_path / "empty.sqlite", create=True) as empty,
        pytest.raises(LibraryError, match="holds no photographs yet: add some with"),
    ):
        empty.search("a circle", encoder=encoder)


class Fixed:
    """An encoder of one text, which needs no model."""

    embed_dim, logit_scale, space_id = 8, 100.0, "space-fixed"

    def encode_text(self, texts):
        return np.tile(np.eye(8, dtype=np.float32)[0], (len(texts), 1))

    def preload(self, *towers):
        pass


@pytest.fixture
def many(library, tmp_path):
    """200 contents with three different scores, the best one 150 times; and their files."""
    root = add_root(library.database, tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    with library.database.writing():
        for number in range(200):
            score = 1.0 if number < 150 else 0.5 if number < 170 else 0.25
            vector = np.eye(8)[0] * score + np.eye(8)[1] * (1 - score**2) ** 0.5
            name = f"{997 * (number + 1) % 200:03}.jpg".encode()
            (tmp_path / "photos" / name.decode()).write_bytes(b"x")
            add_file(library.database, root, name, add_content(library.database, vector))
    return library


def test_equal_scores_are_ordered_by_path(many, monkeypatch):
    """Also where more are equal than are asked for, whatever the order of indexing was."""
    apart = "pocketclip.search.ranking._groups"
    monkeypatch.setattr(apart, lambda _database, _matrix, found: [[one] for one in found])
    database = many.database
    results = [
        search(database, [Part(1.0, "x")], Filters(), encoder=Fixed(), matrix=many.matrix, top=top)
        for top in (3, 30, 160)
    ]
    for result in results:
        found = [(-hit.score, hit.path.name) for hit in result.hits]
        assert found == sorted(found)
    [least, more, most] = results
    assert least.hits == more.hits[:3]
    assert more.hits == most.hits[:30]


def test_what_is_there_is_asked_again_after_a_change(indexed, photos, encoder):
    """By this connection, by another one, and in another thread."""
    assert len(indexed.search("a circle").hits) == 6
    with indexed.database.writing(), indexed.database.transaction() as connection:
        connection.execute("UPDATE files SET absent = 1 WHERE path = x'612e6a7067'")  # a.jpg
    assert indexed.search("a circle").searched == 5
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(indexed.search, "a circle").result().searched == 5
        with Library.open(indexed.location.file) as other:
            draw_photo(photos / "new.jpg", 50)
            other.index(encoder=encoder)
        assert indexed.search("a circle").searched == 7
        assert pool.submit(indexed.search, "a circle").result().searched == 7


def test_near_duplicates_are_one_hit(indexed, photos, encoder):
    draw_photo(photos / "trip" / "b2.jpg", 1, quality=70)
    indexed.index(encoder=encoder)
    [hit, *others] = indexed.search(image=photos / "b.jpg", top=6).hits
    assert hit.path == photos / "b.jpg"
    assert [one.path for one in hit.similar] == [photos / "trip" / "b2.jpg"]
    assert hit.similar[0].score < hit.score
    assert len(others) == 5
    assert not any(one.similar for one in others)


def test_as_many_groups_as_are_asked_for(many):
    with many.database.writing(), many.database.transaction() as connection:
        connection.execute("UPDATE contents SET perceptual_hash = 1 WHERE id <= 150")
    result = search(
        many.database, [Part(1.0, "x")], Filters(), encoder=Fixed(), matrix=many.matrix, top=3
    )
    assert [len(hit.similar) for hit in result.hits] == [149, 0, 0]
    assert [hit.score for hit in result.hits] == pytest.approx([1, 0.5, 0.5], abs=1e-3)


def test_where_thousands_are_alike_not_all_are_looked_through(library, tmp_path, monkeypatch):
    """But all whose files are gone, until some are there."""
    monkeypatch.setattr("pocketclip.search.ranking._MOST", 50)
    monkeypatch.setattr("pocketclip.search.ranking._SPARE", 10)
    root = add_root(library.database, tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    with library.database.writing():
        for number in range(300):
            turn = number / 2000
            vector = np.eye(8)[0] * np.cos(turn) + np.eye(8)[1] * np.sin(turn)
            content = add_content(library.database, vector, perceptual_hash=1)
            add_file(library.database, root, b"%03d.jpg" % number, content)
            (tmp_path / "photos" / f"{number:03}.jpg").write_bytes(b"x")
    ask = partial(
        search, library.database, [Part(1.0, "x")], Filters(), encoder=Fixed(),
        matrix=library.matrix, top=3,
    )  # fmt: skip
    [hit] = ask().hits
    assert len(hit.similar) < 260
    for number in range(290):
        (tmp_path / "photos" / f"{number:03}.jpg").unlink()
    [hit] = ask().hits
    assert (hit.path.name, len(hit.similar)) == ("290.jpg", 9)


def test_whether_anything_fits_is_judged_by_what_is_looked_for(
    indexed, photos, encoder, monkeypatch
):
    asked = []

    def judge(query, best, sample, neutral, *, logit_scale, searched):
        assert logit_scale == encoder.logit_scale
        asked.append((query, len(best), len(sample), len(neutral), searched))
        return background.Verdict(False, "nothing fits well: so it was said")

    monkeypatch.setattr(background, "judge", judge)
    filters = Filters(folders=["trip"])
    result = indexed.search("2:a circle - a square", filters=filters, unlike=[photos / "a.jpg"])
    assert (result.fits, result.reason) == (False, "nothing fits well: so it was said")
    assert len(result.hits) == 2
    [(query, *counts)] = asked
    assert np.allclose(query, encoder.encode_text("a circle")[0], atol=1e-6)
    assert counts == [2, 2, len(background.NEUTRAL_TEXTS), 2]
    assert indexed.search("a circle", like=[photos / "a.jpg"]).fits is None
    indexed.search("a circle", top=1, min_score=0.99)
    assert len(asked) == 2
    assert asked[1][1] == 6, "the best ten, whatever is shown"
