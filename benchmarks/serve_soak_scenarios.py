"""What a server meets beside requests: see the parts of `serve_soak.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from serve_http import Answer, Client, post_form, post_json, read_answer, request
from serve_process import Server, percentile, texts
from serve_soak_cases import World, decoded, uri

CLIENTS = 32


def metric(server: Server, name: str, **labels: str) -> float:
    """Return a figure of `/metrics`."""
    status, body = server.get("/metrics")
    if status != 200:
        raise SystemExit(f"/metrics is answered with {status}")
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in body.decode().splitlines()
        if line.partition("{")[0].partition(" ")[0] == name and all(one in line for one in wanted)
    )


async def settled(server: Server, seconds: float = 15) -> int:
    """Return how many inputs wait, as soon as none does or after some seconds."""
    waiting = 0
    for _ in range(int(seconds / 0.1)):
        waiting = int(await asyncio.to_thread(metric, server, "pocketclip_waiting_items"))
        if not waiting:
            break
        await asyncio.sleep(0.1)
    return waiting


def image_request(data: bytes, count: int = 1) -> bytes:
    """Return a request for the embeddings of an image, as often as wished."""
    value = {"input": [uri(data)] * count, "modality": "image", "encoding_format": "base64"}
    return post_json("/v1/embeddings", value)


async def languages(server: Server, immich: int, requests: int) -> dict[str, Any]:
    """Send immich's requests, each with another language."""
    statuses: Counter[int] = Counter()
    samples = []
    connection = Client(immich)
    for number in range(requests):
        options = {"modelName": "ViT-B-32__openai", "options": {"language": f"de-null-{number}"}}
        entries = json.dumps({"clip": {"textual": options}})
        # Ten texts in turn: the cache of texts is not what is looked at.
        parts: list[tuple[str, str | bytes]] = [("entries", entries), ("text", f"a {number % 10}")]
        statuses[(await connection.ask(post_form("/predict", parts))).status] += 1
        if number % max(1, requests // 100) == 0:
            samples.append(server.megabytes())
    connection.close()
    wrong = [] if set(statuses) == {200} else ["not all were answered with 200"]
    return {"statuses": dict(statuses), "wrong": wrong, "samples": samples}


async def connections(server: Server, world: World, _load: float) -> dict[str, Any]:
    """Open 200 connections at a time, and send some requests on each."""
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        connection = Client(server.port)
        await connection.connect()
        for turn in range(5):
            data = world.photos[(number + turn) % len(world.photos)]
            raw = image_request(data) if turn % 2 else request("GET", "/livez")
            statuses[(await connection.ask(raw)).status] += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(200)))
    wrong = [] if dict(statuses) == {200: 1000} else ["not all were answered with 200"]
    return {"statuses": dict(statuses), "wrong": wrong}


