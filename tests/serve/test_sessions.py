"""Sessions of browsers, and the key."""

from __future__ import annotations

import json
import re

import pytest

from pocketclip.serve.errors import RequestError
from pocketclip.serve.middleware import sessions as module
from pocketclip.serve.middleware.keys import GUESSES, SECONDS_PER_GUESS, KeyCheck
from pocketclip.serve.middleware.sessions import MAX_SESSIONS, MAX_TOKENS, Sessions

KEY = "a-key-of-16-letters"
BEARER = {"Authorization": f"Bearer {KEY}"}
OWN = {"Origin": "http://127.0.0.1:8080"}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_token_begins_one_session(clock):
    sessions = Sessions(clock)
    token = sessions.new_token()
    assert len(token) >= 43  # 256 bits
    secret = sessions.redeem(token)
    assert sessions.holds(secret)
    assert sessions.redeem(token) is None
    assert sessions.redeem(secret) is None
    assert not sessions.holds(token)
    sessions.end(secret)
    assert not sessions.holds(secret)


def test_tokens_and_sessions_end_after_a_time(clock):
    sessions = Sessions(clock)
    first, second = sessions.new_token(), sessions.new_token()
    clock.now += module.TOKEN_SECONDS - 1
    secret = sessions.redeem(first)
    clock.now += 1
    assert sessions.redeem(second) is None
    clock.now += module.SESSION_SECONDS - 2
    assert sessions.holds(secret)
    clock.now += 1
    assert not sessions.holds(secret)
    sessions.begin()
    assert len(sessions) == 1  # what ended takes no place


def test_there_is_room_for_so_many_and_the_least_used_makes_way(clock):
    sessions = Sessions(clock)
    held = [sessions.begin() for _ in range(MAX_SESSIONS)]
    assert sessions.holds(held[0])
    latest = sessions.begin()
    assert len(sessions) == MAX_SESSIONS
    assert sessions.holds(held[0])
    assert sessions.holds(latest)
    assert not sessions.holds(held[1])
    tokens = [sessions.new_token() for _ in range(MAX_TOKENS + 1)]
    assert sessions.redeem(tokens[0]) is None
    assert sessions.redeem(tokens[1]) is not None


def test_no_secret_is_kept(clock):
    sessions = Sessions(clock)
    token, secret = sessions.new_token(), sessions.begin()
    kept = repr(vars(sessions._tokens)) + repr(vars(sessions._sessions))
    assert token not in kept
    assert secret not in kept


@pytest.mark.parametrize("text", ["", "\0", "é", "\ud800", "x" * 10_000])
def test_what_is_no_token_is_refused(text):
    sessions = Sessions()
    assert sessions.redeem(text) is None
    assert not sessions.holds(text)


def test_a_key_is_compared_as_bytes():
    keys = KeyCheck("schlüssel")
    assert keys.accepts("schlüssel".encode(), None)
    assert not keys.accepts("schlüssel".encode("latin-1"), None)
    assert not keys.accepts(b"", None)
    assert not KeyCheck(None).accepts(b"", None)


def test_guessing_is_slow_also_for_the_right_key(clock):
    keys = KeyCheck(KEY, clock)
    for i in range(GUESSES):
        assert not keys.accepts(b"guess %d" % i, "192.0.2.1")
    for guess in (b"another", KEY.encode()):
        with pytest.raises(RequestError) as caught:
            keys.accepts(guess, "192.0.2.1")
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "5")
    assert keys.accepts(KEY.encode(), "192.0.2.2")  # somewhere else
    clock.now += SECONDS_PER_GUESS
    assert not keys.accepts(b"another", "192.0.2.1")
    with pytest.raises(RequestError):
        keys.accepts(KEY.encode(), "192.0.2.1")
    clock.now += SECONDS_PER_GUESS
    assert keys.accepts(KEY.encode(), "192.0.2.1")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.0.1"])
def test_a_proxy_here_is_not_locked_out_by_a_stranger(clock, address):
    keys = KeyCheck(KEY, clock)
    for i in range(2 * GUESSES):
        assert not keys.accepts(b"guess %d" % i, address)
    assert keys.accepts(KEY.encode(), address)


def test_an_address_that_had_the_right_key_is_not_locked_out(clock):
    keys = KeyCheck(KEY, clock)
    assert keys.accepts(KEY.encode(), "192.0.2.1")
    for i in range(2 * GUESSES):
        assert not keys.accepts(b"guess %d" % i, "192.0.2.1")
    assert keys.accepts(KEY.encode(), "192.0.2.1")
    clock.now += 25 * 3600
    for i in range(GUESSES):
        keys.accepts(b"later guess %d" % i, "192.0.2.1")
    with pytest.raises(RequestError):
        keys.accepts(KEY.encode(), "192.0.2.1")


def test_a_client_with_an_old_key_locks_nobody_out(clock):
    keys = KeyCheck(KEY, clock)
    for _ in range(10 * GUESSES):
        assert not keys.accepts(b"the key of last year", "127.0.0.1")
    assert keys.accepts(KEY.encode(), "127.0.0.1")


