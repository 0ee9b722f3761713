"""A small model as a bundle, the server's apps in this process, and real servers.

    def test_it(make_client):
        client = make_client(api_key="a key of 16 letters")
        assert client.get("/livez").status_code == 200

Apps and servers run on one event loop, in a thread that lives as long as the tests of a process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from pocketclip.label_set import LabelSet, NoneOfThese
from pocketclip.search.library import Library
from pocketclip.serve.app import create_app
from pocketclip.serve.encoding.engine import Engine
from pocketclip.serve.process.lifecycle import Running, run
from pocketclip.serve.services import Services
from pocketclip.serve.settings import ServerSettings
from tests.search.conftest import draw_photo

if TYPE_CHECKING:
    from pocketclip.checkpoint.resolve import ModelSource

T = TypeVar("T")
_PATIENCE = 60.0  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's library and its photographs are."""
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def library(folder: Path, encoder: Encoder) -> Iterator[Library]:
    """A library of six photographs, not to be changed."""
    from tests.serve.libraries import make_library

    with make_library(folder, encoder) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(library: Library) -> dict[str, int]:
    """The ids of its photographs, by their names below the root."""
    from tests.serve.libraries import ids_of

    return ids_of(library)


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine that runs on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def on_loop() -> Iterator[Loop]:
    """Runs a coroutine on the servers' event loop: `on_loop(engine.embed_texts(["a"]))`."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def make_services(encoder: Encoder, on_loop: Loop) -> Iterator[Callable[..., Services]]:
    """Makes services with the loaded model; the engine is closed after the test.

    `make_services(library=..., label_sets=..., limits=..., **fields of ServerSettings)`
    """
    made = []

    def make(
        *, library: Library | None = None, label_sets: dict[str, Any] | None = None,
        encoder: Encoder = encoder, is_ready: bool = True, **settings: Any,
    ) -> Services:  # fmt: skip
        chosen = ServerSettings(**settings)

        async def on_its_loop() -> Services:
            return Services(
                engine=Engine(encoder, chosen.limits), settings=chosen, library=library,
                label_sets=dict(label_sets or {}), is_ready=is_ready,
            )  # fmt: skip

        made.append(on_loop(on_its_loop()))
        return made[-1]

    yield make
    for services in made:
        on_loop(services.close())


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    """Services with the loaded model, without a library."""
    return make_services()


class Client:
    """Requests to an app in this process, without a socket; `httpx.AsyncClient` without `await`."""

    def __init__(self, app: Any, services: Services, loop: Loop) -> None:
        self.app, self.services, self._loop = app, services, loop
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=True),
            base_url="http://127.0.0.1:8080",
        )

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return the answer to a request; the options are those of httpx."""
        return self._loop(self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def delete(self, url: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", url, **options)

    def close(self) -> None:
        self._loop(self._client.aclose())


@pytest.fixture
def make_client(
    make_services: Callable[..., Services], on_loop: Loop
) -> Iterator[Callable[..., Client]]:
    """Makes a client of an app in this process.

    `make_client(services, app=create_immich_app, library=..., **fields of ServerSettings)`:
    without services, they are made as `make_services` does.
    """
    made = []

    def make(
        services: Services | None = None, *, app: Callable[[Services], Any] = create_app,
        **options: Any,
    ) -> Client:  # fmt: skip
        chosen = make_services(**options) if services is None else services
        made.append(Client(app(chosen), chosen, on_loop))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    """A client of an app in this process, with a model and no library."""
    return make_client()


@dataclass(frozen=True)
class Server:
    """A real server on free ports of this machine, in a thread."""

    running: Running
    task: Any = field(repr=False)

    @property
    def url(self) -> str:
        return self.running.urls[0]

    @property
    def immich_url(self) -> str:
        return self.running.immich_urls[0]

    @property
    def services(self) -> Services:
        return self.running.services

    def stop(self) -> None:
        """End it as SIGTERM does, and wait for that."""
        self.running.stop()
        self.task.result(_PATIENCE)


class _Starter:
    def __init__(self, encoder: Encoder, loop: Loop) -> None:
        self._encoder, self._loop, self._started = encoder, loop, list[Server]()

    def __call__(
        self, *, library: Library | None = None, label_sets: dict[str, Any] | None = None,
        encoder: Encoder | None = None, source: ModelSource | None = None, **settings: Any,
    ) -> Server:  # fmt: skip
        chosen = ServerSettings(**{"port": 0, **settings})
        started: list[Running] = []

        async def start() -> asyncio.Task[None]:
            made = Services(
                engine=Engine(encoder or self._encoder, chosen.limits), settings=chosen,
                library=library, label_sets=dict(label_sets or {}),
            )  # fmt: skip
            ready = asyncio.Event()

            def on_start(running: Running) -> None:
                started.append(running)
                ready.set()

            task = asyncio.ensure_future(run(made, on_start, source=source))
            waiting = asyncio.ensure_future(ready.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not started:
                waiting.cancel()
                await task  # raises why
            return task

        task = self._loop(start())
        self._started.append(Server(started[0], _Result(task, self._loop)))
        return self._started[-1]

    def stop(self) -> None:
        for server in self._started:
            server.stop()


@dataclass(frozen=True)
class _Result:
    task: asyncio.Task[None]
    loop: Loop

    def result(self, timeout: float) -> None:
        async def wait() -> None:
            await asyncio.wait_for(asyncio.shield(self.task), timeout)

        self.loop(wait())


@pytest.fixture
def running_server(encoder: Encoder, on_loop: Loop) -> Iterator[Callable[..., Server]]:
    """Starts real servers, with fields of ServerSettings; they end after the test.

    `running_server(library=..., label_sets=..., **fields of ServerSettings).url`; with `source=`,
    `.running.reload()` reads the model there again.
    """
    starter = _Starter(encoder, on_loop)
    yield starter
    starter.stop()


@pytest.fixture(scope="session")
def server(encoder: Encoder, on_loop: Loop) -> Iterator[Server]:
    """A real server with a model, without a library and without a key: one for all tests."""
    starter = _Starter(encoder, on_loop)
    yield starter()
    starter.stop()


@pytest.fixture(scope="session")
def offering_server(
    encoder: Encoder, on_loop: Loop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A real server with all that there is: a library, a label set and immich's port; no key."""
    folder = tmp_path_factory.mktemp("offered")
    for seed, name in enumerate(["a.jpg", "b.png", "trip/c.jpg", "trip/d.webp"]):
        draw_photo(folder / "photos" / name, seed)
    with Library.open(folder / "photos.sqlite", create=True) as library:
        library.index([folder / "photos"], encoder=encoder)
        rng = np.random.default_rng(0)
        fruit = LabelSet(
            labels=["apple", "kiwi", "fig"], space_id=encoder.space_id, model=encoder.config.name,
            weights=rng.normal(size=(3, encoder.embed_dim)).astype(np.float32),
            biases=np.zeros(3, np.float32), none=NoneOfThese(score="logit", below=0.0, error=0.05),
        )  # fmt: skip
        starter = _Starter(encoder, on_loop)
        yield starter(library=library, label_sets={"fruit": fruit}, immich=("127.0.0.1", 0))
        starter.stop()
