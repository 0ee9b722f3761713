"""Hosts that may be asked: what a list of them allows, and what is no host."""

from __future__ import annotations

import pytest

from pocketclip.errors import ConfigError
from pocketclip.storage.allowed_hosts import AllowedHosts

httpx = pytest.importorskip("httpx")


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("example.org", ["example.org", "EXAMPLE.org.", "example.org:443"],
         ["a.example.org", "example.org:8443", "example.org.evil.test", "xexample.org"]),
        ("Example.ORG:8443", ["example.org:8443"], ["example.org"]),
        ("*.example.org", ["a.example.org", "a.b.example.org"], ["example.org", "xexample.org"]),
        ("bücher.test", ["bücher.test", "xn--bcher-kva.test"], ["bucher.test"]),
        ("[2606:4700::1111]", ["[2606:4700::1111]"], ["2606"]),
    ],
)  # fmt: skip
def test_lists_of_hosts(rule: str, good: list[str], bad: list[str]) -> None:
    hosts = AllowedHosts([rule])
    for host in good:
        assert hosts.allows(httpx.URL(f"https://{host}/a"))
        assert not hosts.allows(httpx.URL(f"https://user@{host}/a"))
    for host in bad:
        assert not hosts.allows(httpx.URL(f"https://{host}/a"))


@pytest.mark.parametrize(
    "rule",
    ["", "*", "*.org", "https://a.test", "a.test/b", "a b", "me@a.test", "a.test:0", "a:99999"],
)
def test_what_is_no_host(rule: str) -> None:
    with pytest.raises(ConfigError):
        AllowedHosts([rule])
