"""The paper's claims about scores: which rows they compare, known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from cme_bench.experiments.reproduce.protocol import Protocol
from cme_bench.experiments.reproduce.recipe import ABLATION, Recipe
from cme_bench.experiments.reproduce.registered_rows import suite

PRIMARY, SECONDARY = "primary", "secondary"
EIGHT = 8
"""The number of experts at which the paper's average drops."""


@dataclass(frozen=True, slots=True)
class ScoreClaim:
    """Rows ``b`` and ``a``, and whether b scores ``higher`` than a or the ``same``. words: the claim as a
    sentence, where ``{b}`` and ``{a}`` stand for the rows' titles; paper: what the paper reports, in words;
    reported: its difference in points, if it gives one."""

    b: str
    a: str
    kind: Literal["higher", "same"]
    words: str
    paper: str
    reported: float | None = None


def score_claims(recipe: Recipe, paper: Mapping[str, Any]) -> list[ScoreClaim]:
    """Return the claims that the recipe's rows can check, in the order of the page."""
    return [
        *_averages(recipe, paper),
        *_ablation(recipe, paper),
        *_experts(recipe, paper),
        *_busiest(recipe, paper),
    ]


def _averages(recipe: Recipe, paper: Mapping[str, Any]) -> Iterator[ScoreClaim]:
    """Yield a claim for each pair of rows; of images the paper reports two averages."""
    on_texts = recipe.claims == "text"
    averages = paper["averages"] if on_texts else paper[recipe.claims]["averages"]
    for pair in paper["pairs"]:
        b, a = pair["b"], pair["a"]
        if {a, b} <= recipe.rows.keys():
            words = "{b} scores as {a}" if pair["kind"] == "same" else "{b} scores higher than {a}"
            says, reported = "on texts alone", None
            if {a, b} <= averages.keys():
                says = f"{averages[b]:.2f} against {averages[a]:.2f}"
                reported = averages[b] - averages[a]
            yield ScoreClaim(b, a, pair["kind"], words, says, reported)


def _ablation(recipe: Recipe, paper: Mapping[str, Any]) -> Iterator[ScoreClaim]:
    """Yield a claim for each step of neither < collaboration < competition < both."""
    if recipe.claims != "text":
        return
    averages = paper["ablation"]
    for first, second in pairwise(key for key in ABLATION if key in recipe.ablation):
        a, b = recipe.ablation[first], recipe.ablation[second]
        words = f"Ablation: {second} ({{b}}) scores higher than {first} ({{a}})"
        if a == b:
            words = f"Ablation: {second} scores higher than {first}"
        says = f"{averages[second]:.2f} against {averages[first]:.2f}"
        yield ScoreClaim(b, a, "higher", words, says, averages[second] - averages[first])


def _experts(recipe: Recipe, paper: Mapping[str, Any]) -> Iterator[ScoreClaim]:
    for few, many in pairwise(sorted(recipe.experts)):
        more, less = (few, many) if many == EIGHT else (many, few)
        words = f"{more} experts score higher than {less}"
        yield ScoreClaim(recipe.experts[more], recipe.experts[less], "higher", words, str(paper["experts"]))


def _busiest(recipe: Recipe, paper: Mapping[str, Any]) -> Iterator[ScoreClaim]:
    """Yield a claim for each row of which one keeps the busiest experts alone."""
    kept = paper["busiest_expert_keeps"]
    for row in recipe.rows.values():
        if row.busiest_of:
            says = f"the best expert alone keeps {100 * kept:.1f} % of the score"
            average = paper["averages"].get(row.busiest_of)
            lost = None if average is None else (1 - kept) * average
            yield ScoreClaim(row.busiest_of, row.name, "higher", "{b} scores higher than {a}", says, lost)


def family(claim: ScoreClaim, protocol: Protocol) -> str:
    """Return whether a claim is of the primary outcome."""
    return PRIMARY if {claim.b, claim.a} == set(protocol.headline or ()) else SECONDARY


def family_sizes(claims: Sequence[ScoreClaim], protocol: Protocol, forms: int) -> dict[str, int]:
    """Return the number of tests of each family, in which a difference of two rows counts once, however many
    claims rest on it. The primary family holds every form; the secondary claims of one form are a family."""
    pairs = {family(claim, protocol): set[tuple[str, ...]]() for claim in claims}
    for claim in claims:
        if claim.a != claim.b:
            pairs[family(claim, protocol)].add(tuple(sorted((claim.a, claim.b))))
    return {name: len(own) * (forms if name == PRIMARY else 1) for name, own in pairs.items()}


def asked_forms(recipe: Recipe) -> int:
    """Return in how many forms the recipe asks CME's tasks: generated, likelihood or both."""
    return len({spec.generated for spec in suite().select(recipe.tasks) if spec.in_cme})
