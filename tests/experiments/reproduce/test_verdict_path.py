"""The whole path to a verdict on a tiny model: registration, two stages, verdicts and the forest plot."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.verdicts import VERDICTS

pytestmark = [pytest.mark.slow, pytest.mark.long]
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


OFTEN = """
import sys
from cme_bench.cli import app
from cme_bench.experiments.reproduce import saver
saver.SECONDS = 0.2
app(sys.argv[1:])
"""
"""The command line, saving its state often enough for a rehearsal."""
LEASES = 4


def resumed(asked: Sequence[str], folder: Path) -> int:
    """Run it on one bare machine after the other, each killed as soon as it has stored something, the last
    one to its end; return how many there were."""
    for lease in range(1, LEASES + 1):
        state = (
            shutil.copytree(folder / f"state{lease - 1}", folder / f"state{lease}")
            if lease > 1
            else (folder / "state1")
        )
        out = str(folder / f"lease{lease}")
        command = [sys.executable, "-c", OFTEN, *asked[:-1], out, "--state", str(state), "--offline"]
        held = contents(state)
        with (folder / f"lease{lease}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            while process.poll() is None and (lease == LEASES or contents(state).keys() == held.keys()):
                time.sleep(0.1)
            process.kill()
            code = process.wait()
        assert code in (0, -signal.SIGKILL), (folder / f"lease{lease}.log").read_text()
        found = contents(state)
        assert {name: found[name] for name in held if name != "state-head.tar.xz"} == {
            name: content for name, content in held.items() if name != "state-head.tar.xz"
        }, "what came from elsewhere is not written again"
        if code == 0:
            return lease
    raise AssertionError("it did not end")


def contents(state: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in state.glob("state-*.tar.xz")}


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

    leases = resumed(asked, tmp_path)
    assert leases > 2, "it was killed in the midst"
    same_tables(tmp_path / f"lease{leases}", out)

    # all of it carried as scores alone: nothing is done twice
    said.clear()
    there, state = tmp_path / "there", tmp_path / f"state{leases}"
    reproduce(recipe, CallOptions(there, state=state, offline=True), said.append)
    assert not [line for line in said if "begins" in line]
    assert not list(there.rglob("*.jsonl"))
    same_tables(there, out)


def same_tables(here: Path, there: Path) -> None:
    names = ["stage.json", "registration.json", "claims.json", "claims.md", "figures/forest.csv"]
    for name in [*names, "tables/table1.csv", "tables/table1.md", "tables/experts.csv"]:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