def test_all_addresses_of_an_ipv6_network_are_one_client(clock):
    keys = KeyCheck(KEY, clock)
    for i in range(GUESSES):
        keys.accepts(b"guess %d" % i, f"2001:db8::{i:x}")
    with pytest.raises(RequestError):
        keys.accepts(KEY.encode(), "2001:db8::ffff")
    assert keys.accepts(KEY.encode(), "2001:db8:0:1::1")
    for i in range(GUESSES):
        keys.accepts(b"more %d" % i, "::ffff:192.0.2.1")
    with pytest.raises(RequestError):
        keys.accepts(KEY.encode(), "192.0.2.1")


def test_what_is_remembered_of_guesses_is_bounded(clock):
    keys = KeyCheck(KEY, clock)
    for i in range(6000):
        keys.accepts(b"%d" % i, f"10.0.{i // 250}.{i % 250}")
    assert len(keys._wrong) == 1024
    assert len(keys._guesses) == 4096


# Over HTTP


def cookie_of(answer):
    name, value, attributes = re.fullmatch(
        r"([^=]+)=([^;]*); (.*)", answer.headers["set-cookie"]
    ).groups()
    return name, value, set(attributes.split("; "))


def test_a_page_exchanges_the_token_of_its_address_for_a_cookie(make_client):
    client = make_client(api_key=KEY)
    assert client.get("/session").json() == {"required": True, "active": False}
    assert client.get("/info").status_code == 401
    token = client.services.sessions.new_token()
    answer = client.post("/session", json={"token": token}, headers=OWN)
    assert answer.json() == {"required": True, "active": True}
    name, value, attributes = cookie_of(answer)
    assert name == "pocketclip_session_8080"
    assert attributes == {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=2592000"}
    assert token not in value
    assert client.get("/info").status_code == 200  # httpx keeps the cookie
    assert client.get("/session").json() == {"required": True, "active": True}
    again = client.post("/session", json={"token": token}, headers=OWN)
    assert again.status_code == 401
    assert token not in again.text
    end = client.delete("/session", headers=OWN)
    assert end.json() == {"required": True, "active": False}
    assert cookie_of(end)[1] in ('""', "")
    assert client.get("/info", headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_the_key_begins_a_session_and_a_session_lets_another_browser_in(make_client):
    client = make_client(api_key=KEY)
    assert client.post("/session", json={"key": "wrong"}).status_code == 401
    assert client.post("/session/links").status_code == 401
    assert client.post("/session", json={"key": KEY}).status_code == 200
    link = client.post("/session/links", headers=OWN).json()
    assert link["expires_in"] == 600
    other = make_client(client.services)
    assert other.post("/session", json={"token": link["token"]}).status_code == 200
    assert other.get("/info").status_code == 200
    third = make_client(client.services)
    assert third.post("/session/links", headers=BEARER).status_code == 200


def test_under_tls_the_cookie_is_sent_under_tls_only(make_client):
    client = make_client(api_key=KEY, allow_hosts=("photos.example.org",))
    for url, origin, name in (
        ("https://127.0.0.1:8443", "https://127.0.0.1:8443", "__Host-pocketclip_session_8443"),
        ("http://photos.example.org", "https://photos.example.org", "__Host-pocketclip_session"),
    ):
        answer = client.post(f"{url}/session", json={"key": KEY}, headers={"Origin": origin})
        assert cookie_of(answer)[0] == name
        assert "Secure" in cookie_of(answer)[2]
        cookie = {"Cookie": f"a=b; {name}={cookie_of(answer)[1]}; c"}
        assert client.get(f"{url}/info", headers=cookie).status_code == 200


def test_a_server_without_a_key_needs_no_session(make_client):
    client = make_client()
    assert client.get("/session").json() == {"required": False, "active": False}
    answer = client.post("/session", json={"key": "any"})
    assert answer.json() == {"required": False, "active": False}
    assert "set-cookie" not in answer.headers
    assert client.post("/session/links").status_code == 409


@pytest.mark.parametrize(
    "body", [{}, {"token": "a", "key": "b"}, {"token": 5}, {"other": "secret"}, [], "secret",
             {"token": "secret" * 100}, {"token": "\ud800"}],
)  # fmt: skip
def test_what_begins_no_session(make_client, body):
    client = make_client(api_key=KEY)
    answer = client.post("/session", content=json.dumps(body),
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code in (401, 422)
    assert "set-cookie" not in answer.headers
    assert "secret" not in answer.text


def test_guesses_by_the_page_count_too(make_client, monkeypatch):
    client = make_client(api_key=KEY)
    monkeypatch.setattr("pocketclip.serve.middleware.keys._network", lambda _address: "192.0.2.1")
    for i in range(GUESSES):
        assert client.post("/session", json={"key": f"guess {i}"}).status_code == 401
    assert client.post("/session", json={"key": KEY}).status_code == 429
    answer = client.get("/info", headers=BEARER)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 5


# The page


def test_pages_need_no_key_and_run_only_their_own_files(make_client):
    client = make_client(api_key=KEY)
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert not re.search(r'\son\w+=|style="|https?://[a-z]|<style', answer.text)
    scripts = re.findall(r'<script type="module"[^>]* src="([^"]+)"', answer.text)
    assert len(scripts) == 2
    for path in scripts:
        script = client.get(f"/{path}")
        assert script.status_code == 200
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert "immutable" in script.headers["cache-control"]
    assert client.get("/assets/../vendor.json").status_code in (401, 404)
    assert client.get("/info").status_code == 401
