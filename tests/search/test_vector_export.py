"""The vectors of a library in files for other programs."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from pocketclip.errors import LibraryError, MissingDependencyError, PocketclipError
from pocketclip.search.vectors import export as vector_export
from tests.cli.inside import run
from vector_libraries import add_vectors, generate_vectors

WIDTH = 16


@pytest.fixture
def filled(library):
    """Twelve photographs; 3 is absent, 4 excluded, 5 has a copy, 6 no vector, 7 an odd name."""
    add_vectors(library.database, generate_vectors(12, WIDTH))
    with library.database.writing(), library.database.transaction() as connection:
        connection.execute("UPDATE files SET absent = 1 WHERE content = 3")
        connection.execute("UPDATE files SET absent = 2 WHERE content = 4")
        file = "INSERT INTO files (root, path, size, mtime_ns, content, error) VALUES "
        connection.execute(f"{file} (1, x'636f7079', 1, 1, 5, NULL)")  # copy
        connection.execute(f"{file} (1, x'78', 1, 1, NULL, 'denied')")
        connection.execute("UPDATE contents SET vector = NULL, error = 'broken' WHERE id = 6")
        connection.execute("UPDATE files SET path = ? WHERE content = 7", (b"caf\xe9\n.jpg",))
        connection.execute("UPDATE contents SET taken = 0.5, taken_offset = -90 WHERE id = 1")
    return library


CONTENTS = [1, 2, 5, 5, 7, 8, 9, 10, 11, 12]


def expected(contents=CONTENTS):
    return generate_vectors(12, WIDTH)[np.array(contents) - 1]


def test_npy_in_the_layout_of_clip_retrieval(filled, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    report = filled.export_vectors(tmp_path / "out")
    assert (report.rows, report.absent, report.excluded, report.without_vector) == (10, 1, 1, 2)
    vectors = np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy")
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, expected())
    rows = parquet.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").to_pylist()
    assert rows[0]["image_path"] == "/photos/01/00/000001.jpg"
    assert rows[0]["taken"] == "1970-01-01T00:00:00.500000-01:30"
    assert (rows[0]["width"], rows[0]["format"]) == (4000, "JPEG")
    assert [row["image_path"] for row in rows[2:5]] == [
        "/photos/05/00/000005.jpg", "/photos/copy", "/photos/caf\\udce9\n.jpg"
    ]  # fmt: skip
    assert rows[2]["content"] == rows[3]["content"] != rows[4]["content"]
    about = json.loads((tmp_path / "out" / "library.json").read_text())
    assert (about["space_id"], about["model"]) == ("generated", "generated")
    assert (about["embed_dim"], about["rows"]) == (WIDTH, 10)


def test_parquet_has_everything_in_one_table(filled, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    report = filled.export_vectors(tmp_path / "out", format="parquet", include_absent=True)
    assert (report.rows, report.absent) == (11, 0)
    assert report.files == ("img_emb/img_emb_0.parquet",)
    table = parquet.read_table(tmp_path / "out" / report.files[0])
    vectors = np.stack(table["embedding"].to_numpy())
    assert np.array_equal(vectors, expected([1, 2, 3, *CONTENTS[2:]]))
    assert table["image_path"][2].as_py() == "/photos/03/00/000003.jpg"


def test_without_pyarrow(filled, tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    report = filled.export_vectors(tmp_path / "out")
    assert "pocketclip[parquet]" in report.remark
    lines = (tmp_path / "out" / "metadata" / "metadata_0.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 10
    assert os.fsencode(json.loads(lines[4])["image_path"]) == b"/photos/caf\xe9\n.jpg"
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[parquet\]"):
        filled.export_vectors(tmp_path / "out", format="parquet")


def test_many_rows_are_several_files(filled, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(vector_export, "_BATCH", 2)
    monkeypatch.setattr(vector_export, "_PART", 4)
    seen = []

    class Reporter(vector_export.ProgressReporter):
        def progress(self, done, total, _note=""):
            seen.append((done, total))

    report = filled.export_vectors(tmp_path / "out", reporter=Reporter())
    assert report.files[::2] == tuple(f"img_emb/img_emb_{i}.npy" for i in range(3))
    parts = [np.load(tmp_path / "out" / name) for name in report.files[::2]]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.array_equal(np.concatenate(parts), expected())
    assert seen[-1] == (10, 10)
    # Fewer files replace more of them.
    monkeypatch.undo()
    filled.export_vectors(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "img_emb").iterdir()] == ["img_emb_0.npy"]


def test_what_others_wrote_is_not_replaced(filled, tmp_path):
    out = tmp_path / "out"
    (out / "img_emb").mkdir(parents=True)
    (out / "img_emb" / "img_emb_0.npy").write_bytes(b"of clip-retrieval")
    with pytest.raises(PocketclipError, match="other files"):
        filled.export_vectors(out)
    assert (out / "img_emb" / "img_emb_0.npy").read_bytes() == b"of clip-retrieval"
    with pytest.raises(PocketclipError, match="no format 'csv'"):
        filled.export_vectors(tmp_path / "new", format="csv")


def test_an_interruption_leaves_nothing(filled, tmp_path, monkeypatch):
    filled.export_vectors(tmp_path / "out")
    before = (tmp_path / "out" / "library.json").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_export._VectorFile, "write", interrupt)
    for name in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            filled.export_vectors(tmp_path / name)
    assert (tmp_path / "out" / "library.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "data") == [
        "library",
        "out",
    ]


def test_the_verb(filled, tmp_path):
    library = ["--library", str(filled.location.file)]
    result = run("export-vectors", "--out", str(tmp_path / "out"), *library)
    assert result.returncode == 0
    assert f"{tmp_path / 'out'}: 10 embeddings of width 16" in result.stdout
    assert "1 file not there now" in result.stdout
    facts = json.loads(
        run("export-vectors", "-o", str(tmp_path / "out"), "--json", *library).stdout
    )
    assert facts["rows"] == 10
    with filled.database.writing(), filled.database.transaction() as connection:
        connection.execute("UPDATE files SET absent = 1")
    result = run("export-vectors", "--out", str(tmp_path / "none"), *library)
    assert result.returncode == 2
    assert "pocketclip index FOLDER" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_damaged_vector_is_named(filled, tmp_path):
    with filled.database.writing(), filled.database.transaction() as connection:
        connection.execute("UPDATE contents SET vector = x'00' WHERE id = 2")
    with pytest.raises(LibraryError, match=r"vector of content 3030.* is damaged"):
        filled.export_vectors(tmp_path / "out")
    assert not (tmp_path / "out").exists()
