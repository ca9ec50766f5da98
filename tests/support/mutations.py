"""Damaged JSON and damaged files, for hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.floats(), st.just(1e308), st.just(2**64))
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["", "..", "/", "cme_a"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
"""Any JSON value, small."""


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of a JSON value, itself excepted."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return []
    return [path for key, part in inner for path in ((*before, key), *places(part, (*before, key)))]


@st.composite
def mutated(draw: st.DrawFn, original: Any) -> Any:
    """A copy of a JSON object with one to three of its parts replaced, removed, or added to."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        parent = value
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                parent[last] = draw(VALUES)
            case "remove":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(VALUES)
    return value


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """The bytes of a file, cut, overwritten in places, or with bytes put in."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["cut", "set", "put"])):
            case "cut":
                del content[place : place + draw(st.integers(1, 1 + len(content) // 2))]
            case "set" if place < len(content):
                content[place] = draw(st.integers(0, 255))
            case "put":
                content[place:place] = draw(st.binary(max_size=12))
    return bytes(content)
