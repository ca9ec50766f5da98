"""The paper's claims, one by one: what it says, what was measured here, and the verdict.

The rules are those of :mod:`~.verdicts`, the same for every scale. Margins, level and correction are the
recipe's: a scale with a protocol registers them, see :mod:`~.protocol`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import yaml

from cme_bench.experiments.reproduce.claim import Drawn, PaperClaim
from cme_bench.experiments.reproduce.contrasts import Contrast, contrast
from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.protocol import Protocol
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registration import Registration
from cme_bench.experiments.reproduce.router_claims import router_claims
from cme_bench.experiments.reproduce.score_claims import (
    ScoreClaim,
    asked_forms,
    family,
    family_sizes,
    score_claims,
)
from cme_bench.experiments.reproduce.speed_claims import speed_claims
from cme_bench.experiments.reproduce.verdicts import FAILS, UNKNOWN, VERDICTS, higher, same
from cme_bench.experiments.reproduce.views import RowRuns, open_rows, seeing_forms
from cme_bench.reports.compare_text import pvalue
from cme_bench.reports.figures.forest import FOREST
from cme_bench.reports.grids import markdown
from cme_bench.stats.seed_planning import seeds_to_decide

MOST_SEEDS = 1000
"""Beyond so many seeds a claim counts as one that seeds cannot decide."""


def paper_numbers() -> dict[str, Any]:
    """Return what the paper reports, as ``data/claims.yaml`` has it."""
    text = resources.files("cme_bench").joinpath("data", "claims.yaml").read_text(encoding="utf-8")
    paper: dict[str, Any] = yaml.safe_load(text)
    return paper


def check_claims(recipe: Recipe, folder: Folder) -> list[PaperClaim]:
    """Check every claim that this recipe has measurements for."""
    paper = paper_numbers()
    rows = {row.name: row for row in open_rows(recipe, folder, recipe.rows, pool=False)}
    return [
        *speed_claims(recipe, folder, paper),
        *_scores(recipe, rows, paper),
        *router_claims(recipe, folder, paper),
    ]


def _scores(recipe: Recipe, rows: Mapping[str, RowRuns], paper: Mapping[str, Any]) -> Iterator[PaperClaim]:
    claims, protocol = score_claims(recipe, paper), recipe.analysis
    sizes = family_sizes(claims, protocol, asked_forms(recipe))
    for claim in claims:
        if claim.a == claim.b:
            ours = "the same function, hence one training: the switch changes no number"
            yield PaperClaim(claim.words, claim.paper, ours, FAILS)
            continue
        a, b = rows[claim.a], rows[claim.b]
        level = protocol.level_of(sizes[family(claim, protocol)])
        for form in seeing_forms([*a.seeds, *b.seeds]):
            found = contrast(a, b, form, level=level, paired=protocol.pairing == "seeds")
            yield judged(claim, found, protocol)


def judged(claim: ScoreClaim, c: Contrast, protocol: Protocol) -> PaperClaim:
    """Return a claim of scores with its verdict in one form. Where nothing varies, nothing is known of the
    error, and nothing can be told."""
    margin = protocol.margin
    verdict = {"higher": higher, "same": same}[claim.kind](c.interval, margin) if c.stderr else UNKNOWN
    words = claim.words.format(a=c.a, b=c.b)
    if claim.kind == "same":
        words += f", within {margin:g} point{'s' * (margin != 1)}"
    return PaperClaim(
        f"{words} ({c.form})",
        claim.paper,
        _words(c),
        verdict,
        c.mde,
        asdict(c),
        Drawn("points", c.value, c.low, c.high, claim.reported),
        family(claim, protocol),
        _decided_by(c, margin) if verdict == UNKNOWN else None,
    )


def _decided_by(c: Contrast, margin: float) -> int | None:
    if c.spread is None or not c.stderr:
        return None
    return seeds_to_decide(c.spread, c.value, margin, level=c.level, cap=MOST_SEEDS) or 0


def _words(c: Contrast) -> str:
    level = "" if c.level == USUAL else f", level {100 * (1 - c.level):.4g} %"
    return f"{c.value:+.2f} points ({c.low:+.2f} to {c.high:+.2f}{level}), p {_p(c.p)}, n = {c.n}; {c.test}"


USUAL = Protocol().level


def _p(p: float) -> str:
    shown = pvalue(p)
    return shown if shown.startswith("<") else f"= {shown}"


# ---- text


def claims_json(
    recipe: Recipe, claims: list[PaperClaim], registration: Registration | None
) -> dict[str, Any]:
    """Return all claims with their numbers."""
    return {
        "recipe": recipe.identity(),
        "seeds": {name: recipe.seeds_of(name) for name in recipe.rows},
        "registration": None if registration is None else registration.plain(),
        "verdicts": _counts(claims),
        "claims": [asdict(c) for c in claims],
    }


def _counts(claims: list[PaperClaim]) -> dict[str, int]:
    return {verdict: sum(c.verdict == verdict for c in claims) for verdict in VERDICTS}


def claims_markdown(recipe: Recipe, claims: list[PaperClaim], *, said: str = "") -> str:
    """Return the page: the forest plot and a table of claim, paper, ours, verdict, the smallest difference
    that would have been found, and the seeds that would decide. ``said``: of the registration."""
    rows = [
        [
            c.claim,
            c.paper,
            c.ours,
            f"**{c.verdict}**",
            "–" if c.mde is None else f"{c.mde:.2f}",
            _seeds(c.decided_by),
        ]
        for c in claims
    ]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(claims).items())
    table = markdown(["claim", "paper", "ours", "verdict", "MDE", "seeds to decide"], rows, left=4)
    first = f"{recipe.name}, scale `{recipe.scale}`: of {len(claims)} claims {counts}."
    picture = f"![Every claim as an interval beside the paper's number](figures/{FOREST}.png)"
    return "\n\n".join([*([said] if said else []), first, picture, table]) + "\n"


def _seeds(decided_by: int | None) -> str:
    if decided_by == 0:
        return f"more than {MOST_SEEDS}, or more items"
    return "–" if decided_by is None else str(decided_by)
