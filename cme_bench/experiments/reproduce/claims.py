"""The paper's claims, one by one: what it says, what was measured here, and whether that holds.

Rules, the same for every scale. A claim "b scores higher than a" holds if the paired 95 % interval of b - a
lies above 0, does not hold if it lies below 0, and cannot be told otherwise; then the smallest difference
that would have been found says how much that means. "b scores as a" holds if the interval lies within a
margin of :data:`MARGIN` points. A claim of speed holds if every round of the measurement lies below 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import yaml

from cme_bench.experiments.reproduce.contrasts import Contrast, contrast
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.recipe import ABLATION, Recipe
from cme_bench.experiments.reproduce.views import RowRuns, forms, open_rows
from cme_bench.reports.compare_text import pvalue
from cme_bench.reports.figures.inputs import ROUTER
from cme_bench.reports.grids import markdown
from cme_bench.stats.paired import paired_difference
from cme_bench.util.files import read_json

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
MARGIN = 1.0
"""Points within which two averages count as the same."""


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """One claim. ``claim`` and ``ours`` are in words, ``paper`` is the paper's report. ``verdict``: HOLDS,
    FAILS or UNKNOWN. ``mde``: smallest difference found with 80 % power, in points. ``numbers``: everything
    behind it."""

    claim: str
    paper: str
    ours: str
    verdict: str
    mde: float | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


def check_claims(recipe: Recipe, folder: Folder) -> list[PaperClaim]:
    """Check every claim that this recipe has measurements for."""
    text = resources.files("cme_bench").joinpath("data", "claims.yaml").read_text(encoding="utf-8")
    paper: dict[str, Any] = yaml.safe_load(text)
    rows = {row.name: row for row in open_rows(recipe, folder, recipe.rows)}
    return [
        *_speed(recipe, folder, paper),
        *_averages(rows, paper),
        *_ablation(recipe, rows, paper),
        *_experts(recipe, rows, paper),
        *_balance(recipe, folder, paper),
    ]


# ---- speed


def _speed(recipe: Recipe, folder: Folder, paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    for job in (job for job in all_jobs(recipe) if job.kind == "efficiency"):
        found = read_json(folder.efficiency(job.row, job.part))
        where = f"{found['model']} shapes, {found['hardware']}"
        for baseline, form in (
            ("moelora32", "as published, a loop"),
            ("moelora32_fused", "fused as ours is"),
        ):
            for k, suffix in ((2, "_k2"), (4, ""), (8, "_k8")):
                pair = _Pair(f"teamlora32{suffix}", f"{baseline}{suffix}", f"({form}), {k} experts", where)
                if job.part == "train":
                    yield from _training_speed(found["rounds"], pair, f"{paper['training_time'][k]:.2f}x")
                elif k == 4:
                    yield from _inference_speed(found, pair, f"{paper['inference_time']:.2f}x")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two methods of a measurement; ``form``: how the other one computes; ``where``: model and machine."""

    mine: str
    other: str
    form: str
    where: str


def _training_speed(rounds: list[dict[str, Any]], pair: _Pair, paper: str) -> Iterator[PaperClaim]:
    if pair.mine in rounds[0] and pair.other in rounds[0]:
        medians = [
            {name: statistics.median(r[name]["seconds"]) for name in (pair.mine, pair.other)} for r in rounds
        ]
        claim = f"A training step of TeamLoRA-32 takes less time than MoELoRA-32's {pair.form}; {pair.where}"
        yield _faster(claim, paper, [step[pair.mine] / step[pair.other] for step in medians])


def _inference_speed(found: Mapping[str, Any], pair: _Pair, paper: str) -> Iterator[PaperClaim]:
    rounds = found["rounds"]
    if pair.mine not in rounds or pair.other not in rounds:
        return
    engine = {"inference_hf": "transformers", "inference_vllm": "vLLM"}[found["bench"]]
    for workload, asked in (("single", "one request"), ("batch", f"{found['setup']['requests']} requests")):
        pairs = zip(rounds[pair.mine][workload], rounds[pair.other][workload], strict=True)
        claim = (
            f"Inference with TeamLoRA-32 takes less time than with MoELoRA-32 {pair.form}; {engine}, "
            f"{asked}; {pair.where}"
        )
        yield _faster(claim, paper, [a / b for a, b in pairs])


def _faster(claim: str, paper: str, ratios: list[float]) -> PaperClaim:
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    verdict = HOLDS if high < 1 else FAILS if low > 1 else UNKNOWN
    ours = f"{middle:.2f}x ({low:.2f} to {high:.2f} in {len(ratios)} rounds)"
    return PaperClaim(claim, paper, ours, verdict, numbers={"ratios": ratios})


# ---- scores


