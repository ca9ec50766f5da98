"""Figures of a router from frames alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cme_bench.reports.figures.router import interaction_maps, load_bars, write_router_figures

TITLE = "llama + team (teamlora, 4 experts of rank 32, 01234567), n = 40 items of 2 tasks"
MODULES = ("gate_proj", "down_proj")


def load(groups: dict[str, str], experts: int = 4, blocks: int = 3) -> pd.DataFrame:
    """A random load; ``groups`` maps a group ("" for none) to its domain."""
    random = np.random.default_rng(0)
    rows = []
    for group, domain in groups.items():
        for block in range(blocks):
            for module in MODULES:
                shares = random.dirichlet(np.ones(experts))
                rows += [
                    ("t", domain, group, f"layers.{block}.{module}", block, module, 3, 90, e, s, s, s, 0.7)
                    for e, s in enumerate(shares)
                ]
    columns = "task domain group layer block module items tokens expert load omega top1 entropy".split()
    return pd.DataFrame(rows, columns=columns)


def interaction(experts: int = 4) -> pd.DataFrame:
    rows = [
        (f"layers.0.{module}", 0, module, i, j, float(i == j) - 0.1 * (i < j))
        for module in MODULES
        for i in range(experts)
        for j in range(experts)
    ]
    return pd.DataFrame(rows, columns=["layer", "block", "module", "row", "column", "value"])


def test_files_are_written(tmp_path: Path) -> None:
    files = write_router_figures(load({"": "nli"}), interaction(), TITLE, tmp_path)
    assert [f.stem for f in files] == [f"router_{n}" for n in ("load", "layers", "entropy", "interaction")]
    assert all(f.read_bytes().startswith(b"\x89PNG") and f.stat().st_size > 5000 for f in files)


def test_without_an_interaction_matrix(tmp_path: Path) -> None:
    write_router_figures(load({"": "nli"}, experts=9), interaction(0), TITLE, tmp_path)
    assert not (tmp_path / "router_interaction.png").exists()


def test_bars_add_up_and_stand_in_order() -> None:
    figure = load_bars(load({"z": "knowledge", "a": "knowledge"}), TITLE)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z", "a"]
    widths = np.array([[bar.get_width() for bar in expert] for expert in axes.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 1)
    assert TITLE in figure.get_suptitle()
    domains = load_bars(load({"": "nli"}), TITLE)
    assert [label.get_text() for label in domains.axes[0].get_yticklabels()] == ["nli"]


def test_interaction_cells_carry_their_numbers() -> None:
    figure = interaction_maps(interaction(2), TITLE)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "-0.10", "0.00", "1.00"]
    image = figure.axes[0].get_images()[0]
    assert image.get_clim() == pytest.approx((-1, 1))
