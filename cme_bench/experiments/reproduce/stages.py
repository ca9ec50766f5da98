"""The two stages of a recipe with a protocol: some seeds of every row, then as many as their spread asks for.

The second stage's numbers come from :class:`~cme_bench.stats.seed_planning.CentredScores` alone, which have
no means: neither the code nor what it writes knows which row scores higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.contrasts import in_points, row_scores
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs, pending
from cme_bench.experiments.reproduce.protocol import Protocol
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.score_claims import (
    PRIMARY,
    asked_forms,
    family_sizes,
    score_claims,
)
from cme_bench.experiments.reproduce.views import RowRuns, forms, open_rows
from cme_bench.stats.seed_planning import CentredScores, Spread, pooled_spread, seeds_for
from cme_bench.util.collection import rarely_collected
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json

STAGE = "stage.json"


@dataclass(frozen=True, slots=True)
class FormSpread:
    """Spreads of the first stage in one form, in points squared: of the headline pair, and of all rows."""

    headline: Spread
    all_rows: Spread


@dataclass(frozen=True, slots=True)
class Stage:
    """The second stage: seeds of the headline's rows and of all others. wanted: what each part of the rule
    asks for, None if more than the cap."""

    headline: int
    others: int
    wanted: Mapping[str, int | None]
    spreads: Mapping[str, FormSpread]

    @property
    def capped(self) -> bool:
        """Whether the cap cut the number of seeds."""
        return None in self.wanted.values()


def staged(recipe: Recipe, folder: Folder) -> Recipe:
    """Return the recipe with the seeds of its second stage, where that is decided already."""
    file = folder.path / STAGE
    if recipe.protocol is None or not file.is_file():
        return recipe
    held = read_json(file)
    numbers = [n for n in (held.get("headline"), held.get("others")) if isinstance(n, int)]
    if len(numbers) < 2 or not all(2 <= n <= recipe.protocol.cap for n in numbers):
        raise UsageError(f"{file}: headline and others must be seeds from 2 to {recipe.protocol.cap}")
    return with_seeds(recipe, *numbers)


def with_seeds(recipe: Recipe, headline: int, others: int) -> Recipe:
    """Return a recipe whose rows have so many seeds."""
    assert recipe.protocol is not None
    pair = recipe.protocol.headline or ()
    return replace(recipe, row_seeds={name: headline if name in pair else others for name in recipe.rows})


def second_stage(recipe: Recipe, folder: Folder) -> Stage | None:
    """Decide the second stage once every job of the first that shares the machine is done, and write it.

    None where there is nothing to decide: no protocol, decided already, or the first stage is not done.
    """
    file = folder.path / STAGE
    waiting = any(not job.alone for job in pending(all_jobs(recipe), folder))
    if recipe.protocol is None or file.is_file() or waiting:
        return None
    rows = open_rows(recipe, folder, recipe.rows, pool=False)
    with rarely_collected():  # a record for every item of every run
        stage = decide(recipe, spreads_of(rows, recipe.protocol))
    write_json(file, asdict(stage) | {"first_seeds": recipe.protocol.first_seeds, "capped": stage.capped})
    return stage


def spreads_of(rows: Sequence[RowRuns], protocol: Protocol) -> dict[str, FormSpread]:
    """Return the spreads of each form, from scores without their means."""
    found = {}
    for form in forms([view for row in rows for view in row.seeds]):
        scores, weights = row_scores(rows, form)
        centred = {row.name: CentredScores(own) for row, own in zip(rows, scores, strict=True)}
        pair = [centred[name] for name in protocol.headline or ()]
        every = pooled_spread(list(centred.values()), weights)
        own = pooled_spread(pair, weights)
        headline = Spread(every.between, every.residual, own.interaction)
        found[form] = FormSpread(in_points(headline), in_points(every))
    return found


def decide(recipe: Recipe, spreads: Mapping[str, FormSpread]) -> Stage:
    """Return the numbers of seeds that the protocol's rule asks for, from variances alone: of the headline
    pair at the corrected level of its claims and its own difference, of other rows at the level of one
    claim."""
    protocol = recipe.analysis
    sizes = family_sizes(score_claims(recipe, paper_numbers()), protocol, asked_forms(recipe))

    def wanted(spread: Spread, mde: float, level: float) -> int | None:
        limits: dict[str, Any] = {"first": protocol.first_seeds, "cap": protocol.cap}
        return seeds_for(spread, mde, level=level, power=protocol.power, **limits)

    corrected, mde = protocol.level_of(sizes.get(PRIMARY, 1)), protocol.headline_mde or protocol.mde
    asked = {f"headline, {form}": wanted(own.headline, mde, corrected) for form, own in spreads.items()}
    if protocol.others_form in spreads:
        asked["others"] = wanted(spreads[protocol.others_form].all_rows, protocol.mde, protocol.level)
    others = asked.get("others", protocol.first_seeds)
    pair = [protocol.cap if n is None else n for key, n in asked.items() if key != "others"]
    most = protocol.cap if others is None else others
    return Stage(max([most, *pair]), most, asked, spreads)


def stage_text(stage: Stage) -> str:
    """Return the decision in one line."""
    asked = "; ".join(f"{key}: {'more than the cap' if n is None else n}" for key, n in stage.wanted.items())
    return (
        f"second stage: {stage.headline} seeds of the headline pair, {stage.others} of other rows ({asked})"
    )
