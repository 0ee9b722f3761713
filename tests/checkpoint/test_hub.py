from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pocketclip.checkpoint import hub as hub_module
from pocketclip.checkpoint.hub import cached, choose_weights, fetch, is_hub_id
from pocketclip.checkpoint.resolve import find_weights
from pocketclip.errors import HubError
from pocketclip.formats.lfs import is_lfs_pointer
from pocketclip.storage.hub_settings import get_endpoint
from tests.hub_server import ForwardProxy, HubServer

REPO = "owner/model"
MIRROR = "other/model-copy"
WEIGHTS = bytes(range(256)) * 1000
SAFE = "open_clip_model.safetensors"


@pytest.fixture
def repo(hub: HubServer) -> HubServer:
    hub.repos[REPO] = {"README.md": b"# it", "config.json": b"{}", SAFE: WEIGHTS}
    return hub


def failure(*args: object, **kwargs: object) -> str:
    """Fetch, which has to fail, and return the message."""
    with pytest.raises(HubError) as caught:
        fetch(*args, **kwargs)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def steps(hub: HubServer) -> list[str]:
    kinds = {"GET": "get", "HEAD": "head"}
    return ["api" if r.path.startswith("/api/") else kinds[r.method] for r in hub.requests]


# --- which file


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "mobileclip.pt"], "mobileclip.pt"),
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], "model.safetensors"),
        (["pytorch_model.bin", "finetuned.safetensors"], "finetuned.safetensors"),
        (["mobileclip_s0.pt", "mobileclip_s0.safetensors"], "mobileclip_s0.safetensors"),
        (
            ["model.safetensors", "training_args.bin", "optimizer.pt", "rng_state_0.pth"],
            "model.safetensors",
        ),
        ([SAFE, "model.safetensors", "open_clip_pytorch_model.bin"], SAFE),
        (["open_clip_pytorch_model.bin", "model.safetensors"], "open_clip_pytorch_model.bin"),
        (["pytorch_model.bin", "open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (["a.pt", "open_clip_a.pt"], "open_clip_a.pt"),
        (["README.md", "mobileclip2_s0.pt", ".gitattributes"], "mobileclip2_s0.pt"),
        (["weights.pth", "config.json"], "weights.pth"),
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["a.pt", "old/b.safetensors"], "a.pt"),
        (["README.md", "weights/model.safetensors"], "weights/model.safetensors"),
        (["x/a.bin", "x/open_clip_a.bin"], "x/open_clip_a.bin"),
        (["MODEL.SafeTensors"], "MODEL.SafeTensors"),
        (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", SAFE], SAFE),
    ],
)
def test_choose_weights(files: list[str], chosen: str, tmp_path: Path) -> None:
    assert choose_weights(files) == chosen
    assert choose_weights(files[::-1]) == chosen
    if "/" not in chosen:  # in a folder here as on the hub
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert find_weights(tmp_path) == tmp_path / chosen


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], ["no files"]),
        (["README.md", "config.json"], ["README.md", "config.json", ".safetensors"]),
        (["a.safetensors", "b.safetensors", "c.pt"], ["a.safetensors, b.safetensors", "several"]),
        (["open_clip_a.safetensors", "open_clip_b.safetensors"], ["several"]),
        (["a.pt", "b.bin"], ["a.pt, b.bin", "several"]),
        (["mobileclip_s0.pt", "finetuned.safetensors"], ["several", "pass the path"]),
        (["training_args.bin", "optimizer.pt"], ["no .safetensors"]),
        ([f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], ["3 shards", "not supported"]),
        ([f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)], ["2 shards"]),
        ([f"text_{i:02}.txt" for i in range(99)], ["text_07.txt, ..."]),
    ],
)
def test_choose_weights_refuses(files: list[str], expected: list[str]) -> None:
    with pytest.raises(HubError) as caught:
        choose_weights(files)
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("apple/MobileCLIP-S0", True),
        ("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", True),
        ("a/b_", True),
        ("mobileclip-s0", False),
        ("a/b/c", False),
        ("./model", False),
        ("../model", False),
        ("/model", False),
        ("model/", False),
        ("-a/b", False),
        ("a/b-", False),
        ("a/b.", False),
        ("a--b/c", False),
        ("a/b..c", False),
        ("a/b.git", False),
        ("a/b c", False),
        ("ä/b", False),
        ("a/" + "b" * 96, True),
        ("a/" + "b" * 97, False),
        ("C:\\models/x", False),
        ("a/b\n", False),
        ("", False),
    ],
)
def test_is_hub_id_agrees_with_the_hub(text: str, valid: bool) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    assert is_hub_id(text) is valid
    if valid:
        validate_repo_id(text)
    elif "/" in text and text.isascii() and text.isprintable():
        # A name without an owner is valid there; older versions let other letters pass.
        with pytest.raises(HFValidationError):
            validate_repo_id(text)


