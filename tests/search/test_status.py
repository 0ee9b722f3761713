"""What `index --status` says, against what indexing then does."""

from __future__ import annotations

import json
import os

from pocketclip.search.indexing.status import read_status
from pocketclip.search.indexing.walk import EXCLUDED_ENTRY
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate
from tests.search.conftest import draw_photo


def test_status_says_what_indexing_then_does(library, encoder, photos):
    draw_photo(photos / "sub" / "copy.jpg", 0)
    (photos / "bad.jpg").write_bytes(b"nothing")
    (photos / "notes.txt").write_bytes(b"nothing")
    status = read_status(library.database, [photos])
    assert (status.photographs, status.space_id, status.roots[0].new) == (0, None, 8)
    library.index([photos], encoder=encoder)

    (photos / "b.jpg").rename(photos / "sub" / "moved.jpg")
    (photos / "c.png").unlink()
    draw_photo(photos / "d.webp", 99)
    draw_photo(photos / "new.jpg", 100)
    before = sorted(library.location.file.parent.rglob("*")), library.location.file.read_bytes()
    with library.database.writing():  # another process indexes
        status = read_status(Database.open(library.location))
    assert before == (
        sorted(library.location.file.parent.rglob("*")), library.location.file.read_bytes()
    )  # fmt: skip
    (root,) = status.roots
    assert (root.new, root.moved, root.changed, root.gone) == (1, 1, 1, 1)
    assert (root.photographs, root.unchanged, root.read_again) == (7, 4, 1)
    assert [(path.name, reason) for path, reason in root.unreadable] == [
        ("bad.jpg", "not an image, or in a format that Pillow cannot read")
    ]
    assert root.passed_over == {"file that is not a photograph": 1}
    assert (status.photographs, status.contents, status.duplicates) == (7, 6, 1)
    assert (status.vectors, status.to_encode) == (6, 0)
    assert (status.space_id, status.embed_dim) == (encoder.space_id, encoder.embed_dim)
    assert len(status.encoders) == 1
    assert status.sizes["library"] > 6 * 2 * encoder.embed_dim
    assert json.loads(json.dumps(status.facts()))["roots"][0]["path"] == str(photos)

    report = library.index([photos], encoder=encoder)
    assert (report.encoded, report.moved, report.changed, report.absent) == (2, 1, 1, 1)
    (root,) = read_status(library.database).roots
    assert (root.new, root.moved, root.changed, root.gone, root.absent) == (0, 0, 0, 0, 1)
    (photos / ".pocketclipignore").write_text("moved.jpg\n")
    report = library.index([photos], encoder=encoder)
    assert (report.excluded, report.vanished, report.absent, report.has_news) == (1, 0, 1, True)
    assert report.passed_over == {"file that is not a photograph": 1, EXCLUDED_ENTRY: 1}
    (root,) = library.status().roots
    assert (root.photographs, root.excluded, root.unchanged) == (6, 1, 6)
    os.utime(photos / "bad.jpg", (1, 1))  # until then its time cannot be trusted
    assert library.index([photos], encoder=encoder).known_unreadable == 1
    assert not library.index([photos], encoder=encoder).has_news


def test_moves_between_roots_and_a_missing_root(library, encoder, photos, tmp_path):
    other = tmp_path / "other"
    draw_photo(other / "a.jpg", 50)
    draw_photo(other / "b.jpg", 51)
    library.index([photos, other], encoder=encoder)
    (other / "a.jpg").rename(photos / "moved.jpg")
    by_path = {root.path: root for root in read_status(library.database).roots}
    assert (by_path[photos].moved, by_path[other].gone) == (1, 0)
    # A folder around both, which is not known yet, shows what is new beside them.
    draw_photo(tmp_path / "around.jpg", 52)
    assert sum(root.new for root in read_status(library.database, [tmp_path]).roots) == 1
    other.rename(tmp_path / "away")
    by_path = {root.path: root for root in read_status(library.database).roots}
    assert by_path[other].missing == "it is not there"
    assert (by_path[other].photographs, by_path[other].gone) == (2, 0)


def test_names_that_are_not_utf8(library, encoder, photos):
    name = os.fsdecode(b"caf\xe9.jpg")
    (photos / name).write_bytes(b"nothing")
    library.index([photos], encoder=encoder)
    facts = json.loads(json.dumps(read_status(library.database).facts()))
    assert [os.fsencode(path) for path in facts["roots"][0]["unreadable"]] == [
        os.fsencode(photos / name)
    ]
    assert locate(library.location.file) == library.location
