"""A server as a process: its addresses, its start, its end, and its model replaced."""

from __future__ import annotations

import httpx


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
