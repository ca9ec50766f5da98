"""Figures from runs, benchmarks and logs: their numbers, their files, and what is said of missing inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cme_bench.reports.figures.inputs import FigureInputs, read_inputs
from cme_bench.reports.figures.write import FIGURES, write_figures
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run

NAMES = [spec.name for spec in FIGURES]


def run_folder(folder: Path, right: int = 5, **adapter: Any) -> Path:
    tasks = {"cme_a": MadeTask([1.0] * right + [0.0] * (10 - right))}
    make_run(folder, tasks, adapter=ADAPTER | {"name": folder.name} | adapter if adapter else None)
    return folder


@pytest.fixture
def everything(tmp_path: Path) -> list[Path]:
    """Inputs of every figure: LoRA, TeamLoRA with 2 and 4 experts, two amounts of data, a log, a benchmark, a
    router."""
    training = tmp_path / "training"
    training.mkdir()
    rows = "".join(f"{i},{100 * i},{10 * i},{3 / i},0.001,0,{i}\n" for i in range(1, 101))
    (training / "loss.csv").write_text("step,tokens,target_tokens,loss,lr,balance_loss,seconds\n" + rows)
    (training / "cme_training.json").write_text('{"method": "teamlora"}')
    router = tmp_path / "router"
    router.mkdir()
    lines = [f"t,nli,,l,0,up_proj,4,40,{e},{0.25 + 0.1 * (-1) ** e},0.5,0.5,0.6" for e in range(2)]
    head = "task,domain,group,layer,block,module,items,tokens,expert,load,omega,top1,entropy\n"
    (router / "router_load.csv").write_text(head + "\n".join(lines) + "\n")
    bench = tmp_path / "train_step-x.json"
    metrics = {"lora32_ms": 100.0, "teamlora32_ms": 110.0, "teamlora32_peak_gib": 3.0}
    bench.write_text(json.dumps({"bench": "train_step", "hardware": "x", "commit": "c", "metrics": metrics}))
    return [
        run_folder(tmp_path / "lora", 4, method="lora", experts=1),
        run_folder(tmp_path / "team2", 5, experts=2),
        run_folder(tmp_path / "team4", 7, experts=4, path=str(training)),
        run_folder(tmp_path / "team4_long", 8, experts=4, tokens_trained=4_000_000),
        training,
        router,
        bench,
    ]


def test_every_figure_is_drawn_with_its_numbers_beside(everything: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lines = list(write_figures(read_inputs(everything), out))
    assert lines == [f"{name}: png, pdf, csv" for name in NAMES]
    for name in NAMES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(out / f"{name}.csv"))
    sources = (out / "SOURCES.md").read_text()
    assert sources.count("model aaaaaaaa, adapter bbbbbbbb, hf float32, tasks") == 4
    assert "train_step-x.json: train_step, x, commit c" in sources
    experts = pd.read_csv(out / "figure3a_experts.csv")
    one_expert_is_lora = [1, 40]
    assert experts[["experts", "score"]].to_numpy().tolist() == [
        one_expert_is_lora,
        [2, 50],
        [4, 70],
        [4, 80],
    ]
    scale = pd.read_csv(out / "figure3b_data_scale.csv")
    assert scale[["tokens_trained", "score"]].to_numpy().tolist() == [[1_000_000, 70], [4_000_000, 80]]
    latency = pd.read_csv(out / "figure4a_latency.csv")
    training = latency[latency["kind"] == "training step"].set_index("name")["relative"]
    assert training.to_dict() == {"lora32": 1.0, "teamlora32": pytest.approx(1.1)}
    assert latency[latency["kind"] == "inference"]["seconds"].tolist() == [0.4] * 4
    assert len(pd.read_csv(out / "figure4b_loss.csv")) == 100, "the run's own training and the folder are one"
    assert pd.read_csv(out / "figure1_tradeoff.csv")["training_seconds"].tolist() == [5400.0] * 4


def test_speed_measured_by_itself_makes_figures_1_and_4a(tmp_path: Path) -> None:
    methods = {name: {"parameters": size} for name, size in (("lora32", 10), ("teamlora32", 40))}
    place = {"model": "m", "hardware": "x", "commit": "c", "file": "f.json", "methods": methods}
    seconds = {name: {"single": 2.0 * k, "batch": 3.0 * k} for k, name in enumerate(methods, 1)}
    benches = [
        {"bench": "train_step", "metrics": {"lora32_ms": 100.0, "teamlora32_ms": 150.0}, **place},
        {"bench": "inference_hf", "seconds": seconds, "metrics": {}, **place},
    ]
    names = ("figure1_tradeoff", "figure4a_latency")
    lines = list(write_figures(FigureInputs(benchmarks=benches), tmp_path, names=names))
    assert lines == [f"{name}: png, pdf, csv" for name in names]
    tradeoff = pd.read_csv(tmp_path / "figure1_tradeoff.csv")
    assert tradeoff[["training_seconds", "inference_seconds"]].to_numpy().tolist() == [
        [0.1, 3.0],
        [0.15, 6.0],
    ]
    latency = pd.read_csv(tmp_path / "figure4a_latency.csv")
    team = latency[latency["name"] == "teamlora32"].set_index("kind")["relative"]
    assert team.to_dict() == pytest.approx(
        {"training step": 1.5, "single inference": 2.0, "batch inference": 2.0}
    )


@pytest.mark.slow
def test_the_same_numbers_give_the_same_files(everything: list[Path], tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        list(write_figures(read_inputs(everything), tmp_path / name))
        files.append({f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())})
    assert files[0] == files[1]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    lines = list(write_figures(read_inputs([run_folder(tmp_path / "base")]), tmp_path))
    assert lines == [
        "figure1_tradeoff: skipped, no run has an adapter with a recorded training time",
        "figure3a_experts: skipped, no two runs of one method differ in the number of experts",
        "figure3b_data_scale: skipped, no two runs of one method differ in the tokens they were trained on",
        "figure4a_latency: skipped, no train_step benchmark, and no runs of LoRA and another adapter",
        "figure4b_loss: skipped, no training folder with a loss.csv is given or named by a run",
        "figure5b_router: skipped, no folder of cme-bench router is given",
        "domains: png, pdf, csv",
    ]
    assert {f.name for f in tmp_path.iterdir()} == {
        "base",
        "domains.png",
        "domains.pdf",
        "domains.csv",
        "SOURCES.md",
    }


def test_unlike_runs_and_strange_folders_are_refused(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one")
    make_run(tmp_path / "two", {"cme_a": MadeTask([1.0] * 10)}, identity={"dtype": "bfloat16"})
    with pytest.raises(UsageError, match="dtypes differ"):
        list(write_figures(read_inputs([one, tmp_path / "two"]), tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither a run folder"):
        read_inputs([tmp_path / "empty"])
