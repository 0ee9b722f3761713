"""Images in JSON: every form that clients send, and nothing else."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs import image_inputs
from pocketclip.serve.inputs.image_inputs import looks_like_image, read_images
from pocketclip.serve.services import Services
from pocketclip.serve.settings import Limits
from tests.serve.conftest import Loop

DATA = bytes(range(256)) + b"\xfb\xff\xfe"  # its base64 has + and /
PLAIN = base64.b64encode(DATA).decode()
LINES = "\r\n".join(PLAIN[start : start + 76] for start in range(0, len(PLAIN), 76))
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()


@pytest.fixture
def read(on_loop: Loop, services: Services) -> Callable[..., bytes]:
    def read_one(value: Any, chosen: Services = services) -> bytes:
        [data] = on_loop(read_images({"input[0]": value}, chosen))
        return data

    return read_one


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN + "\n",
        f" \n{PLAIN}",
        LINES,
        URL_SAFE,
        URL_SAFE.rstrip("="),
        quote(PLAIN, safe=""),
        f"data:image/jpeg;base64,{PLAIN}",
        f"DATA:IMAGE/JPEG;BASE64,{PLAIN}",
        f"data:image/svg+xml;charset=utf-8;base64,{PLAIN}",
        f"data:image/png; base64,{LINES}",
        f"data:image/png;name=a.png;base64,{quote(PLAIN)}",
        f"data:;base64,{PLAIN}",
        f"data:application/octet-stream;base64,{URL_SAFE}",
    ],
)
def test_forms_that_clients_send(read: Callable[..., bytes], text: str) -> None:
    assert read(text) == DATA


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("====", "not base64"),
        (PLAIN[:-1] + "*", "not base64"),
        (PLAIN + "=", "not base64"),
        ("=" + PLAIN, "not base64"),
        ("QQ=Q", "not base64"),
        ("QQ=", "not base64"),
        ("QQQQQ", "not base64"),
        ("QUE\u0430", "not base64"),
        ("a cat", "not base64"),
        (PLAIN[:9] + " " + PLAIN[9:], "not base64"),
        ("%zz", "not base64"),
        ("data:image/png,abc", "without base64"),
        ("data:image/svg+xml;utf8,<svg/>", "without base64"),
        ("data:image/png;base64;x=1,QUFB", "without base64"),
        ("data:image/png", "without base64"),
        ("data:text/html;base64,QUFB", "another type"),
        ("data:" + "a" * 300 + ";base64,QUFB", "without base64"),
        ("/etc/hostname!", "not base64"),
        ("../a.jpg", "not base64"),
        ("file:///etc/hostname", "fetches no images"),
        ("https://example.org/a.jpg", "fetches no images"),
        ("C:\\a.jpg", "fetches no images"),
        (None, "not a text"),
        (3, "not a text"),
        ({"url": "a"}, "not a text"),
    ],
)
def test_what_is_no_image(read: Callable[..., bytes], text: Any, about: str) -> None:
    with pytest.raises(RequestError, match=about) as caught:
        read(text)
    assert caught.value.status == 400
    assert caught.value.param == "input[0]"
    assert str(caught.value).startswith("input[0]")


def test_a_path_is_never_opened(read: Callable[..., bytes], tmp_path: Any) -> None:
    path = tmp_path / "abcd"
    path.write_bytes(DATA)
    try:
        data = read(str(path))  # may be base64 by chance
    except RequestError:
        return
    assert data != DATA


def test_sizes_are_checked_before_decoding(
    read: Callable[..., bytes], make_services: Callable[..., Services]
) -> None:
    services = make_services(limits=Limits(image_bytes=len(DATA)))
    assert read(PLAIN, services) == DATA
    assert read(f"data:;base64,{LINES}", services) == DATA
    assert read(DATA, services) == DATA
    for large in (
        base64.b64encode(DATA + b"a").decode(),
        "!" * 5 * len(DATA),  # its length is too large, whatever it is
        DATA + b"a",
    ):
        with pytest.raises(RequestError, match="more than 259 bytes") as caught:
            read(large, services)
        assert caught.value.status == 413


def test_many_images_are_decoded_beside_the_loop(
    on_loop: Loop, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = set()
    real = image_inputs.decode_base64

    def spy(*args: Any) -> bytes:
        where.add(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(image_inputs, "decode_base64", spy)
    large = base64.b64encode(os.urandom(1 << 18)).decode()
    assert len(on_loop(read_images({"a": large, "b": large}, services))) == 2
    assert where
    assert "servers" not in where
    with pytest.raises(RequestError, match="65 images in one request"):
        on_loop(read_images({str(n): PLAIN for n in range(65)}, services))


def test_images_that_somebody_calls_texts() -> None:
    assert looks_like_image("data:image/gif;base64,R0lGOD")
    assert looks_like_image("/9j/" + "4AAQSkZJRgABAQ" * 9)
    assert not looks_like_image("/9j/ is how a JPEG begins in base64, and " + "more " * 20)
    assert not looks_like_image("UklGR")
    assert not looks_like_image("data: an image")
