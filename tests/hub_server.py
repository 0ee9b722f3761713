"""A hub on 127.0.0.1 that records what it is asked and misbehaves when told to.

It speaks as much of the Hugging Face hub's protocol as a download needs. Beside it stands a
forward proxy that records, too.

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
from urllib.parse import unquote, urlsplit

Step = Literal["api", "head", "get"]
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

            do_GET = do_HEAD = answer

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


class HubServer(_Server):
    """Serves `repos`, each a mapping of file names to contents (bytes, or a file to read)."""

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
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            if not self._failed(http, "api", repo):
                self._list(http, repo, rest[1] if len(rest) > 1 else "main", tree="tree" in rest)
            return
        if parts[0] == "cdn":
            parts = parts[1:]
        if len(parts) >= 5 and parts[2] == "resolve":
            repo = "/".join(parts[:2])
            self._file(http, repo, parts[3], "/".join(parts[4:]))
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

    def _known(self, http: BaseHTTPRequestHandler, repo: str, revision: str) -> bool:
        if repo not in self.repos:
            # Without a token the real hub does not tell missing from private.
            self._refuse(http, 401, "RepoNotFound")
            return False
        if revision not in ("main", self.commit(repo), *self.revisions):
            self._refuse(http, 404, "RevisionNotFound")
            return False
        return True

    def _list(self, http: BaseHTTPRequestHandler, repo: str, revision: str, *, tree: bool) -> None:
        if not self._known(http, repo, revision):
            return
        answer: Any = {
            "id": repo,
            "sha": self.commit(repo),
            "siblings": [{"rfilename": name} for name in self.repos[repo]],
            **{"private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0},
            **({"cardData": self.cards[repo]} if repo in self.cards else {}),
        }
        if tree:
            answer = [
                {
                    "type": "file",
                    "path": name,
                    "oid": "0" * 40,
                    "size": len(self._content(repo, name)),
                }
                for name in self.repos[repo]
            ]
        body = json.dumps(answer).encode()
        reply(
            http, 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body
        )

    def _file(self, http: BaseHTTPRequestHandler, repo: str, revision: str, name: str) -> None:
        away = http.path.startswith("/cdn/")
        fault: Fault | bool = False
        if not self.cdn or away or http.command == "HEAD":
            fault = self._failed(http, "head" if http.command == "HEAD" else "get", repo)
        if fault is True or not self._known(http, repo, revision):
            return
        if name not in self.repos[repo]:
            self._refuse(http, 404, "EntryNotFound")
            return
        body = self._content(repo, name)
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
            status, start = 206, int(asked.removeprefix("bytes=").split("-")[0])
            headers |= {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        end = {"half": total // 2, "short": total - 1}.get(cut or "", total)
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
