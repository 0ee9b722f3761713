"""A hub on 127.0.0.1 that records what it is asked and misbehaves when told to.

It speaks as much of the Hugging Face hub's protocol as downloads, its file system and uploads
(`tests.hub_uploads`) need. What was uploaded can be downloaded again. Beside it stands a forward
proxy that records, too.

    with HubServer({"owner/name": {"model.safetensors": b"..."}}) as hub:
        hub.fail("get", cut="half")
        ...
        assert hub.requests[0].path == "/api/models/owner/name"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from tests.hub_uploads import Account, Uploads, read_body

Step = Literal["api", "head", "get", "upload", "commit"]
Headers = dict[str, str]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Message
    """Case does not matter in its keys; `headers["Range"]` is None when there is none."""


@dataclass
class Fault:
    """What goes wrong at one step, for one repository or all, a number of times or always."""

    step: Step
    repo: str | None
    times: int | None
    status: int | None
    code: str | None
    cut: Literal["half", "short"] | None
    delay: float


class _Server:
    """A threaded server; the requests of one connection end with the first answer."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                owner.requests.append(Request(self.command, self.path, self.headers))
                # A kept-alive connection would outlive `stop` and still be served.
                self.close_connection = True
                with contextlib.suppress(ConnectionError):  # the client gave up waiting
                    owner.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_port
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Stop listening: from here on connections are refused."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self is Python 3.11
        # The poll interval is what `stop` may have to wait.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()


def reply(
    http: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes = b""
) -> None:
    http.send_response(status)
    for name, value in {"Connection": "close", **headers}.items():
        http.send_header(name, value)
    http.end_headers()
    if http.command != "HEAD":
        http.wfile.write(body)


def answer_json(http: BaseHTTPRequestHandler, value: Any, more: Mapping[str, str] = {}) -> None:
    body = json.dumps(value).encode()
    plain = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    reply(http, 200, {**plain, **more}, body)


def _repo(kind: str, parts: list[str]) -> str:
    return "/".join(parts if kind == "models" else [kind, *parts])


