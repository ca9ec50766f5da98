"""The hub source against a stand-in server on this machine: lock file, exact commits, offline, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

FIRST, SECOND = "a" * 40, "b" * 40

# Asks for rows as a run does. A process of its own: HF_ENDPOINT and HF_HOME are read when libraries load.
ASKER = """
import json, sys, time
from pathlib import Path
from cme_bench.errors import CmeError
from cme_bench.tasks.hub import HubSource
from cme_bench.tasks.spec import TaskSpec

time.sleep = lambda seconds: None  # the libraries wait between their retries
for line in sys.stdin:
    repo, split, lock, offline = json.loads(line)
    spec = TaskSpec("tiny", Path("tiny.yaml"), {"dataset_path": repo}, {})
    try:
        source = HubSource(lock_file=Path(lock), offline=offline)
        rows = source.rows(spec, split)
        answer = [list(rows.table), rows.origin, source.revision(spec), source.dataset_keys(spec, [])]
    except CmeError as err:
        answer = f"{type(err).__name__} {err.exit_code}: {err}"
    print(json.dumps(answer), flush=True)
"""


def commit_of(text: str) -> dict[str, bytes]:
    card = (
        b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
    )
    return {"README.md": card, "test.jsonl": f'{{"text": "{text}", "label": 1}}\n'.encode()}


@dataclass
class Hub:
    """What the stand-in serves for every dataset: files by commit, which of them is the head, what it was
    asked."""

    commits: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {FIRST: commit_of("first"), SECOND: commit_of("second")}
    )
    head: str = FIRST
    status: int = 200
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and what to send: bytes of a file, or something for JSON."""
        self.asked.append(path)
        if self.status != 200:
            return self.status, {"error": "out of order"}
        match path.strip("/").split("/"):
            case ["datasets", _, _, "resolve", commit, name]:
                content = self.commits.get(commit, {}).get(name)
                return (404, {"error": "Entry not found"}) if content is None else (200, content)
            case ["api", "datasets", owner, name, *rest]:
                commit = {"main": self.head}.get(rest[1], rest[1]) if len(rest) > 1 else self.head
                files = self.commits[commit]
                match rest[:1]:
                    case [] | ["revision"]:
                        siblings = [{"rfilename": file} for file in files]
                        return 200, {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings, "tags": []}
                    case ["tree"]:
                        return 200, [self.entry(commit, file) for file in files]
                    case ["paths-info"]:
                        wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
                        return 200, [self.entry(commit, file) for file in wanted if file in files]
        return 404, {"error": f"no {path}"}

    def entry(self, commit: str, name: str) -> dict[str, Any]:
        content = self.commits[commit][name]
        return {"type": "file", "path": name, "size": len(content), "oid": f"{commit[:8]}-{name}"}


class Server(ThreadingHTTPServer):
    """Answers for ``hub`` on a free port of this machine."""

    hub = Hub()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def reply(self) -> None:
        path = urlparse(self.path).path
        status, content = self.server.hub.answer(
            path, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        )
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
        if "/resolve/" in path and status == 200:
            commit = path.split("/resolve/")[1].partition("/")[0]
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{commit[:8]}-{path.rpartition("/")[2]}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = reply  # noqa: N815 - names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        return


class Asker:
    """A process whose caches lie below ``home``."""

    def __init__(self, home: Path, url: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASKER],
            env=kept | {"HF_ENDPOINT": url, "HF_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, repo: str, lock: Path, *, split: str = "test", offline: bool = False) -> Any:
        """[rows, origin, commit, lm-eval's keys], or an error as text."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([repo, split, str(lock), offline]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def hub(server: Server) -> Hub:
    """A hub in its first state; every test asks for a dataset of its own, since the caches are shared."""
    server.hub = Hub()
    return server.hub


@pytest.fixture(scope="module")
def ask(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    asker = Asker(tmp_path_factory.mktemp("home"), f"http://127.0.0.1:{server.server_port}")
    yield asker
    asker.close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "hub-lock.json"


def test_the_commit_of_the_first_use_is_used_from_then_on(
    hub: Hub, ask: Asker, lock: Path, server: Server, tmp_path: Path
) -> None:
    expected = [[{"text": "first", "label": 1}], "acme/moving@aaaaaaaa/test", FIRST]
    *found, keys = ask("acme/moving", lock)
    assert found == expected
    assert keys == {"dataset_path": "acme/moving", "dataset_kwargs": {"revision": FIRST}}
    assert json.loads(lock.read_text()) == {"datasets/acme/moving": FIRST}

    hub.head = SECOND
    hub.asked.clear()
    assert ask("acme/moving", lock)[:3] == expected
    assert hub.asked == []  # the cache holds that commit

    elsewhere = Asker(tmp_path / "home", f"http://127.0.0.1:{server.server_port}")
    assert elsewhere("acme/moving", lock)[:3] == expected  # fetched anew, at the locked commit
    assert any(FIRST in path for path in hub.asked)
    assert not any(SECOND in path for path in hub.asked)

    hub.asked.clear()
    assert elsewhere("acme/moving", lock, offline=True)[:3] == expected
    assert hub.asked == []
    elsewhere.close()


def test_offline_without_lock_or_rows_is_one_line(hub: Hub, ask: Asker, lock: Path) -> None:
    message = "UsageError 2: dataset acme/absent"
    assert ask("acme/absent", lock, offline=True) == (
        f"{message} is not in {lock}; fetch it once without --offline"
    )
    lock.write_text(json.dumps({"datasets/acme/absent": SECOND}))
    assert ask("acme/absent", lock, offline=True) == (
        f"{message}: split 'test' at commit bbbbbbbb is not in the local cache; "
        "fetch it once without --offline"
    )
    assert hub.asked == []


@pytest.mark.parametrize("status", [404, 500])
def test_a_hub_that_fails_is_one_line_and_nothing_is_locked(
    hub: Hub, ask: Asker, lock: Path, status: int
) -> None:
    hub.status = status
    answer = ask("acme/broken", lock)
    assert answer.startswith("CmeError 1: dataset acme/broken: the hub did not deliver it (")
    assert str(status) in answer
    assert "\n" not in answer
    assert not lock.exists()


def test_another_cached_commit_does_not_stand_in_for_the_locked_one(hub: Hub, ask: Asker, lock: Path) -> None:
    ask("acme/moved", lock)
    lock.write_text(json.dumps({"datasets/acme/moved": SECOND}))
    hub.status = 500
    assert ask("acme/moved", lock).startswith(
        "CmeError 1: dataset acme/moved: the hub did not deliver commit bbb"
    )
    hub.status = 200
    assert ask("acme/moved", lock)[0] == [{"text": "second", "label": 1}]


def test_a_split_that_does_not_exist_is_one_line(hub: Hub, ask: Asker, lock: Path) -> None:
    answer = ask("acme/splits", lock, split="nosuch")
    assert answer.startswith("CmeError 1: dataset acme/splits: ")
    assert "nosuch" in answer
    assert hub.asked
