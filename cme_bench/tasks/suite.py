"""The suite: every task file below one or more folders, and the names that select them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.tasks.lm_eval_tasks import DOMAIN, PREFIX, lm_eval_specs, tasks_folder
from cme_bench.tasks.spec import GENERATED, LIKELIHOOD, TaskSpec, load_spec

DOMAINS = (
    "summarization",
    "sentiment",
    "emotion",
    "nli",
    "paraphrase",
    "entailment",
    "commonsense",
    "science",
    "open_qa",
    "reading",
    "knowledge",
)
"""CME's 11 evaluation tasks, in the order of our tables."""


def builtin_folder() -> Path:
    """Where the built-in task files lie: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "suite"
    return installed if installed.is_dir() else package.parent / "tasks"


@dataclass(frozen=True)
class Suite:
    """All known tasks by name. ``trusted`` are the folders whose ``!function`` may be imported."""

    tasks: dict[str, TaskSpec]
    trusted: tuple[Path, ...]

    def trusts(self, spec: TaskSpec) -> bool:
        """Whether ``!function`` in the task's file may be imported."""
        trusted = (*self.trusted, tasks_folder().resolve()) if spec.domain == DOMAIN else self.trusted
        return any(spec.path.resolve().is_relative_to(folder) for folder in trusted)

    @functools.cached_property
    def selectors(self) -> dict[str, list[TaskSpec]]:
        """Every name that ``--tasks`` takes: tasks, tags (suites), domains and ``DOMAIN_ll``."""
        names: dict[str, list[TaskSpec]] = {name: [spec] for name, spec in self.tasks.items()}
        for spec in self.tasks.values():
            for name in selectors_of(spec):
                names.setdefault(name, []).append(spec)
        return names

    def task(self, name: str) -> TaskSpec:
        """The task called ``name``. UsageError if there is none, with the nearest known name."""
        if name.startswith(PREFIX):
            return self.select(name)[0]
        if name not in self.tasks:
            raise UsageError(f"unknown task {name!r}{did_you_mean(name, self.tasks)}")
        return self.tasks[name]

    def select(self, names: str | Sequence[str]) -> list[TaskSpec]:
        """The tasks named by a comma-separated list of tasks, suites and domains, and of lm-eval's own tasks
        as ``lm_eval:NAME``; without repeats, in order.

        Raises UsageError for an unknown name, with the nearest known one.
        """
        wanted = names.split(",") if isinstance(names, str) else names
        chosen: dict[str, TaskSpec] = {}
        for name in (w.strip() for w in wanted):
            if not name:
                continue
            if name.startswith(PREFIX):
                found = lm_eval_specs(name.removeprefix(PREFIX), self.tasks.values())
                chosen.update((spec.name, spec) for spec in found)
                continue
            if name not in self.selectors:
                raise UsageError(f"unknown task {name!r}{did_you_mean(name, self.selectors)}")
            chosen.update((spec.name, spec) for spec in self.selectors[name])
        if not chosen:
            raise UsageError("no task named")
        return list(chosen.values())


def selectors_of(spec: TaskSpec) -> list[str]:
    """The names besides its own that select a task: its tags, and its domain in the form that it has."""
    names = list(spec.tags)
    if GENERATED in spec.tags:
        names.append(spec.domain)
    if LIKELIHOOD in spec.tags:
        names.append(f"{spec.domain}_ll")
    return names


def load_suite(include: Sequence[Path] = (), *, allow_code: bool = False) -> Suite:
    """Read the built-in task files and those below the ``include`` folders (a file is taken by itself).

    Raises UsageError for a broken file or a task name defined twice.
    """
    builtin = builtin_folder()
    tasks: dict[str, TaskSpec] = {}
    for root in (builtin, *include):
        if not root.exists():
            raise UsageError(f"{root}: no such folder of task files")
        files = [root] if root.is_file() else sorted(root.rglob("*.yaml"))
        folder = root.parent if root.is_file() else root
        for file in files:
            spec = load_spec(file, root=folder)
            if spec is None:
                continue
            if spec.name in tasks:
                raise UsageError(
                    f"{spec.line('task')}: task {spec.name!r} is already defined in {tasks[spec.name].path}"
                )
            tasks[spec.name] = spec
    trusted = (builtin, *include) if allow_code else (builtin,)
    order = {domain: i for i, domain in enumerate(DOMAINS)}
    ordered = sorted(
        tasks.values(), key=lambda s: (order.get(s.domain, len(order)), s.domain, s.path, s.name)
    )
    return Suite({s.name: s for s in ordered}, tuple(p.resolve() for p in trusted))
