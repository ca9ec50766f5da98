"""Progress of a run or a training: whoever does the work tells a listener, which may show it."""

from __future__ import annotations


class Listener:
    """A listener that shows nothing; the base of those that do."""

    def note(self, message: str) -> None:
        """Hear something worth a line."""

    def start(self, task: str, *, total: int, done: int) -> None:
        """Hear that a task begins; ``done`` of its ``total`` items or steps lie behind it."""

    def advance(self, items: int, detail: str = "") -> None:
        """Hear that ``items`` more of the current task are done; ``detail`` is worth showing beside them."""

    def beside(self, name: str) -> Listener:
        """Return a listener to the work called ``name``, which is done at the same time as others."""
        return self

    def finish(self, task: str, outcome: str = "") -> None:
        """Hear that the current task is over, with its outcome if it has one."""
