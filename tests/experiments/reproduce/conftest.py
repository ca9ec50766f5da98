"""A recipe of two rows on the tiny checkpoint, and run folders made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """\
name: tiny
model: MODEL
data: mini
training: {datasets: "sst2,rte", batch_size: 2, max_length: 64, holdout: 1, log_every: 1, dropout: 0.0}
tasks: cme_emotion,cme_rte_ll
rows:
  lora: {title: LoRA, method: lora, rank: 4}
  moelora-32: {title: MoE, method: moelora, rank: 2}
  teamlora-32: {title: Team, method: teamlora, rank: 2}
  team-half: {title: "Team, half", like: teamlora-32, share: 0.5}
main: [lora, moelora-32, teamlora-32]
ablation: {collaboration: moelora-32, competition: teamlora-32, both: teamlora-32}
experts: {1: lora, 4: teamlora-32}
data_scale: {50: team-half, 100: teamlora-32}
routers: [teamlora-32]
scales:
  one:
    steps: 4
    grid_steps: 2
    learning_rates: [1.0e-3, 1.0e-2]
    limit: 3
    efficiency: {tiny: {parts: [train], minutes: 5}}
  few:
    only: [moelora-32, teamlora-32]
    training: {batch_size: 1}
    steps: 2
    grid_steps: 2
    learning_rates: [1.0e-3]
    seeds: 2
"""


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("MODEL", str(tiny_checkpoint)))
    return file


@pytest.fixture
def changed(recipe_file: Path) -> Callable[[str, str], Path]:
    """``changed(old, new)``: the recipe file with one text replaced."""

    def change(old: str, new: str) -> Path:
        text = recipe_file.read_text()
        assert old in text
        recipe_file.write_text(text.replace(old, new))
        return recipe_file

    return change
