"""Hub names of models and adapters, against a stand-in hub: commits, locks, offline, refusals, identities."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from cme_bench.models.hub_name import HubName, parse_hub_name
from cme_bench.util.errors import UsageError
from tests.support.hub_server import FIRST, SECOND, Hub, Server, serving

BASE, TEAM = "models/acme/base", "models/acme/team"

# A process of its own: the hub's client reads its address and its cache's place when it is imported.
ASKER = """
import contextlib, json, socket, sys, time
from pathlib import Path
from cme_bench.cli.adapters import import_
from cme_bench.models.adapter import resolve_adapter
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.fetch import fetch_model
from cme_bench.models.load import load_config
from cme_bench.models.packaged import locate_adapter
from cme_bench.util.errors import CmeError

time.sleep = lambda seconds: None  # the hub's client waits between its retries
connect = socket.socket.connect, socket.create_connection

def blocked(*arguments, **_):
    raise SystemExit(f"a socket was asked for: {arguments}")

def model(name, **how):
    found = resolve_model(name, **how)
    return [found.name, str(found.path), found.revision, found.hub, found.hash]

def adapter(name, base, **how):
    how.pop("note")
    checkpoint = resolve_model(base, offline=how["offline"])
    found = resolve_adapter(name, load_config(checkpoint), **how)
    return [found.name, found.record.revision, found.record.hub, found.hash, found.notes, found.portable]

def place(name, **how):
    return [str(locate_adapter(name, **how).path)]

def imported(name, base, out, *, offline, note):
    with contextlib.redirect_stdout(sys.stderr):
        import_(name, Path(out), base)
    config = json.loads((Path(out) / "adapter_config.json").read_text())
    return [config["base_model_name_or_path"], config["revision"]]

def fetch(name, out=None, *, offline, note):
    return str(fetch_model(name, out and Path(out), note))

for line in sys.stdin:
    what, arguments, offline = json.loads(line)
    notes = []
    socket.socket.connect, socket.create_connection = (blocked, blocked) if offline else connect
    try:
        answer = globals()[what](*arguments, offline=offline, note=notes.append)
    except CmeError as err:
        answer = f"{type(err).__name__} {err.exit_code}: {err}"
    print(json.dumps([answer, notes]), flush=True)
"""


class Asker:
    """A process with a cache and a lock file of its own, in the folder ``home``."""

    def __init__(self, home: Path, url: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        home.mkdir(exist_ok=True)
        self.lock = home / "cache" / "hub-lock.json"
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASKER],
            env=kept
            | {"HF_ENDPOINT": url, "HF_HOME": str(home), "CME_BENCH_CACHE": str(home / "cache")}
            | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=home,
            text=True,
        )

    def __call__(self, what: str, *arguments: str, offline: bool = False) -> Any:
        """What the function returns, or an error as text."""
        return self.told(what, *arguments, offline=offline)[0]

    def told(self, what: str, *arguments: str, offline: bool = False) -> tuple[Any, list[str]]:
        """The same, with the notes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([what, arguments, offline]), file=self.process.stdin, flush=True)
        found, notes = json.loads(self.process.stdout.readline())
        return found, notes


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], ...]:
    """The files of two versions of one adapter; the second names a revision of its base."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config)
        model.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
        file = folder / "adapter_config.json"
        named = {"base_model_name_or_path": "acme/base", "revision": SECOND if seed == 2 else None}
        file.write_text(json.dumps(json.loads(file.read_text()) | named))
        found.append(files_of(folder))
    return tuple(found)


def pickled(weights: bytes) -> bytes:
    torch.save(load(weights), buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as served:
        yield served


@pytest.fixture
def hub(server: Server, tiny_checkpoint: Path, adapters: tuple[dict[str, bytes], ...]) -> Hub:
    base, (first, second) = files_of(tiny_checkpoint), adapters
    unneeded = dict.fromkeys(["pytorch_model.bin", "modeling.py", "consolidated.safetensors"], b"x")
    unneeded |= {f"checkpoint-1/{name}": b"x" for name in base}
    server.hub = Hub(
        repos={
            BASE: base | unneeded,
            f"{TEAM}@{FIRST}": first | {"model.safetensors": b"merged", "training_args.bin": b"x"},
            f"{TEAM}@{SECOND}": second,
            "models/acme/many": {f"rank8/{name}": content for name, content in first.items()} | base,
            "models/acme/theirs": {
                "adapter_config.json": first["adapter_config.json"],
                "adapter_model.bin": pickled(first["adapter_model.safetensors"]),
            },
            "models/acme/pickle": {"adapter_config.json": b"{}", "adapter_model.bin": b"x"},
        },
        refs={"v1": FIRST, "v2": SECOND, "refs/pr/1": SECOND},
        gated={"models/acme/gated"},
        absent={"models/acme/absent", "models/out/tem"},
    )
    return server.hub


@pytest.fixture(scope="module")
def homes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    asker = Asker(tmp_path_factory.mktemp("home"), f"http://127.0.0.1:{server.server_port}")
    yield asker
    asker.process.communicate(timeout=60)


@pytest.fixture
def ask(homes: Asker) -> Iterator[Asker]:
    """The process, with an empty lock; what it has fetched stays in the hub's cache."""
    homes.lock.unlink(missing_ok=True)
    yield homes
    homes.lock.unlink(missing_ok=True)


