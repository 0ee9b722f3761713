from __future__ import annotations

import io
import tarfile

import pytest

from pocketclip.errors import DataError
from pocketclip.shards.tar import ending, entry, group_in, groups, members
from tests.shards.making import failure, tar

FILES = [
    ("00000000.jpg", b"x" * 700),
    ("00000000.txt", b"a caption"),
    ("00000001.jpg", b""),
    ("00000001.syn.json", b"{}"),
]


def archive(files):
    data = b"".join(entry(name, content) for name, content in files)
    return data + ending(len(data))


def read(data):
    return [(m.name, m.data) for m in members(io.BytesIO(data), "x.tar")]


def until_it_fails(items):
    got = []
    while True:
        try:
            got.append(next(items))
        except DataError as error:
            return got, str(error)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_others_write(tmp_path, form):
    files = [*FILES, ("d/" * 45 + "0002.txt", b"deep"), ("0003.url.txt", b"u" * 513)]
    if form != tarfile.USTAR_FORMAT:
        files += [("x" * 180 + ".txt", b"long"), ("größe.txt", b"not ASCII")]
    path = tar(tmp_path / "a.tar", files, format=form)
    assert read(path.read_bytes()) == files


def test_others_read_what_we_write():
    files = [*FILES, ("x" * 180 + ".txt", b"long"), ("größe.txt", b"not ASCII")]
    data = archive(files)
    assert len(data) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert [(m.name, opened.extractfile(m).read()) for m in opened] == files
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in opened} == {(0, 0, 0, "", "")}
    assert read(data) == files


def test_folders_are_passed_over_and_links_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        info = tarfile.TarInfo("d/0.txt")
        info.size = 1
        out.addfile(info, io.BytesIO(b"a"))
    assert read(path.read_bytes()) == [("d/0.txt", b"a")]
    with tarfile.open(path, "w") as out:
        link = tarfile.TarInfo("0.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    [group] = groups(members(io.BytesIO(path.read_bytes()), "x.tar"))
    assert group.members == {}
    assert "link or device" in failure(group.check, ("txt",), kind=DataError)


def test_cut_anywhere_is_an_error_and_what_came_before_is_good():
    data = archive(FILES)
    body = sum(len(entry(name, content)) for name, content in FILES)
    for end in [*range(0, body, 97), *range(0, body + 1024, 512)]:
        got, message = until_it_fails(members(io.BytesIO(data[:end]), "x.tar"))
        assert [(m.name, m.data) for m in got] == FILES[: len(got)]
        assert message.startswith("x.tar: ")
        assert "truncated" in message or "empty" in message
    assert read(data[: body + 1024]) == FILES  # without the padding that follows the end


def test_the_sample_in_which_it_was_cut_is_not_yielded():
    whole = archive(FILES)
    cut = whole[: len(entry(*FILES[0])) + len(entry(*FILES[1])) + len(entry(*FILES[2]))]
    got, message = until_it_fails(groups(members(io.BytesIO(cut), "x.tar")))
    assert [group.uid for group in got] == ["00000000"]
    assert "truncated at byte" in message


def test_damage():
    data = bytearray(archive(FILES))
    data[512 * 3 + 5] ^= 1  # the second member's name
    assert "damaged at byte 1,536" in failure(read, bytes(data))
    assert "not a tar archive" in failure(read, b"x" * 2048)
    assert "gzipped" in failure(read, b"\x1f\x8b" + bytes(1022))
    got, message = until_it_fails(groups(members(io.BytesIO(archive(FILES) + b"x" * 512), "x.tar")))
    assert [group.uid for group in got] == ["00000000", "00000001"]  # the end was there before
    assert "there is no valid header" in message


def test_groups():
    files = [
        ("a/0.jpg", b"1"),
        ("a/0.TXT", b"2"),
        ("b/0.jpg", b"3"),  # the same base name in another folder
        ("b/0.jpg", b"4"),  # a key again: another sample
        ("README", b"no sample"),
        ("b/1.syn.json", b"5"),
        (".hidden", b"no sample"),
    ]
    samples = [(g.uid, g.members) for g in groups(members(io.BytesIO(archive(files)), "x"))]
    assert samples == [
        ("a_0", {"jpg": b"1", "txt": b"2"}),
        ("b_0", {"jpg": b"3"}),
        ("b_0", {"jpg": b"4"}),
        ("b_1", {"syn.json": b"5"}),
    ]


def test_offsets_find_a_sample_again():
    files = [*FILES, ("y" * 150 + ".txt", b"with an extended header")]
    data = archive(files)
    quick = list(groups(members(io.BytesIO(data), "x", load=False)))
    slow = list(groups(members(io.BytesIO(data), "x")))
    assert [(g.uid, g.begin, g.end) for g in quick] == [(g.uid, g.begin, g.end) for g in slow]
    for group in slow:
        assert group_in(data[group.begin : group.end], "x").members == group.members
    assert "was changed" in failure(group_in, data[slow[0].begin : slow[1].end], "x")


def test_a_member_that_claims_too_much():
    head = bytearray(entry("0.txt", b"")[:512])
    info = tarfile.TarInfo("0.txt")
    info.size = 1 << 40
    head = info.tobuf(tarfile.GNU_FORMAT)
    assert "truncated at byte 512" in failure(read, head)
