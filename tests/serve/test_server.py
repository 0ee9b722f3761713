"""A server as a process: its addresses, its start, its end, and its model replaced."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

import pocketclip
from pocketclip.errors import ConfigError, DataError, LibraryError, MissingDependencyError
from pocketclip.infer.encoder import Encoder
from pocketclip.label_set import LabelSet
from pocketclip.search.library import Library
from pocketclip.serve import ServerSettings, serve
from pocketclip.serve.process import lifecycle as process
from pocketclip.serve.process import notify
from pocketclip.serve.process.lifecycle import bind_all
from pocketclip.serve.process.opening import (
    load_replacement,
    model_source,
    open_encoder,
    open_services,
)
from pocketclip.serve.process.ports import address_of, bind, why_not_bound
from pocketclip.serve.process.tls import open_tls
from tests.bundles import with_license
from tests.search.conftest import draw_photo


def test_a_started_server_is_ready_and_answers(server) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/livez").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200


def test_apps_answer_without_a_socket(make_client) -> None:
    client = make_client(is_ready=False)
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503


def test_a_stopped_server_does_not_listen_any_more(running_server) -> None:
    server = running_server()
    assert httpx.get(f"{server.url}/livez").status_code == 200
    server.stop()
    try:
        httpx.get(f"{server.url}/livez")
    except httpx.ConnectError:
        return
    raise AssertionError("it still answers")


def test_ports_that_cannot_be_used_are_named_with_what_to_do(server) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
        bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("no such host", 0)
    assert "from 1024 on" in why_not_bound(PermissionError(errno.EACCES, "no"), "127.0.0.1", 80)


def test_the_second_port_gives_the_first_one_back_if_it_is_in_use(server) -> None:
    busy = int(server.url.rpartition(":")[2])
    with bind("127.0.0.1", 0)[0] as one:
        free = one.getsockname()[1]
    settings = ServerSettings(port=free, immich=("127.0.0.1", busy))
    with pytest.raises(ConfigError, match=f"port {busy}"):
        bind_all(settings)
    for one in bind("127.0.0.1", free):
        one.close()


def test_a_host_with_two_addresses_has_one_port_on_both() -> None:
    sockets = bind("localhost", 0)
    assert len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        assert address_of(one).startswith(("http://127.0.0.1:", "http://[::1]:"))
        one.close()


def test_an_answer_comes_from_an_ipv6_address(running_server) -> None:
    try:
        server = running_server(host="::1")
    except ConfigError:
        pytest.skip("no IPv6 here")
    assert server.url.startswith("http://[::1]:")
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.pem"
    file.write_text("no certificate")
    with pytest.raises(ConfigError, match="are no certificate with its key"):
        open_tls(ServerSettings(certificate=file, private_key=file))
    with pytest.raises(ConfigError, match="cannot read"):
        open_tls(ServerSettings(certificate=tmp_path / "none", private_key=file))


def test_a_checkpoint_is_converted_also_where_torch_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    monkeypatch.setenv("POCKETCLIP_CACHE", str(tmp_path))
    checkpoint = Path(pocketclip.__file__).parent / "data" / "quickstart" / "teacher-a"
    opened = open_encoder(model_source(checkpoint, None), ServerSettings(threads=1))
    assert opened.bundle is not None
    assert opened.bundle.folder.is_relative_to(tmp_path)
    assert opened.space_id == encoder.space_id
    texts = ["a dog", "a red car"]
    np.testing.assert_allclose(opened.encode_text(texts), encoder.encode_text(texts), atol=1e-5)


@pytest.mark.parametrize("model", ["random:tiny", "open_clip:ViT-B-32/openai"])
def test_what_cannot_become_a_bundle_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="pocketclip export"):
        open_services(model, None, ServerSettings())


def test_a_server_needs_a_model_or_a_library() -> None:
    with pytest.raises(ConfigError, match="a model, or a library"):
        open_services(None, None, ServerSettings())


def test_a_library_and_label_sets_must_have_the_space_of_the_model(
    bundle: Path, other_bundle: Path, encoder: Encoder, tmp_path: Path
) -> None:
    draw_photo(tmp_path / "photos" / "a.jpg", 1)
    file = tmp_path / "mine.sqlite"
    with Library.open(file, create=True) as library:
        library.index([tmp_path / "photos"], model=bundle)
    with pytest.raises(LibraryError, match="holds vectors of"):
        open_services(other_bundle, file, ServerSettings(threads=1))
    labels = LabelSet(
        labels=["a", "b"], space_id=encoder.space_id, model="it",
        weights=np.zeros((2, encoder.embed_dim), np.float32), biases=np.zeros(2, np.float32),
    )  # fmt: skip
    labels.write(tmp_path / "shelf.json")
    settings = ServerSettings(label_sets={"shelf": tmp_path / "shelf.json"}, threads=1)
    with pytest.raises(DataError, match="the label set shelf was fitted to it"):
        open_services(other_bundle, None, settings)
    services = open_services(None, file, settings)
    assert services.engine.encoder.space_id == encoder.space_id
    assert services.label_sets["shelf"].labels == ("a", "b")
    with pytest.raises(LibraryError, match="holds vectors of"):
        load_replacement(model_source(other_bundle, None), services)
    assert services.library is not None
    services.library.close()


def test_without_the_extra_it_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("pocketclip.serve.p")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[serve\]"):
        serve(bundle)


def test_the_service_manager_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for tell in (notify.ready, notify.reloading, notify.stopping):
            tell()
        told = [manager.recv(1000).decode().partition("\n")[0] for _ in range(3)]
    assert told == ["READY=1", "RELOADING=1", "STOPPING=1"]
    notify.ready()  # the socket is gone, and nothing happens


def test_a_closed_terminal_ends_the_server_and_other_hangups_reload(monkeypatch) -> None:
    terminal = iter([True, True, False])
    monkeypatch.setattr(process, "_has_terminal", lambda: next(terminal))

    async def run() -> tuple[bool, bool]:
        services = SimpleNamespace(settings=ServerSettings())
        one = process._Process(services, None)  # type: ignore[arg-type]
        one._on_hangup()
        reloads = one._reloading is not None
        one._on_hangup()
        if one._reloading is not None:
            one._reloading.cancel()
        return reloads, one._end.is_set()

    assert asyncio.run(run()) == (True, True)


def test_weights_that_their_licence_restricts_are_not_served_to_other_machines_unasked(
    bundle: Path, tmp_path: Path, make_services, monkeypatch
) -> None:
    restricted = with_license(bundle, tmp_path / "bundle", {"name": "apple-amlr"})
    source = model_source(restricted, None)
    reachable = ({"host": "0.0.0.0", "no_auth": True}, {"immich": ("0.0.0.0", 3003)})
    monkeypatch.setattr(process, "bind", lambda *_: pytest.fail("it was bound"))
    for settings in (ServerSettings(**fields) for fields in reachable):
        with pytest.raises(ConfigError, match=r"apple-amlr, which .* --accept-licence"):
            serve(restricted, settings=settings, log=False)
        with pytest.raises(ConfigError, match="serving them to other machines"):
            open_encoder(source, settings)
    open_encoder(source, ServerSettings())
    open_encoder(source, ServerSettings(accept_license=True, **reachable[0]))
    # A model that is put in the place of another one is judged as well.
    with pytest.raises(ConfigError, match="apple-amlr"):
        load_replacement(source, make_services(**reachable[0]))
    # So are further models for pages.
    with pytest.raises(ConfigError, match="apple-amlr"):
        open_services(bundle, None, ServerSettings(web_models=(restricted,), **reachable[0]))
    # Of published weights it is known before they are fetched.
    with pytest.raises(ConfigError, match="apple-amlr"):
        serve("mobileclip2-s0", settings=ServerSettings(**reachable[0]), log=False)
