"""Which names and addresses of this machine others can use."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from pocketclip.errors import ConfigError
from pocketclip.serve import ServerSettings, addresses
from pocketclip.serve.addresses import (
    Interface,
    machine_addresses,
    machine_names,
    reachable_addresses,
)
from pocketclip.serve.process.ports import bind, phone_urls

UP, LOOPBACK, POINT_TO_POINT = 0x1, 0x8, 0x10
INTERFACES = [
    ("lo", UP | LOOPBACK, "127.0.0.1"), ("lo", UP | LOOPBACK, "::1"),
    ("docker0", UP, "172.17.0.1"), ("br-2f8a", UP, "172.18.0.1"),
    ("tun0", UP | POINT_TO_POINT, "10.8.0.2"), ("tailscale0", UP, "100.64.0.3"),
    ("eth1", UP, "169.254.7.7"), ("eth0", UP, "192.168.0.9"), ("wlan0", UP, "192.168.1.4"),
    ("wlan0", UP, "2001:db8::4"), ("wlan0", UP, "2001:db8::7e4"), ("wlan0", UP, "fe80::4"),
    ("eth2", 0, "10.1.1.1"),
]  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A laptop with Wi-Fi, a cable, a tunnel and containers."""
    flags = tmp_path / "if_inet6"
    flags.write_text(
        "20010db8000000000000000000000004 02 40 00 00    wlan0\n"
        "20010db80000000000000000000007e4 02 40 00 01    wlan0\n"
        "20010db80000000000000000000007e5 02 40 00 zz    wlan0\n"
    )
    found = [Interface(name, flag, ipaddress.ip_address(one)) for name, flag, one in INTERFACES]
    monkeypatch.setattr(addresses, "_of_the_system", lambda: found)
    monkeypatch.setattr(addresses, "_usual_addresses", lambda: {"192.168.1.4", "2001:db8::4"})
    monkeypatch.setattr(addresses, "_IPV6_FLAGS", flags)


@pytest.mark.usefixtures("machine")
def test_those_that_a_phone_reaches_are_first() -> None:
    assert machine_addresses() == [
        "192.168.1.4", "192.168.0.9", "2001:db8::4", "100.64.0.3", "10.8.0.2", "172.18.0.1",
        "172.17.0.1", "169.254.7.7",
    ]  # fmt: skip


@pytest.mark.usefixtures("machine")
def test_a_socket_is_reached_at_its_address_or_at_all_of_its_kind() -> None:
    assert reachable_addresses(["0.0.0.0"])[0] == "192.168.1.4"
    assert not any(":" in one for one in reachable_addresses(["0.0.0.0"]))
    assert reachable_addresses(["::"]) == ["2001:db8::4"]
    assert reachable_addresses(["192.168.0.9"]) == ["192.168.0.9"]
    assert reachable_addresses(["127.0.0.1", "::1", "fe80::4%2"]) == []


@pytest.mark.usefixtures("machine")
def test_phones_open_the_address_or_the_name_that_a_certificate_is_for() -> None:
    files = {"certificate": Path("c.pem"), "private_key": Path("k.pem")}
    with bind("0.0.0.0", 0)[0] as one:
        port = one.getsockname()[1]
        assert phone_urls([one], ServerSettings())[:2] == [
            f"http://192.168.1.4:{port}", f"http://192.168.0.9:{port}"
        ]  # fmt: skip
        assert phone_urls([one], ServerSettings(tls=True))[0] == f"https://192.168.1.4:{port}"
        settings = ServerSettings(allow_hosts=("photos.example.org",), **files)
        assert phone_urls([one], settings) == [f"https://photos.example.org:{port}"]
    with bind("127.0.0.1", 0)[0] as one:
        assert phone_urls([one], settings) == []
    try:
        bound = bind("::", 0)[0]
    except ConfigError:
        pytest.skip("no IPv6 here")
    with bound:
        assert phone_urls([bound], ServerSettings())[0].startswith("http://[2001:db8::4]:")


def test_this_machine_says_its_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine_addresses()
    assert all(not ipaddress.ip_address(one).is_loopback for one in found)
    loopback = [one for one in addresses._of_the_system() if one.flags & LOOPBACK]
    assert "127.0.0.1" in {str(one.address) for one in loopback}
    monkeypatch.setattr(addresses, "_of_the_system", _does_not_say)
    assert set(machine_addresses()) <= set(found)  # of the usual interface alone


def _does_not_say() -> list[Interface]:
    raise OSError


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("box", ["box", "box.local"]),
        ("Box.example.org", ["box.example.org", "box", "box.local"]),
        ("box.local", ["box.local", "box"]),
        ("Ann's Mac", []),
        ("192.0.2.7", []),
        ("localhost", []),
    ],
)
def test_names_that_browsers_cannot_send_are_left_out(name, names, monkeypatch) -> None:
    monkeypatch.setattr(addresses.locks, "host", lambda: name)
    assert machine_names() == names