def _averages(rows: Mapping[str, RowRuns], paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    averages = paper["averages"]
    for b, same in (("teamlora-32", False), ("teamlora-16", True)):
        a = "moelora-32"
        if a in rows and b in rows:
            says = f"{averages[b]:.2f} against {averages[a]:.2f}"
            for c in _contrasts(rows[a], rows[b]):
                yield _as_good(c, says) if same else _better(c, says)


def _contrasts(a: RowRuns, b: RowRuns) -> Iterator[Contrast]:
    for form in forms([*a.seeds, *b.seeds]):
        yield contrast(a, b, form)


def _better(c: Contrast, paper: str) -> PaperClaim:
    verdict = HOLDS if c.low > 0 else FAILS if c.high < 0 else UNKNOWN
    return PaperClaim(
        f"{c.b} scores higher than {c.a} ({c.form})", paper, _words(c), verdict, c.mde, asdict(c)
    )


def _as_good(c: Contrast, paper: str) -> PaperClaim:
    verdict = HOLDS if c.within(MARGIN) else FAILS if c.high < 0 or c.low > 0 else UNKNOWN
    claim = f"{c.b} scores as {c.a}, within {MARGIN:g} point ({c.form})"
    return PaperClaim(claim, paper, _words(c), verdict, c.mde, asdict(c))


def _words(c: Contrast) -> str:
    return f"{c.value:+.2f} points ({c.low:+.2f} to {c.high:+.2f}), p {_p(c.p)}, n = {c.n}; {c.test}"


def _p(p: float) -> str:
    shown = pvalue(p)
    return shown if shown.startswith("<") else f"= {shown}"


def _ablation(recipe: Recipe, rows: Mapping[str, RowRuns], paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    """Yield a claim for each step of neither < collaboration < competition < both that is a difference of
    functions."""
    averages = paper["ablation"]
    present = [key for key in ABLATION if key in recipe.ablation]
    for first, second in pairwise(present):
        a, b = recipe.ablation[first], recipe.ablation[second]
        says = f"{averages[second]:.2f} against {averages[first]:.2f}"
        if a == b:
            claim = f"Ablation: {second} scores higher than {first}"
            ours = "the same function, hence one training: the switch changes no number"
            yield PaperClaim(claim, says, ours, FAILS)
            continue
        for c in _contrasts(rows[a], rows[b]):
            better = _better(c, says)
            claim = f"Ablation: {second} ({c.b}) scores higher than {first} ({c.a}) ({c.form})"
            yield PaperClaim(claim, says, better.ours, better.verdict, better.mde, better.numbers)


def _experts(recipe: Recipe, rows: Mapping[str, RowRuns], paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    ordered = sorted(recipe.experts)
    for few, many in pairwise(ordered):
        a, b = (rows[recipe.experts[k]] for k in (few, many))
        if many == 8:
            a, b = b, a
        for c in _contrasts(a, b):
            better = _better(c, str(paper["experts"]))
            more, less = (few, many) if many == 8 else (many, few)
            claim = f"{more} experts score higher than {less} ({c.form})"
            yield PaperClaim(claim, better.paper, better.ours, better.verdict, better.mde, better.numbers)


# ---- routers


def _balance(recipe: Recipe, folder: Folder, paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    """Compare entropy over log k and the busiest expert's share, over the adapted layers of one training
    each."""
    if not {"teamlora-32", "moelora-32"} <= set(recipe.routers):
        return
    for by, label in (("domain", "by domain"), ("subject", "over MMLU's subjects")):
        frames = {name: folder.router(name, by) / ROUTER for name in ("moelora-32", "teamlora-32")}
        if not all(file.is_file() for file in frames.values()):
            continue
        moe, team = (_by_layer(pd.read_csv(file, keep_default_na=False)) for file in frames.values())
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
                claim, str(paper["balance"]), ours, verdict, numbers={"difference": sign * d.value}
            )


def _by_layer(load: pd.DataFrame) -> pd.DataFrame:
    """Return entropy / log k and the busiest expert's share of top-1 tokens of every layer, as means over
    groups."""
    experts = load["expert"].nunique()
    per_group = load.groupby(["task", "group", "layer"]).agg(
        entropy=("entropy", "mean"), top1=("top1", "max")
    )
    means = per_group.groupby("layer").mean().sort_index()
    return means.assign(entropy=means["entropy"] / np.log(experts))


# ---- text


def claims_json(recipe: Recipe, claims: list[PaperClaim]) -> dict[str, Any]:
    """Return all claims with their numbers."""
    counts = {verdict: sum(c.verdict == verdict for c in claims) for verdict in (HOLDS, FAILS, UNKNOWN)}
    return {
        "recipe": recipe.identity(),
        "seeds": recipe.seeds,
        "verdicts": counts,
        "claims": [asdict(c) for c in claims],
    }


def claims_markdown(recipe: Recipe, claims: list[PaperClaim]) -> str:
    """Return a table: claim, paper, ours, verdict, and the smallest difference that would have been found."""
    rows = [
        [c.claim, c.paper, c.ours, f"**{c.verdict}**", "–" if c.mde is None else f"{c.mde:.2f}"]
        for c in claims
    ]
    counts = ", ".join(f"{sum(c.verdict == v for c in claims)} {v}" for v in (HOLDS, FAILS, UNKNOWN))
    table = markdown(["claim", "paper", "ours", "verdict", "MDE"], rows, left=4)
    return f"{recipe.name}, scale `{recipe.scale}`: of {len(claims)} claims {counts}.\n\n{table}\n"
