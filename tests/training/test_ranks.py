"""Several processes make the steps of one: with two of them, on CPUs, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cme_bench.adapters.registry import routed_names
from cme_bench.training import record
from cme_bench.training.batches import Layout, count_learnt, count_targets
from cme_bench.training.choose import MANNER, batch_order, needs_trainer
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.ranks import Ranks
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError

CLOSE = 1e-5
SHARED: dict[str, Any] = {
    "data": "mini", "datasets": "sst2,rte,winogrande", "rank": 2, "dropout": 0.0, "max_length": 256,
    "max_steps": 20, "batch_size": 2, "learning_rate": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.5,
    "log_every": 4, "save_every": 8, "dtype": "float32", "offline": True,
}  # fmt: skip
EQUAL: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "padded": ("teamlora", {}, {"accumulate": 2}, ""),
    "accumulated": ("moelora", {"accumulate": 2}, {"accumulate": 4}, ""),
    "packed": ("mixlora", {"pack_tokens": 384}, {"pack_tokens": 384, "accumulate": 2}, ""),
    "varlen": ("hydralora", {"batches": "even"}, {"batches": "even", "accumulate": 2}, "packs+varlen"),
    "larger": ("adalora", {}, {"batch_size": 4}, ""),
}
"""Method; options with two processes; those of one process with the same rows in a step; and the manner."""


def made(name: str, folder: Path, model: Path, method: str, **changes: Any) -> dict[str, Any]:
    balance = {"balance_loss": 0.1} if method in routed_names() else {}
    return {"model": str(model), "method": method, "out": str(folder / name), **SHARED, **balance, **changes}


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of all that two processes trained, and what the first of them said."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs: list[dict[str, Any]] = [
        {"options": made(name, folder, tiny_checkpoint, method, **two), "manner": manner}
        for name, (method, two, _, manner) in EQUAL.items()
    ]
    noisy = made("whole", folder, tiny_checkpoint, "teamlora", dropout=0.2)
    stopped = noisy | {"out": str(folder / "stopped")}
    jobs += [
        {"options": noisy},
        {"options": noisy | {"out": str(folder / "trainer")}, "manner": "trainer"},
        {"options": stopped, "stop": 4, "only": 1},
        {"options": stopped, "stop": 16},
        {"options": stopped},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(Path(__file__).with_name("train_jobs.py")), str(folder / "jobs.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two adapters' numbers and of their curves."""
    numbers = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert numbers[0].keys() == numbers[1].keys()
    gaps = [float((numbers[0][name] - numbers[1][name]).abs().max()) for name in numbers[0]]
    for a, b in zip(*(read_curve(folder / "loss.csv") for folder in (one, other)), strict=True):
        assert (a.step, a.tokens, a.target_tokens) == (b.step, b.tokens, b.target_tokens)
        gaps += [abs(a.loss - b.loss), abs(a.balance_loss - b.balance_loss), abs(a.lr - b.lr)]
    return max(gaps)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_as_one_does(
    name: str, trained: tuple[Path, str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    method, _, changes, manner = EQUAL[name]
    monkeypatch.setenv(MANNER, manner)
    one = made("one", tmp_path, tiny_checkpoint, method, **changes)
    train(TrainOptions(**one | {"out": tmp_path / "one"}))
    assert furthest(trained[0] / name, tmp_path / "one") < CLOSE


@pytest.mark.slow
def test_two_processes_make_the_trainers_steps_with_its_dropout(trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert "steps: 2 processes, one device each, padded rows" in said
    assert "steps: transformers' Trainer (as asked)" in said
    assert furthest(folder / "whole", folder / "trainer") < CLOSE


@pytest.mark.slow
def test_asked_to_stop_and_killed_two_processes_go_on_bit_for_bit(trained: tuple[Path, str]) -> None:
    """One of the two is asked, and both stop; then both are killed behind a checkpoint."""
    folder, said = trained
    assert "stopped: stopped at step 4 of 20; the same command goes on there" in said
    assert "resuming at step 4/20" in said and "resuming at step 8/20" in said
    assert furthest(folder / "stopped", folder / "whole") == 0
    assert not (folder / "stopped" / "checkpoints").exists()


@pytest.mark.parametrize("pack_width", [None, 16])
def test_what_a_step_learns_is_known_from_its_examples(pack_width: int | None) -> None:
    """Also of an example without a source, whose first token nothing predicts, of gaps, and of no answer."""
    layout = Layout(0, width=pack_width)
    for source, gaps in ((0, ()), (1, ()), (3, ((5, 7),)), (9, ())):
        example = {"ids": list(range(1, 10)), "source_length": source, "gaps": gaps}
        assert count_learnt(example) == count_targets(layout.collate([example])), (source, gaps)


def test_examples_of_several_processes_are_packed_as_those_of_one(
    options: Callable[..., TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a training that has begun by length, as all of several processes once did."""
    asked, cuda = options("lora"), torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert needs_trainer(asked) is None
    orders = {begun: batch_order(asked, cuda, begun) for begun in (None, "even", "random", "None", "similar")}
    assert orders == {
        None: "even",
        "even": "even",
        "random": "random",
        "None": "similar",
        "similar": "similar",
    }


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_what_shares_out_a_model_is_left_to_the_trainer(
    way: str, options: Callable[..., TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    assert needs_trainer(options("lora")) == f"accelerate's {way.replace('_', ' ')}"


def test_one_process_speaks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone, cpu, value = Ranks.here(), torch.device("cpu"), torch.arange(3.0)
    alone.join(cpu)
    assert not torch.distributed.is_initialized()
    assert alone.any(True, cpu) and not alone.any(False, cpu)
    assert alone.summed(value) is value and alone.of_all("mine") == ["mine"]


def test_a_folder_in_which_another_process_begins_is_no_foreign_one(tmp_path: Path) -> None:
    """Processes of a sweep look at all folders, while others have made theirs."""
    (tmp_path / ".lock").touch()
    (tmp_path / f".{record.FILE}.tmp").touch()
    assert not record.check_folder(tmp_path, {})
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is no training of ours"):
        record.check_folder(tmp_path, {})
