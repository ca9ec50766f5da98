"""The paper's claims about time, from the measurements of ``cme-bench efficiency``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cme_bench.experiments.reproduce.claim import Drawn, PaperClaim
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.verdicts import faster
from cme_bench.util.files import read_json


def speed_claims(recipe: Recipe, folder: Folder, paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    """Yield the claims of time that a recipe has measurements of."""
    margin = recipe.analysis.speed_margin
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
                    yield from _training_speed(found["rounds"], pair, paper["training_time"][k], margin)
                elif k == 4:
                    yield from _inference_speed(found, pair, paper["inference_time"], margin)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two methods of a measurement; ``form``: how the other one computes; ``where``: model and machine."""

    mine: str
    other: str
    form: str
    where: str


def _training_speed(
    rounds: list[dict[str, Any]], pair: _Pair, paper: float, margin: float
) -> Iterator[PaperClaim]:
    if pair.mine in rounds[0] and pair.other in rounds[0]:
        medians = [
            {name: statistics.median(r[name]["seconds"]) for name in (pair.mine, pair.other)} for r in rounds
        ]
        claim = f"A training step of TeamLoRA-32 takes less time than MoELoRA-32's {pair.form}; {pair.where}"
        yield speed_claim(claim, paper, [step[pair.mine] / step[pair.other] for step in medians], margin)


def _inference_speed(
    found: Mapping[str, Any], pair: _Pair, paper: float, margin: float
) -> Iterator[PaperClaim]:
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
        yield speed_claim(claim, paper, [a / b for a, b in pairs], margin)


def speed_claim(claim: str, paper: float, ratios: list[float], margin: float) -> PaperClaim:
    """Return a claim of time from the ratio of every round."""
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    ours = f"{middle:.2f}x ({low:.2f} to {high:.2f} in {len(ratios)} rounds)"
    return PaperClaim(
        claim,
        f"{paper:.2f}x",
        ours,
        faster(ratios, margin),
        numbers={"ratios": ratios},
        drawn=Drawn("times", middle, low, high, paper),
    )
