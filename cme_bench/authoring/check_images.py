"""Checks of a task's images: how many there are, how large, and what may be shown unawares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cme_bench.images.image import Image, hides_pixels

Shown = Mapping[int, tuple[Image, ...]]
"""The images of each item."""


def image_warnings(shown: Shown, place: Callable[[int], str]) -> Iterator[list[str]]:
    """Yield, kind by kind, warnings of items without an image, and of images with transparent parts."""
    blind = [i for i, images in shown.items() if not images]
    if len(blind) == len(shown):
        return
    yield [f"{place(i)}: no image: it is asked as text alone" for i in blind]
    note = "an image with transparent parts: what is stored below them is shown"
    yield [f"{place(i)}: {note}" for image, i in _first(shown).items() if hides_pixels(image)]


def image_fact(shown: Shown) -> str:
    """Return the number of distinct images and their sizes."""
    images = list(_first(shown))
    if not images:
        return "no images"
    sizes = sorted({(image.width * image.height, f"{image.width} x {image.height}") for image in images})
    among = sizes[0][1] if len(sizes) == 1 else f"{sizes[0][1]} to {sizes[-1][1]}"
    return f"{len(images)} distinct images of {among} pixels"


def _first(shown: Shown) -> dict[Image, int]:
    """Return each distinct image with the first item that shows it."""
    first: dict[Image, int] = {}
    for index, images in shown.items():
        for image in images:
            first.setdefault(image, index)
    return first
