"""N-gram overlap between training texts and evaluation items (13-grams, as Brown et al. 2020, appendix C).

Texts are compared as lower-case words without punctuation (a CJK character is a word). An item is
``overlapping`` if one of its n-grams occurs in a training text; an item without any n-gram is compared by its
longest field, if that has at least ``SHORTEST`` words; else it cannot be checked. N-grams do not cross
fields.

Training texts are streamed; of the evaluation items the hashes of their n-grams are held. A word hashes to 64
bits by BLAKE2b, an n-gram to sum_j word_j * P^j mod 2^64; with 10^7 n-grams on either side a chance
match anywhere has a probability of about 10^14 / 2^64 = 5e-6.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

N = 13
SHORTEST = 8
BATCH_TEXTS = 4096

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
_PRIME = 0x9E3779B97F4A7C15  # odd, so multiplying by it loses nothing mod 2^64

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """One task. ``overlapping``: ids of its items with an n-gram in the training texts, of ``checked`` that
    could be compared, of ``items``."""

    task: str
    items: int
    checked: int
    overlapping: tuple[int, ...]

    @property
    def share(self) -> float:
        """Overlapping of checked; NaN if none could be checked."""
        return len(self.overlapping) / self.checked if self.checked else float("nan")


def find_overlaps(
    tasks: Mapping[str, Mapping[int, Mapping[str, Any]]], texts: Iterable[str], *, n: int = N
) -> list[Overlap]:
    """Count the items of each task that share an n-gram with ``texts``.

    ``tasks``: the rows of each task by item id; ``texts`` is read once.
    """
    index = _Index(n)
    for task, rows in tasks.items():
        for item, row in rows.items():
            index.add((task, item), row)
    keys = index.search(texts)
    return [
        Overlap(
            task=task,
            items=len(rows),
            checked=sum((task, item) in index.checked for item in rows),
            overlapping=tuple(item for item in rows if (task, item) in keys),
        )
        for task, rows in tasks.items()
    ]


def row_texts(row: object) -> Iterator[str]:
    """Yield every text in a row, lists and mappings included."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, Mapping):
        for value in row.values():
            yield from row_texts(value)
    elif isinstance(row, list | tuple):
        for value in row:
            yield from row_texts(value)


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class _Words(dict[str, int]):
    """Word -> its hash, computed once."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value


Key = tuple[str, int]


class _Index:
    """The n-grams of the items (12 bytes each) by length: ``n``, or the whole of a shorter item."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.checked: dict[Key, int] = {}
        self._words = _Words()
        self._parts: dict[int, list[tuple[Hashes, int]]] = defaultdict(list)

    def add(self, key: Key, row: Mapping[str, Any]) -> None:
        fields = sorted((words(text) for text in row_texts(row)), key=len, reverse=True)
        long = [field for field in fields if len(field) >= self.n]
        if not long and fields and len(fields[0]) >= min(SHORTEST, self.n):
            long = [fields[0]]
        if not long:
            return
        owner = self.checked.setdefault(key, len(self.checked))
        length = min(self.n, len(long[0]))
        self._parts[length] += [(_grams(self._hash([field]), length), owner) for field in long]

    def search(self, texts: Iterable[str]) -> set[Key]:
        """Return the items that occur in ``texts``."""
        tables = {length: _sorted_table(parts) for length, parts in self._parts.items()}
        hit = np.zeros(len(self.checked), dtype=bool)
        stream = iter(texts)
        while batch := list(islice(stream, BATCH_TEXTS)):
            hashes = self._hash([words(text) for text in batch])
            for length, (grams, owners) in tables.items():
                wanted = np.unique(_grams(hashes, length))
                first = np.searchsorted(grams, wanted, "left")
                last = np.searchsorted(grams, wanted, "right")
                for start, end in zip(first[first < last], last[first < last], strict=True):
                    hit[owners[start:end]] = True
        return {key for key, owner in self.checked.items() if hit[owner]}

    def _hash(self, texts: Sequence[Sequence[str]]) -> Hashes:
        """Return the hashes of all words of all texts; between texts stands a 0, which no n-gram of an item
        holds."""
        hashes: list[int] = []
        for text in texts:
            hashes += map(self._words.__getitem__, text)
            hashes.append(0)
        return np.array(hashes[:-1], dtype=np.uint64)


def _grams(hashes: Hashes, length: int) -> Hashes:
    """Hash of every window of ``length`` words."""
    if len(hashes) < length:
        return np.empty(0, np.uint64)
    powers = np.array([pow(_PRIME, j, 1 << 64) for j in range(length)], dtype=np.uint64)
    return np.asarray(sliding_window_view(hashes, length) @ powers)


def _sorted_table(parts: Sequence[tuple[Hashes, int]]) -> tuple[Hashes, NDArray[np.int32]]:
    """Return all n-grams in ascending order, and the item that each belongs to."""
    grams = np.concatenate([grams for grams, _ in parts])
    owners = np.repeat(
        np.array([owner for _, owner in parts], dtype=np.int32), [len(grams) for grams, _ in parts]
    )
    order = np.argsort(grams)
    return grams[order], owners[order]
