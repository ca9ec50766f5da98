"""TensorBoard: event files in the entry's own folder, below ``tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cme_bench.trackers.entry import Entry

FOLDER = "tensorboard"


def open_entry(entry: Entry) -> TensorboardEntry:
    """Open a writer; steps behind the last one logged are dropped after a resume."""
    return TensorboardEntry(entry)


class TensorboardEntry:
    """Scalars by step, settings and tables as Markdown."""

    def __init__(self, entry: Entry) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = entry.last_step + 1 if entry.last_step else None
        self._writer: Any = SummaryWriter(str(entry.folder / FOLDER), purge_step=purged)
        rows = [[key, value] for key, value in entry.config.items()]
        self._writer.add_text("settings", _markdown(["setting", "value"], rows))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._writer.add_text(name, _markdown(columns, rows))

    def close(self) -> None:
        self._writer.close()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [list(map(str, columns)), ["---"] * len(columns), *([_cell(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
