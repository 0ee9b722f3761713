"""Who is answered: hosts, origins and keys."""

from __future__ import annotations

import pytest
from starlette.responses import PlainTextResponse

from pocketclip.errors import ConfigError
from pocketclip.serve.app import create_immich_app
from pocketclip.serve.middleware.access import Access
from pocketclip.serve.origins import allowed_name, host_name, is_same_origin, normal_origin
from pocketclip.serve.settings import ServerSettings

KEY = "a-key-of-16-letters"
BEARER = {"Authorization": f"Bearer {KEY}"}
FOREIGN = {"Origin": "https://evil.example"}
APP = "https://app.example.org"


def bare(services):
    """Nothing but what is tested here, before an app that answers everything."""
    return Access(PlainTextResponse("answered"), services)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "192.168.1.5:80", "[::1]", "[::1]:8080", "[fe80::1%25a]:8080",
     "localhost", "LOCALHOST:8080", "localhost.", "a.localhost:1", "photos.example.org", "box",
     "Photos.Example.ORG.:443", "8.8.8.8", "localhost:"],
)  # fmt: skip
def test_hosts_that_are_answered(make_client, host):
    client = make_client(app=bare, allow_hosts=("photos.example.org", "Box."))
    assert client.get("/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421),
        ("notlocalhost", 421), ("evil.photos.example.org", 421), ("2130706433", 421),
        ("0x7f.1", 421), ("photos.example.org..", 421), ("", 400), ("127.0.0.1:8080:80", 400),
        ("::1", 400), ("127.0.0.1:80a", 400), ("[::1", 400), ("127.0.0.1@evil.example", 400),
        ("evil.example/127.0.0.1", 400), ("127.0.0.1 evil", 400), ("localhost:999999", 400),
        ("[evil]", 400), ("ｌocalhost".encode(), 421), ("127.0.0.1, evil.example", 400),
    ],
)  # fmt: skip
def test_hosts_that_are_not_answered(make_client, host, status):
    client = make_client(app=bare, allow_hosts=("photos.example.org",))
    answer = client.get("/info", headers={"Host": host})
    assert answer.status_code == status
    assert "evil" not in answer.text
    if status == 421:
        assert "--allow-host" in answer.json()["error"]["message"]
    assert client.get("/livez", headers={"Host": host}).status_code == 200  # probes may


def test_one_host_is_needed(make_client):
    client = make_client()
    both = [("Host", "127.0.0.1"), ("Host", "localhost")]
    assert client.get("/info", headers=both).status_code == 400


def test_the_name_that_the_server_listens_on_is_its_own(make_client):
    client = make_client(host="box.lan", no_auth=True)
    assert client.get("http://box.lan:8080/info").status_code == 200


@pytest.mark.parametrize(
    "value",
    [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} "],
)
def test_the_key_is_accepted(make_client, value):
    client = make_client(app=bare, api_key=KEY)
    assert client.get("/info", headers={"Authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "},
        {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY},
        {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.upper()}"}, {"Authorization": "Bearer é".encode("latin-1")},
        {"Authorization": b"Bearer \xff\xfe"}, {"Cookie": f"pocketclip_session_8080={KEY}"},
        {"Cookie": "pocketclip_session_8080="}, {"Cookie": ";;=;pocketclip_session_8080"},
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
    ],
)  # fmt: skip
def test_without_the_key_nothing_is_answered(make_client, headers):
    client = make_client(app=bare, api_key=KEY)
    for method, path in (("GET", "/info"), ("GET", "/metrics"), ("GET", "/openapi.json"),
                         ("GET", "/nothing"), ("POST", "/v1/embeddings"), ("GET", "/livez/"),
                         ("OPTIONS", "/info")):  # fmt: skip
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/livez", "/readyz", "/session"):
        assert client.get(path, headers=headers).status_code == 200


def test_a_key_in_the_address_is_none(make_client):
    client = make_client(api_key=KEY)
    assert client.get("/info", params={"key": KEY, "token": KEY}).status_code == 401


def test_the_whole_app_stands_behind_it(make_client):
    client = make_client(api_key=KEY)
    assert client.get("/info").status_code == 401
    assert client.get("/info", headers={"Host": "evil.example"} | BEARER).status_code == 421
    assert client.post("/session", json={"key": KEY}, headers=FOREIGN).status_code == 403
    assert client.get("/livez/").status_code == 401
    assert client.get("/info", headers=BEARER).status_code == 200


def test_a_server_without_a_key_takes_no_notice_of_one(make_client):
    assert make_client().get("/info", headers=BEARER).status_code == 200


# Pages of other origins


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:8081",
     "http://localhost:8080", "file://", "http://127.0.0.1:8080.evil.example", "",
     "http://127.0.0.1:8080/", "http://a@127.0.0.1:8080", "ftp://127.0.0.1:8080"],
)  # fmt: skip
def test_a_page_elsewhere_cannot_use_a_server_without_a_key(make_client, origin):
    client = make_client(app=bare)
    for method, path in (("POST", "/v1/embeddings"), ("POST", "/session"), ("GET", "/photos/1"),
                         ("DELETE", "/session"), ("GET", "/thumbnails/1"), ("GET", "/info"),
                         ("PUT", "/nothing")):  # fmt: skip
        answer = client.request(
            method, path, content=b'{"input":"a"}' if method == "POST" else None,
            headers={"Origin": origin, "Content-Type": "text/plain"},
        )  # fmt: skip
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "foreign_origin"
        assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_can(make_client):
    client = make_client(allow_hosts=("photos.example.org",))
    for base, origin in (
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost", "http://localhost:80"),
        ("https://photos.example.org", "https://photos.example.org:443"),
        ("http://photos.example.org", "https://photos.example.org"),  # TLS before the server
    ):
        answer = client.post(f"{base}/session", json={"key": "x"}, headers={"Origin": origin})
        assert answer.status_code == 200
    answer = client.get("https://photos.example.org/info",
                        headers={"Origin": "http://photos.example.org"})  # fmt: skip
    assert answer.status_code == 403  # a page that anybody on the way could have written


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_cannot_show_photographs(make_client, site):
    client = make_client()
    image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    visit = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    frame = visit | {"Sec-Fetch-Dest": "iframe"}
    for path in ("/photos/1", "/thumbnails/1"):
        for headers in (image, visit, frame):
            assert client.get(path, headers=headers).status_code == 403
        own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "image"}
        assert client.get(path, headers=own).status_code != 403
    for headers in (image, frame):
        assert client.get("/info", headers=headers).status_code == 403
    assert client.get("/info", headers=visit).status_code == 200  # somebody follows a link
    assert client.post("/v1/embeddings", headers=visit).status_code == 403