class HubServer(Uploads, _Server):
    """Serves `repos`, each a mapping of file names to contents (bytes, or a file to read).

    A model is named `owner/name`, a dataset `datasets/owner/name`.
    """

    def __init__(
        self, repos: Mapping[str, Mapping[str, bytes | Path]], *, cdn: bool = False
    ) -> None:
        super().__init__()
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.cdn = cdn
        """Whether files come by a redirect to another host, as large ones do on the real hub."""
        self.file_headers: Headers = {}
        """Sent with every file; for what is announced but not spoken, such as Xet."""
        self.cards: dict[str, dict[str, Any]] = {}
        """The data of a repository's description, such as its licence."""
        self.faults: list[Fault] = []
        self.revisions: set[str] = set()
        """Branches, tags and short hashes besides `main`; all mean the same commit."""
        self.history: dict[tuple[str, str], dict[str, bytes | Path]] = {}
        """Earlier commits that somebody was told of, with their files."""
        self.page = 1000
        """Entries per answer of a listing."""
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.accounts: dict[str, Account] = {}
        """By token. Without one, everybody may read what is neither private nor gated."""

    def fail(
        self,
        step: Step,
        *,
        repo: str | None = None,
        times: int | None = None,
        status: int | None = None,
        code: str | None = None,
        cut: Literal["half", "short"] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Make a step go wrong: the file list ("api"), or a file's headers or contents.

        `status` answers with that status (and X-Error-Code `code`). `cut="half"` promises the
        whole file and hangs up in the middle, also when it is asked for the rest; "short" gives
        a complete answer that lacks the file's last bytes. `delay` waits before answering.
        """
        self.faults.append(Fault(step, repo, times, status, code, cut, delay))

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    def commit(self, repo: str) -> str:
        """Return the commit hash of `repo`, which follows from its contents."""
        digest = hashlib.sha1(repo.encode())
        for name in sorted(self.repos[repo]):
            digest.update(name.encode() + self._content(repo, name))
        return digest.hexdigest()

    def _content(self, repo: str, name: str) -> bytes:
        content = self.repos[repo][name]
        return content.read_bytes() if isinstance(content, Path) else content

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        parts = [unquote(part) for part in urlsplit(http.path).path.strip("/").split("/")]
        if http.command in ("POST", "PUT") and "paths-info" not in parts:
            self.upload(http, parts)
            return
        if parts[:2] == ["api", "whoami-v2"]:
            self.whoami(http)
            return
        if parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            repo, rest = _repo(parts[1], parts[2:4]), parts[4:]
            if not self._failed(http, "api", repo):
                revision, below = (rest[1] if len(rest) > 1 else "main"), "/".join(rest[2:])
                if "tree" in rest:
                    self._tree(http, repo, revision, below)
                elif "paths-info" in rest:
                    self._paths(http, repo, revision)
                else:
                    self._info(http, repo, revision)
            return
        if parts[0] == "cdn":
            parts = parts[1:]
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if len(parts) >= 5 and parts[2] == "resolve":
            self._file(http, _repo(kind, parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            reply(http, 404, {"Content-Length": "0"})

    def _fault(self, step: Step, repo: str) -> Fault | None:
        for fault in self.faults:
            if fault.step == step and fault.repo in (None, repo) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def _failed(self, http: BaseHTTPRequestHandler, step: Step, repo: str) -> Fault | bool:
        fault = self._fault(step, repo)
        if fault is None:
            return False
        time.sleep(fault.delay)
        if fault.status is not None:
            self._refuse(http, fault.status, fault.code)
            return True
        return fault if fault.cut else False

    def _refuse(self, http: BaseHTTPRequestHandler, status: int, code: str | None) -> None:
        named = {"X-Error-Code": code} if code else {}
        reply(http, status, {"Content-Length": "0", **named})

    def account(self, http: BaseHTTPRequestHandler) -> Account | None:
        """Return who asks, by the token."""
        return self.accounts.get((http.headers["Authorization"] or "").removeprefix("Bearer "))

    def may_read(self, http: BaseHTTPRequestHandler, repo: str) -> bool:
        who = self.account(http)
        return repo not in self.private or (who is not None and who.owns(repo))

    def _known(self, http: BaseHTTPRequestHandler, repo: str, revision: str) -> bool:
        if repo not in self.repos or not self.may_read(http, repo):
            # Without a token the real hub does not tell missing from private.
            self._refuse(http, 401, "RepoNotFound")
            return False
        if self.files(repo, revision) is None:
            self._refuse(http, 404, "RevisionNotFound")
            return False
        return True

    def files(self, repo: str, revision: str) -> dict[str, bytes | Path] | None:
        """Return the files of a repository at a revision; None if there is no such revision."""
        if revision in ("main", self.commit(repo), *self.revisions):
            return self.repos[repo]
        return self.history.get((repo, revision))

    def _info(self, http: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if not self._known(http, repo, revision):
            return
        files = self.files(repo, revision) or {}
        sha = self.commit(repo) if files is self.repos[repo] else revision
        self.history[repo, sha] = dict(files)
        if "expand" in urlsplit(http.path).query:
            answer_json(http, {"id": repo.removeprefix("datasets/"), "sha": sha})
            return
        answer_json(http, {
            "id": repo.removeprefix("datasets/"),
            "sha": sha,
            "siblings": [{"rfilename": name} for name in files],
            "private": repo in self.private,
            **{"gated": repo in self.gated, "tags": [], "downloads": 0, "likes": 0},
            **({"cardData": card} if (card := self._card(repo, files)) else {}),
        })  # fmt: skip

    def _card(self, repo: str, files: Mapping[str, bytes | Path]) -> dict[str, Any] | None:
        """Return the facts of a repository's card: those that a test says, or those in it."""
        text = files.get("README.md", b"")
        if repo in self.cards or not isinstance(text, bytes) or not text.startswith(b"---\n"):
            return self.cards.get(repo)
        facts: dict[str, Any] = yaml.safe_load(text.split(b"---\n")[1])
        return facts

    def _entries(self, repo: str, revision: str) -> dict[str, dict[str, Any]]:
        """Return what a repository holds, files and folders, by path."""
        out: dict[str, dict[str, Any]] = {}
        for name, content in sorted((self.files(repo, revision) or {}).items()):
            for depth in range(1, name.count("/") + 1):
                folder = "/".join(name.split("/")[:depth])
                out[folder] = {"type": "directory", "path": folder, "oid": "f" * 40, "size": 0}
            data = content.read_bytes() if isinstance(content, Path) else content
            entry = {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest()}
            out[name] = {**entry, "size": len(data)}
            if name.endswith((".tar", ".safetensors", ".parquet")):
                oid = hashlib.sha256(data).hexdigest()
                out[name]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return out

    def _tree(self, http: BaseHTTPRequestHandler, repo: str, revision: str, below: str) -> None:
        if not self._known(http, repo, revision):
            return
        query = parse_qs(urlsplit(http.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{below}/" if below else ""
        entries = [
            entry
            for path, entry in self._entries(repo, revision).items()
            if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
        ]
        if below and not entries:
            self._refuse(http, 404, "EntryNotFound")
            return
        start = int(query.get("cursor", ["0"])[0])
        more: Headers = {}
        if start + self.page < len(entries):
            address = f"{self.url}{quote(urlsplit(http.path).path, safe='/%')}"
            asked = f"recursive={recursive}&cursor={start + self.page}"
            more = {"Link": f'<{address}?{asked}>; rel="next"'}
        answer_json(http, entries[start : start + self.page], more)

    def _paths(self, http: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        asked = parse_qs(read_body(http).decode())["paths"]
        if self._known(http, repo, revision):
            entries = self._entries(repo, revision)
            answer_json(http, [entries[path] for path in asked if path in entries])

    def _file(self, http: BaseHTTPRequestHandler, repo: str, revision: str, name: str) -> None:
        away = http.path.startswith("/cdn/")
        fault: Fault | bool = False
        if not self.cdn or away or http.command == "HEAD":
            fault = self._failed(http, "head" if http.command == "HEAD" else "get", repo)
        if fault is True or not self._known(http, repo, revision):
            return
        if repo in self.gated and not self.account(http) and not away:
            self._refuse(http, 401, "GatedRepo")
            return
        files = self.files(repo, revision) or {}
        if name not in files:
            self._refuse(http, 404, "EntryNotFound")
            return
        content = files[name] if files is not self.repos[repo] else self._content(repo, name)
        body = content.read_bytes() if isinstance(content, Path) else content
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers: Headers = {"ETag": etag, "Accept-Ranges": "bytes", **self.file_headers}
        if not away:
            headers |= {"X-Repo-Commit": self.commit(repo)}
            headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": etag}
        if self.cdn and not away:
            # By name it is another host than the number is, though both lead here.
            target = f"http://localhost:{self.port}/cdn{http.path}"
            reply(http, 302, {**headers, "Location": target, "Content-Length": "0"})
        else:
            self._send(http, body, headers, fault.cut if isinstance(fault, Fault) else None)

    def _send(
        self, http: BaseHTTPRequestHandler, body: bytes, headers: Headers, cut: str | None
    ) -> None:
        status, start, total = 200, 0, len(body)
        asked = http.headers["Range"]
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, start, total = 206, int(first), min(int(last or total) + 1, total)
            headers |= {"Content-Range": f"bytes {start}-{total - 1}/{len(body)}"}
        end = {"half": (start + total) // 2, "short": total - 1}.get(cut or "", total)
        promised = (end if cut == "short" else total) - start
        reply(http, status, {**headers, "Content-Length": str(promised)}, body[start:end])


class ForwardProxy(_Server):
    """A plain HTTP proxy that takes every request to `target`, whatever host it names."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        # A proxy is asked with the whole address; only the path is kept of it.
        url = self.target + urlsplit(http.path).path
        headers = {k: v for k, v in http.headers.items() if k.lower() not in ("host", "connection")}
        request = urllib.request.Request(url, headers=headers, method=http.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() != "connection"}
            reply(http, answer.status, kept, answer.read())
