"""Spreads of known size are found again, whoever scores higher, and seeds follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from cme_bench.stats.seed_planning import (
    CentredScores,
    Floats,
    Spread,
    paired_spread,
    pooled_spread,
    seeds_for,
    seeds_to_decide,
)
from cme_bench.stats.seeds import seeds_difference, seeds_mean

TASKS, ITEMS, SEEDS = 4, 150, 8
WEIGHTS = [0.4, 0.3, 0.2, 0.1]
BETWEEN, INTERACTION, RESIDUAL = 0.02, 0.15, 0.3
"""Standard deviations: of a seed's average, of item by method, of item by seed."""


def methods(random: np.random.Generator, count: int = 5) -> list[list[Floats]]:
    """Scores per method and task, [seeds, items], of the model that the formulas assume."""
    items = random.normal(0.5, 0.4, (TASKS, ITEMS))
    found = []
    for _ in range(count):
        seed = random.normal(0, BETWEEN, (SEEDS, 1))
        own = items + random.normal(0, INTERACTION, (TASKS, ITEMS))
        found.append([task + seed + random.normal(0, RESIDUAL, (SEEDS, ITEMS)) for task in own])
    return found


def test_a_known_spread_is_found_again() -> None:
    random = np.random.default_rng(0)
    found = [pooled_spread([CentredScores(m) for m in methods(random)], WEIGHTS) for _ in range(40)]
    shares = sum(w**2 for w in WEIGHTS) / ITEMS
    mean = np.mean([[s.between, s.residual, s.interaction] for s in found], axis=0)
    assert mean == pytest.approx([BETWEEN**2, RESIDUAL**2 * shares, INTERACTION**2 * shares], rel=0.1)


def test_the_spread_gives_the_standard_error_of_a_difference() -> None:
    random = np.random.default_rng(1)
    pairs = [methods(random, 2) for _ in range(60)]
    errors = [seeds_difference(a, b, WEIGHTS).estimate.stderr for a, b in pairs]
    spreads = [pooled_spread([CentredScores(a), CentredScores(b)], WEIGHTS) for a, b in pairs]
    planned = [spread.stderr(SEEDS) for spread in spreads]
    assert np.mean(np.square(planned)) == pytest.approx(np.mean(np.square(errors)), rel=0.05)


def test_who_scores_higher_cannot_be_seen() -> None:
    """Any difference between methods, in any task, changes nothing but rounding."""
    random = np.random.default_rng(2)
    given = methods(random)
    shifts = random.normal(0, 0.3, (len(given), TASKS))
    shifted = [
        [task + d for task, d in zip(m, own, strict=True)] for m, own in zip(given, shifts, strict=True)
    ]
    one, other = (pooled_spread([CentredScores(m) for m in each], WEIGHTS) for each in (given, shifted))
    for name in ("between", "residual", "interaction"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-15)
    assert all(abs(task.mean()) < 1e-12 for task in CentredScores(given[0]).tasks)
    assert set(vars(CentredScores(given[0]))) == {"tasks"}, "nothing else is kept"


def pairs(random: np.random.Generator, shift: float = 0.0) -> list[list[Floats]]:
    """Two methods as above, of which a seed does the same to both, five times as much as to one alone."""
    first, second = methods(random, 2)
    shared = random.normal(0, 5 * BETWEEN, (SEEDS, 1))
    return [[task + shared for task in first], [task + shared + shift for task in second]]


def less(first: list[Floats], second: list[Floats]) -> list[Floats]:
    return [b - a for a, b in zip(first, second, strict=True)]


def test_what_a_seed_does_to_both_methods_falls_out_of_pairs() -> None:
    random = np.random.default_rng(4)
    given = [less(*pairs(random)) for _ in range(40)]
    found = [paired_spread([CentredScores(d)], WEIGHTS) for d in given]
    shares = sum(w**2 for w in WEIGHTS) / ITEMS
    mean = np.mean([[s.between, s.residual, s.interaction] for s in found], axis=0)
    assert mean == pytest.approx([BETWEEN**2, RESIDUAL**2 * shares, INTERACTION**2 * shares], rel=0.15)
    errors = [seeds_mean(d, WEIGHTS).estimate.stderr for d in given]
    planned = [spread.stderr(SEEDS) for spread in found]
    assert planned == pytest.approx(errors, rel=0.02), "the very formula that decides"
    assert found[0].degrees(SEEDS) == SEEDS - 1
    alone = [seeds_difference(*pairs(random), WEIGHTS).estimate.stderr for _ in range(40)]
    assert np.mean(planned) < 0.5 * np.mean(alone)
    all_pairs = paired_spread([CentredScores(d) for d in given], WEIGHTS)
    assert all_pairs.between == pytest.approx(mean[0]), "the mean over pairs"


def test_pairs_show_no_difference_either() -> None:
    one, other = (
        paired_spread([CentredScores(less(*pairs(np.random.default_rng(5), shift)))], WEIGHTS)
        for shift in (0.0, 0.4)
    )
    for name in ("between", "residual", "interaction"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-15)


def test_the_smallest_number_of_seeds_is_found() -> None:
    spread = Spread(between=0.24, residual=0.09, interaction=0.002)
    seeds = seeds_for(spread, 0.5)
    assert seeds is not None and seeds < 40
    assert spread.detectable(seeds) <= 0.5 < spread.detectable(seeds - 1)
    assert spread.detectable(1000) == pytest.approx(2.8016 * spread.stderr(1000), rel=1e-2)
    assert seeds_for(spread, 0.5, first=40) == 40, "never fewer than the first stage"
    assert (seeds_for(spread, 0.5, level=0.025) or 0) > seeds
    assert seeds_for(spread, 0.5, cap=seeds - 1) is None
    too_much = Spread(between=0.24, residual=0.09, interaction=0.03)
    assert seeds_for(too_much, 0.5) is None, "item by method alone is more: no seeds help"
    pairs = Spread(between=0.24, residual=0.09, interaction=0.002, paired=True)
    assert (seeds_for(pairs, 0.5) or 0) > seeds, "fewer degrees of freedom"


@pytest.mark.parametrize(("difference", "apart"), [(0.45, True), (-0.45, True), (0.02, False)])
def test_a_claim_is_decided_apart_or_alike(difference: float, apart: bool) -> None:
    spread = Spread(between=0.24, residual=0.09, interaction=0.002)
    seeds = seeds_to_decide(spread, difference, 0.5)
    assert seeds is not None
    half = 2.0 * spread.stderr(seeds)
    assert (abs(difference) > 0.95 * half) is apart
    assert (seeds_to_decide(spread, difference, 0.5, level=0.005) or 0) > seeds


def test_a_difference_between_both_needs_many_seeds_or_more_items() -> None:
    assert (seeds_to_decide(Spread(0.24, 0.09, 0.0001), 0.25, 0.5) or 0) > 20
    assert seeds_to_decide(Spread(0.24, 0.09, 0.05), 0.25, 0.5, cap=2000) is None


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (5,)])
def test_one_seed_or_one_item_has_no_spread(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two seeds and two items"):
        CentredScores([np.zeros(shape)])


def test_one_method_has_no_difference() -> None:
    with pytest.raises(ValueError, match="two methods"):
        pooled_spread([CentredScores([np.eye(3)])], [1.0])