def test_a_cookie_is_no_reason_to_answer_a_page_elsewhere(make_client):
    client = make_client(api_key=KEY, cors=(APP,))
    assert client.post("/session", json={"key": KEY}).status_code == 200
    assert client.get("/info").status_code == 200
    assert client.post("/v1/embeddings", headers=FOREIGN).status_code == 403
    assert client.get("/info", headers={"Origin": APP}).status_code == 401
    assert client.get("/info", headers={"Origin": APP} | BEARER).status_code == 200
    assert client.post("/session", json={"key": KEY}, headers={"Origin": APP}).status_code == 403


def test_who_has_the_key_may_come_from_anywhere(make_client):
    client = make_client(api_key=KEY)
    answer = client.get("/info", headers=FOREIGN | BEARER)  # no page can send it unasked
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


# CORS


def preflight(client, origin, **more):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    return client.request("OPTIONS", "/v1/embeddings", headers=headers | more)


@pytest.mark.parametrize("settings", [{}, {"api_key": KEY}])
def test_pages_of_a_listed_origin_may_call(make_client, settings):
    client = make_client(cors=("https://App.example.org", "http://localhost:3000"), **settings)
    answer = preflight(client, APP)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert "Origin" in answer.headers["vary"]
    for key in ({}, BEARER):
        answer = client.get("/info", headers={"Origin": APP} | key)
        assert answer.status_code == (401 if settings and not key else 200)
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in client.get("/livez").headers
    assert client.get("/livez").headers["vary"] == "Origin"


def test_a_preflight_names_the_headers_that_a_client_asks_for(make_client):
    client = make_client(cors=(APP,))
    asked = {
        "Access-Control-Request-Headers": "authorization, x-stainless-os, a b, (, é".encode(
            "latin-1"
        )
    }
    allowed = preflight(client, APP, **asked).headers["access-control-allow-headers"]
    assert allowed == "Authorization, Content-Type, x-stainless-os"
    private = preflight(client, APP, **{"Access-Control-Request-Private-Network": "true"})
    assert private.headers["access-control-allow-private-network"] == "true"


def test_pages_of_other_origins_may_not(make_client):
    for settings in ({}, {"cors": (APP,)}, {"cors": (APP,), "api_key": KEY}):
        client = make_client(**settings)
        for origin in ("https://evil.example", f"{APP}.evil.example", "http://app.example.org",
                       f"{APP}:8443", "null", f"{APP}/"):  # fmt: skip
            answer = preflight(client, origin)
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "null", "app.example.org", "https://", "https://a/b",
                                    "https://*.example.org/x", ""])  # fmt: skip
def test_what_is_no_origin(origin):
    with pytest.raises(ConfigError, match="is no origin"):
        ServerSettings(cors=(origin,))


@pytest.mark.parametrize("name", ["", "*", "a/b", "https://a.example", "a b", "a..b"])
def test_what_is_no_host_name(name):
    with pytest.raises(ConfigError, match="is no name"):
        ServerSettings(allow_hosts=(name,))


def test_names_and_origins():
    assert host_name("[::1]:8080") == "::1"
    assert host_name("A.Example.:80") == "a.example"
    assert allowed_name("Bücher.example:8080") == "xn--bcher-kva.example"
    assert normal_origin("HTTPS://App.Example:443") == "https://app.example"
    assert normal_origin("http://[::1]:80") == "http://[::1]"
    assert normal_origin("chrome-extension://abc") == "chrome-extension://abc"
    assert is_same_origin("http://[::1]:8080", "http", "[::1]:8080")
    assert not is_same_origin("http://[::1]:8080", "http", "[::1]")


# Headers, and immich's port


@pytest.mark.parametrize("path", ["/livez", "/info", "/nothing", "/metrics", "/openapi.json"])
def test_every_answer_has_the_headers_that_protect(make_client, path):
    for client in (make_client(), make_client(api_key=KEY)):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_immichs_port_asks_for_no_key_and_answers_no_page(make_client):
    client = make_client(app=create_immich_app, api_key=KEY, allow_hosts=("pocketclip",))
    for host in ("pocketclip:3003", "192.168.1.2:3003"):
        node = {"Host": host, "Sec-Fetch-Mode": "cors"}
        assert client.get("/ping", headers=node).text == "pong"
    answer = client.get("/ping", headers={"Host": "elsewhere:3003"})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["detail"]
    for headers in (FOREIGN, {"Origin": "http://127.0.0.1:8080"}, {"Origin": "null"},
                    {"Sec-Fetch-Site": "cross-site"}):  # fmt: skip
        answer = client.post("/predict", data={"entries": "{}"}, headers=headers)
        assert answer.status_code == 403
        assert answer.json() == {"detail": "this port is not for web pages"}
