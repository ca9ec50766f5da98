"""A base that lacks a weight: every command that would answer with it refuses, before weights are loaded."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cme_bench.cli import main
from cme_bench.harness.lm_eval_model import CmeHF
from cme_bench.util.errors import UsageError

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
    monkeypatch.setattr(sys, "argv", ["cme-bench", *(names.get(word, word) for word in command.split())])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().err
    assert stop.value.code == 2, shown
    assert shown.splitlines()[-1].endswith(WRONG)
    assert not list(tmp_path.glob("out/*")), "nothing was written"


def test_the_entry_of_lm_eval_refuses_it(headless: Path) -> None:
    with pytest.raises(UsageError, match=r"lm_head.weight is missing from the weights"):
        CmeHF(str(headless), dtype="float32", device="cpu")
