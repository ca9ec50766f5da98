"""Scenes: things on a white square, in the cells of a grid, by a seed."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cme_bench.tasks.made.art import SPRITE, Art, Thing

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")

SIDE = 224
"""Width and height of a scene in pixels, that of smollava's tower."""
CELLS = 3
_CELL = SIDE // CELLS
_FAME = 12
"""How slowly fame falls: the thing of rank r is drawn with weight 1 / (r + _FAME)."""
_THEME = 0.5
"""Share of a scene's things that come from one group."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing in a scene; ``row`` and ``column`` of its cell, from the top left."""

    thing: Thing
    row: int
    column: int


def choose_things(rng: random.Random, things: Sequence[Thing], count: int) -> list[Thing]:
    """Choose ``count`` different things: some are far more frequent than others, and things of a group
    appear together, as in photographs. The order of ``things`` is their fame."""
    theme = _famous(rng, things).kind
    related = [thing for thing in things if thing.kind == theme]
    chosen: list[Thing] = []
    while len(chosen) < count:
        pool = related if rng.random() < _THEME and len(related) > count else things
        thing = _famous(rng, pool)
        if thing not in chosen:
            chosen.append(thing)
    return chosen


def _famous(rng: random.Random, things: Sequence[Thing]) -> Thing:
    total = sum(1 / (rank + _FAME) for rank in range(len(things)))
    point = rng.random() * total
    for rank, thing in enumerate(things):
        point -= 1 / (rank + _FAME)
        if point <= 0:
            return thing
    return things[-1]


def place(rng: random.Random, things: Sequence[Thing]) -> list[Placed]:
    """Give each thing a cell of its own (at most 9)."""
    cells = [(row, column) for row in range(CELLS) for column in range(CELLS)]
    return [Placed(thing, *cell) for thing, cell in zip(things, shuffled(rng, cells), strict=False)]


def draw(rng: random.Random, art: Art, placed: Sequence[Placed]) -> Image:
    """Draw a scene, 224 x 224 in RGB; a thing stands anywhere within its cell."""
    import PIL.Image

    scene = PIL.Image.new("RGBA", (SIDE, SIDE), "white")
    for item in placed:
        x = item.column * _CELL + int(rng.random() * (_CELL - SPRITE + 1))
        y = item.row * _CELL + int(rng.random() * (_CELL - SPRITE + 1))
        scene.alpha_composite(art.sprite(item.thing), (x, y))
    return scene.convert("RGB")


def draw_one(art: Art, thing: Thing) -> Image:
    """Draw a thing alone on white, 64 x 64 in RGB."""
    import PIL.Image

    picture = PIL.Image.new("RGBA", (SPRITE, SPRITE), "white")
    picture.alpha_composite(art.sprite(thing))
    return picture.convert("RGB")


def png(picture: Image) -> bytes:
    """Return ``picture`` as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def shuffled(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    """Return the items in random order. Only ``random()`` of the generator is used, here and elsewhere:
    Python promises its numbers for all versions."""
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """Return one of the items."""
    return items[int(rng.random() * len(items))]
