"""The certificate of the server's own: what it is for, how it is kept, and when it is replaced."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import ConfigError
from pocketclip.serve import ServerSettings, addresses
from pocketclip.serve.addresses import Interface, machine_names
from pocketclip.serve.process import own_certificate as module
from pocketclip.serve.process import tls
from pocketclip.serve.process.certificate import Certificate, fingerprint_of
from pocketclip.serve.process.own_certificate import keep, needed_names

NAMES = ["localhost", "127.0.0.1", "::1", "box.local", "192.0.2.2"]
NOW = datetime.datetime.now(datetime.timezone.utc)
KEY = "0123456789abcdef"


def made(folder: Path, *more: str, days: float = 0) -> Certificate:
    """Return the certificate of a server that starts so many days later."""
    now = NOW + datetime.timedelta(days=days)
    return keep([*NAMES, *more], lambda _certificate, _key: None, folder=folder, now=now)


def described(file: Path, *options: str) -> str:
    command = ["openssl", "x509", "-in", file, "-noout", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_a_leaf_for_the_names_and_no_longer_valid_than_browsers_take(tmp_path: Path) -> None:
    one = made(tmp_path / "tls", "photos.example.org")
    text = described(one.file, "-text")
    assert "X509v3 Basic Constraints: critical\n                CA:FALSE\n" in text
    assert "TLS Web Server Authentication" in text
    assert "ASN1 OID: prime256v1" in text
    assert "Certificate Sign" not in text
    names = re.search(r"Subject Alternative Name: *\n *(.*)", text)
    assert names is not None
    assert names[1] == (
        "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:box.local, "
        "IP Address:192.0.2.2, DNS:photos.example.org"
    )
    begin, end = (
        ssl.cert_time_to_seconds(line.partition("=")[2])
        for line in described(one.file, "-dates").splitlines()
    )
    assert 396 * 86_400 < end - begin < 397 * 86_400
    assert begin < NOW.timestamp() - 80_000
    assert described(one.file, "-fingerprint", "-sha256").strip().endswith(f"={one.fingerprint}")
    checked = ["openssl", "verify", "-x509_strict", "-CAfile", one.file, one.file]
    assert subprocess.run(checked, capture_output=True, text=True, check=True).stdout.endswith(
        "OK\n"
    )


def test_the_key_is_for_its_owner_alone_from_its_first_byte(tmp_path: Path, monkeypatch) -> None:
    seen = []
    write_bytes = Path.write_bytes

    def watched(path: Path, data: bytes) -> int:
        seen.append((path.name, mode_of(path), mode_of(path.parent), path.stat().st_size))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", watched)
    folder = tmp_path / "data" / "tls"
    made(folder)
    assert seen == [("key.pem", 0o600, 0o700, 0), ("certificate.pem", 0o600, 0o700, 0)]
    assert (mode_of(folder), mode_of(folder.parent)) == (0o700, 0o700)
    assert mode_of(folder / "key.pem") == 0o600
    assert (folder / "key.pem").read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    assert "PRIVATE" not in (folder / "certificate.pem").read_text()


def test_it_is_kept_until_its_end_is_near(tmp_path: Path) -> None:
    first = made(tmp_path)
    assert first.change is None
    for days in (0, 1, 365):
        later = made(tmp_path, days=days)
        assert (later.fingerprint, later.change) == (first.fingerprint, None)
    renewed = made(tmp_path, days=367)
    assert renewed.fingerprint != first.fingerprint
    assert renewed.change == "the old one was about to end"
    assert made(tmp_path, days=367).change is None
    assert made(tmp_path).change == "the old one was not valid yet by this machine's clock"


def test_new_names_replace_the_certificate_and_not_the_key(tmp_path: Path) -> None:
    first = made(tmp_path)
    key, public = (tmp_path / "key.pem").read_bytes(), described(first.file, "-pubkey")
    moved = made(tmp_path, "198.51.100.7", "fd00::7")
    assert moved.fingerprint != first.fingerprint
    assert moved.change == "the old one was not for 198.51.100.7, fd00::7"
    assert ((tmp_path / "key.pem").read_bytes(), described(moved.file, "-pubkey")) == (key, public)
    # Back in the first network, and in the second one again: no phone is asked again.
    for more in ((), ("198.51.100.7",), ("fd00::7",)):
        assert made(tmp_path, *more).fingerprint == moved.fingerprint


def test_a_certificate_does_not_grow_without_end(tmp_path: Path) -> None:
    for step in range(4):
        made(tmp_path, *(f"10.0.{step}.{n}" for n in range(40)))
    text = described(tmp_path / "certificate.pem", "-ext", "subjectAltName")
    assert text.count("IP Address:") + text.count("DNS:") == 100
    assert "10.0.3.39" in text
    assert "10.0.2.39" in text
    assert "10.0.0.0" not in text


@pytest.mark.parametrize("name", ["certificate.pem", "key.pem"])
@pytest.mark.parametrize("damage", ["cut", "other", "gone", "foreign"])
def test_what_is_damaged_is_replaced(tmp_path: Path, name: str, damage: str) -> None:
    first, file = made(tmp_path / "tls"), tmp_path / "tls" / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-60])
    elif damage == "other":
        file.write_text("nothing of the kind")
    elif damage == "gone":
        file.unlink()
    else:
        made(tmp_path / "other")
        (tmp_path / "other" / name).replace(file)
    replaced = made(tmp_path / "tls")
    assert replaced.change is not None
    assert replaced.fingerprint != first.fingerprint
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    again = keep(NAMES, context.load_cert_chain, folder=tmp_path / "tls")
    assert (again.fingerprint, again.change) == (replaced.fingerprint, None)


def test_a_key_that_others_could_read_is_not_used_any_more(tmp_path: Path) -> None:
    made(tmp_path)
    key = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").chmod(0o640)
    assert made(tmp_path).change == "the key was missing, damaged or open to others"
    assert (tmp_path / "key.pem").read_bytes() != key
    assert mode_of(tmp_path / "key.pem") == 0o600


def test_servers_that_start_at_once_have_one_certificate(tmp_path: Path) -> None:
    def start(number: int) -> tuple[str | None, bytes]:
        files: list[bytes] = []
        one = keep(
            [*NAMES, f"name{number % 2}.example.org"],
            lambda certificate, key: files.append(certificate.read_bytes() + key.read_bytes()),
            folder=tmp_path / "tls",
        )
        return one.fingerprint, files[0]

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(start, range(8)))
    # The first one to start with each name makes one, and the second one's is for both.
    assert len(found) <= 2
    assert len({made(tmp_path / "tls").fingerprint for _ in range(3)}) == 1
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "certificate.pem", tmp_path / "tls" / "key.pem")


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set POCKETCLIP_DATA to a folder"):
        tls.open_tls(ServerSettings(tls=True))


def test_the_names_are_those_of_this_machine_and_those_that_were_given(monkeypatch) -> None:
    monkeypatch.setattr(addresses, "_interfaces", lambda: [
        Interface(name, 1, ipaddress.ip_address(address))
        for name, address in [("wlan0", "192.0.2.2"), ("wlan0", "fd00::2"), ("docker0", "10.1.1.1")]
    ])  # fmt: skip
    monkeypatch.setattr(module, "machine_names", lambda: ["box", "box.local"])
    always = ["localhost", "127.0.0.1", "::1", "box", "box.local"]

    def needed(host: str, *names: str) -> list[str]:
        settings = ServerSettings(host=host, allow_hosts=names, no_auth=True, tls=True)
        assert needed_names(settings)[: len(always)] == always
        return needed_names(settings)[len(always) :]

    assert needed("127.0.0.1") == []
    assert needed("localhost") == []
    # Not the container's: it may be gone tomorrow.
    assert needed("0.0.0.0") == ["192.0.2.2"]
    assert needed("::") == ["fd00::2"]
    assert needed("10.1.1.1") == ["10.1.1.1"]
    assert needed("mine.example.org") == ["mine.example.org"]
    assert needed("0.0.0.0", "Photos.example.org", "[FD00:0::9]") == [
        "192.0.2.2", "photos.example.org", "fd00::9"
    ]  # fmt: skip
    assert addresses.machine_addresses() == ["192.0.2.2", "fd00::2", "10.1.1.1"]


def test_addresses_that_need_not_be_in_it_are_there_when_it_is_made(tmp_path: Path) -> None:
    def kept(*further: str) -> Certificate:
        return keep(NAMES, lambda _c, _k: None, folder=tmp_path, further=further)

    first = kept("172.17.0.1")
    assert "IP Address:172.17.0.1" in described(first.file, "-ext", "subjectAltName")
    assert kept("172.18.0.1").fingerprint == first.fingerprint


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path))
    return tmp_path / "tls"


def shown_by(url: str) -> str:
    """Return the fingerprint of the certificate that a server shows."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return fingerprint_of(ssl.PEM_cert_to_DER_cert(pem))