# --- download and cache


def test_fetch_downloads_once(repo: HubServer, tmp_path: Path) -> None:
    assert cached(REPO) is None
    fetched = fetch(REPO)
    assert fetched.path.read_bytes() == WEIGHTS
    assert (fetched.repo, fetched.filename) == (REPO, SAFE)
    assert fetched.revision == repo.commit(REPO)
    assert fetched.path.is_relative_to(tmp_path / "hf" / "hub")
    assert steps(repo) == ["api", "head", "get"]

    repo.requests.clear()
    assert fetch(REPO) == fetched == cached(REPO)
    repo.stop()
    assert fetch([REPO]) == fetched
    assert fetch(REPO, offline=True) == fetched
    assert repo.requests == []


def test_any_cached_source_is_preferred_to_the_network(repo: HubServer) -> None:
    fetched = fetch(REPO)
    repo.requests.clear()
    assert fetch([MIRROR, REPO]) == fetched
    assert repo.requests == []


def test_revision(repo: HubServer) -> None:
    commit = repo.commit(REPO)
    fetched = fetch(REPO, revision=commit)
    assert fetched.revision == commit
    assert cached(REPO, revision=commit) == fetched
    assert cached(REPO) is None  # nobody asked what `main` is
    message = failure(REPO, revision="v9")
    assert REPO in message
    assert "no revision 'v9'" in message
    assert "'v9'" in failure(REPO, revision="v9", offline=True)


def test_find_weights_in_a_folder(hub: HubServer) -> None:
    hub.repos[REPO] = {"README.md": b"", "weights/a.pt": WEIGHTS}
    fetched = fetch(REPO)
    assert fetched.path.read_bytes() == WEIGHTS
    assert fetched.revision == hub.commit(REPO)
    assert fetched == cached(REPO)


@pytest.mark.usefixtures("repo")
def test_cached_wants_the_weights_whole() -> None:
    fetched = fetch(REPO)
    blob = fetched.path.resolve()
    os.truncate(blob, 0)
    assert cached(REPO) is None
    blob.unlink()  # leaves a broken link
    assert cached(REPO) is None
    fetched.path.unlink()
    (fetched.path.parent / "config.json").write_text("{}")
    assert cached(REPO) is None
    assert fetch(REPO).path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "a"}, "a"),
        ({"HF_HUB_CACHE": "$HERE/a", "HERE": "b"}, "b/a"),
        ({"HF_HOME": "home"}, "home/hub"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "home", "HF_HUB_CACHE": "a"}, "a"),
    ],
)
@pytest.mark.usefixtures("repo")
def test_cache_folder_is_read_at_call_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    folder: str,
) -> None:
    import huggingface_hub  # noqa: F401  # it has read the environment by now

    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fetched = fetch(REPO)
    assert fetched.path.is_relative_to(tmp_path / folder)
    assert cached(REPO) == fetched


