"""Rows as they were read from JSON, for tasks that ask no more of them than rows and columns.

``datasets`` imports pandas and Arrow for the same, 800 modules, and makes every row anew from its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

Row = dict[str, Any]
_SCALARS = frozenset({str, int, float, bool})


class PlainTable:
    """Stands for a ``datasets.Dataset`` of the same rows.

    ``rows`` have the same keys in the same order, and ``is_plain`` holds for them. Who asks for more than is
    defined here asks the real table, which ``made`` makes of the rows then. Each row that is handed out is a
    copy.
    """

    __slots__ = ("_made", "_nested", "_real", "_rows")

    def __init__(self, rows: Sequence[Row], made: Callable[[Sequence[Row]], Any]) -> None:
        self._rows = rows
        self._made = made
        self._real: Any = None
        self._nested = [name for name in rows[0] if any(isinstance(row[name], list | dict) for row in rows)]

    @property
    def real(self) -> Any:
        """The table of ``datasets``."""
        if self._real is None:
            self._real = self._made(self._rows)
        return self._real

    @property
    def column_names(self) -> list[str]:
        return list(self._rows[0])

    @property
    def features(self) -> Mapping[str, Any]:
        """The types of the columns by name; the names are known without the real table."""
        return _Features(self)

    def filter(self, function: Callable[[Row], bool], *args: Any, **settings: Any) -> Any:
        """Return the table of the rows for which ``function`` is true."""
        if args or settings != {"desc": None}:
            return self.real.filter(function, *args, **settings)
        kept = [row for row in self._rows if function(self._copy(row))]
        return PlainTable(kept, self._made) if kept else self.real.select([])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return map(self._copy, self._rows)

    def __getitem__(self, key: Any) -> Any:
        if type(key) is int:
            return self._copy(self._rows[key])
        if isinstance(key, str) and key in self._rows[0]:
            return [row[key] for row in self]
        if isinstance(key, list) and key and all(type(each) is int for each in key):
            rows = [self[index] for index in key]
            return {name: [row[name] for row in rows] for name in self._rows[0]}
        return self.real[key]

    def __getattr__(self, name: str) -> Any:
        if name in PlainTable.__slots__ or name.startswith("__"):
            raise AttributeError(f"a table has no attribute {name!r}")
        return getattr(self.real, name)

    def _copy(self, row: Row) -> Row:
        copy = dict(row)
        for name in self._nested:
            copy[name] = _copied(copy[name])
        return copy


class _Features(Mapping[str, Any]):
    def __init__(self, table: PlainTable) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Any:
        return self._table.real.features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


def real_table(table: Any) -> Any:
    """Return the ``datasets.Dataset`` of a table, which may be one already."""
    return table.real if isinstance(table, PlainTable) else table


def is_plain(rows: Sequence[Row]) -> bool:
    """Return whether a table of ``datasets`` gives these rows back as they are.

    It does if every column holds, beside None, texts, numbers of one type, lists of such, or mappings of
    those with the same keys in the same order. The integers are of 64 bits, and the texts Unicode.
    """
    columns = ([row[name] for row in rows if row[name] is not None] for name in rows[0])
    return all(_is_plain(values, mappings=True) for values in columns)


def _is_plain(values: Sequence[Any], *, mappings: bool) -> bool:
    kinds = set(map(type, values))
    if len(kinds) > 1:
        return False
    if not kinds or kinds <= _SCALARS:
        return True
    if kinds == {list}:
        inner = set(map(type, chain.from_iterable(values)))
        return len(inner) <= 1 and inner <= _SCALARS
    keys = set(map(tuple, values)) if mappings and kinds == {dict} else set()
    if len(keys) != 1 or not (names := keys.pop()):
        return False
    return all(_is_plain([value[name] for value in values], mappings=False) for name in names)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value
