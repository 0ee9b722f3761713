"""A load generator for a server on this machine: a process of its own, standard library only.

    python benchmarks/serve_load.py 8080

It reads plans from standard input, one JSON object per line, and answers each with one line.

| key of a plan | means |
|---|---|
| `requests` | files that each hold one whole HTTP request; they are sent in turn |
| `clients` | connections, which are kept alive |
| `seconds` | how long requests are sent; answers that are still missing then are waited for |
| `count` | how many are sent at most |
| `rate` | arrivals per second; absent: every client sends again when it has its answer |
| `poisson` | whether the gaps between arrivals are exponential; else they are equal |
| `seed` | of the gaps |

| key of an answer | means |
|---|---|
| `latencies` | milliseconds from a request's time of arrival to the last byte of its answer; waiting for a free connection counts |
| `statuses` | how many answers had each status; `0`: the connection ended without an answer |
| `per_second` | answers per second, from the first request to the last answer |
| `seconds`, `processor_seconds` | that time, and what this process used of the processor in it |

Only loopback addresses are used.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import resource
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, cast

HOST = "127.0.0.1"


def processor_seconds() -> float:
    """Return what this process has used of all cores."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Connection(asyncio.Protocol):
    """One connection that sends a request and waits for its answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._buffer = bytearray()
        self._needed: int | None = None  # bytes of the answer, once its header is here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        # A large request is written in one go; the kernel takes what it can.
        self.transport.set_write_buffer_limits(1 << 26)

    def connection_lost(self, _error: Exception | None) -> None:
        """Answer what waits with 0."""
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def data_received(self, data: bytes) -> None:
        """Collect the answer; its length is in its header."""
        self._buffer += data
        if self._needed is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.find(b"content-length:")
            if at < 0:
                raise SystemExit(f"an answer without Content-Length: {head!r}")
            self._needed = end + 4 + int(head[at + 15 :].split(b"\r", 1)[0])
        if len(self._buffer) >= self._needed and self._answer is not None:
            self._answer.set_result(int(self._buffer[9:12]))

    async def ask(self, request: bytes) -> int:
        """Send a request; return the status of the answer, 0 if the connection ended."""
        if self.transport is None or self.transport.is_closing():
            await asyncio.get_running_loop().create_connection(lambda: self, HOST, PORT)
        assert self.transport is not None
        self._buffer.clear()
        self._needed = None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


class Run:
    """One plan: what was sent and answered."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.requests = itertools.cycle([Path(name).read_bytes() for name in plan["requests"]])
        self.clients: int = plan["clients"]
        self.end = time.perf_counter() + plan.get("seconds", 1e9)
        self.left: int = plan.get("count", sys.maxsize)
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.begin = self.last = time.perf_counter()
        self.used = processor_seconds()

    def may_send(self) -> bool:
        """Say whether another request is due, and count it."""
        if self.left <= 0 or time.perf_counter() >= self.end:
            return False
        self.left -= 1
        return True

    async def ask(self, connection: Connection, arrival: float) -> None:
        """Send the next request; note its answer."""
        status = await connection.ask(next(self.requests))
        self.last = time.perf_counter()
        self.statuses[status] += 1
        self.latencies.append((self.last - arrival) * 1e3)

    async def closed(self) -> None:
        """Let every client send again as soon as it has its answer."""

        async def client() -> None:
            connection = Connection()
            while self.may_send():
                await self.ask(connection, time.perf_counter())
            if connection.transport is not None:
                connection.transport.close()

        await asyncio.gather(*(client() for _ in range(self.clients)))

    async def open(self, rate: float, poisson: bool, seed: int) -> None:
        """Send at given times, whether or not earlier requests have been answered."""
        chance = random.Random(seed)
        free: deque[Connection] = deque(Connection() for _ in range(self.clients))
        waiting: deque[asyncio.Future[Connection]] = deque()
        tasks = []

        async def one(arrival: float) -> None:
            if free:
                connection = free.pop()
            else:
                waiting.append(asyncio.get_running_loop().create_future())
                connection = await waiting[-1]
            await self.ask(connection, arrival)
            if waiting:
                waiting.popleft().set_result(connection)
            else:
                free.append(connection)

        arrival = time.perf_counter()
        while self.may_send():
            arrival += chance.expovariate(rate) if poisson else 1 / rate
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.ensure_future(one(arrival)))
        await asyncio.gather(*tasks)
        for connection in free:
            if connection.transport is not None:
                connection.transport.close()

    def result(self) -> dict[str, Any]:
        """Return the figures."""
        seconds = self.last - self.begin
        return {
            "latencies": self.latencies,
            "statuses": self.statuses,
            "per_second": len(self.latencies) / seconds,
            "seconds": seconds,
            "processor_seconds": processor_seconds() - self.used,
        }


def main() -> None:
    """Carry out plans until standard input ends."""
    gc.freeze()
    for line in sys.stdin:
        plan = json.loads(line)
        run = Run(plan)
        if "rate" in plan:
            asyncio.run(run.open(plan["rate"], plan.get("poisson", False), plan.get("seed", 0)))
        else:
            asyncio.run(run.closed())
        print(json.dumps(run.result()), flush=True)


PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
if __name__ == "__main__":
    main()
