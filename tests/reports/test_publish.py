"""A run and its adapter on the hub: the hub's own readers read them, and no secret is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from peft import LoraConfig

import cme_bench
from cme_bench.adapters import TeamLoraConfig
from cme_bench.reports.hub.adapter_card import MARK
from cme_bench.reports.hub.eval_results import FILE, eval_results_yaml
from cme_bench.reports.hub.publish import hub_files, write_folder
from cme_bench.reports.runs import RunView
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.training.options import TrainOptions
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError
from tests.support.folders import MadeTask, make_run
from tests.support.hub_server import Server, serving

pytestmark = pytest.mark.slow  # two trainings, and processes of the command line
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "Zz9" * 11


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Two trained adapters, each with a run of six items."""
    folder = tmp_path_factory.mktemp("published")
    for method in ("lora", "teamlora"):
        asked = TrainOptions(
            model=str(tiny_checkpoint),
            method=method,
            out=folder / method,
            data="mini",
            datasets="sst2",
            rank=2,
            max_steps=2,
            batch_size=2,
            learning_rate=1e-2,
            offline=True,
        )
        adapter = train(asked)
        run(
            RunOptions(
                model=str(tiny_checkpoint),
                adapters=(str(adapter),),
                tasks="cme_rte_ll,cme_emotion_ll",
                data="mini",
                limit=6,
                engine="hf",
                out=folder / f"run-{method}",
            )
        )
    return folder


def view(place: Path, method: str) -> RunView:
    return cme_bench.open_run(place / f"run-{method}").view


@pytest.mark.parametrize("method", ["lora", "teamlora"])
def test_the_card_says_what_it_is_and_how_to_load_it(place: Path, method: str) -> None:
    files = hub_files(view(place, method), "me/mine", place / method)
    card = ModelCard(bytes(files["README.md"]).decode(), ignore_metadata_errors=False)  # type: ignore[arg-type]
    assert card.data.library_name == "peft" and method in card.data.tags and MARK in card.text
    training = json.loads((place / method / "cme_training.json").read_bytes())
    for told in (
        f"{training['adapter']['trainable_parameters']:,}",
        f"{training['final_loss']:.3f} nats",
        "| data | sst2 (4 examples) |",
        "`teamlora`: it is saved",
        "--adapter me/mine",
        "95 % interval",
        "'mini' items are a smoke test",
        "reconstruction",
        "@software{cme_bench",
    ):
        assert told in card.text, told
    code = card.text.split("```python\n")[1].split("```")[0]
    assert ("import cme_bench.adapters" in code) is (method == "teamlora")
    compile(code, "card", "exec")
    everything = b"".join(c if isinstance(c, bytes) else c.read_bytes() for c in files.values())
    assert str(place).encode() not in everything, "no path of this machine"


def test_the_code_of_the_card_loads_the_adapter(place: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With ``peft`` alone, for a method of its own."""
    write_folder(hub_files(view(place, "lora"), "me/mine", place / "lora"), tmp_path / "repo")
    text = (tmp_path / "repo" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    base = view(place, "lora").run.model.name
    code = code.replace(f'"{base}"', repr(str(tiny_checkpoint))).replace(
        '"me/mine"', repr(str(tmp_path / "repo"))
    )
    found: dict[str, Any] = {}
    exec(code, found)
    assert isinstance(found["model"].peft_config["default"], LoraConfig)
    assert not isinstance(found["model"].peft_config["default"], TeamLoraConfig)


def test_the_hubs_classes_read_the_results(place: Path) -> None:
    found = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(view(place, "lora"))))
    scores = cme_bench.open_run(place / "run-lora").scores
    assert {e.task_id: e.value for e in found} == {n: round(100 * s, 2) for n, s in scores.items()}
    assert {e.dataset_id for e in found} == {"cme-bench/mini"}
    assert all("not" in str(e.notes) and "6 of 12 items" in str(e.notes) for e in found)


def test_rows_of_the_hub_are_named_with_their_commit(tmp_path: Path) -> None:
    planned = {"source": "hub", "origin": "stanfordnlp/snli@aaaaaaaa/test", "revision": "a" * 40}
    tasks = {
        "cme_a": MadeTask([1.0, 0.0], planned=planned),
        "cme_b": MadeTask([1.0, 0.0], planned={"source": "folder", "origin": "/data/snli/test.jsonl"}),
        "cme_c": MadeTask([float("nan"), 1.0]),
    }
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(make_run(tmp_path / "r", tasks))))
    assert [(e.dataset_id, e.dataset_revision) for e in entries] == [
        ("stanfordnlp/snli", "a" * 40),
        ("local/snli", None),
    ]
    assert "rows of snli from a local folder" in str(entries[1].notes)


def test_other_weights_than_those_scored_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the weights and config"):
        hub_files(view(place, "lora"), "me/mine", place / "teamlora")
    with pytest.raises(UsageError, match="is named OWNER/NAME"):
        hub_files(view(place, "lora"), "mine", place / "lora")
    base = make_run(tmp_path / "base", {"cme_a": MadeTask([1.0, 0.0])})
    assert set(hub_files(base, "me/mine", None)) == {FILE, "results/results.json", "results/summary.csv"}
    with pytest.raises(UsageError, match="had no adapter"):
        hub_files(base, "me/mine", place / "lora")


def test_a_readme_of_somebodys_own_is_kept(place: Path, tmp_path: Path) -> None:
    files = hub_files(view(place, "lora"), "me/mine", place / "lora")
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(UsageError, match="it is a file"):
        write_folder(files, tmp_path / "README.md")
    with pytest.raises(UsageError, match="it is not ours"):
        write_folder(files, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    shutil.copytree(place / "lora", tmp_path / "adapter")
    for _ in range(2):  # PEFT's template is replaced, and ours is
        write_folder(files, tmp_path / "adapter")
    assert MARK in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def hub() -> Iterator[Server]:
    with serving() as server:
        server.hub = type(server.hub)(commits={"a" * 40: {}}, token=TOKEN)
        yield server


def called(server: Server, home: Path, token: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the hub's address and token are read when its client is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "cme_bench", "card", *words],
        env=kept | own,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_pushed_and_a_refusal_says_no_token(place: Path, hub: Server, tmp_path: Path) -> None:
    words = (str(place / "run-teamlora"), "--push", "me/mine")
    done = called(hub, tmp_path, TOKEN, *words)
    assert done.returncode == 0, (done.stderr, hub.hub.asked)
    assert "Published: " in done.stdout and "/me/mine/commit/" in done.stdout
    stored = hub.hub.repos["models/me/mine"]
    assert (
        stored["adapter_model.safetensors"] == (place / "teamlora" / "adapter_model.safetensors").read_bytes()
    )
    assert {"README.md", FILE, "adapter_config.json", "cme_training.json", "results/results.json"} <= set(
        stored
    )
    refused = called(hub, tmp_path, "hf_" + "No0" * 11, *words)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "the hub did not take it" in refused.stderr
    for said in (
        done.stdout,
        done.stderr,
        refused.stdout,
        refused.stderr,
        *map(bytes.decode, _texts(stored)),
    ):
        assert TOKEN not in said and "No0No0" not in said


def _texts(stored: dict[str, bytes]) -> list[bytes]:
    return [content for name, content in stored.items() if not name.endswith(".safetensors")]
