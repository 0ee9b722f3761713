"""The pages and their files over HTTP: headers, conditions, compression, and what is not there."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from pocketclip.errors import ConfigError
from pocketclip.pages.web_files import PAGES, read_web_files, web_files


@pytest.fixture(scope="module")
def script():
    """The path of a module."""
    return f"/{web_files().assets}app/shared/dom.js"


@pytest.mark.parametrize("path", ["/", *(f"/{name}.html" for name in PAGES)])
def test_pages_are_isolated_and_asked_for_again(client, path):
    answer = client.get(path)
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert answer.headers["cache-control"] == "no-cache"
    assert "Content-Security-Policy" not in answer.text  # the header says it
    again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == policy


def test_files_are_kept_for_ever(client, script):
    answer = client.get(script)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    head = client.request("HEAD", script)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br", "gzip"), ("identity", None), ("gzip;q=0", None), ("gzip;q=0.5", "gzip")],
)
def test_texts_are_compressed_for_those_who_take_it(client, script, accepted, encoding):
    answer = client.get(script, headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    content = web_files().content(script[1:])
    assert answer.content == content  # httpx inflates it
    length = len(gzip.compress(content, 9)) if encoding else len(content)
    assert int(answer.headers["content-length"]) == length


def test_web_assembly_is_sent_as_it_is_stored(client):
    site = web_files()
    if site.vendor is None:
        pytest.skip("the package was built without npm: python hatch_build.py")
    path = f"{site.vendor}ort-wasm-simd-threaded.wasm.gz"
    answer = client.get(f"/{path}", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers  # the page inflates and verifies it
    assert answer.content == site.content(path)
    assert client.get(
        f"/{path}", headers={"if-none-match": answer.headers["etag"]}
    ).status_code == 304  # fmt: skip


def test_a_package_that_is_replaced_changes_nothing_under_its_addresses(
    make_services, make_client, tmp_path
):
    module, image = tmp_path / "app" / "one.js", tmp_path / "icons" / "icon.png"
    wasm = tmp_path / "vendor" / "some.wasm.gz"
    for path in (module, image, wasm):
        path.parent.mkdir()
        path.write_bytes(b"first")
    known = {"packages": {"onnxruntime-web": "1"}, "files": {}}
    (tmp_path / "vendor" / "vendor.json").write_text(json.dumps(known))
    site = read_web_files(tmp_path)
    services = make_services()
    services.web = site
    client = make_client(services)
    addresses = [f"/{site.assets}app/one.js", f"/{site.assets}icons/icon.png"]
    large = f"/{site.vendor}some.wasm.gz"
    assert client.get(large).content == b"first"
    for path in (module, image, wasm):
        path.write_bytes(b"another one")
    assert [client.get(address).content for address in addresses] == [b"first", b"first"]
    assert client.get(large).status_code == 409
    with pytest.raises(ConfigError, match=r"some\.wasm\.gz of the web pages was replaced"):
        site.content(large[1:])
    wasm.unlink()
    assert client.get(large).status_code == 409


@pytest.mark.parametrize("path", ["/nothing.html", "/a/b/c", "/assets/other"])
def test_people_get_a_page_where_nothing_is(client, path):
    answer = client.get(path, headers={"accept": "text/html,*/*;q=0.8"})
    assert answer.status_code == 404
    if path.startswith("/assets"):
        assert answer.json()["error"]["code"] == "not_found"
        return
    assert "There is no page here" in answer.text
    root = "../" * (path.count("/") - 1)
    assert f'href="{root}{web_files().assets}styles/base.css"' in answer.text
    assert not re.search(r'(src|href)="/', answer.text)
    program = client.get(path, headers={"accept": "*/*"})
    assert program.json()["error"]["type"] == "not_found_error"
