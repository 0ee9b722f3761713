"""What the service manager is told: systemd's protocol for units of `Type=notify`."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready() -> None:
    """Say that the server answers."""
    _send("READY=1")


def reloading() -> None:
    """Say that the model is being read again; `ready` follows."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that the server is ending."""
    _send("STOPPING=1")


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(state.encode(), address)
