"""The images of a task's rows: what ``doc_to_image`` gives, and where their marks stand in the prompt."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lm_eval import utils

from cme_bench.images.cells import ImageCells, replaced
from cme_bench.images.decode import decode_image
from cme_bench.images.image import Image, ImageError

DocToImage: TypeAlias = str | list[str] | Callable[[Mapping[str, Any]], Any]
"""A column or a template; several of them; or a function of the row."""


@dataclass(frozen=True, slots=True)
class RowImages:
    """The images of rows, as ``named`` by a task's ``doc_to_image``; ``folder``: where their paths begin;
    ``cells``: those that lie inside the rows; ``root``: the folder that paths may not leave."""

    named: DocToImage
    folder: Path | None
    cells: ImageCells = field(default_factory=ImageCells)
    root: Path | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that are nothing but images."""
        named = [self.named] if isinstance(self.named, str) else [] if callable(self.named) else self.named
        return frozenset(name for name in named if "{{" not in name)

    def of(self, row: Mapping[str, Any]) -> tuple[Image, ...]:
        """Return the images of a row in the order of their marks. ImageError if one cannot be read.

        A missing value (None) in a list of columns is no image, as in lm-eval.
        """
        if callable(self.named):
            values = self._called(self.named, row)
        elif isinstance(self.named, str):
            values = _listed(_value(self.named, row))
            if not values:
                raise ImageError(f"{self.named}: the row has no image")
        else:
            values = [value for name in self.named for value in _listed(_value(name, row))]
        return tuple(self._image(value) for value in values)

    def _called(self, function: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any]) -> list[Any]:
        """Return what a function gives for a row, whose images it gets as Pillow's, as in lm-eval."""
        known: dict[int, Image] = {}

        def opened(image: Image) -> Any:
            pixels = image.pixels()
            known[id(pixels)] = image
            return pixels

        seen = replaced(dict(row), self.cells, opened)
        return [known.get(id(value), value) for value in _listed(function(seen))]

    def _image(self, value: Any) -> Image:
        found = self.cells.image(value) if isinstance(value, str) else None
        return decode_image(value, folder=self.folder, root=self.root) if found is None else found

    def recorded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row as it is stored: of an image inside it the digest."""
        found: dict[str, Any] = replaced(row, self.cells, lambda image: f"sha256:{image.digest}")
        return found


def _value(name: str, row: Mapping[str, Any]) -> Any:
    """Return the value of a column, or the path (or list of paths) that a template renders."""
    if name in row:
        return row[name]
    if "{{" not in name:
        raise ImageError(f"there is no column {name!r} (there are {', '.join(row)})")
    text = utils.apply_template(name, row).strip()
    if not text.startswith("["):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ImageError(f"{name!r} renders {text[:80]!r}, which is no list of paths") from error


def _listed(value: Any) -> list[Any]:
    """Return a column's value as a list of images; None is none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | Iterator) else [value]
