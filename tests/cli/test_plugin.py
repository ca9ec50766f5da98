"""A method of a user by way of the command line: trained, described, evaluated and tabled, with --plugin."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cme_bench.models.checkpoint import hash_model
from cme_bench.runs.options import ModelOptions
from cme_bench.runs.ray_worker import WorkerSource
from cme_bench.util.provenance import versions

EXAMPLE = Path(__file__).parents[2] / "examples" / "input_gated_lora.py"
ALPHA, RANK, STEEPNESS = 8.0, 4, 2.0


def call(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cme_bench", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_hand(base: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Add the method's formula to the linears of a plain model, from the saved tensors alone."""

    def hook(name: str):  # type: ignore[no-untyped-def]
        a, b, g = (tensors[f"base_model.model.{name}.gatedlora_{part}"] for part in ("down", "up", "gate"))

        def add(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            (x,) = inputs
            gate = 1 / (1 + torch.exp(-STEEPNESS * (x * g).sum(-1, keepdim=True)))
            return output + ALPHA / RANK * gate * ((x @ a.T) @ b.T)

        return add

    names = {key.removeprefix("base_model.model.").rpartition(".")[0] for key in tensors}
    for name, module in base.named_modules():
        if name in names:
            module.register_forward_hook(hook(name))


@pytest.mark.slow
def test_a_method_in_one_file_trains_evaluates_and_stands_in_tables(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plugin = ("--plugin", EXAMPLE)
    adapter, run = tmp_path / "gated", tmp_path / "run"
    call(
        *("train", tiny_checkpoint, *plugin, "--method", "gatedlora", "--out", adapter, "--data", "mini"),
        *("--datasets", "sst2", "--rank", RANK, "--alpha", ALPHA, "--set", f"gate_scale={STEEPNESS}"),
        *("--max-steps", 10, "--learning-rate", "3e-2", "--dtype", "float32", "--offline", "--dropout", 0),
        *("--max-length", 256),
    )
    about = json.loads(call("adapters", "describe", adapter, *plugin, "--json"))
    assert (about["method"], about["rank"], about["settings"]["gate_scale"]) == ("gatedlora", RANK, STEEPNESS)
    call(
        *("run", tiny_checkpoint, *plugin, "--adapter", adapter, "--tasks", "cme_sst2_ll,cme_sst2"),
        *("--data", "mini", "--limit", 3, "--out", run, "--offline", "--dtype", "float32"),
    )
    assert "gatedlora" in call("table", run)
    written = json.loads((run / "run.json").read_text())
    assert written["engine"]["prefixes"] == "shared"
    assert written["adapter"]["code"]["file"] == str(EXAMPLE)

    tensors = load_file(adapter / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    model, tokenizer = (
        kind.from_pretrained(tiny_checkpoint) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    by_hand(model, tensors)
    for line in (run / "samples" / "cme_sst2_ll.jsonl").read_text().splitlines():
        record = json.loads(line)
        prompt = [*written["bos"]["prefix"], *tokenizer(record["prompt"], add_special_tokens=False).input_ids]
        for choice, said in zip(record["choices"], record["response"]["logprobs"], strict=True):
            answer = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            wanted = sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
            assert said == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
def test_a_worker_of_another_process_loads_the_plugin(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ModelOptions(model=str(tiny_checkpoint), engine="hf", dtype="float32", offline=True)
    made = (options, hash_model(tiny_checkpoint), versions(), (str(EXAMPLE),))
    file = tmp_path / "source"
    file.write_bytes(pickle.dumps((WorkerSource, made)))
    code = (
        "import pickle, sys; kind, made = pickle.load(open(sys.argv[1], 'rb')); kind(*made); "
        "from cme_bench.adapters.registry import names; print('gatedlora' in names())"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_a_plugin_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cme_bench", "run", "smollm2", "--plugin", str(tmp_path / "x.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"cme-bench: --plugin {tmp_path / 'x.py'}: no such file\n"
