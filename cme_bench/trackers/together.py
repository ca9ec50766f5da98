"""Several trackers as one. A tracker that cannot begin is an error; one that fails later is left out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from cme_bench.trackers.entry import Entry, Tracker
from cme_bench.trackers.names import check_trackers
from cme_bench.util.errors import UsageError, first_line
from cme_bench.util.notes import Note, unheard
from cme_bench.util.provenance import without_secrets


def open_trackers(names: Sequence[str], entry: Entry, note: Note = unheard) -> Trackers:
    """Open an entry in each tracker.

    Raises UsageError, without any secret in it, for a package that is absent and for a tracker that cannot
    begin: an account, a server or a folder that it lacks.
    """
    check_trackers(tuple(names))
    opened: dict[str, Tracker] = {}
    for name in names:
        module = import_module(f"cme_bench.trackers.{name}_entry")
        try:
            with _stdout_kept():
                opened[name] = module.open_entry(entry)
        except Exception as error:
            Trackers(opened, note).close()
            raise UsageError(f"--report-to {name}: {without_secrets(first_line(error))}") from error
    return Trackers(opened, note)


class Trackers:
    """Open entries, each of which hears everything."""

    def __init__(self, opened: Mapping[str, Tracker], note: Note) -> None:
        self._opened = dict(opened)
        self._note = note

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers to each."""
        self._each(lambda tracker: tracker.log(values, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to each."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def close(self) -> None:
        """Finish each."""
        self._each(lambda tracker: tracker.close())
        self._opened.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Call each; one that fails is told of and left out: hours of compute must not end with a tracker."""
        for name, tracker in list(self._opened.items()):
            try:
                with _stdout_kept():
                    call(tracker)
            except Exception as error:
                del self._opened[name]
                self._note(f"--report-to {name} failed and is left out: {without_secrets(first_line(error))}")


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Send what trackers print to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
