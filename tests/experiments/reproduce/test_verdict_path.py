"""The whole path to a verdict on a tiny model: registration, two stages, verdicts and the forest plot."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.stages import staged
from cme_bench.experiments.reproduce.state import State
from cme_bench.experiments.reproduce.verdicts import VERDICTS

pytestmark = pytest.mark.slow
PROTOCOL = """\
  verdict:
    only: [lora, moelora-32, teamlora-32]
    training: {batch_size: 4, spare: cme2}
    steps: 6
    grid_steps: 2
    learning_rates: [0.1]
    tasks: cme_emotion,cme_mmlu_ll,cme_commonsense_qa_ll
    side_tasks: cme_mmlu_ll,cme_commonsense_qa_ll
    limit: 12
    together: 4
    routers: []
    carry_scores: true
    protocol:
      headline: [teamlora-32, moelora-32]
      margin: 0.5
      mde: 0.5
      first_seeds: 2
      cap: 3
      correction: bonferroni
      pairing: seeds
"""


def git(folder: Path, *command: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def test_from_registration_to_verdicts(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + PROTOCOL)
    git(tmp_path, "init", "-q")
    asked = ["reproduce", str(recipe_file), "--scale", "verdict", "--out", str(tmp_path / "out")]
    registered = CliRunner().invoke(app, [*asked, "--register"])
    assert registered.exit_code == 0, registered.output
    git(tmp_path, "add", "registrations")
    git(tmp_path, "commit", "-q", "-m", "Register")

    recipe = read_recipe(recipe_file, "verdict")
    out, said = tmp_path / "out", list[str]()
    reproduce(recipe, CallOptions(out, offline=True, published=tmp_path / "published"), said.append)
    assert said[0].startswith("Pre-registered: sha256 ")
    begun = [line for line in said if "begins" in line]
    decisions = [number for number, line in enumerate(said) if line.startswith("second stage: 3 seeds")]
    assert len(decisions) == 2, "of the headline, and of other rows"
    first, second = (said[:number] for number in decisions)
    written = next(number for number, line in enumerate(said) if line.startswith("headline/tables"))
    assert decisions[0] < written < decisions[1]
    assert not any("seed2" in line for line in first), "the second stage comes after its decision"
    assert not any("-lora-" in line for line in said[:written]), "other rows come after the headline"
    assert not any("evaluate-lora-seed2" in line for line in second)
    assert sum("seed2" in line for line in begun) == 6
    stage = json.loads((out / "stage.json").read_text())
    assert (stage["headline"], stage["others"], stage["first_seeds"], stage["capped"]) == (3, 3, 2, True)
    assert stage["wanted"].keys() == {"headline, generated", "headline, likelihood", "others"}
    assert "value" not in json.dumps(stage), "variances alone"

    claims = json.loads((out / "claims.json").read_text())
    assert claims["registration"]["pre_registered"]
    assert {claim["verdict"] for claim in claims["claims"]} <= set(VERDICTS)
    scored = [claim for claim in claims["claims"] if claim["family"] == "primary"]
    assert all("3 pairs of seeds" in claim["ours"] for claim in scored)
    early = json.loads((out / "headline" / "claims.json").read_text())["claims"]
    assert [c for c in early if c["family"] == "primary"] == scored, "nothing later changes the headline"
    other = [c["claim"] for c in claims["claims"] if c["family"] == "secondary"]
    assert other == ["4 experts score higher than 1 (likelihood)"]
    table = (out / "tables" / "table1.md").read_text()
    generated, likelihood = table.split("likelihood", 1)
    assert "LoRA " not in generated.replace("MoELoRA", "") and "LoRA " in likelihood
    sha256 = claims["registration"]["sha256"][:16]
    for name in ("claims.md", "README.md", "tables/table1.md", "tables/table1.tex"):
        assert sha256 in (out / name).read_text(), name
    for name in ("table1.csv", "trainings.csv"):
        with (out / "tables" / name).open() as file:
            assert all(sha256 in row["registration"] for row in csv.DictReader(file)), name
    for folder in (out, tmp_path / "published"):
        assert (folder / "figures" / "forest.png").stat().st_size > 10_000

    # carried as scores alone, and gone on with elsewhere: nothing is done twice
    State(tmp_path / "parts").pack(staged(recipe, Folder(out)), Folder(out))
    there = Folder(tmp_path / "there")
    there.path.mkdir()
    State(tmp_path / "parts").unpack(there)
    assert not list(there.path.rglob("*.jsonl"))
    said.clear()
    reproduce(recipe, CallOptions(there.path, offline=True), said.append)
    assert not [line for line in said if "begins" in line]
    for name in ("claims.json", "tables/table1.csv", "figures/forest.csv"):
        assert (there.path / name).read_bytes() == (out / name).read_bytes(), name
