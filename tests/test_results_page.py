"""The tables of docs/results.md say what the stored results say."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def rows(first_cells: str) -> list[list[str]]:
    """Return the cells of the page's table whose first line begins so, without marks."""
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first_cells))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([re.sub(r"\*\*|</?u>", "", cell).strip() for cell in line.strip("|").split("|")])
    return table


def bench(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def test_the_eight_adapters() -> None:
    with (RESULTS / "smollm2-135m" / "tables" / "table1.csv").open(encoding="utf-8", newline="") as file:
        averages = [r for r in csv.DictReader(file) if (r["column"], r["source"]) == ("average", "ours")]
    stored: dict[str, dict[str, str]] = {}
    for row in averages:
        name = row["model"].removeprefix("smollm2 + ") if row["method"] != "base" else "base"
        score = f"{float(row['value']):.2f} ± {float(row['stderr']):.2f}" + "†" * (row["dagger"] == "1")
        percent = f"{row['params %']} %" if row["params %"] != "0" else "0"
        stored.setdefault(name, {"parameters": percent})[row["form"]] = score
    [head, _, *shown] = rows("| method | MoE")
    assert head[-2:] == ["CME, generated", "CME, likelihood"]
    assert {
        name.split(",")[0]: {"parameters": percent, "generated": generated, "likelihood": likelihood}
        for name, _, _, percent, _, _, generated, likelihood in shown
    } == stored


def test_the_speed_against_lm_eval_on_a_gpu() -> None:
    metrics = bench("vs_lm_eval-nvidia-h200")["metrics"]
    names = "mmlu_5 arc_challenge_25 hellaswag_0 hellaswag_10 winogrande_5 boolq_0 rte_5".split()
    speedups = [*(metrics[f"speedup_{name}shot"] for name in names), metrics["geomean"]]
    assert rows("| MMLU 5-shot | ARC-c 25")[2] == [f"{value:.1f}x" for value in speedups]


def test_the_speed_against_lm_eval_on_a_cpu() -> None:
    metrics = {**bench("vs_lm_eval-cpu-2x-x86_64")["metrics"]}
    metrics |= bench("vs_lm_eval-cpu-2x-x86_64-hellaswag_0shot")["metrics"]
    for task, *_, ratio, _ in rows("| task | items | lm-eval")[2:]:
        name = task.lower().replace("-shot", "shot").replace("-", "_").replace(" ", "_")
        assert ratio == f"{metrics[f'speedup_{name}']:.1f}", task


def test_the_speed_against_lmms_eval_on_a_cpu() -> None:
    metrics = bench("multimodal-cpu-2x-x86_64")["metrics"]
    questions, images, theirs, ours, ratio, cpu = rows("| questions | images | lmms-eval")[2]
    assert (questions, images) == (str(metrics["questions"]), str(metrics["images"]))
    assert (theirs, ours) == (f"{metrics['seconds_lmms_eval']:.1f}", f"{metrics['seconds_ours']:.1f}")
    assert (ratio, cpu) == (f"{metrics['over_lmms_eval']:.1f}x", f"{metrics['over_lmms_eval_cpu']:.1f}x")
    assert metrics["different_answers"] == 0


def test_adapters_on_vllm() -> None:
    metrics = bench("vllm_adapters-nvidia-h100-80gb-hbm3")["metrics"]
    [_, _, _, team, native, _] = rows("| | 256 requests")
    kinds = ("batch", "single", "prefill")
    assert team[1:] == [f"{metrics[f'teamlora_{kind}_ratio']:.3f}" for kind in kinds]
    assert native[1:] == [f"{metrics[f'lora_native_{kind}_ratio']:.3f}" for kind in kinds]


def test_likelihoods_on_vllm() -> None:
    metrics = bench("vllm_scoring-cpu-2x-x86_64")["metrics"]
    kinds = ("single_token", "multi_token", "multi_token_0shot")
    shown = [row[-1] for row in rows("| choices | context + choice")[2:]]
    assert shown == [f"{metrics[f'speedup_{kind}']:.1f}x" for kind in kinds]


@pytest.mark.parametrize(("against", "shown"), [("lora128_time", "0.91x"), ("moelora32_k4_time", "0.59x")])
def test_training_steps(against: str, shown: str) -> None:
    file = RESULTS / "smollm2-135m" / "efficiency" / "llama-2-7b-train-train.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    assert f"{metrics[f'teamlora32_over_{against}']:.2f}x" == shown
    assert shown in {row[1] for row in rows("| TeamLoRA-32 against")}


def test_the_demo() -> None:
    runs = [str(RESULTS / "teamlora-demo" / name) for name in ("base", "teamlora-demo")]
    shown = CliRunner().invoke(app, ["table", *runs, "--brief"])
    table = [line for line in shown.output.splitlines() if line.startswith("|")]
    assert len(table) == 4 and "†" in table[2]
    assert "\n".join(table) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_eight_adapters_in_one_batch() -> None:
    metrics = bench("vllm_adapters_8_slots-nvidia-h200")["metrics"]
    table = {name.split(",")[0]: cells for name, *cells in rows("| eight adapters | 256")[2:]}
    shown = {"eight TeamLoRAs": "teamlora", "eight LoRAs of rank 128": "lora_native"}
    for name, method in shown.items():
        ratios = [metrics[f"{method}_{work}_ratio"] for work in ("batch", "single", "prefill")]
        assert table[name] == [f"{ratio:.3f}" for ratio in ratios]


@pytest.mark.parametrize(("column", "model"), [(1, "smollm2"), (2, "llama-2-7b")])
def test_the_speed_of_likelihoods_on_vllm(column: int, model: str) -> None:
    results = bench(f"vllm_scoring-nvidia-h200-{model}-bfloat16")["results"]
    table = [row[column].rpartition(": ")[2] for row in rows("| choices | SmolLM2, bfloat16")[2:]]
    cases = ("single_token", "multi_token", "multi_token_0shot")
    assert table == [f"{results[case]['speedup']:.1f}x" for case in cases]
