"""Settings that contradict each other or are not safe are refused, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketclip.errors import ConfigError
from pocketclip.serve import Limits, ServerSettings, serve
from pocketclip.serve.settings_checks import (
    is_loopback,
    parse_address,
    parse_label_sets,
    read_api_key,
)

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "--api-key-file"),
        ({"host": "::"}, "--no-auth"),
        ({"host": "photos.example.org"}, "can be reached from other machines"),
        ({"host": ""}, "no address"),
        ({"host": "[::1]"}, "no address"),
        ({"port": 65_536}, "no port"),
        ({"immich": ("127.0.0.1", -1)}, "--immich"),
        ({"immich": ("127.0.0.1", 8080)}, "a port of its own"),
        ({"upstream": "http://ml:3003"}, "--immich"),
        ({"api_key": "short"}, "openssl rand"),
        ({"api_key": "a key with blanks in it"}, "blanks"),
        ({"api_key": "schlüssel-schlüssel"}, "no header"),
        ({"api_key": KEY, "no_auth": True}, "one of"),
        ({"certificate": Path("c.pem")}, "--key"),
        ({"private_key": Path("k.pem")}, "--cert"),
        ({"tls": True, "certificate": Path("c.pem"), "private_key": Path("k.pem")}, "one of --tls"),
        ({"threads": 0}, "at least 1"),
        ({"cors": ("*",)}, "no origin"),
        ({"cors": ("https://example.org/path",)}, "no origin"),
        ({"cors": ("https://user@example.org",)}, "no origin"),
        ({"allow_hosts": ("https://example.org",)}, "no name"),
        ({"allow_hosts": ("*.example.org",)}, "no name"),
        ({"label_sets": {"a/b": Path("x.json")}}, "NAME=FILE"),
    ],
)
def test_settings_that_are_wrong_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "localhost"},
        {"host": "::1", "port": 0},
        {"host": "0.0.0.0", "no_auth": True},
        {"host": "0.0.0.0", "api_key": KEY},
        {"immich": ("0.0.0.0", 3003), "upstream": "http://ml:3003"},
        {"cors": ("https://example.org", "http://[::1]:8080")},
        {"allow_hosts": ("photos.example.org",)},
        {"certificate": Path("c.pem"), "private_key": Path("k.pem")},
    ],
)
def test_settings_that_are_right_are_taken(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        assert getattr(ServerSettings(**settings), name) == value


def test_the_key_is_not_in_the_text_of_settings() -> None:
    assert KEY not in repr(ServerSettings(api_key=KEY))


def test_what_its_owner_should_know_is_said() -> None:
    assert ServerSettings().remarks == []
    assert ServerSettings(api_key=KEY).remarks == []
    assert (
        "everybody who reaches 0.0.0.0" in ServerSettings(host="0.0.0.0", no_auth=True).remarks[0]
    )
    assert "unencrypted" in ServerSettings(host="0.0.0.0", api_key=KEY).remarks[0]
    assert ServerSettings(host="0.0.0.0", api_key=KEY, tls=True).remarks == []
    remark = ServerSettings(immich=("192.0.2.1", 3003)).remarks[0]
    assert remark.startswith("immich's port has no key, since immich sends none, and everybody")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_above_zero(value: float) -> None:
    with pytest.raises(ConfigError, match="drain"):
        Limits(drain=value)


def test_addresses_of_the_command_line() -> None:
    assert parse_address("3003", "--immich") == ("127.0.0.1", 3003)
    assert parse_address("0.0.0.0:3003", "--immich") == ("0.0.0.0", 3003)
    assert parse_address("[::1]:3003", "--immich") == ("::1", 3003)
    for text in ("", ":3003", "::1:3003", "host:", "host:http", "1.2.3.4", "host:-1", "host:３"):
        with pytest.raises(ConfigError, match="--immich"):
            parse_address(text, "--immich")


def test_only_addresses_that_no_other_machine_reaches_are_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.2", "localhost.example.org"]))


def test_label_sets_are_named_by_their_file_or_by_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.json"
    odd.touch()
    assert parse_label_sets(["sets/shelf.json", "fruit=x.json", str(odd)]) == {
        "shelf": Path("sets/shelf.json"), "fruit": Path("x.json"), "a=b": odd,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="two label sets are named shelf"):
        parse_label_sets(["a/shelf.json", "b/shelf.json"])


def test_the_key_of_a_file_is_its_only_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o644)
    assert read_api_key(file) == KEY
    assert "all users of this machine can read the key" in caplog.text
    caplog.clear()
    file.chmod(0o640)
    assert read_api_key(file) == KEY
    assert not caplog.text
    for text in ("", "\n", "two\nlines\n", "x" * 5000):
        file.write_text(text)
        with pytest.raises(ConfigError, match="one line with a key"):
            read_api_key(file)
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_api_key(tmp_path / "none")


@pytest.mark.parametrize(
    "settings",
    [{"certificate": "cert.pem", "private_key": "key.pem"},
     {"immich": ("127.0.0.1", 0), "upstream": "http://[::1/"}],
)  # fmt: skip
def test_a_wrong_setting_is_said_before_the_model_is_opened(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    files = {"certificate", "private_key"} & settings.keys()
    settings = settings | {name: tmp_path / settings[name] for name in files}
    with pytest.raises(ConfigError, match=r"cannot read|upstream"):
        serve(tmp_path / "no model", settings=ServerSettings(port=0, **settings))