def test_names_are_read_as_they_are_written() -> None:
    for text, expected, label in (
        ("acme/base", HubName("acme/base"), "base"),
        ("acme/base@v1.0", HubName("acme/base", None, "v1.0"), "base@v1.0"),
        ("acme/base@refs/pr/1", HubName("acme/base", None, "refs/pr/1"), "base@refs-pr-1"),
        (f"acme/base@{FIRST}", HubName("acme/base", None, FIRST), "base@aaaaaaaa"),
        ("acme/many/a/b@main", HubName("acme/many", "a/b", "main"), "many-a-b@main"),
    ):
        found = parse_hub_name(text)
        assert (found, str(found), found and found.label) == (expected, text, label)
    for path in ("base", "a/b/c", "./a/b@v1", "/a/b", "~/a", "a/../b@main", "", "a/b/"):
        assert parse_hub_name(path) is None, path
    for wrong in ("a/b@", "a/b@v 1", "a/b@x..y", "a/b@-x", "a/b@x/"):
        with pytest.raises(UsageError, match="is no revision"):
            parse_hub_name(wrong)
    with pytest.raises(UsageError, match="in place of its address: a/b/sub@v1"):
        parse_hub_name("https://hub.example/a/b/tree/v1/sub")


def test_a_revision_is_resolved_once_locked_and_recorded(hub: Hub, ask: Asker) -> None:
    name, path, revision, asked_for, hash_ = ask("model", "acme/base@v1")
    assert (name, revision, asked_for) == ("base@v1", FIRST, "acme/base@v1")
    assert json.loads(ask.lock.read_text()) == {"models/acme/base@v1": FIRST}
    kept = {str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file()}
    assert kept == {name for name in hub.repos[BASE] if "/" not in name} - {
        "pytorch_model.bin",
        "modeling.py",
        "consolidated.safetensors",
    }
    hub.refs["v1"] = SECOND
    assert ask("model", "acme/base@v1")[2] == FIRST
    assert ask("model", f"acme/base@{FIRST}", offline=True)[3:] == [f"acme/base@{FIRST}", hash_]
    assert json.loads(ask.lock.read_text()) == {"models/acme/base@v1": FIRST}, "a commit needs no lock"


def test_a_revision_that_moved_is_told_and_not_followed(hub: Hub, ask: Asker) -> None:
    ask("fetch", "acme/base")
    hub.head = SECOND
    found, [note] = ask.told("model", "acme/base")
    assert found[2] == FIRST
    assert note.startswith("acme/base: the hub is at commit bbbbbbbb now; the locked aaaaaaaa is used")
    assert str(ask.lock) in note


def test_offline_only_what_was_fetched_and_no_socket(hub: Hub, ask: Asker) -> None:
    fetch = "fetch it once where there is a network: cme-bench fetch"
    assert ask("model", "acme/base@v2", offline=True) == (
        f"UsageError 2: model acme/base@v2 is not in {ask.lock}; {fetch} acme/base@v2"
    )
    hub.asked.clear()
    assert ask("fetch", "acme/base@v2") == ask("model", "acme/base@v2", offline=True)[1]
    half = ask("model", "acme/base@v2", offline=True)[1]
    (Path(half) / "generation_config.json").unlink()
    assert ask("model", "acme/base@v2", offline=True) == (
        "UsageError 2: model acme/base@v2: commit bbbbbbbb is not complete in the hub's cache on this "
        f"machine; {fetch} acme/base@v2"
    )
    ask("fetch", "acme/base@v2")
    assert ask("model", "acme/base@v2", offline=True)[1] == half