async def slow(server: Server, world: World, load: float) -> dict[str, Any]:
    """Trickle headers and bodies, and read nothing, beside a client that behaves."""
    raw = image_request(world.photos[0])
    head = raw.index(b"\r\n\r\n") + 4
    ends: Counter[str] = Counter()

    async def trickle(first: int, pause: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        begin = time.perf_counter()
        answer = asyncio.ensure_future(read_answer(reader))
        try:
            writer.write(raw[:first])
            for at in range(first, len(raw)):
                writer.write(raw[at : at + 1])
                await asyncio.wait([answer], timeout=pause)
                if answer.done() or time.perf_counter() - begin > 60:
                    break
            status = str((await asyncio.wait_for(answer, 60)).status)
        except (ConnectionError, asyncio.IncompleteReadError):
            status = "closed"
        except asyncio.TimeoutError:
            status = "none"
        took = time.perf_counter() - begin
        where = "header" if first < head else "body"
        ends[f"{where}: {status} after {round(took / 5) * 5} s"] += 1
        if status not in ("408", "closed") or took > 50:
            ends["wrong"] += 1
        answer.cancel()
        writer.close()

    async def deaf() -> None:
        """Ask for much, again and again, and read nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 10)
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            for _ in range(2000):
                writer.write(request("GET", "/openapi.json"))
                await asyncio.wait_for(writer.drain(), 45)
        begin = time.perf_counter()
        while not writer.is_closing() and time.perf_counter() - begin < 45:
            await asyncio.sleep(0.2)
            with contextlib.suppress(ConnectionError):
                writer.write(b"\r\n")
        ends["deaf: closed" if writer.is_closing() else "deaf: open"] += 1
        writer.close()
        del reader

    latencies: list[float] = []

    async def decent() -> None:
        connection = Client(server.port)
        for _ in range(int(40 * load)):
            begin = time.perf_counter()
            if (await connection.ask(raw)).status != 200:
                ends["wrong"] += 1
            latencies.append((time.perf_counter() - begin) * 1e3)
            await asyncio.sleep(0.02)
        connection.close()

    await asyncio.gather(
        decent(), *(trickle(40, 0.5) for _ in range(20)), *(trickle(head, 0.5) for _ in range(20)),
        *(deaf() for _ in range(2)),
    )  # fmt: skip
    return {
        "ends": dict(sorted(ends.items())),
        "decent_median_ms": round(percentile(latencies, 0.5), 1),
        "decent_p99_ms": round(percentile(latencies, 0.99), 1),
        "wrong": ["a slow client was served, or not ended"] * bool(ends["wrong"]),
    }


async def gone(server: Server, world: World, _load: float) -> dict[str, Any]:
    """Queue requests, most of whose clients leave, and count what is encoded."""

    def counts() -> tuple[float, float]:
        return (
            metric(server, "pocketclip_encoded_items_total", tower="image"),
            metric(server, "pocketclip_dropped_items_total", tower="image"),
        )

    before = await asyncio.to_thread(counts)
    stay, leave = 3, 7
    connections_ = [Client(server.port) for _ in range(stay + leave)]
    raw = image_request(world.photos[0], 50)
    asked = [asyncio.ensure_future(one.ask(raw)) for one in connections_]
    sent = time.perf_counter()
    while metric(server, "pocketclip_waiting_items", tower="image") < 50 * (stay + leave) - 100:
        if time.perf_counter() - sent > 20:
            break
        await asyncio.sleep(0.005)
    waiting = int(metric(server, "pocketclip_waiting_items", tower="image"))
    for one in connections_[stay:]:
        one.close()
    answers = await asyncio.gather(*asked[:stay])
    for task in asked[stay:]:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    for one in connections_[:stay]:
        one.close()
    left = await settled(server)
    after = await asyncio.to_thread(counts)
    encoded, dropped = (int(b - a) for a, b in zip(before, after, strict=True))
    total = 50 * (stay + leave)
    wrong = ["who stayed was not answered"] * (any(one.status != 200 for one in answers))
    wrong += ["inputs still wait"] * bool(left)
    wrong += ["inputs of clients that left were encoded"] * (encoded > total - waiting + 50 * stay)
    wrong += ["inputs were neither encoded nor dropped"] * (encoded + dropped != total)
    return {
        "images": total, "waiting_when_they_left": waiting, "of_who_stayed": 50 * stay,
        "encoded": encoded, "dropped": dropped, "wrong": wrong,
    }  # fmt: skip


async def full(server: Server, world: World, _load: float) -> dict[str, Any]:
    """Fill the queue of images; ask for other things meanwhile."""
    wrong = []
    crowd = [Client(server.port) for _ in range(24)]
    raw = image_request(world.photos[0], 60)
    asked = [asyncio.ensure_future(one.ask(raw)) for one in crowd]
    statuses: Counter[str] = Counter()
    latencies = []
    other = Client(server.port)
    number = 0
    while not all(task.done() for task in asked):
        number += 1
        for name, one in (
            ("livez", request("GET", "/livez")),
            ("text", post_json("/v1/embeddings", {"input": texts(1, number)})),
        ):
            begin = time.perf_counter()
            answer = await other.ask(one)
            if name == "livez":
                latencies.append((time.perf_counter() - begin) * 1e3)
            statuses[f"{name} {answer.status}"] += 1
            if answer.status != 200:
                wrong.append(f"{name}: {answer.status}")
        await asyncio.sleep(0.01)
    for connection in (*crowd, other):
        connection.close()
    answers: list[Answer] = [task.result() for task in asked]
    for answer in answers:
        statuses[f"images {answer.status}"] += 1
        if answer.status not in (200, 429):
            wrong.append(f"images: {answer.status}")
        elif answer.status == 429 and not answer.headers.get("retry-after", "").isdigit():
            wrong.append("429 without Retry-After")
    if not statuses["images 429"]:
        wrong.append("the queue never was full")
    return {
        "statuses": dict(statuses), "livez_p99_ms": round(percentile(latencies, 0.99), 1),
        "wrong": wrong,
    }  # fmt: skip


async def _under_load(
    server: Server, world: World, load: float, act: Callable[[], Awaitable[None]], *, ends: bool
) -> dict[str, Any]:
    """Let clients send until some time after `act`; every answer must be right."""
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    is_over = False
    known = world.encoder.encode_image(world.photos[:16])
    acted_at = [float("inf")]

    async def client(number: int) -> None:
        nonlocal is_over
        connection = Client(server.port)
        chance = random.Random(number)
        while not is_over:
            at = chance.randrange(16)
            answer = await connection.ask(image_request(world.photos[at]))
            if connection.is_refused:
                statuses["refused"] += 1
                if time.perf_counter() < acted_at[0] or not ends:
                    wrong.append("a connection was refused before the signal")
                return
            statuses[str(answer.status)] += 1
            if answer.status == 200:
                row = decoded(answer.json()["data"][0])
                if not np.array_equal(row, known[at]):
                    wrong.append("another embedding")
            elif not ends:
                wrong.append(f"answered with {answer.status}")
            elif answer.status not in (0, 503):
                wrong.append(f"answered with {answer.status} at the end")
        connection.close()

    async def conduct() -> None:
        nonlocal is_over
        await asyncio.sleep(load)
        acted_at[0] = time.perf_counter()
        await act()
        await asyncio.sleep(load)
        is_over = True

    await asyncio.gather(conduct(), *(client(number) for number in range(CLIENTS)))
    return {"statuses": dict(statuses), "wrong": sorted(set(wrong))}


async def sighup(server: Server, world: World, load: float) -> dict[str, Any]:
    """Let the server read its bundle again, three times, under load."""

    async def act() -> None:
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(load / 2)

    return await _under_load(server, world, load, act, ends=False)


async def sigterm(server: Server, world: World, load: float) -> dict[str, Any]:
    """End the server under load."""
    took = [0.0]

    async def act() -> None:
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.process.wait, 60)
        took[0] = time.perf_counter() - begin

    result = await _under_load(server, world, load, act, ends=True)
    code = server.process.returncode
    if code:
        result["wrong"].append(f"the exit code is {code}")
    # A request that meets the end of an idle connection was not accepted; all others were.
    lost = result["statuses"].get("0", 0)
    if lost:
        result["wrong"].append(f"{lost} requests were sent and not answered")
    return {**result, "exit_code": code, "seconds_to_end": round(took[0], 2)}


PARTS: dict[str, Callable[[Server, World, float], Awaitable[dict[str, Any]]]] = {
    "connections": connections, "slow": slow, "gone": gone, "full": full, "sighup": sighup,
    "sigterm": sigterm,
}  # fmt: skip
