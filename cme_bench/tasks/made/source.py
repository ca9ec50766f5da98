"""Rows of ``cme_mm`` as a data source: made in the user cache when a task first asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.tasks.made.make import VERSION, make_split
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import MADE, DataSource, FolderSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.locks import locked
from cme_bench.util.paths import cache_folder


@dataclass(frozen=True, slots=True)
class MadeSource(DataSource):
    """The rows that :mod:`cme_bench.tasks.made.make` makes, in the user cache.

    With ``offline`` no package is downloaded, which is an error if the rows are not made yet.
    """

    offline: bool = False
    name: str = MADE

    @property
    def folder(self) -> Path:
        return cache_folder() / "rows" / f"cme_mm-{VERSION}"

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        """Return the rows of ``split``, made first if need be. UsageError if there is no such split, CmeError
        if its packages cannot be had."""
        files = FolderSource(self.folder)
        if files.missing(spec, split):
            self._make(spec, split)
        return files.rows(spec, split)

    def _make(self, spec: TaskSpec, split: str) -> None:
        target = self.folder / spec.folder
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / f"{split}.flock"):
            if FolderSource(self.folder).missing(spec, split):
                try:
                    make_split(spec.dataset, split, target, offline=self.offline)
                except UsageError:
                    raise
                except CmeError as error:
                    raise CmeError(f"rows of {spec.name}: {error}") from error

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        return FolderSource(self.folder).dataset_keys(spec, splits)

    def revision(self, spec: TaskSpec) -> str:
        return f"made-{VERSION}"
