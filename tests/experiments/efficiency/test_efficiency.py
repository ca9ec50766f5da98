"""The command on tiny shapes: every file, real engines, and the base model as it was."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.experiments.efficiency.measure import measure
from cme_bench.experiments.efficiency.options import EfficiencyOptions
from cme_bench.util.errors import UsageError

SMALL = EfficiencyOptions(
    model="tiny",
    methods=("lora32", "moelora32", "moelora32_fused", "teamlora32"),
    rounds=2,
    steps=1,
    warmup=1,
    batch=1,
    seq=16,
    layers=1,
    requests=2,
    prompt=8,
    new=3,
)


@pytest.mark.slow
def test_the_command_writes_json_csv_and_figures(tmp_path: Path) -> None:
    out = tmp_path / "speed"
    arguments = ["efficiency", "tiny", "-o", str(out), "--parts", "train,hf"]
    arguments += ["--methods", ",".join(SMALL.methods)]
    for name in ("rounds", "steps", "warmup", "batch", "seq", "layers", "requests", "prompt", "new"):
        arguments += [f"--{name}", str(getattr(SMALL, name))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "as published: a loop over experts" in done.output
    train, hf = (json.loads((out / f"{name}.json").read_text()) for name in ("train_step", "inference_hf"))
    assert len(train["rounds"]) == 2
    assert set(train["rounds"][0]) == set(SMALL.methods)
    assert {len(times["single"]) for times in hf["rounds"].values()} == {2}
    assert set(hf["rounds"]) == {"base", *SMALL.methods}
    assert train["weights"] == hf["weights"] == "random"
    assert "teamlora32_over_moelora32_time" in train["metrics"]
    assert "teamlora32_over_moelora32_batch" in hf["metrics"]
    table = pd.read_csv(out / "efficiency.csv")
    row = table[(table["method"] == "moelora32") & (table["metric"] == "peak_gib")]
    assert "loop" in row["form"].item()
    assert row["parameters"].item() > 0
    latency = pd.read_csv(out / "figure4a_latency.csv")
    assert set(latency["kind"]) == {
        "training step",
        "single inference",
        "prefill inference",
        "batch inference",
    }
    lora = latency[latency["name"] == "lora32"]
    assert (lora["relative"] == 1).all()
    assert set(pd.read_csv(out / "figure1_tradeoff.csv")["name"]) == set(SMALL.methods)


def test_a_model_is_measured_by_its_shapes(tiny_checkpoint: Path) -> None:
    options = replace(SMALL, model=str(tiny_checkpoint), layers=None, methods=("lora32",), parts=("train",))
    assert measure(options, lambda _: None)["setup"]["layers"] == 2


def test_an_unknown_model_is_one_line() -> None:
    with pytest.raises(UsageError, match="no-such-model"):
        measure(replace(SMALL, model="./no-such-model", parts=("hf",)), lambda _: None)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_engines_are_asked_in_turn() -> None:
    options = replace(SMALL, methods=("moelora32", "teamlora32"), parts=("vllm",), layers=None)
    said: list[str] = []
    found = measure(options, said.append)
    assert set(found["rounds"]) == {"base", "teamlora32"}
    assert found["paired"]
    assert any("no form of moelora32 (as published" in line for line in said)
    assert all(len(times[name]) == 2 for times in found["rounds"].values() for name in times)
    assert found["metrics"]["teamlora32_over_base_batch"] > 0
