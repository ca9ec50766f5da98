"""Captions for the projector's training, made from labels: what a picture shows, in plain words."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from cme_bench.tasks.made.easy_vqa import SHAPES
from cme_bench.tasks.made.scenes import CELLS, Placed, pick

INSTRUCTIONS = (
    "Describe the image.",
    "Describe the picture in a few words.",
    "What is in the image?",
    "What does the picture show?",
    "What can you see?",
    "Give a short caption of the image.",
)
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def with_article(name: str) -> str:
    """Return ``name`` after "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def of_shape(rng: random.Random, facts: frozenset[str]) -> str | None:
    """Caption a picture of easy-VQA; None if nothing is known of it."""
    shape = next((fact for fact in facts if fact in SHAPES), None)
    colour = next((fact for fact in facts if fact not in SHAPES), None)
    if shape is None and colour is None:
        return None
    if shape is None or colour is None:
        return f"The {'colour' if shape is None else 'shape'} is {colour or with_article(str(shape))}."
    return pick(
        rng,
        (
            f"A {colour} {shape}.",
            f"The image shows a {colour} {shape}.",
            f"There is a {shape}. Its color is {colour}.",
            f"The shape is a {shape} and the color is {colour}.",
        ),
    )


def of_thing(rng: random.Random, name: str) -> str:
    """Caption a picture of one thing."""
    thing = with_article(name)
    return pick(
        rng, (f"{thing}.", f"A picture of {thing}.", f"This is {thing}.", f"The image shows {thing}.")
    )


def of_flag(rng: random.Random, country: str) -> str:
    """Caption a flag."""
    return pick(rng, (f"The flag of {country}.", f"This is the flag of {country}.", f"{country}."))


def of_scene(rng: random.Random, placed: Sequence[Placed]) -> str:
    """Caption a scene: its things, how many there are of each, or where they are."""
    ordered = sorted(placed, key=lambda item: (item.row, item.column))
    counts = Counter(item.thing.name for item in ordered)
    if rng.random() < 0.5 and len(counts) == len(ordered):
        return "; ".join(f"{_ROWS[i.row]} {_COLUMNS[i.column]}: {i.thing.name}" for i in ordered) + "."
    if rng.random() < 0.5 and len(counts) == len(ordered) > 1:
        return _relation(rng, ordered)
    parts = [
        with_article(name) if n == 1 else f"{_NUMBERS[n]} times {with_article(name)}"
        for name, n in counts.items()
    ]
    return f"{_NUMBERS[len(ordered)]} things: " + ", ".join(parts) + "."


def _relation(rng: random.Random, placed: Sequence[Placed]) -> str:
    """Say of two things in different rows or columns how one stands to the other."""
    one = pick(rng, placed)
    other = pick(rng, [item for item in placed if item is not one])
    if one.column != other.column:
        how = "to the left of" if one.column < other.column else "to the right of"
    else:
        how = "above" if one.row < other.row else "below"
    return f"The {one.thing.name} is {how} the {other.thing.name}."


def grid_size() -> int:
    """Return the most things that a scene holds."""
    return CELLS * CELLS
