from __future__ import annotations

import os

# One thread per process, before torch is loaded: the tests run in as many processes as there are
# cores, and threads that wait for each other on too few cores are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hub_server import HubServer
from tests.image_server import web  # noqa: F401
from tests.s3_server import s3, s3_server  # noqa: F401
from tests.store_faults import faulty  # noqa: F401

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from tests.bundles import Bundles

# pytest rewrites the modules of every distribution that has a plugin, anyio's too, and anyio loads
# its event loop late, in the thread that fetches. Python 3.11 may raise SystemError ("AST
# constructor recursion depth mismatch", gh-106905) where a module is parsed beside another thread.
importlib.import_module("anyio._backends._asyncio")

# Whoever starts the tests in a shell's background hands on an interrupt that is ignored, and the
# commands that are interrupted here would be deaf.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def _close_connections() -> None:
    # The client keeps its connections and the proxies that it found when it was made.
    import huggingface_hub
    from huggingface_hub import utils

    close = getattr(huggingface_hub, "close_session", None) or getattr(
        utils, "reset_sessions", None
    )
    if close is not None:
        close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local hub without repositories (fill `hub.repos`), and an empty cache beside it."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as it was when it was imported
    # It waits whole seconds between attempts.
    hasty = types.SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", hasty, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    _close_connections()
    with HubServer({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    _close_connections()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Bundles:
    """Makes bundles of small models, once for all worker processes."""
    from tests.bundles import Bundles  # which loads torch

    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "bundles"
    folder.mkdir(exist_ok=True)
    return Bundles(folder)


@pytest.fixture(scope="session")
def bundle(exported: Bundles) -> Path:
    """The folder of a small trained model; not to be changed."""
    return exported("teacher-a")


@pytest.fixture(scope="session")
def other_bundle(exported: Bundles) -> Path:
    """Another model, of another embedding space; not to be changed."""
    return exported("teacher-b")


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> Encoder:
    """The small model, loaded."""
    from pocketclip.infer.encoder import load

    return load(bundle, backend="onnxruntime", threads=1)
