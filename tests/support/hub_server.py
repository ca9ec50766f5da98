"""A stand-in for the hub on this machine: enough of its interface to resolve commits and fetch files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from tests.support.local_server import answering

FIRST, SECOND = "a" * 40, "b" * 40


def commit_of(text: str) -> dict[str, bytes]:
    card = (
        b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
    )
    return {"README.md": card, "test.jsonl": f'{{"text": "{text}", "label": 1}}\n'.encode()}


@dataclass
class Hub:
    """What the stand-in serves: files by commit for every dataset; other files for the datasets and models
    that ``repos`` names (``datasets/OWNER/NAME``, or that at a commit after ``@``); which commit is the head,
    and those of other branches and tags; which repositories are gated, and which there are not; how many
    requests it will cut off in the middle of the answer, or before it; what it was asked. ``token``: what an
    upload must show, as huggingface_hub sends it; ``large``: the contents of large files by their sha256."""

    commits: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {FIRST: commit_of("first"), SECOND: commit_of("second")}
    )
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = FIRST
    refs: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    status: int = 200
    drops: int = 0
    asked: list[str] = field(default_factory=list)
    token: str | None = None
    large: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and what to send: bytes of a file, or something for JSON."""
        self.asked.append(path)
        if self.status != 200:
            return self.status, {"error": "out of order"}
        match path.strip("/").split("/"):
            case [owner, name, "resolve", commit, *file]:
                return self.content(f"models/{owner}/{name}", commit, "/".join(file))
            case ["datasets", owner, name, "resolve", commit, *file]:
                return self.content(f"datasets/{owner}/{name}", commit, "/".join(file))
            case ["api", "datasets" | "models" as kind, owner, name, *rest]:
                return self.listing(f"{kind}/{owner}/{name}", rest, body)
        return 404, {"error": f"no {path}"}

    def listing(self, repo: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        """Answer what begins with ``api``."""
        commit = self.commit(unquote(rest[1]) if len(rest) > 1 else "main")
        if repo in self.gated:
            return 403, {"error": "gated", "code": "GatedRepo"}
        if repo in self.absent or commit is None:
            missing = "RepoNotFound" if commit else "RevisionNotFound"
            return 404, {"error": "not here", "code": missing}
        files = self.files(repo, commit)
        answers: dict[str, Any] = {"tree": [entry(commit, file, files[file]) for file in files]}
        if rest[:1] == ["paths-info"]:
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            answers["paths-info"] = [entry(commit, file, files[file]) for file in wanted if file in files]
        about = {"id": repo.partition("/")[2], "sha": commit, "tags": []}
        about["siblings"] = [{"rfilename": file} for file in files]
        return 200, answers.get(rest[0] if rest else "", about)

    def commit(self, revision: str) -> str | None:
        known = {"main": self.head} | self.refs
        return known.get(revision) or (revision if len(revision) == 40 else None)

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        return self.repos.get(f"{repo}@{commit}") or self.repos.get(repo) or self.commits[commit]

    def content(self, repo: str, commit: str, name: str) -> tuple[int, Any]:
        content = self.files(repo, commit).get(name)
        return (404, {"error": "Entry not found"}) if content is None else (200, content)

    def upload(self, method: str, path: str, body: bytes, authorization: str, url: str) -> tuple[int, Any]:
        """Answer what writes: a repository made, the modes of files, large files, and the commit."""
        self.asked.append(path)
        if self.token is None or (method == "POST" and authorization != f"Bearer {self.token}"):
            return 401, {"error": f"Invalid credentials in Authorization header {authorization}"}
        answer: Any = None
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                made = json.loads(body)
                answer = {"url": f"{url}/{made['organization']}/{made['name']}"}
            case ["api", "validate-yaml"]:
                answer = {"errors": [], "warnings": []}
            case ["api", "models", _, _, "preupload", "main"]:
                answer = {"files": [mode_of(file["path"]) for file in json.loads(body)["files"]]}
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(body)["objects"]
                there = {o["oid"]: {"upload": {"href": f"{url}/large/{o['oid']}"}} for o in objects}
                answer = {"objects": [o | {"actions": there[o["oid"]]} for o in objects]}
            case ["large", oid] if method == "PUT" and hashlib.sha256(body).hexdigest() == oid:
                self.large[oid] = body
                answer = {}
            case ["api", "models", owner, name, "commit", "main"]:
                self.store(f"models/{owner}/{name}", body)
                place = f"{url}/{owner}/{name}/commit/{self.head}"
                answer = {"success": True, "commitOid": self.head, "commitUrl": place}
        return (404, {"error": f"no {path}"}) if answer is None else (200, answer)

    def store(self, repo: str, lines: bytes) -> None:
        """Keep the files of a commit."""
        files = self.repos.setdefault(repo, {})
        for line in map(json.loads, lines.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.large[line["value"]["oid"]]


def entry(commit: str, name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": f"{commit[:8]}-{name}"}


def mode_of(path: str) -> dict[str, Any]:
    """How a file travels: weights as large ones, whatever their size."""
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


WRITES = ("/api/repos/create", "/api/validate-yaml", "/preupload/", "/info/lfs/", "/commit/", "/large/")


class Server(ThreadingHTTPServer):
    """Answers for ``hub`` on a free port of this machine."""

    hub = Hub()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def reply(self) -> None:
        path = urlparse(self.path).path
        body = self.body()
        if self.command in ("POST", "PUT") and any(part in path for part in WRITES):
            url = f"http://{self.headers['Host']}"
            shown = self.headers.get("Authorization") or ""
            status, content = self.server.hub.upload(self.command, path, body, shown, url)
        else:
            status, content = self.server.hub.answer(path, body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.server.hub.drops > 0:
            self.server.hub.drops -= 1
            self.close_connection = True
            if self.server.hub.drops % 2 and self.command != "HEAD":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status != 200 and isinstance(content, dict):
            usual = "EntryNotFound" if "/resolve/" in path else "RepoNotFound"
            if code := content.get("code") or (usual if status == 404 else None):
                self.send_header("X-Error-Code", code)
        if "/resolve/" in path and status == 200:
            commit = path.split("/resolve/")[1].partition("/")[0]
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{commit[:8]}-{path.rpartition("/")[2]}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        """What was sent, whole or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = reply  # noqa: N815 - names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def serving() -> Iterator[Server]:
    """The stand-in, answering until the block ends."""
    served = Server(("127.0.0.1", 0), Handler)
    with answering(served):
        yield served
