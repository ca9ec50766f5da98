"""Images as token ids: ids beyond every vocabulary stand for the tokens of an image.

One image has the same ids in every prompt, two images never share one. So whatever compares token ids (the
plan of prefixes, doubles, shards, keys of stored answers) is right for images too, without knowing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from cme_bench.engines.packs import Ints
from cme_bench.engines.requests import TokenIds

IdT = TypeVar("IdT", int, Ints)
VIRTUAL = 1 << 62
"""Ids from here on stand for images."""
KEY_BITS, PLACE_BITS = 47, 14
MOST_PLACES = 1 << PLACE_BITS
"""Most tokens that one image may take."""
_PLACES = MOST_PLACES - 1
_KEYS = (1 << KEY_BITS) - 1


def image_key(digest: str) -> int:
    """Return the first bits of a hexadecimal sha256, by which an image is known in a run."""
    return int(digest[:16], 16) >> (64 - KEY_BITS)


def virtual_ids(key: int, start: int, count: int) -> TokenIds:
    """Return the ids of ``count`` tokens of an image, from its token ``start`` on."""
    first = VIRTUAL | key << PLACE_BITS | start
    return tuple(range(first, first + count))


def is_virtual(token: int) -> bool:
    """Return whether an id stands for a token of an image."""
    return token >= VIRTUAL


def key_of(token: IdT) -> IdT:
    """Return the image that an id, or each of an array, stands for a token of."""
    return token >> PLACE_BITS & _KEYS


def place_of(token: IdT) -> IdT:
    """Return which token of its image an id, or each of an array, stands for."""
    return token & _PLACES


def keys_in(ids: Iterable[int]) -> list[int]:
    """Return the images that ids stand for, in order, each as often as it begins."""
    return [key_of(token) for token in ids if token >= VIRTUAL and place_of(token) == 0]


def real_ids(ids: Iterable[int], stand_in: int) -> TokenIds:
    """Return ids with ``stand_in`` for every token of an image, as the model's own processor writes them."""
    return tuple(stand_in if token >= VIRTUAL else token for token in ids)
