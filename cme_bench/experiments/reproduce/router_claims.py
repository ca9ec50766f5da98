"""The paper's claims about routers, from the load that was measured on one adapter of each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cme_bench.experiments.reproduce.claim import Drawn, PaperClaim
from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.verdicts import FAILS, HOLDS, UNKNOWN
from cme_bench.reports.figures.inputs import ROUTER
from cme_bench.stats.paired import paired_difference


def router_claims(recipe: Recipe, folder: Folder, paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    """Compare entropy over log k and the busiest expert's share, over the adapted layers of one training
    each."""
    if not {"teamlora-32", "moelora-32"} <= set(recipe.routers):
        return
    for by, label in (("domain", "by domain"), ("subject", "over MMLU's subjects")):
        frames = {name: folder.router(name, by) / ROUTER for name in ("moelora-32", "teamlora-32")}
        if not all(file.is_file() for file in frames.values()):
            continue
        moe, team = (by_layer(pd.read_csv(file, keep_default_na=False)) for file in frames.values())
        for column, name, sign in (("entropy", "entropy / log k", 1), ("top1", "busiest expert's share", -1)):
            d = paired_difference(sign * moe[column], sign * team[column])
            verdict = HOLDS if d.low > 0 else FAILS if d.high < 0 else UNKNOWN
            more = "higher" if sign > 0 else "lower"
            low, high = sorted((sign * d.low, sign * d.high))
            ours = (
                f"{team[column].mean():.3f} against {moe[column].mean():.3f}; difference "
                f"{sign * d.value:+.3f} ({low:+.3f} to {high:+.3f}) over {d.n} layers of one training each"
            )
            claim = f"Balanced routers, {label}: TeamLoRA-32's {name} is {more} than MoELoRA-32's"
            yield PaperClaim(
                claim,
                str(paper["balance"]),
                ours,
                verdict,
                numbers={"difference": sign * d.value},
                drawn=Drawn("share", sign * d.value, low, high),
            )


def by_layer(load: pd.DataFrame) -> pd.DataFrame:
    """Return entropy / log k and the busiest expert's share of top-1 tokens of every layer, as means over
    groups."""
    experts = load["expert"].nunique()
    per_group = load.groupby(["task", "group", "layer"]).agg(
        entropy=("entropy", "mean"), top1=("top1", "max")
    )
    means = per_group.groupby("layer").mean().sort_index()
    return means.assign(entropy=means["entropy"] / np.log(experts))
