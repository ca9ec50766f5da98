"""`fetch` from a stand-in hub into a folder, then runs from that folder with every socket blocked.

The stand-in runs on this machine: nothing here has seen the real hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cme_bench.tasks.sources import MINI_FOLDER
from cme_bench.util.files import read_json
from tests.support.hub_server import FIRST, SECOND, Hub, Server, serving

pytestmark = pytest.mark.slow  # every command is a process of its own, which imports torch

CARD = b"""---
configs:
- config_name: rte
  data_files:
  - {split: validation, path: validation.jsonl}
  - {split: train, path: train.jsonl}
---
"""
BLOCKED = """
import socket

def blocked(*arguments, **_):
    raise SystemExit(f"a socket was asked for: {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = blocked
"""
RUN = """
import time
from cme_bench.cli import main

time.sleep = lambda seconds: None  # the hub's client waits between its retries
main()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def fetched(server: Server, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with the rows of RTE and a model, both of the stand-in's first commit."""
    tasks = "entailment,entailment_ll"
    rte = {file.name: file.read_bytes() for file in (MINI_FOLDER / "rte").iterdir()}
    model = {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
    server.hub = Hub(repos={"datasets/nyu-mll/glue": {"README.md": CARD, **rte}, "models/acme/tiny": model})
    out = tmp_path_factory.mktemp("fetched")
    done = command(server, out, RUN, "fetch", "acme/tiny", "--tasks", tasks, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def command(server: Server, home: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home / "home")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=kept | hub | {"CME_BENCH_CACHE": str(home / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_folder_is_what_data_takes_and_every_commit_is_locked(fetched: Path) -> None:
    for split in ("validation", "train"):
        rows = [json.loads(line) for line in (fetched / "rte" / f"{split}.jsonl").read_text().splitlines()]
        mini = (MINI_FOLDER / "rte" / f"{split}.jsonl").read_text().splitlines()
        assert rows == [json.loads(line) for line in mini]
    assert json.loads((fetched / "hub-lock.json").read_text()) == {
        "datasets/nyu-mll/glue": FIRST,
        "models/acme/tiny": FIRST,
    }
    assert read_json(fetched / "models" / "tiny" / "hub.json") == {"id": "acme/tiny", "revision": FIRST}


def test_it_runs_with_sockets_blocked_and_records_the_commits(
    fetched: Path, server: Server, tmp_path: Path
) -> None:
    server.hub.asked.clear()
    arguments = ("run", fetched / "models" / "tiny", "--tasks", "cme_rte,cme_rte_ll", "--data", fetched)
    done = command(
        server, tmp_path, BLOCKED + RUN, *arguments, "--offline", "--limit", "2", "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    assert server.hub.asked == []
    record = read_json(tmp_path / "run" / "run.json")
    assert record["model"]["revision"] == FIRST
    assert {task["revision"] for task in record["tasks"].values()} == {FIRST}


def test_sockets_are_really_blocked(server: Server, tmp_path: Path) -> None:
    arguments = ("run", "acme/other", "--tasks", "cme_rte", "--data", "mini", "--out", tmp_path / "run")
    done = command(server, tmp_path, BLOCKED + RUN, *arguments)
    assert "a socket was asked for" in done.stderr
    done = command(server, tmp_path, BLOCKED + RUN, *arguments, "--offline")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("cme-bench: model acme/other is not in ")


def test_fetched_again_nothing_is_asked_and_the_lock_holds(fetched: Path, server: Server) -> None:
    server.hub.head = SECOND
    server.hub.asked.clear()
    arguments = ("fetch", "--tasks", "entailment", "--out", fetched)
    done = command(server, fetched, RUN, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there already") == 2
    assert server.hub.asked == []
    (fetched / "rte" / "train.jsonl").unlink()
    done = command(server, fetched, RUN, *arguments)
    assert f"{fetched}/rte/train.jsonl: 5 rows" in done.stdout
    assert json.loads((fetched / "hub-lock.json").read_text())["datasets/nyu-mll/glue"] == FIRST


def test_a_model_cannot_write_beside_its_folder(
    server: Server, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
    evil = {"../../evil.json": b"{}", "../../../evil.txt": b"x", str(tmp_path / "evil.json"): b"{}"}
    server.hub = Hub(repos={"models/acme/evil": model | evil})
    command(server, tmp_path, RUN, "fetch", "acme/evil", "--out", tmp_path / "out")
    names = [file for file in tmp_path.rglob("*evil*") if file.is_file()]
    inside = tmp_path / "out" / "models" / "evil"
    assert all(file.is_relative_to(inside) or file.is_relative_to(tmp_path / "home") for file in names), names


def test_what_the_hub_does_not_deliver_is_named_and_the_rest_is_fetched(
    server: Server, tmp_path: Path
) -> None:
    server.hub = Hub()
    server.hub.status = 500
    done = command(server, tmp_path, RUN, "fetch", "--tasks", "cme_rte", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "dataset nyu-mll/glue: the hub did not deliver it (" in done.stdout
    assert done.stderr.splitlines()[-1] == (
        "cme-bench: 2 could not be fetched; the same command goes on with those"
    )
    done = command(server, tmp_path, RUN, "fetch", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (2, "cme-bench: nothing to fetch: name models, or --tasks\n")