def test_large_files_come_from_another_host_which_never_sees_the_token(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.cdn = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(REPO).path.read_bytes() == WEIGHTS
    away = [r for r in repo.requests if r.path.startswith("/cdn/")]
    near = [r for r in repo.requests if not r.path.startswith("/cdn/")]
    assert away
    assert {r.headers["Authorization"] for r in away} == {None}
    assert {r.headers["Authorization"] for r in near} == {"Bearer hf_secret"}


def test_xet_is_not_used(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    repo.file_headers = {
        "X-Xet-Hash": "0" * 64,
        "X-Xet-Refresh-Route": f"/api/models/{REPO}/xet-read-token/{repo.commit(REPO)}",
    }
    assert fetch(REPO).path.read_bytes() == WEIGHTS
    assert steps(repo) == ["api", "head", "get"]
    assert before == constants.HF_HUB_DISABLE_XET
    assert "HF_HUB_DISABLE_XET" not in os.environ


@pytest.mark.usefixtures("repo")
def test_quiet_where_nobody_watches() -> None:
    script = f"from pocketclip.checkpoint.hub import fetch; print(fetch({REPO!r}).filename)"
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"{SAFE}\n", "")


def test_import_is_light() -> None:
    script = (
        "import sys, pocketclip.checkpoint.hub; "
        "print({'huggingface_hub', 'torch'} & set(sys.modules))"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    out = subprocess.check_output(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, text=True
    )
    assert out == "set()\n"


# --- offline


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline(
    repo: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    message = failure([REPO, MIRROR], offline=variable is None)
    for part in (REPO, MIRROR, str(tmp_path / "hf" / "hub"), "HF_HUB_CACHE", "path"):
        assert part in message
    assert repo.requests == []


def test_offline_since_the_library_was_imported(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the network is off" in failure(REPO)
    assert repo.requests == []


# --- fallbacks


def test_next_source_if_the_first_is_missing(hub: HubServer) -> None:
    hub.repos[MIRROR] = {"a.pt": WEIGHTS}
    fetched = fetch([REPO, MIRROR])
    assert (fetched.repo, fetched.filename) == (MIRROR, "a.pt")


@pytest.mark.parametrize(("status", "code"), [(403, "GatedRepo"), (401, "GatedRepo"), (403, None)])
def test_next_source_if_the_first_is_gated(repo: HubServer, status: int, code: str | None) -> None:
    # The list of a gated repository is public, its files are not.
    repo.fail("head", repo=REPO, status=status, code=code)
    repo.repos[MIRROR] = {"a.pt": WEIGHTS}
    message = failure(REPO)
    assert "gated" in message
    assert "HF_TOKEN" in message
    assert fetch([REPO, MIRROR]).repo == MIRROR


def test_next_source_if_the_first_has_no_weights_or_lost_them(repo: HubServer) -> None:
    repo.repos[REPO] = {"README.md": b""}
    repo.repos[MIRROR] = {"a.pt": WEIGHTS}
    assert fetch([REPO, MIRROR]).repo == MIRROR
    repo.repos["third/one"] = {"b.pt": WEIGHTS}
    repo.fail("head", repo="third/one", status=404, code="EntryNotFound")
    assert "not found" in failure("third/one")


def test_no_source_has_it(hub: HubServer) -> None:
    hub.repos[MIRROR] = {"README.md": b""}
    message = failure([REPO, MIRROR])
    for part in (f"{REPO} was not found on {hub.url}", "HF_TOKEN", MIRROR, "README.md", "by hand"):
        assert part in message
    assert cached(REPO) is None
    assert cached(MIRROR) is None


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("step", ["api", "head", "get"])
def test_a_failing_hub_is_no_reason_for_the_next_source(
    repo: HubServer, step: str, status: int
) -> None:
    repo.fail(step, repo=REPO, status=status)  # type: ignore[arg-type]
    repo.repos[MIRROR] = {"a.pt": WEIGHTS}
    message = failure([REPO, MIRROR])
    for part in (str(status), REPO, repo.url, "HF_ENDPOINT", "HTTPS_PROXY", "--offline", "by hand"):
        assert part in message
    assert not any(MIRROR in r.path for r in repo.requests)
    assert cached(REPO) is None
    repo.heal()
    assert fetch([REPO, MIRROR]).repo == REPO


@pytest.mark.parametrize("ids", [[], "model", ["owner/model", "https://x/y"]])
def test_ids_are_checked_first(hub: HubServer, ids: list[str] | str) -> None:
    message = failure(ids)
    assert "repository" in message
    assert hub.requests == []


# --- broken networks


def test_connection_refused(repo: HubServer) -> None:
    repo.stop()
    message = failure(REPO)
    for part in (repo.url, REPO, "refused", "HF_ENDPOINT", "HTTPS_PROXY", "--offline", "by hand"):
        assert part in message


def test_name_does_not_resolve(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid/")
    message = failure(REPO)
    assert "http://hub.invalid:" in message
    assert "Name or service not known" in message
    assert repo.requests == []


@pytest.mark.parametrize("step", ["api", "get"])
def test_timeout(repo: HubServer, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    repo.fail(step, delay=0.3)  # type: ignore[arg-type]
    assert "timed out" in failure(REPO).lower()
    assert cached(REPO) is None


@pytest.mark.parametrize("cut", ["half", "short"])
def test_download_breaks_off(repo: HubServer, tmp_path: Path, cut: str) -> None:
    repo.fail("get", cut=cut)  # type: ignore[arg-type]
    message = failure(REPO)
    assert "cannot fetch" in message
    assert cached(REPO) is None
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 1000]
    assert all(p.suffix == ".incomplete" for p in left)  # older versions keep it to resume
    assert REPO in failure(REPO, offline=True)
    repo.heal()
    assert fetch(REPO).path.read_bytes() == WEIGHTS


def test_download_resumes(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what arrives is kept by chunks
    repo.fail("get", cut="half", times=1)
    with contextlib.suppress(HubError):  # older versions of huggingface_hub resume the next time
        fetch(REPO)
    assert fetch(REPO).path.read_bytes() == WEIGHTS
    assert repo.requests[-1].headers["Range"] == f"bytes={len(WEIGHTS) // 2}-"


def test_what_a_killed_process_leaves_does_not_count(repo: HubServer, tmp_path: Path) -> None:
    commit = repo.commit(REPO)
    folder = tmp_path / "hf" / "hub" / "models--owner--model"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs" / "abc.incomplete").write_bytes(WEIGHTS[:1000])
    assert cached(REPO) is None
    assert fetch(REPO).path.read_bytes() == WEIGHTS


def test_disk_full(repo: HubServer) -> None:
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    repo.repos[REPO][SAFE] = bytes(3_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        message = failure(REPO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot store" in message
    assert "HF_HUB_CACHE" in message
    assert cached(REPO) is None
    assert fetch(REPO).path.stat().st_size == 3_000_000


def test_cache_cannot_be_written(
    repo: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    message = failure(REPO)
    assert "cannot store" in message
    assert str(tmp_path / "file") in message
    assert steps(repo)[0] == "api"


def test_not_a_hub(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Portal(ForwardProxy):
        def handle(self, http):  # type: ignore[no-untyped-def]
            body = b"<html>Please log in</html>"
            http.send_response(200)
            http.send_header("Content-Length", str(len(body)))
            http.end_headers()
            http.wfile.write(body)

    with Portal(repo.url) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        message = failure(REPO)
    assert "cannot fetch" in message
    assert portal.url in message


# --- mirrors and proxies


def test_mirror(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer({REPO: {"mirrored.pt": WEIGHTS}}) as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url + "/")
        assert fetch(REPO).filename == "mirrored.pt"
        assert len(mirror.requests) == 3
    assert repo.requests == []


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "http://", "http://a:b"])
def test_endpoint_has_to_be_an_address(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    message = failure(REPO)
    assert "HF_ENDPOINT" in message
    assert hub.requests == []


def test_default_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert get_endpoint() == "https://huggingface.co"


def test_password_of_a_mirror_is_not_shown(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", repo.url.replace("//", "//me:secret@"))
    repo.fail("api", status=500)
    message = failure(REPO)
    assert repo.url in message
    assert "secret" not in message


def test_proxy(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForwardProxy(repo.url) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        # This name leads nowhere, so there is no other way than through the proxy.
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
        fetched = fetch(REPO)
    assert fetched.path.read_bytes() == WEIGHTS
    assert [r.method for r in proxy.requests] == ["GET", "HEAD", "GET"]
    assert all(r.path.startswith("http://hub.invalid/") for r in proxy.requests)
    assert len(repo.requests) == 3


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "gopher://x", "http://x:y"])
def test_proxy_that_does_not_work(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("http_proxy", address)
    message = failure(REPO)
    assert "cannot fetch" in message
    assert "HTTPS_PROXY" in message
    assert repo.requests == []


# --- a cache that others use, too

THEIRS = b'\x50\0\0\0\0\0\0\0{"vision_model.embeddings.class_embedding":{}}'.ljust(200)


def _cached_by_another_library(repo: str, *names: str) -> None:
    from huggingface_hub import hf_hub_download

    for name in names:
        hf_hub_download(
            repo, name, cache_dir=os.environ["HF_HUB_CACHE"], endpoint=os.environ["HF_ENDPOINT"]
        )


@pytest.mark.parametrize("content", [THEIRS, WEIGHTS])
@pytest.mark.parametrize(
    ("other", "right"),
    [
        ("model.safetensors", SAFE),
        ("pytorch_model.bin", SAFE),
        ("pytorch_model.bin", "open_clip_pytorch_model.bin"),
        ("training_args.bin", "model.safetensors"),
        ("onnx/model.safetensors", "clip.safetensors"),
        ("model-00001-of-00002.safetensors", SAFE),
    ],
)
def test_a_file_of_another_library_does_not_hide_the_right_one(
    hub: HubServer, content: bytes, other: str, right: str
) -> None:
    hub.repos[REPO] = {"config.json": b"{}", other: content, right: WEIGHTS}
    _cached_by_another_library(REPO, "config.json", other)
    assert cached(REPO) is None
    fetched = fetch(REPO)
    assert fetched.filename == right
    assert fetched.path.read_bytes() == WEIGHTS
    hub.requests.clear()
    assert fetch(REPO) == fetched == cached(REPO)
    assert hub.requests == []


def test_a_general_name_is_known_once_the_hub_was_asked(hub: HubServer) -> None:
    hub.repos[REPO] = {"model.safetensors": WEIGHTS}
    _cached_by_another_library(REPO, "model.safetensors")
    assert cached(REPO) is None
    hub.requests.clear()
    fetched = fetch(REPO)
    assert steps(hub) == ["api", "head"]  # it is not fetched again
    hub.requests.clear()
    assert fetch(REPO) == fetched == cached(REPO)
    assert hub.requests == []


@pytest.mark.parametrize("how", ["argument", "variable", "unreachable"])
def test_without_the_hub_what_may_be_right_is_used(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    hub.repos[REPO] = {"model.safetensors": WEIGHTS}
    hub.repos[MIRROR] = {"model.safetensors": THEIRS}
    for name in (REPO, MIRROR):
        _cached_by_another_library(name, "model.safetensors")
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "unreachable":
        hub.stop()
    offline = how == "argument"
    assert fetch([MIRROR, REPO], offline=offline).repo == REPO
    assert "using model.safetensors from the cache without asking the hub" in caplog.text
    message = failure(MIRROR, offline=offline)
    assert f"the cache has only model.safetensors of {MIRROR}, whose parameter names are" in message


def test_our_own_name_counts_beside_those_of_others(repo: HubServer) -> None:
    repo.repos[REPO]["model.safetensors"] = THEIRS
    fetched = fetch(REPO)
    _cached_by_another_library(REPO, "model.safetensors")
    repo.requests.clear()
    assert fetch(REPO) == fetched
    assert repo.requests == []


# --- revisions


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "a/branch", "release@2", "Ünïcode"])
def test_branches_tags_and_pull_requests(repo: HubServer, revision: str) -> None:
    repo.revisions.add(revision)
    fetched = fetch(REPO, revision=revision)
    assert fetched.revision == repo.commit(REPO)
    repo.requests.clear()
    assert fetch(REPO, revision=revision, offline=True) == fetched
    assert fetch(REPO, revision=revision) == fetched == cached(REPO, revision=revision)
    assert repo.requests == []


def test_a_commit_may_be_shortened_and_spelled_in_capitals(repo: HubServer) -> None:
    commit = repo.commit(REPO)
    fetched = fetch(REPO, revision=commit.upper())
    for revision in (commit, commit[:7], commit[:20]):
        assert fetch(REPO, revision=revision, offline=True) == fetched
    assert cached(REPO, revision=commit[:6]) is None
    other = fetched.path.parents[1] / (commit[:8] + "0" * 32)
    other.mkdir()
    assert cached(REPO, revision=commit[:7]) is None  # two begin so
    assert cached(REPO, revision=commit[:12]) == fetched


@pytest.mark.parametrize(
    "revision",
    ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "main/", "a\0b", "a b", "a\nb",
     "-x", "@", "a@{1}", "x.lock", "C:\\x", "a" * 300, ".hidden"],
)  # fmt: skip
def test_what_is_no_revision_is_refused_before_any_request(repo: HubServer, revision: str) -> None:
    assert "is not a revision" in failure(REPO, revision=revision)
    with pytest.raises(HubError, match="is not a revision"):
        cached(REPO, revision=revision)
    assert repo.requests == []


def test_a_damaged_reference_counts_as_none(repo: HubServer) -> None:
    fetch(REPO)
    reference = Path(os.environ["HF_HUB_CACHE"]) / "models--owner--model" / "refs" / "main"
    for content in ("", "../../..", "main"):
        reference.write_text(content)
        assert cached(REPO) is None
    assert fetch(REPO).revision == repo.commit(REPO)


# --- folders


def _has_both(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "a.txt").is_file()


def test_a_folder_is_fetched_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO] = {"config.json": b"{}", "a.txt": b"a", "big.bin": WEIGHTS}
    hub.revisions.add("v1")
    _cached_by_another_library(REPO, "config.json")
    patterns = [["*.json"], ["*.txt", "*.json"]]
    for revision in (None, "v1"):
        with pytest.raises(HubError, match=f"cannot fetch {REPO}.*the network is off"):
            hub_module.fetch_folder(
                REPO, patterns, is_complete=_has_both, offline=True, revision=revision
            )
        folder = hub_module.fetch_folder(REPO, patterns, is_complete=_has_both, revision=revision)
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "config.json"]
        hub.requests.clear()
        for offline in (True, False):
            again = hub_module.fetch_folder(
                REPO, patterns, is_complete=_has_both, offline=offline, revision=revision
            )
            assert again == folder
        assert hub.requests == []
    with pytest.raises(HubError, match="is not a repository id"):
        hub_module.fetch_folder("model", patterns, is_complete=_has_both)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="the network is off"):
        hub_module.fetch_folder(MIRROR, patterns, is_complete=_has_both)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(HubError, match="was not found on http://127"):
        hub_module.fetch_folder(MIRROR, patterns, is_complete=_has_both)


def test_other_libraries_follow_the_environment_as_it_is_now(
    repo: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    before = dict(vars(constants))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with hub_module.environment(offline=True), pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, SAFE)
    assert repo.requests == []
    with hub_module.environment(offline=False):
        path = hf_hub_download(REPO, SAFE)
    assert Path(path).is_relative_to(tmp_path / "elsewhere")
    with hub_module.environment(offline=True):
        assert hf_hub_download(REPO, SAFE) == path
    assert dict(vars(constants)) == before


def test_a_pointer_of_git_lfs_is_known_by_its_beginning() -> None:
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    assert is_lfs_pointer(text)
    assert not is_lfs_pointer(b"version 1.0 of something else")
    assert not is_lfs_pointer(b"")
