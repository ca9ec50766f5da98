"""Logits that are no numbers: an error that names the request, in every engine, and never a score."""

from __future__ import annotations

from cme_bench.util.errors import CmeError

_BROKEN = (
    "the model's logits are NaN or infinite; check the weights, or use float32 or bfloat16 instead of float16"
)


OVERFLOWED = "its hidden states left the range of float16"
"""Begins the reason for which a run of a bfloat16 model is not computed in float16 any more."""


class OverflowedError(CmeError):
    """A bfloat16 model that was computed in float16 gave no numbers: it is to be computed in bfloat16.

    ``place``: where.
    """

    def __init__(self, place: str) -> None:
        super().__init__(f"{OVERFLOWED} ({place})")
        self.place = place


class LogitsError(CmeError):
    """A model computed NaN, or a logit of plus infinity, after which no probability is known.

    ``request``: number of the request in which it was seen, None if the engine cannot tell; ``where``: of it.
    """

    def __init__(self, message: str, request: int | None = None, where: str = "") -> None:
        super().__init__(message)
        self.request, self.where = request, where

    @classmethod
    def at(cls, request: int | None, where: str = "") -> LogitsError:
        """Return the error of one request, or of some request."""
        name = "some request" if request is None else f"request {request}"
        return cls(f"{name}{where}: {_BROKEN}", request, where)

    def within(self, task: str, item: int | None) -> CmeError:
        """Return the same error for a user, who knows tasks and items in place of requests."""
        place = self.place(task, item)
        return CmeError(f"{place}: {_BROKEN} (what was computed before is stored)")

    def place(self, task: str, item: int | None) -> str:
        """Return where it was seen, in a user's words."""
        return (f"task {task}" if item is None else f"task {task}, item {item}") + self.where
