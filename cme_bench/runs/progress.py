"""What a run tells while it works. The command line shows it; tests and libraries may stay silent."""

from __future__ import annotations


class Silent:
    """A listener that shows nothing; the base of those that do."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def start(self, task: str, *, total: int, done: int) -> None:
        """A task begins; ``done`` of its ``total`` items are already stored."""

    def advance(self, items: int) -> None:
        """``items`` more of the current task are stored."""

    def finish(self, task: str, outcome: str) -> None:
        """The current task is scored."""