@pytest.mark.slow
def test_adapters_have_revisions_and_subfolders_of_their_own(hub: Hub, ask: Asker) -> None:
    ask("fetch", "acme/base@v1")
    ones = [ask("adapter", f"acme/team@{tag}", "acme/base@v1") for tag in ("v1", "v2")]
    assert [one[:3] for one in ones] == [
        ["team@v1", FIRST, "acme/team@v1"],
        ["team@v2", SECOND, "acme/team@v2"],
    ]
    assert ones[0][3] != ones[1][3], "other weights are another adapter"
    assert ones[0][4] == [] and ones[0][5] == f"acme/team@{FIRST}"
    [note] = ones[1][4]
    assert "trained on revision bbbbbbbb" in note and note.endswith(
        "the base model here is at commit aaaaaaaa"
    )
    assert not any("/model.safetensors" in path for path in hub.asked if "acme/team/resolve" in path)
    inner = ask("adapter", "acme/many/rank8@main", "acme/base@v1")
    assert inner[:3] == ["many-rank8@main", FIRST, "acme/many/rank8@main"]
    assert inner[3] == ones[0][3], "the same adapter, wherever it lies"
    hub.asked.clear()
    assert ask("adapter", "acme/many/rank8@main", "acme/base@v1", offline=True) == inner
    assert hub.asked == []
    assert ask("place", "acme/many/rank9@main") == (
        "UsageError 2: adapter acme/many/rank9@main: commit aaaaaaaa has no folder 'rank9'"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme/gated", "the repository is gated; accept its terms on its page, and set HF_TOKEN"),
        ("acme/absent", "has no such repository, or a private one (HF_TOKEN gives access)"),
        ("acme/base@v9", "the repository has no branch, tag or commit 'v9'"),
        ("out/tem", "(HF_TOKEN gives access); did you mean 'out/team'?"),
        ("acme/pickle", "no safetensors weights at commit aaaaaaaa (pickled files are not fetched)"),
        ("a/b/c", "no such folder, and not a hub id ('owner/name') (a subfolder of a hub repository"),
        ("acme/base@", "'' is no revision"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(hub: Hub, ask: Asker, name: str, message: str) -> None:
    (ask.lock.parent.parent / "out" / "team").mkdir(parents=True, exist_ok=True)
    answer = ask("place", name)
    assert answer.startswith("UsageError 2: ") and message in answer and "\n" not in answer
    assert "tries" not in answer, "asked once"


def test_a_folder_here_wins_visibly_and_is_refused_where_the_name_meant_the_hub(hub: Hub, ask: Asker) -> None:
    home = ask.lock.parent.parent
    here = home / "acme" / "base"
    assert ask("model", "acme/base")[2] == FIRST
    here.mkdir(parents=True)
    for name, content in hub.repos[BASE].items():
        if "/" not in name and not name.startswith("consolidated"):
            (here / name).write_bytes(content)
    assert ask("model", "acme/base") == (
        "UsageError 2: model acme/base: the folder here, or the hub's, which was used before? "
        f"Write ./acme/base for the folder, acme/base@{FIRST} for the hub's"
    )
    assert ask.told("model", "./acme/base") == ([*ask("model", "./acme/base")], [])
    ask.lock.unlink()
    found, [note] = ask.told("model", "acme/base")
    assert found[:3] == ["base", str(here), None]
    assert note == f"model acme/base: the folder {here}, not the hub's (./acme/base says so)"
    assert "acme/base is a folder here, and a folder has no revisions" not in ask("model", "acme/base@v1")[0]
    dated = here.rename(here.with_name("base@v3"))
    assert ask("model", "./acme/base@v3")[:2] == ["base@v3", str(dated)]


def test_fetching_into_a_folder_keeps_revisions_apart(hub: Hub, ask: Asker, tmp_path: Path) -> None:
    for tag in ("v1", "v2"):
        found = ask("fetch", f"acme/team@{tag}", str(tmp_path))
        assert found == str(tmp_path / "models" / f"team@{tag}")
        assert ask("adapter", found, "acme/base")[:3] == [
            f"team@{tag}",
            {"v1": FIRST, "v2": SECOND}[tag],
            f"acme/team@{tag}",
        ]
    hub.repos["models/other/team"] = hub.repos[f"{TEAM}@{FIRST}"]
    assert ask("fetch", "other/team@v1", str(tmp_path)) == (
        f"UsageError 2: model other/team@v1: {tmp_path / 'models' / 'team@v1'} holds acme/team@v1; "
        "choose another folder with --out"
    )


def test_a_pickle_of_the_hub_is_fetched_by_import_alone(hub: Hub, ask: Asker, tmp_path: Path) -> None:
    found = ask("imported", "acme/theirs", "acme/base@v2", str(tmp_path / "out"))
    assert found == ["acme/base", "v2"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert ask("imported", "./nowhere", "acme/base", str(tmp_path / "no")).startswith("UsageError 2: adapter")
