"""The two stages of a recipe with a protocol: some seeds of a row, then as many as their spread asks for.

The headline's rows go through both stages first, so that the primary outcome stands before all other rows
are begun. The second stages' numbers come from :class:`~cme_bench.stats.seed_planning.CentredScores` alone,
which have no means: neither the code nor what it writes knows which row scores higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.contrasts import in_points, row_scores, seed_differences
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs, pending
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.score_claims import (
    PRIMARY,
    SECONDARY,
    asked_forms,
    family,
    family_sizes,
    score_claims,
)
from cme_bench.experiments.reproduce.views import RowRuns, forms, open_rows
from cme_bench.stats.seed_planning import (
    CentredScores,
    Spread,
    paired_spread,
    pooled_spread,
    seeds_for,
)
from cme_bench.util.collection import rarely_collected
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json

STAGE = "stage.json"
HEADLINE, OTHERS = "headline", "others"


@dataclass(frozen=True, slots=True)
class Stage:
    """The second stages: seeds of the headline's rows, and of all others, None while that is not decided.

    wanted: what each part of the rule asks for, None if more than the cap; spreads: what it rests on, in
    points squared. Both by part: "headline" with each form, and "others".
    """

    headline: int
    others: int | None
    wanted: Mapping[str, int | None]
    spreads: Mapping[str, Mapping[str, float]]

    @property
    def capped(self) -> bool:
        """Whether the cap cut the number of seeds."""
        return None in self.wanted.values()


def staged(recipe: Recipe, folder: Folder) -> Recipe:
    """Return the recipe with the seeds that are to be computed now.

    First those of the headline's first stage alone; of its second, once that is decided; with the first of
    all others, once the headline is done; and with the second stage of these.
    """
    stage = decided(recipe, folder)
    if recipe.protocol is None or stage is None:
        return recipe
    if stage.others is not None:
        return with_seeds(recipe, stage.headline, stage.others)
    pair = with_seeds(recipe, stage.headline, 0)
    if headline_done(pair, folder):
        return with_seeds(recipe, stage.headline, recipe.protocol.first_seeds)
    return pair


def undecided(recipe: Recipe, folder: Folder) -> bool:
    """Return whether a second stage is still to be decided."""
    stage = decided(recipe, folder)
    return recipe.protocol is not None and (stage is None or stage.others is None)


def headline_done(recipe: Recipe, folder: Folder) -> bool:
    """Return whether every job of the headline's rows is done, with the seeds that their spread asked for.

    ``recipe``: as :func:`staged` gave it.
    """
    if decided(recipe, folder) is None:
        return False
    return not pending(all_jobs(recipe.of_rows(recipe.headline)), folder)


def with_seeds(recipe: Recipe, headline: int, others: int) -> Recipe:
    """Return a recipe whose rows have so many seeds."""
    pair = recipe.headline
    return replace(recipe, row_seeds={name: headline if name in pair else others for name in recipe.rows})


def decided(recipe: Recipe, folder: Folder) -> Stage | None:
    """Return what was decided so far, None if nothing was. UsageError for a file with impossible seeds."""
    file = folder.path / STAGE
    if recipe.protocol is None or not file.is_file():
        return None
    held = read_json(file)
    headline, others = held.get("headline"), held.get("others")
    numbers = [n for n in (headline, headline if others is None else others) if isinstance(n, int)]
    if len(numbers) < 2 or not all(2 <= n <= recipe.protocol.cap for n in numbers):
        raise UsageError(f"{file}: headline and others must be seeds from 2 to {recipe.protocol.cap}")
    return Stage(numbers[0], others, held.get("wanted", {}), held.get("spreads", {}))


def next_stage(recipe: Recipe, folder: Folder) -> Stage | None:
    """Decide a second stage once every job of the first that shares the machine is done, and write it.

    ``recipe``: as :func:`staged` gave it. None where there is nothing to decide: no protocol, all decided
    already, or the first stage is not done.
    """
    waiting = any(not job.alone for job in pending(all_jobs(recipe), folder))
    if recipe.protocol is None or waiting or not undecided(recipe, folder):
        return None
    before = decided(recipe, folder)
    rows = open_rows(recipe, folder, recipe.headline if before is None else recipe.rows, pool=False)
    with rarely_collected():  # a record for every item of every run
        spreads = spreads_of(rows, _pairs(recipe, rows))
    stage = decide_headline(recipe, spreads) if before is None else decide_others(recipe, spreads, before)
    about = {"first_seeds": recipe.protocol.first_seeds, "capped": stage.capped}
    write_json(folder.path / STAGE, asdict(stage) | about)
    return stage


def _pairs(recipe: Recipe, rows: Sequence[RowRuns]) -> list[tuple[int, int]]:
    """Return the places of the rows that are compared seed by seed: the headline's alone, or those of the
    secondary claims. None where rows are not paired."""
    if recipe.analysis.pairing == "none":
        return []
    place = {row.name: number for number, row in enumerate(rows)}
    asked = PRIMARY if place.keys() == set(recipe.headline) else SECONDARY
    claims = [c for c in score_claims(recipe, paper_numbers()) if family(c, recipe.analysis) == asked]
    return sorted({(place[c.a], place[c.b]) for c in claims if c.a != c.b})


def spreads_of(rows: Sequence[RowRuns], pairs: Sequence[tuple[int, int]] = ()) -> dict[str, Spread]:
    """Return the spread of each form that all rows have, in points squared and from scores without their
    means: that of all rows, or of ``pairs`` of them seed by seed."""
    found = {}
    for form in forms([view for row in rows for view in row.seeds]):
        scores, weights = row_scores(rows, form)
        if pairs:
            differences = [CentredScores(seed_differences(scores[a], scores[b])) for a, b in pairs]
            found[form] = in_points(paired_spread(differences, weights))
        else:
            found[form] = in_points(pooled_spread([CentredScores(own) for own in scores], weights))
    return found


def decide_headline(recipe: Recipe, spreads: Mapping[str, Spread]) -> Stage:
    """Return the seeds of the headline's rows: what shows their difference in every form at the corrected
    level, from variances alone. Where there are no other rows, all is decided then."""
    protocol = recipe.analysis
    sizes = family_sizes(score_claims(recipe, paper_numbers()), protocol, asked_forms(recipe))
    level, mde = protocol.level_of(sizes.get(PRIMARY, 1)), protocol.headline_mde or protocol.mde
    asked = {
        f"{HEADLINE}, {form}": _wanted(recipe, own, mde, level, protocol.cap) for form, own in spreads.items()
    }
    seeds = max(protocol.cap if n is None else n for n in asked.values())
    others = None if recipe.rows.keys() - set(recipe.headline) else protocol.first_seeds
    used = {f"{HEADLINE}, {form}": asdict(own) for form, own in spreads.items()}
    return Stage(seeds, others, asked, used)


def decide_others(recipe: Recipe, spreads: Mapping[str, Spread], before: Stage) -> Stage:
    """Return the seeds of all other rows: what shows a difference in the one form that the protocol names, at
    the level of one claim."""
    protocol = recipe.analysis
    spread, cap = spreads[protocol.others_form], protocol.others_cap or protocol.cap
    asked = _wanted(recipe, spread, protocol.mde, protocol.level, cap)
    return Stage(
        before.headline,
        cap if asked is None else asked,
        {**before.wanted, OTHERS: asked},
        {**before.spreads, OTHERS: asdict(spread)},
    )


def _wanted(recipe: Recipe, spread: Spread, mde: float, level: float, cap: int) -> int | None:
    protocol = recipe.analysis
    return seeds_for(spread, mde, level=level, power=protocol.power, first=protocol.first_seeds, cap=cap)


def stage_text(stage: Stage) -> str:
    """Return the decision in one line."""
    asked = "; ".join(f"{key}: {'more than the cap' if n is None else n}" for key, n in stage.wanted.items())
    others = "" if stage.others is None else f", {stage.others} of other rows"
    return f"second stage: {stage.headline} seeds of the headline pair{others} ({asked})"
