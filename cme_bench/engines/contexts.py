"""Equal contexts under one number: the choices of a question share its context, which may be long."""

from __future__ import annotations

from cme_bench.engines.requests import TokenIds


class Contexts:
    """Number contexts, equal ones alike. Python hashes a tuple anew at every look-up; here each object is
    hashed once, so an object that was numbered must live as long as this."""

    def __init__(self) -> None:
        self._numbers: dict[TokenIds, int] = {}
        self._known: dict[int, int] = {}

    def number(self, context: TokenIds) -> int:
        """Return the number of ``context``, from 0 in the order in which they first came."""
        number = self._known.get(id(context))
        if number is None:
            number = self._known[id(context)] = self._numbers.setdefault(context, len(self._numbers))
        return number

    @property
    def distinct(self) -> tuple[TokenIds, ...]:
        """Return one of each, by number."""
        return tuple(self._numbers)
