"""Uploads to the local hub of `tests.hub_server`: repositories, large files, commits, accounts."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what it allows."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, repo: str) -> bool:
        return repo.removeprefix("datasets/").partition("/")[0] in (self.name, *self.organizations)


class Uploads:
    """The part of the server that changes repositories; each commit at once or not at all."""

    repos: dict[str, dict[str, bytes | Path]]
    private: set[str]
    history: dict[tuple[str, str], dict[str, bytes | Path]]
    cards: dict[str, dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        """Large files by hash, which belong to no repository until a commit names them."""
        self.commits: list[dict[str, Any]] = []
        """The header of each commit, with `repo`, `revision` and `files`."""

    def whoami(self, http: BaseHTTPRequestHandler) -> None:
        from tests.hub_server import answer_json

        who = self.account(http)
        if who is None:
            self._refuse(http, 401, None)
            return
        answer_json(http, {
            "type": "user", "name": who.name, "orgs": [{"name": o} for o in who.organizations],
            "auth": {"accessToken": {"displayName": "test", "role": who.role}},
        })  # fmt: skip

    def upload(self, http: BaseHTTPRequestHandler, parts: list[str]) -> None:
        from tests.hub_server import answer_json

        body = read_body(http)
        if parts[0] == "lfs":
            if not self._failed(http, "upload", ""):
                assert hashlib.sha256(body).hexdigest() == parts[1]
                self.objects[parts[1]] = body
                answer_json(http, {})
            return
        if parts[:2] == ["api", "validate-yaml"]:
            answer_json(http, {"errors": [], "warnings": []})
            return
        if parts[:3] == ["api", "repos", "create"]:
            self._create(http, json.loads(body))
            return
        repo = "/".join(parts[2:4] if parts[0] == "api" else [parts[0], parts[1][: -len(".git")]])
        who = self.account(http)
        if repo not in self.repos or not self.may_read(http, repo):
            self._refuse(http, 404 if who else 401, "RepoNotFound")
        elif who is None:
            self._refuse(http, 401, None)
        elif who.role != "write" or not who.owns(repo):
            self._refuse(http, 403, None)
        elif parts[-1] == "batch":
            asked = json.loads(body)["objects"]
            answer_json(http, {"transfer": "basic", "objects": [self._action(o) for o in asked]})
        elif parts[4] == "preupload":
            files = [self._mode(file) for file in json.loads(body)["files"]]
            answer_json(http, {"files": files})
        elif parts[4] == "branch":
            self.history[repo, "/".join(parts[5:])] = dict(self.repos[repo])
            answer_json(http, {})
        elif parts[4] == "commit" and not self._failed(http, "commit", repo):
            self._commit(http, repo, "/".join(parts[5:]), body)

    def _create(self, http: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        from tests.hub_server import answer_json

        who = self.account(http)
        if who is None:
            self._refuse(http, 401, None)
            return
        repo = f"{asked.get('organization') or who.name}/{asked['name']}"
        if who.role != "write" or not who.owns(repo):
            self._refuse(http, 403, None)
        elif repo in self.repos:
            self._refuse(http, 409, None)
        else:
            self.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(repo)
            answer_json(http, {"url": f"{self.url}/{repo}"})

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.url}/lfs/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": href, "header": {}}}}

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith((".safetensors", ".tar")) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, http: BaseHTTPRequestHandler, repo: str, revision: str, body: bytes) -> None:
        from tests.hub_server import answer_json

        target = self.repos[repo] if revision == "main" else self.history.get((repo, revision))
        if target is None:
            self._refuse(http, 404, "RevisionNotFound")
            return
        added: dict[str, bytes | Path] = {}
        header: dict[str, Any] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                assert value["encoding"] == "base64"
                added[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                added[value["path"]] = self.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del target[value["path"]]
        target.update(added)
        self.commits.append({**header, "repo": repo, "revision": revision, "files": sorted(added)})
        answer_json(http, {
            "success": True, "commitOid": self.commit(repo), "hookOutput": "",
            "commitUrl": f"{self.url}/{repo}/commit/{self.commit(repo)}",
        })  # fmt: skip


def read_body(http: BaseHTTPRequestHandler) -> bytes:
    """Return the whole body of a request, sent at once or in chunks."""
    if "chunked" not in (http.headers["Transfer-Encoding"] or ""):
        return http.rfile.read(int(http.headers["Content-Length"] or 0))
    out = b""
    while size := int(http.rfile.readline().strip() or b"0", 16):
        out += http.rfile.read(size)
        http.rfile.readline()
    http.rfile.readline()
    return out
