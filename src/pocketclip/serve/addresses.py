"""The names and addresses of this machine, and which of them a phone can open."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pocketclip.serve.origins import allowed_name, is_address
from pocketclip.storage import locks

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_UP, _LOOPBACK, _POINT_TO_POINT = 0x1, 0x8, 0x10  # flags of an interface
_SHORT_LIVED = 0x01 | 0x08 | 0x20 | 0x40  # temporary, duplicate, deprecated, tentative
_IPV6_FLAGS = Path("/proc/net/if_inet6")
# Of containers and virtual machines: other machines do not reach them.
_VIRTUAL = re.compile(
    r"(br-|bridge|cali|cilium|cni|docker|flannel|incus|kube|lxc|lxd|podman|vbox|veth|virbr|vmnet)"
)
_REACHED = 1  # the last kind of address that phones may reach, see `_rank`
_TUNNEL = re.compile(r"(gif|ipsec|nebula|ppp|tailscale|tap|tun|utun|wg|zt)")
# Packets to documentation's networks are never sent: a route to them names the usual interface.
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


class Interface(NamedTuple):
    """One address of an interface."""

    name: str
    flags: int
    address: IpAddress


class _Ifaddrs(ctypes.Structure):
    """The fields of `struct ifaddrs` that Linux and macOS have in common."""


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def machine_names() -> list[str]:
    """Return the names by which the local network may know this machine: NAME and NAME.local.

    A name that no browser could send is left out.
    """
    whole = allowed_name(locks.host())
    if whole is None or is_address(whole) or whole in ("unknown", "localhost"):
        return []
    short = whole.partition(".")[0]
    return list(dict.fromkeys([whole, short, f"{short}.local"]))


def machine_addresses(*, likely: bool = False) -> list[str]:
    """Return the addresses of this machine, those that a phone is likely to reach first.

    Loopback is left out, and so are link-local addresses of IPv6, which no browser opens, and
    temporary ones, which change each day. Addresses of containers and virtual machines are last.

    Args:
        likely: leave those out that phones do not reach.
    """
    usual = _usual_addresses()
    ranked = sorted((_rank(one, usual), str(one.address)) for one in _interfaces())
    found = [address for rank, address in ranked if not likely or rank[0] <= _REACHED]
    return list(dict.fromkeys(found))


def reachable_addresses(bound: Iterable[str], *, likely: bool = False) -> list[str]:
    """Return the addresses at which other machines may reach sockets, the likeliest first.

    Args:
        bound: the addresses of the sockets; `0.0.0.0` and `::` stand for all of their kind.
        likely: see `machine_addresses`.
    """
    hosts: list[str] = []
    for text in bound:
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.is_unspecified:
            ours = machine_addresses(likely=likely)
            hosts += [one for one in ours if (":" in one) == (address.version == 6)]
        elif not address.is_loopback and not (address.version == 6 and address.is_link_local):
            hosts.append(str(address))
    return list(dict.fromkeys(hosts))


def _rank(one: Interface, usual: set[str]) -> tuple[int, bool, bool, str]:
    """Return the place of an address in the order in which they are offered."""
    if one.address.is_link_local:
        kind = 3
    elif _VIRTUAL.match(one.name):
        kind = 2
    elif one.flags & _POINT_TO_POINT or _TUNNEL.match(one.name):
        kind = 1
    else:
        kind = 0
    return kind, one.address.version == 6, str(one.address) not in usual, one.name


def _interfaces() -> list[Interface]:
    try:
        found = _of_the_system()
    except (OSError, AttributeError):
        found = [Interface("", _UP, ipaddress.ip_address(one)) for one in _usual_addresses()]
    short_lived = _short_lived()
    return [
        one
        for one in found
        if one.flags & _UP
        and not one.flags & _LOOPBACK
        and not one.address.is_loopback
        and not (one.address.version == 6 and one.address.is_link_local)
        and one.address not in short_lived
    ]


def _of_the_system() -> list[Interface]:
    """Return what `getifaddrs` knows, which Python has no function for.

    Raises:
        OSError: the system does not say.
        AttributeError: it has no such function.
    """
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Ifaddrs)()
    if library.getifaddrs(ctypes.byref(first)):
        raise OSError(ctypes.get_errno(), "the addresses of this machine are not known")
    found = []
    try:
        one = first
        while one:
            entry = one.contents
            address = _address_at(entry.address)
            if address is not None:
                found.append(Interface(entry.name.decode("ascii", "replace"), entry.flags, address))
            one = entry.next
    finally:
        library.freeifaddrs(first)
    return found


def _address_at(place: int | None) -> IpAddress | None:
    """Return the IP address in a `struct sockaddr`; None if it holds another kind."""
    if not place:
        return None
    head = ctypes.string_at(place, 2)
    # BSD's has its length in the first byte.
    family = head[1] if sys.platform == "darwin" else int.from_bytes(head, sys.byteorder)
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(ctypes.string_at(place + 4, 4))
    if family == socket.AF_INET6:
        return ipaddress.IPv6Address(ctypes.string_at(place + 8, 16))
    return None


def _short_lived() -> set[IpAddress]:
    """Return addresses of IPv6 that are gone tomorrow, where the system says which."""
    found: set[IpAddress] = set()
    with contextlib.suppress(OSError, ValueError):
        for line in _IPV6_FLAGS.read_text("ascii").splitlines():
            digits, _index, _prefix, _scope, flags, _name = line.split()
            if int(flags, 16) & _SHORT_LIVED:
                found.add(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return found


def _usual_addresses() -> set[str]:
    """Return the addresses that packets to elsewhere are sent from; nothing is sent."""
    found = set()
    for family, elsewhere in _ELSEWHERE.items():
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect((elsewhere, 9))
            found.add(one.getsockname()[0])
    return found
