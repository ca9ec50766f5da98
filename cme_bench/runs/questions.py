"""The questions of a run: tasks with their rows, and what makes prompts of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cme_bench.prompts.items import limited_ids
from cme_bench.runs.options import AskOptions, check_ask
from cme_bench.runs.planner import Planner
from cme_bench.runs.responder import Responder
from cme_bench.runs.trained_rows import refuse_trained_rows
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.references import refuse_unreadable
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import Suite, load_suite
from cme_bench.util.phases import phase

_NO_MATTER = ("adapters", "out")
"""Options on which no question depends."""


class Questions:
    """The tasks that are asked; ``tasks`` reads their rows, once, and ``planner`` makes prompts of them.

    Raises UsageError for unknown names.
    """

    def __init__(self, options: AskOptions, *, offline: bool) -> None:
        check_ask(options)
        self.options = options
        self._suite = load_suite(options.include, allow_code=options.allow_code)
        self._specs = self._suite.select(options.tasks)
        self._source = open_source(options.data, offline=offline)
        self.source = self._source.name
        self.planner = Planner(options)
        read = functools.partial(_read, self._specs, self._suite, self._source, options)
        self._tasks = functools.cache(read)  # which does not know this object: that is free with its last use

    def by(self, options: AskOptions) -> Questions:
        """Return these, asked by ``options``, which differ in what no question depends on."""
        asked = copy.copy(self)
        asked.options = options
        return asked

    def refuse_trained(self, responders: Sequence[Responder]) -> None:
        """Raise UsageError if an adapter was trained on rows that are asked here."""
        refuse_trained_rows(self._specs, [responder.adapter for responder in responders], self._suite)

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [spec.name for spec in self._specs]

    @property
    def tasks(self) -> list[Task]:
        """The tasks, with their rows."""
        return self._tasks()


@phase("tasks")
def _read(specs: Sequence[TaskSpec], suite: Suite, source: DataSource, options: AskOptions) -> list[Task]:
    """Return the tasks with their rows."""
    found = [build_task(spec, suite, source, shots=options.shots) for spec in specs]
    for task in found:
        refuse_unreadable(task, limited_ids(range(len(task.docs)), options.limit))
    return found


class KeptQuestions:
    """Questions of runs that one process asks one after the other, of one base: their rows are read once, and
    their prompts made once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Questions] = {}

    def of(self, options: AskOptions, *, offline: bool) -> Questions:
        """Return the questions of ``options``, those of before where only adapters and folder differ."""
        names = (field.name for field in fields(AskOptions) if field.name not in _NO_MATTER)
        key = (*(getattr(options, name) for name in names), offline)
        if key not in self._kept:
            self._kept[key] = Questions(options, offline=offline)
        return self._kept[key].by(options)
