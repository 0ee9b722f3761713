"""`pocketclip serve`: its options, what it prints, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest

from pocketclip.cli import output
from pocketclip.cli import serve as verb
from pocketclip.serve import ServerSettings
from pocketclip.serve.middleware.sessions import Sessions
from pocketclip.serve.process.certificate import Certificate
from tests.cli.inside import run

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def bundle(exported):
    return exported("teacher-a")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("POCKETCLIP_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "give a key (--api-key-file or"),
        (["--upstream", "http://ml:3003"], "give --immich too"),
        (["--immich", "::1:3003"], "in brackets"),
        (["--api-key", "short"], "fewer than 16"),
        (["--api-key", KEY, "--api-key-file", "key"], "choose one of"),
        (["--api-key-file", "none"], "cannot read the key in none"),
        (["--cert", "c.pem"], "give --cert and --key"),
        (["--tls", "--cert", "c.pem", "--key", "k.pem"], "choose one of --tls, for a certificate"),
        (["--deadline", "0"], "deadline is 0.0; it must be above 0"),
        (["--label-set", "none.json"], "none.json"),
        (["--cors", "example.org"], "is no origin"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(bundle, tmp_path, args, message) -> None:
    ended = run("serve", bundle, "--port", 0, *args, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give a model, or a library"),
        (["random:tiny"], "cannot be served"),
        (["no-such-model"], "no-such-model"),
        (["--library", "none"], "none"),
    ],
)
def test_without_a_model_that_can_be_served_nothing_starts(tmp_path, monkeypatch, args, message):
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path))
    ended = run("serve", *args, "--port", 0, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_an_empty_key_in_the_environment_does_not_open_the_server(bundle, monkeypatch) -> None:
    monkeypatch.setenv("POCKETCLIP_API_KEY", "")
    assert "POCKETCLIP_API_KEY is empty" in run("serve", bundle, "--port", 0).stderr


@pytest.fixture
def ends_at_once(monkeypatch):
    """Lets a server end when it has printed where it is; returns its settings."""
    announce, seen = verb._announce, []

    def announce_and_end(running, *, as_json):
        announce(running, as_json=as_json)
        seen.append(running.services.settings)
        running.stop()

    monkeypatch.setattr(verb, "_announce", announce_and_end)
    return seen


@pytest.mark.usefixtures("ends_at_once")
def test_the_start_message_says_where_it_is_and_who_is_answered(bundle) -> None:
    ended = run("serve", bundle, "--port", 0, "--host", "0.0.0.0", "--no-auth", "--immich",
                "[::1]:0", "--threads", 1)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    model, *links, immich, _, _ = ended.stdout.splitlines()
    assert " at http://0.0.0.0:" in model
    assert all("for a phone: http://" in one or "or: http://" in one for one in links[:-1])
    assert not links or "for its live camera, add --tls" in links[-1]
    notes = ended.stdout.splitlines()[-2:]
    assert immich.startswith("for immich at http://[::1]:")
    assert notes == [
        "note: no key: everybody who reaches 0.0.0.0 can use the server, with its library",
        "note: immich's port has no key, since immich sends none",
    ]
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert events == ["ready", "draining", "end"]


def test_the_start_message_as_json_with_a_key_of_a_file(bundle, tmp_path, ends_at_once) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    ended = run("serve", bundle, "--port", 0, "--json", "--api-key-file", tmp_path / "key",
                "--threads", 1, "--deadline", 5)  # fmt: skip
    (line,) = ended.stdout.splitlines()
    about = json.loads(line)
    assert about["urls"][0].startswith("http://127.0.0.1:")
    assert about["immich_urls"] == about["label_sets"] == about["remarks"] == []
    assert (about["phone_urls"], about["fingerprint"]) == ([], None)
    assert KEY not in ended.stdout + ended.stderr
    assert (ends_at_once[0].api_key, ends_at_once[0].limits.deadline) == (KEY, 5.0)


PHONES = ["https://192.0.2.2:8443", "https://192.0.2.3:8443"]


def announced(monkeypatch, capsys, *, terminal=False, change=None, **settings):
    """Return what a server prints that is on two networks."""
    chosen = ServerSettings(host="0.0.0.0", tls=True, **settings)
    services = SimpleNamespace(
        settings=chosen, sessions=Sessions(), label_sets={},
        engine=SimpleNamespace(encoder=SimpleNamespace(
            config=SimpleNamespace(name="tiny"), space_id="space-1", variant="onnx", embed_dim=4,
        )),
    )  # fmt: skip
    shown = Certificate(fingerprint="AB:CD", file=Path("c.pem"), is_own=True, change=change)
    running = SimpleNamespace(
        services=services, urls=["https://0.0.0.0:8443"], immich_urls=[], phone_urls=PHONES,
        certificate=shown,
    )  # fmt: skip
    monkeypatch.setattr(output, "on_terminal", lambda: terminal)
    verb._announce(running, as_json=False)
    return capsys.readouterr().out.splitlines(), services.sessions


def test_the_start_with_a_certificate_of_its_own_says_how_to_know_it(monkeypatch, capsys) -> None:
    lines, _ = announced(monkeypatch, capsys, api_key=KEY, change="the old one was about to end")
    assert lines == [
        "tiny at https://0.0.0.0:8443",
        f"for a phone: {PHONES[0]}/",  # a token would get into the file
        f"or: {PHONES[1]}/",
        "note: the certificate is another one than before: the old one was about to end",
        "browsers warn of the server's own certificate, as nobody vouches for it: go on only if "
        "the SHA-256 fingerprint that they show is",
        "  AB:CD",
    ]


def test_on_a_terminal_a_phone_gets_a_token_of_its_own(monkeypatch, capsys) -> None:
    lines, sessions = announced(monkeypatch, capsys, api_key=KEY, terminal=True)
    found = [re.search(r"(https://.*)/#token=(.*)", line) for line in lines[1:4]]
    assert [one and one[1] for one in found] == ["https://localhost:8443", *PHONES]
    browser, phone, other = (one and one[2] for one in found)
    assert phone == other != browser
    assert [sessions.redeem(one) is not None for one in (browser, phone, other)] == [
        True, True, False,
    ]  # fmt: skip


def test_a_certificate_of_its_own_as_json(bundle, tmp_path, monkeypatch, ends_at_once) -> None:
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path))
    ended = run("serve", bundle, "--port", 0, "--json", "--tls", "--threads", 1)
    about = json.loads(ended.stdout)
    assert about["urls"][0].startswith("https://127.0.0.1:")
    assert about["phone_urls"] == []
    pem = (tmp_path / "tls" / "certificate.pem").read_text()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    assert about["fingerprint"].replace(":", "") == digest
    assert ends_at_once[0].tls
    secret = (tmp_path / "tls" / "key.pem").read_text().splitlines()[1]
    assert secret not in ended.stdout + ended.stderr