def test_requests_are_answered_and_the_certificate_is_read_again(
    running_server, data: Path, bundle: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = running_server(tls=True, api_key=KEY, source=resolve_model(bundle))
    port, known = server.url.rpartition(":")[2], server.running.certificate
    assert server.url == f"https://127.0.0.1:{port}"
    assert shown_by(server.url) == known.fingerprint
    context = ssl.create_default_context(cafile=str(known.file))
    with httpx.Client(verify=context) as client:
        for host in ("127.0.0.1", "localhost"):
            answer = client.get(
                f"https://{host}:{port}/info", headers={"Authorization": f"Bearer {KEY}"}
            )
            assert answer.status_code == 200
        # The certificate is for the names of this machine, and they are answered.
        for name in machine_names():
            headers = {"Host": f"{name}:{port}", "Authorization": f"Bearer {KEY}"}
            assert client.get(f"https://127.0.0.1:{port}/info", headers=headers).status_code == 200
        headers = {"Host": "elsewhere.example.org", "Authorization": f"Bearer {KEY}"}
        assert client.get(f"https://127.0.0.1:{port}/info", headers=headers).status_code == 421
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/livez")

    # The machine moves to another network.
    monkeypatch.setattr(module, "reachable_addresses", lambda *_, **__: ["198.51.100.7"])
    server.running.reload()
    assert await_change(server.url, known.fingerprint)
    line = next(one for one in caplog.records if getattr(one, "event", "") == "certificate")
    assert "198.51.100.7" in line.getMessage()
    assert line.fields["fingerprint"] == shown_by(server.url)  # type: ignore[attr-defined]
    secret = (data / "key.pem").read_text().splitlines()[1]
    assert not any(secret in str(vars(one)) for one in caplog.records)


def await_change(url: str, before: str) -> bool:
    end = datetime.datetime.now() + datetime.timedelta(seconds=30)
    while datetime.datetime.now() < end:
        if shown_by(url) != before:
            return True
    return False


def test_a_running_server_replaces_it_by_itself(running_server, data: Path, monkeypatch) -> None:
    monkeypatch.setattr(tls, "_PERIOD", 0.1)
    server = running_server(tls=True)
    assert data.is_dir()
    monkeypatch.setattr(module, "reachable_addresses", lambda *_, **__: ["198.51.100.7"])
    assert await_change(server.url, server.running.certificate.fingerprint)


def test_the_fingerprint_of_a_given_certificate_is_that_of_its_first(tmp_path: Path) -> None:
    one = made(tmp_path / "one")
    other = made(tmp_path / "two")
    chain = tmp_path / "chain.pem"
    chain.write_text("# ours\n" + one.file.read_text() + other.file.read_text())
    settings = ServerSettings(certificate=chain, private_key=tmp_path / "one" / "key.pem")
    opened = tls.open_tls(settings)
    assert opened is not None
    assert opened.certificate == Certificate(fingerprint=one.fingerprint, file=chain)
