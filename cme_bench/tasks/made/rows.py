"""The rows of each ``cme_mm`` dataset: pictures, questions and answers, by a seed.

Splits for training are drawn in Noto's style, those that are scored in Twemoji's. A row names its picture by
a key; pictures with one key are one picture.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cme_bench.tasks.made.art import Art, Thing
from cme_bench.tasks.made.scenes import (
    Placed,
    choose_things,
    draw,
    draw_one,
    place,
    png,
    shuffled,
)

TRAIN, TEST = "train", "test"
POPE_SPLITS = ("random", "popular", "adversarial")
COUNTS = range(1, 7)
_FAME = "cme_mm fame"
_POPE_PER_SCENE = 3
"""Questions with the answer yes of a scene, and as many with no."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question: ``picture`` is the key of its picture, ``draw`` makes the PNG."""

    picture: str
    draw: Callable[[], bytes]
    values: Mapping[str, Any]


def emoji_name(art: Art, split: str) -> Iterator[Row]:
    """Yield a question or two a thing: its name among three others of any kind, and among three of its own
    kind where there are so many."""
    yield from _names(art, art.things, split, "emoji_name")


def flags(art: Art, split: str) -> Iterator[Row]:
    """Yield a question a flag: its country among three others."""
    yield from _names(art, art.flags, split, "flags")


def _names(art: Art, things: Sequence[Thing], split: str, dataset: str) -> Iterator[Row]:
    rng = random.Random(f"{dataset} {split}")
    for thing in things:
        others = [other for other in things if other.name != thing.name]
        alike = [other for other in others if other.kind == thing.kind]
        for kind, pool in (("any", others), ("alike", alike)):
            if kind == "alike" and not 3 <= len(alike) < len(others):
                continue
            names = [thing.name, *(other.name for other in shuffled(rng, pool)[:3])]
            choices = shuffled(rng, names)
            values = {"choices": choices, "label": choices.index(thing.name), "others": kind}
            yield Row(thing.file.removesuffix(".png"), functools.partial(_alone, art, thing), values)


def _alone(art: Art, thing: Thing) -> bytes:
    return png(draw_one(art, thing))


def emoji_count(art: Art, split: str) -> Iterator[Row]:
    """Yield scenes with 1 to 6 of a thing, each number as often as the others, and up to 3 other things."""
    rng = random.Random(f"emoji_count {split}")
    for number in range(_size(split, train=2000, test=600)):
        count = COUNTS[number % len(COUNTS)]
        wanted, *others = choose_things(rng, _by_fame(art), 1 + int(rng.random() * 4))
        placed = place(rng, [wanted] * count + others)
        yield _scene(rng, art, placed, number, {"name": wanted.name, "count": count})


def emoji_where(art: Art, split: str) -> Iterator[Row]:
    """Yield scenes with the question how one thing stands to another; each answer is as frequent as its
    opposite."""
    rng = random.Random(f"emoji_where {split}")
    for number in range(_size(split, train=2000, test=600)):
        sideways = number % 2 == 0
        while True:
            placed = place(rng, choose_things(rng, _by_fame(art), 2 + int(rng.random() * 3)))
            one, other = placed[:2]
            if (one.column if sideways else one.row) != (other.column if sideways else other.row):
                break
        before = number % 4 < 2
        first = one.column < other.column if sideways else one.row < other.row
        one, other = (one, other) if first == before else (other, one)
        choices = ["left", "right"] if sideways else ["above", "below"]
        values = {
            "one": one.thing.name,
            "other": other.thing.name,
            "choices": choices,
            "label": int(not before),
        }
        yield _scene(rng, art, placed, number, values)


def emoji_pope(art: Art, split: str) -> Iterator[Row]:
    """Yield POPE's questions (Li et al. 2023, arXiv 2305.10355): is a thing in the scene?

    Each scene is asked about 3 things that are there and 3 that are not: drawn at random, the most popular
    ones, or those that appear most often together with a thing that is there. Popularity and company are
    counted in the training scenes. The scenes of the three scored splits are the same, in training the three
    kinds of absent things take turns.
    """
    counted = _statistics(_pope_scenes(art, TRAIN))
    rng = random.Random(f"emoji_pope {split}")
    for number, (seed, placed) in enumerate(_pope_scenes(art, TEST if split in POPE_SPLITS else TRAIN)):
        kind = split if split in POPE_SPLITS else POPE_SPLITS[number % len(POPE_SPLITS)]
        there = [item.thing.name for item in placed]
        asked = [(name, "yes") for name in shuffled(random.Random(seed), there)[:_POPE_PER_SCENE]]
        asked += [(name, "no") for name in _absent(rng, art, kind, there, counted)]
        for name, answer in asked:
            values = {"name": name, "answer": answer, "absent": kind}
            yield _scene(random.Random(seed), art, placed, number, values)


def _pope_scenes(art: Art, split: str) -> Iterator[tuple[str, list[Placed]]]:
    for number in range(_size(split, train=1000, test=167)):
        seed = f"emoji_pope scene {split} {number}"
        rng = random.Random(seed)
        yield seed, place(rng, choose_things(rng, _by_fame(art), 3 + int(rng.random() * 4)))


def _statistics(
    scenes: Iterator[tuple[str, list[Placed]]],
) -> tuple[Counter[str], Mapping[str, Counter[str]]]:
    """Return how often each thing appears, and how often together with which."""
    popular: Counter[str] = Counter()
    company: dict[str, Counter[str]] = {}
    for _, placed in scenes:
        names = [item.thing.name for item in placed]
        popular.update(names)
        for one, other in combinations(names, 2):
            company.setdefault(one, Counter())[other] += 1
            company.setdefault(other, Counter())[one] += 1
    return popular, company


def _absent(
    rng: random.Random,
    art: Art,
    kind: str,
    there: Sequence[str],
    counted: tuple[Counter[str], Mapping[str, Counter[str]]],
) -> list[str]:
    """Choose things that are not there; equally frequent ones in the order of their names."""
    popular, company = counted
    names = [name for name in sorted(thing.name for thing in art.things) if name not in there]
    if kind == "random":
        return shuffled(rng, names)[:_POPE_PER_SCENE]
    beside = Counter[str]()
    if kind == "adversarial":
        for name in there:
            beside.update(company.get(name, Counter()))
    ranked = sorted(names, key=lambda name: (-beside[name], -popular[name], name))
    return ranked[:_POPE_PER_SCENE]


def _scene(
    rng: random.Random, art: Art, placed: Sequence[Placed], number: int, values: Mapping[str, Any]
) -> Row:
    seed = rng.random()
    return Row(f"{number:05d}", lambda: png(draw(random.Random(seed), art, placed)), values)


def _by_fame(art: Art) -> Sequence[Thing]:
    return shuffled(random.Random(_FAME), art.things)


def _size(split: str, *, train: int, test: int) -> int:
    return train if split == TRAIN else test


EMOJI_DATASETS: Mapping[str, Callable[[Art, str], Iterator[Row]]] = {
    "emoji_name": emoji_name,
    "emoji_count": emoji_count,
    "emoji_where": emoji_where,
    "emoji_pope": emoji_pope,
    "flags": flags,
}
"""Dataset -> its rows of a split."""
