"""A base that lacks a weight: every command that would answer with it refuses, before weights are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cme_bench.harness.lm_eval_model import CmeHF
from cme_bench.util.errors import UsageError
from tests.support.command import called

WRONG = "model: lm_head.weight is missing from the weights (1 of 21 are)"
COMMANDS = [
    "run MODEL --data mini --out OUT",
    "run MODEL --engine vllm --data mini --out OUT",
    "run MODEL --engine ray --data mini --out OUT",
    "train MODEL --method lora --data mini --out OUT",
    "adapters export-vllm ADAPTER --base MODEL --out OUT",
    "parity MODEL --data mini",
    "efficiency MODEL --out OUT",
    "router ADAPTER --model MODEL --data mini --out OUT",
]


@pytest.fixture(scope="module")
def headless(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def numberless(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:4]))
def test_every_command_refuses_it(
    command: str,
    headless: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"MODEL": str(headless), "ADAPTER": str(adapter), "OUT": str(tmp_path / "out")}
    code, shown = called(monkeypatch, capsys, *(names.get(word, word) for word in command.split()))[::2]
    assert code == 2, shown
    assert shown.splitlines()[-1].endswith(WRONG)
    assert not list(tmp_path.glob("out/*")), "nothing was written"


@pytest.mark.parametrize("command", [COMMANDS[place] for place in (0, 3, 4)], ids=lambda c: c.split()[0])
def test_weights_that_are_no_numbers_are_bad_input(
    command: str,
    numberless: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"MODEL": str(numberless), "ADAPTER": str(adapter), "OUT": str(tmp_path / "out")}
    few = "--max-steps 1 --datasets rte" if "train" in command else "--tasks cme_rte_ll" * ("run" in command)
    words = (names.get(word, word) for word in f"{command} {few}".split())
    code, shown = called(monkeypatch, capsys, *words)[::2]
    assert code == 2, shown
    assert shown.splitlines()[-1].endswith("model: model.norm.weight holds NaN or infinite values")
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_the_entry_of_lm_eval_refuses_it(headless: Path) -> None:
    with pytest.raises(UsageError, match=r"lm_head.weight is missing from the weights"):
        CmeHF(str(headless), dtype="float32", device="cpu")
