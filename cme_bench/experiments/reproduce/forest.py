"""The forest plot of a recipe's claims, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from cme_bench.experiments.reproduce.claim import PaperClaim
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.verdicts import VERDICTS
from cme_bench.reports.figures.forest import FOREST, draw_forest
from cme_bench.reports.figures.write import save_figure


def write_forest(recipe: Recipe, claims: Sequence[PaperClaim], out: Path, *, said: str) -> Iterator[str]:
    """Draw every claim that has an interval; yield a line for the figure. ``said``: of the registration."""
    frame = forest_frame(recipe, claims)
    if len(frame):
        out.mkdir(parents=True, exist_ok=True)
        save_figure(draw_forest(frame, VERDICTS, said), frame, out / FOREST)
        yield f"{FOREST}: png, pdf, csv"


def forest_frame(recipe: Recipe, claims: Sequence[PaperClaim]) -> pd.DataFrame:
    """Return a row for each claim with an interval: claim, family, unit, value, low, high, paper, margin,
    verdict, decided_by."""
    margins = {"points": recipe.analysis.margin, "times": recipe.analysis.speed_margin, "share": None}
    rows = [
        {
            "claim": claim.claim,
            "family": claim.family,
            "unit": claim.drawn.unit,
            "value": claim.drawn.value,
            "low": claim.drawn.low,
            "high": claim.drawn.high,
            "paper": claim.drawn.paper,
            "margin": margins[claim.drawn.unit],
            "verdict": claim.verdict,
            "decided_by": claim.decided_by,
        }
        for claim in claims
        if claim.drawn is not None
    ]
    return pd.DataFrame(rows)
