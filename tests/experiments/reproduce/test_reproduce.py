"""A whole recipe on a tiny model: every file, nothing computed twice, killed and gone on with, carried."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import Recipe, read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.state import State
from cme_bench.experiments.reproduce.verdicts import VERDICTS
from cme_bench.runs.store import read_records

pytestmark = [pytest.mark.slow, pytest.mark.long]
OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollm2.yaml"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
FILES = """
README.md claims.md claims.json recipe.json
tables/table1.md tables/table1.tex tables/table1.csv tables/ablation.md tables/experts.md tables/data_scale.md
tables/trainings.csv
figures/figure1_tradeoff.png figures/figure1_tradeoff.csv figures/figure4a_latency.png
figures/figure4b_loss.pdf figures/domains.csv figures/experts/figure3a_experts.png
figures/data_scale/figure3b_data_scale.csv
figures/teamlora-32-subject/figure5b_router.png figures/moelora-32-domain/figure5b_router.csv
runs/base/results.json efficiency/tiny-train.json efficiency/tiny-hf.json
""".split()
MADE = """
adapters/teamlora-32-seed0/adapter_config.json adapters/teamlora-32-seed0/loss.csv
runs/teamlora-32-seed0/summary.csv router/teamlora-32-domain/router_interaction.csv
""".split()
PUBLISHED = ["trainings.json", "runs/base/scores.json", "runs/teamlora-32-seed0/scores.json"]


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    recipe = ["reproduce", str(OURS), "--scale", "smoke", "--offline"]
    return [*recipe, "--model", str(model), "--out", str(out), *more]


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "cme_bench", *arguments(model, out, *more)]


def modified(folder: Path) -> dict[str, int]:
    kept = ("jobs", "adapters", "grid", "runs", "router", "efficiency")
    files = (file for name in kept for file in (folder / name).rglob("*"))
    return {str(f): f.stat().st_mtime_ns for f in files if f.is_file() and not f.name.startswith(".")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[Path, Path]:
    """The smoke scale, killed without warning in the middle and gone on with; where it is published."""
    out, published = (tmp_path_factory.mktemp("reproduce") / name for name in ("out", "published"))
    with subprocess.Popen(command(tiny_checkpoint, out), stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 240
        while len(list((out / "jobs").glob("*.json"))) < 9 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    before = modified(out)
    again = command(tiny_checkpoint, out, "--publish", str(published), "--workers", "2")
    subprocess.run(again, check=True, env=ENVIRONMENT, timeout=600)
    after = modified(out)
    finished_before = [name for name in before if "/jobs/" in name]
    assert len(finished_before) >= 9
    assert all(after[name] == before[name] for name in finished_before), "what was done is not done again"
    return out, published


def test_every_file_of_the_recipe_is_there(finished: tuple[Path, Path]) -> None:
    out, published = finished
    assert [name for name in FILES + MADE if not (out / name).is_file()] == []
    assert [name for name in FILES + PUBLISHED if not (published / name).is_file()] == []
    assert [name for name in MADE if (published / name).exists()] == []
    claims = json.loads((out / "claims.json").read_text())
    assert len(claims["claims"]) > 10
    assert {claim["verdict"] for claim in claims["claims"]} <= set(VERDICTS)
    table = (out / "tables" / "table1.md").read_text()
    assert all(title in table for title in ("LoRA-32", "MoELoRA-32", "TeamLoRA-16", "TeamLoRA-32"))
    assert "‡" in table


def test_nothing_published_is_a_weight_or_a_text_of_an_item(finished: tuple[Path, Path]) -> None:
    out, published = finished
    assert not [f for f in published.rglob("*") if f.suffix in (".safetensors", ".jsonl", ".pt", ".bin")]
    records = read_records(next((out / "runs" / "base" / "samples").glob("*emotion*.jsonl")))
    prompts = [record.doc["text"] for record in records]
    texts = [f.read_text() for f in published.rglob("*") if f.suffix in (".md", ".json", ".csv", ".tex")]
    assert not [prompt for prompt in prompts if any(prompt in text for text in texts)]


def test_published_runs_are_tabled_and_trainings_described(finished: tuple[Path, Path]) -> None:
    out, published = finished
    tables = []
    for folder in (out, published):
        runs = [str(folder / "runs" / name) for name in ("base", "teamlora-32-seed0", "moelora-32-seed0")]
        shown = CliRunner().invoke(app, ["table", *runs])
        assert shown.exit_code == 0, shown.output
        tables.append(shown.output)
    assert tables[0] == tables[1] and "†" in tables[1]
    trainings = json.loads((published / "trainings.json").read_text())
    adapters = {f"{f.parent.parent.name}/{f.parent.name}" for f in out.rglob("cme_training.json")}
    assert set(trainings["trainings"]) == adapters
    training = trainings["trainings"]["adapters/teamlora-32-seed0"]["training"]
    whole = json.loads((out / "adapters" / "teamlora-32-seed0" / "cme_training.json").read_text())
    assert trainings["shared"][training["mixture"]] == whole["mixture"]
    assert trainings["shared"][training["identity"]["data"]] == whole["identity"]["data"]


def test_a_second_call_computes_nothing(finished: tuple[Path, Path], tiny_checkpoint: Path) -> None:
    out, _ = finished
    before = modified(out)
    recipe = read_recipe(OURS, "smoke", model=str(tiny_checkpoint))
    said: list[str] = []
    reproduce(recipe, CallOptions(out, offline=True), said.append)
    assert modified(out) == before
    assert not [line for line in said if "begins" in line]


def test_the_state_travels_in_bounded_parts(
    finished: tuple[Path, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, _ = finished
    recipe = read_recipe(OURS, "smoke", model=str(tiny_checkpoint))
    files = State(tmp_path / "parts", room=400_000).pack(recipe, Folder(out))
    assert len(files) > 2 and all(file.stat().st_size <= 100_000 for file in files)
    there = Folder(tmp_path / "there")
    there.path.mkdir()
    state = State(tmp_path / "parts")
    assert state.unpack(there)
    assert not state.unpack(there), "a folder with results is left alone"
    said: list[str] = []
    reproduce(recipe, CallOptions(there.path, offline=True), said.append)
    assert not [line for line in said if "begins" in line], "everything was carried"
    router = "figures/teamlora-32-subject/figure5b_router.csv"
    for name in ("claims.json", "tables/table1.csv", "tables/ablation.csv", router):
        assert (there.path / name).read_bytes() == (out / name).read_bytes()


def test_rows_that_are_half_done_do_not_travel(
    finished: tuple[Path, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, _ = finished
    recipe: Recipe = read_recipe(OURS, "smoke", model=str(tiny_checkpoint))
    folder = Folder(out)
    marker = folder.marker("router-teamlora-32")
    content = marker.read_bytes()
    marker.unlink()
    try:
        State(tmp_path / "parts").pack(recipe, folder)
    finally:
        marker.write_bytes(content)
    there = Folder(tmp_path / "there")
    there.path.mkdir()
    State(tmp_path / "parts").unpack(there)
    missing = {job.name for job in all_jobs(recipe) if not there.is_done(job.name)}
    assert missing == {"train-teamlora-32-seed0", "evaluate-teamlora-32-seed0", "router-teamlora-32"}


def test_the_plan_says_what_it_costs_and_time_that_is_up_is_no_error(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    planned = CliRunner().invoke(app, arguments(tiny_checkpoint, out, "--plan"))
    assert planned.exit_code == 0, planned.output
    assert "0 of 29 jobs are done" in planned.stdout
    assert "tokens" in planned.stdout
    rates = orjson.loads((out / "rates.json").read_bytes())
    assert rates["step_seconds"] > 0
    stopped = subprocess.run(
        command(tiny_checkpoint, out, "--minutes", "0.5", "--state", str(tmp_path / "parts")),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert stopped.returncode == 3, stopped.stderr
    assert "of 29 jobs are done; the same command goes on" in stopped.stderr
    assert (tmp_path / "parts" / "state-head.tar.xz").is_file()


def test_several_seeds_are_one_row_and_seeds_are_random(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, "few")
    out = tmp_path / "out"
    reproduce(recipe, CallOptions(out, offline=True), lambda _: None)
    table = (out / "tables" / "table1.md").read_text()
    assert len(re.findall(r"\+ Team +\|", table)) == 2, "one row in the table of each form"
    assert "Rows of several seeds: mean and SE over seeds and items, both random." in table
    claims = json.loads((out / "claims.json").read_text())["claims"]
    scored = [claim for claim in claims if "Team scores higher than MoE" in claim["claim"]]
    assert [claim["claim"].rpartition(" ")[2] for claim in scored] == ["(generated)", "(likelihood)"]
    assert all("2 and 2 seeds" in claim["ours"] for claim in scored)
    more = read_recipe(recipe_file, "few", seeds=3)
    said: list[str] = []
    reproduce(more, CallOptions(out, offline=True), said.append)
    begun = {line.partition(":")[0] for line in said if "begins" in line}
    kinds = ("train", "evaluate")
    assert begun == {f"{kind}-{row}-seed2" for kind in kinds for row in ("moelora-32", "teamlora-32")}
