"""Emoji art: small pictures of things and of flags with English names, from an emoji package."""

from __future__ import annotations

import functools
import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.util.errors import CmeError

if TYPE_CHECKING:
    from PIL.Image import Image

SPRITE = 64
"""Width and height of a picture."""
_KINDS = frozenset(
    """animal-mammal animal-bird animal-reptile animal-amphibian animal-marine animal-bug plant-flower
    plant-other food-fruit food-vegetable food-prepared food-sweet food-asian drink dishware
    transport-ground transport-water transport-air clothing musical-instrument tool household sport
    computer science medical game writing office lock phone place-building""".split()
)
"""Groups of emoji that show one thing each."""
_NAME = re.compile(r"[a-z]+(?: [a-z]+)?")
_PLURAL = re.compile(r"[^su]s$")
_ENDINGS = (" face", " symbol", " sign")
_NO_COLOUR = ("black ", "white ", "heavy ")
"""Names that tell of a glyph, not of a thing's colour."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing with a name of one or two words. ``kind``: its group; ``file``: its picture's name."""

    name: str
    kind: str
    file: str


@dataclass(frozen=True)
class Art:
    """The pictures of one package. ``things`` and ``flags``: in Unicode's order, the same in each style."""

    things: Sequence[Thing]
    flags: Sequence[Thing]
    pictures: dict[str, bytes]

    def sprite(self, thing: Thing) -> Image:
        """Return the picture, 64 x 64 in RGBA."""
        return _decoded(self.pictures[thing.file]).copy()


def read_art(package: Path, style: str) -> Art:
    """Read the pictures of ``style`` ("google" or "twitter") in a package's file. CmeError if it has none."""
    folder = f"package/img/{style}/{SPRITE}/"
    pictures: dict[str, bytes] = {}
    table: Any = None
    try:
        with tarfile.open(package, "r:gz") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None and member.name == "package/emoji.json":
                    table = orjson.loads(stream.read())
                elif stream is not None and member.name.startswith(folder):
                    pictures[member.name.removeprefix(folder)] = stream.read()
    except (tarfile.TarError, EOFError, OSError, orjson.JSONDecodeError) as error:
        raise CmeError(f"{package}: cannot be read ({error})") from error
    if not table or not pictures:
        raise CmeError(f"{package}: holds no pictures of style {style!r}")
    ordered = sorted(table, key=lambda entry: entry["sort_order"])
    return Art(tuple(_things(ordered)), tuple(_flags(ordered)), pictures)


def _things(entries: Sequence[dict[str, Any]]) -> list[Thing]:
    """Return the things that have a plain name of their own; the first picture of a name counts."""
    found: dict[str, Thing] = {}
    for entry in entries:
        name = str(entry["name"]).lower()
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        plain = _NAME.fullmatch(name) and not _PLURAL.search(name) and not name.startswith(_NO_COLOUR)
        if plain and entry["subcategory"] in _KINDS and _drawn(entry):
            found.setdefault(name, Thing(name, entry["subcategory"], entry["image"]))
    return list(found.values())


def _flags(entries: Sequence[dict[str, Any]]) -> list[Thing]:
    """Return the flags of countries and territories by their names."""
    return [
        Thing(str(entry["name"]).removesuffix(" Flag"), "flag", entry["image"])
        for entry in entries
        if entry["subcategory"] == "country-flag" and _drawn(entry)
    ]


def _drawn(entry: dict[str, Any]) -> bool:
    """Whether both styles have a picture of their own, so that tasks of the two have the same things."""
    return bool(entry["has_img_google"] and entry["has_img_twitter"])


@functools.lru_cache(maxsize=4096)
def _decoded(data: bytes) -> Image:
    import PIL.Image

    return PIL.Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGBA")
