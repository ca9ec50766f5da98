"""The hub source against a stand-in server on this machine: lock file, exact commits, offline, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cme_bench.models.hub_client import hub_errors
from tests.support.hub_server import FIRST, SECOND, Hub, Server, serving

# Asks for rows as a run does. A process of its own: HF_ENDPOINT and HF_HOME are read when libraries load.
ASKER = """
import json, sys, time
from pathlib import Path
from cme_bench.util.errors import CmeError
from cme_bench.tasks.hub import HubSource, hub_rows
from cme_bench.tasks.spec import TaskSpec

time.sleep = lambda seconds: None  # the libraries wait between their retries
for line in sys.stdin:
    repo, split, lock, offline = json.loads(line)
    spec = TaskSpec("tiny", Path("tiny.yaml"), {"dataset_path": repo}, {})
    try:
        if split is None:
            rows, commit = hub_rows(repo, offline=offline, lock_file=Path(lock))
            print(json.dumps([list(rows.table), rows.origin, commit]), flush=True)
            continue
        source = HubSource(lock_file=Path(lock), offline=offline)
        rows = source.rows(spec, split)
        answer = [list(rows.table), rows.origin, source.revision(spec), source.dataset_keys(spec, [])]
    except CmeError as err:
        answer = f"{type(err).__name__} {err.exit_code}: {err}"
    print(json.dumps(answer), flush=True)
"""


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

    def __call__(self, repo: str, lock: Path, *, split: str | None = "test", offline: bool = False) -> Any:
        """[rows, origin, commit, lm-eval's keys], or an error as text; without a split, of one's own rows,
        which name theirs, and no keys."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([repo, split, str(lock), offline]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as served:
        yield served


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


@pytest.mark.parametrize("drops", [1, 2, 3])
def test_connections_that_break_are_tried_again(hub: Hub, ask: Asker, lock: Path, drops: int) -> None:
    hub.drops = drops
    assert ask(f"acme/shaky-{drops}", lock)[:2] == [
        [{"text": "first", "label": 1}],
        f"acme/shaky-{drops}@aaaaaaaa/test",
    ]
    assert hub.drops == 0


def test_a_network_that_stays_away_is_one_line_and_the_same_call_goes_on(
    hub: Hub, ask: Asker, lock: Path
) -> None:
    hub.drops = 10_000
    answer = ask("acme/away", lock)
    assert answer.startswith("CmeError 1: dataset acme/away: the hub did not deliver it (")
    assert answer.endswith(", 4 tries; what has arrived is kept, the same command goes on")
    assert not lock.exists()
    hub.drops = 0
    assert ask("acme/away", lock)[2] == FIRST


def test_what_does_not_exist_is_not_asked_for_again(hub: Hub, ask: Asker, lock: Path) -> None:
    hub.status = 404
    assert "tries" not in ask("acme/nowhere", lock)


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


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_a_network_that_fails_is_one_of_the_hubs_errors(client: str) -> None:
    """Whichever client the installed huggingface_hub speaks through."""
    module = pytest.importorskip(client)
    assert issubclass(module.ConnectError, hub_errors())


def test_own_rows_are_those_of_a_revision_which_is_locked(hub: Hub, ask: Asker, lock: Path) -> None:
    asked = [
        ("acme/rows:test", False),
        (f"acme/rows@{SECOND}:test", False),
        ("acme/rows:test", True),
        (f"acme/rows@{SECOND}:test", True),
        ("acme/rows@v9:test", True),
        ("acme/rows", False),
        ("rows", False),
    ]
    answers = [ask(named, lock, split=None, offline=offline) for named, offline in asked]
    first = [[{"text": "first", "label": 1}], "acme/rows@aaaaaaaa/test", FIRST]
    second = [[{"text": "second", "label": 1}], "acme/rows@bbbbbbbb/test", SECOND]
    assert answers[:4] == [first, second, first, second]
    assert answers[4].startswith(f"UsageError 2: dataset acme/rows@v9 is not in {lock}")
    assert "train" in answers[5] and answers[5].startswith("CmeError")
    assert answers[6] == "UsageError 2: hub:rows: write hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"
    assert json.loads(lock.read_text()) == {
        "datasets/acme/rows": FIRST,
        f"datasets/acme/rows@{SECOND}": SECOND,
    }
