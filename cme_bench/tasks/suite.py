"""The suite: every task file below one or more folders, and the names that select them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cme_bench.harness.task_index import tasks_folder
from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.tasks.blind import ENDING, blind
from cme_bench.tasks.identity import suite_hash
from cme_bench.tasks.lm_eval_tasks import DOMAIN, PREFIX, lm_eval_specs
from cme_bench.tasks.spec import (
    ADDED,
    ADDED_LIKELIHOOD,
    GENERATED,
    LIKELIHOOD,
    NoTaskError,
    TaskSpec,
    load_spec,
)
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.unchanged import Unchanged

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
VERSIONS = {"cme2": (GENERATED, ADDED), "cme2_ll": (LIKELIHOOD, ADDED_LIKELIHOOD)}
"""Later versions of a suite, and the tags whose tasks each holds."""
_NOT_READ = frozenset({"__pycache__", ".ipynb_checkpoints"})


def builtin_folder() -> Path:
    """Return the folder of the built-in task files: beside the package in a checkout, inside it when
    installed."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "suite"
    return installed if installed.is_dir() else package.parent / "tasks"


@dataclass(frozen=True, slots=True)
class OddFile:
    """A file of an included folder that is no task of the suite. ``name``: the task that it would be, or the
    group, and ``tags`` its tags, as far as it can be read; ``reason`` begins with the file. ``harmless``: it
    defines no task (a group, or what is only included)."""

    path: Path
    reason: str
    name: str | None = None
    tags: tuple[str, ...] = ()
    harmless: bool = False


@dataclass(frozen=True)
class Suite:
    """All known tasks by name. ``trusted`` are the folders whose ``!function`` may be imported; ``odd`` are
    files that were passed over, which matters to nobody who asks for other tasks."""

    tasks: dict[str, TaskSpec]
    trusted: tuple[Path, ...]
    odd: tuple[OddFile, ...] = ()

    def trusts(self, spec: TaskSpec) -> bool:
        """Return whether ``!function`` in the task's file may be imported."""
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

    def hash_of(self, suite: str) -> str:
        """Return the hash of a suite: of its tasks' names and hashes, whatever their order."""
        return suite_hash({spec.name: spec.config for spec in self.select(suite)})

    def task(self, name: str) -> TaskSpec:
        """Return the task called ``name``. UsageError if there is none, with the nearest known name."""
        if name.startswith(PREFIX):
            return self.select(name)[0]
        self._check_not_odd(name)
        if name not in self.tasks:
            if (seeing := self.tasks.get(name.removesuffix(ENDING))) is not None:
                return blind(seeing)
            self._check_no_group(name)
            raise UsageError(f"unknown task {name!r}{did_you_mean(name, self.tasks)}{self._unread()}")
        return self.tasks[name]

    def _check_not_odd(self, name: str) -> None:
        """Raise UsageError with the reason if ``name`` is, or selects, a task whose file cannot be used."""
        for odd in self.odd:
            if not odd.harmless and name in (odd.name, *odd.tags):
                raise UsageError(odd.reason)

    def _unread(self) -> str:
        """Say why a name may be unknown: name the first file that could not be read at all."""
        unread = [odd for odd in self.odd if odd.name is None and not odd.harmless]
        return f" (not read: {unread[0].reason})" if unread else ""

    def _check_no_group(self, name: str) -> None:
        """Raise UsageError with the reason if ``name`` is a group of a file that was passed over."""
        for odd in self.odd:
            if odd.harmless and name == odd.name:
                raise UsageError(f"{name!r}: {odd.reason}")

    def select(self, names: str | Sequence[str]) -> list[TaskSpec]:
        """Return the tasks that a comma-separated list names: tasks, suites, domains, and lm-eval's own tasks
        as ``lm_eval:NAME``. ``NAME_blind`` are the same without their images. No task comes twice; the list's
        order stays.

        Raises UsageError for an unknown name, with the nearest known one.
        """
        wanted = names.split(",") if isinstance(names, str) else names
        chosen: dict[str, TaskSpec] = {}
        for name in (w.strip() for w in wanted):
            if not name:
                continue
            if name.startswith(PREFIX):
                specs = lm_eval_specs(name.removeprefix(PREFIX), self.tasks.values())
                chosen.update((spec.name, spec) for spec in specs)
                continue
            self._check_not_odd(name)
            if name not in self.selectors:
                if name.endswith(ENDING) and (seeing := self.selectors.get(name.removesuffix(ENDING))):
                    chosen.update((spec.name, spec) for spec in map(blind, seeing))
                    continue
                self._check_no_group(name)
                hint = did_you_mean(name, self.selectors)
                raise UsageError(f"unknown task {name!r}{hint}{self._unread()}")
            for spec in self.selectors[name]:
                self._check_not_odd(spec.name)
                chosen[spec.name] = spec
        if not chosen:
            raise UsageError("no task named")
        return list(chosen.values())


def selectors_of(spec: TaskSpec) -> list[str]:
    """Return the other names that select a task: its tags, later versions of its suite, and its domain in the
    form that it has."""
    names = list(spec.tags)
    names += [version for version, tags in VERSIONS.items() if not set(tags).isdisjoint(spec.tags)]
    if GENERATED in spec.tags:
        names.append(spec.domain)
    if LIKELIHOOD in spec.tags:
        names.append(f"{spec.domain}_ll")
    return names


def load_suite(include: Sequence[Path] = (), *, allow_code: bool = False) -> Suite:
    """Read the built-in task files and those below the ``include`` folders (a file is taken by itself).

    A file of a folder that cannot be used, or defines a task a second time, becomes an :class:`OddFile`.
    Raises UsageError for one that is named by itself, and for a broken built-in file.
    """
    builtin = builtin_folder()
    found = _Found({}, [])
    for root in (builtin, *include):
        if not root.exists():
            raise UsageError(f"{root}: no such folder of task files")
        files = task_files(root)
        if root == builtin and not found.tasks:
            kept = _BUILTIN.get(files, functools.partial(_add, _Found({}, []), builtin, files, strict=True))
            found = _Found(dict(kept.tasks), list(kept.odd))
        else:
            _add(found, root, files, strict=root.is_file() or root == builtin)
    tasks, odd = found.tasks, found.odd
    trusted = (builtin, *include) if allow_code else (builtin,)
    order = {domain: i for i, domain in enumerate(DOMAINS)}
    ordered = sorted(
        tasks.values(), key=lambda s: (order.get(s.domain, len(order)), s.domain, s.path, s.name)
    )
    return Suite({s.name: s for s in ordered}, tuple(p.resolve() for p in trusted), tuple(odd))


@dataclass(frozen=True, slots=True)
class _Found:
    """The task files of some folders."""

    tasks: dict[str, TaskSpec]
    odd: list[OddFile]


_BUILTIN: Unchanged[_Found] = Unchanged()
"""The built-in task files: each call of ``evaluate`` asks for them, and they seldom change meanwhile."""


def _add(found: _Found, root: Path, files: Sequence[Path], *, strict: bool) -> _Found:
    """Add the task files of ``root`` to what was found, and return it. ``strict``: none may be broken."""
    for file in files:
        try:
            spec = load_spec(file, root=root.parent if root.is_file() else root)
            if spec.name in found.tasks:
                first = found.tasks[spec.name].path
                raise UsageError(f"{spec.line('task')}: task {spec.name!r} is already defined in {first}")
            found.tasks[spec.name] = spec
        except UsageError as error:
            if strict and (root.is_file() or not isinstance(error, NoTaskError)):
                raise
            found.odd.append(odd_file(file, root, error))
    return found


def task_files(root: Path) -> list[Path]:
    """Return the task files of a folder and those below it, or the file itself. As in lm-eval, copies that
    notebooks keep are left out."""
    if root.is_file():
        return [root]
    return sorted(file for file in root.rglob("*.yaml") if _NOT_READ.isdisjoint(file.parts))


def odd_file(file: Path, root: Path, error: UsageError) -> OddFile:
    """Describe a file that is no task."""
    try:
        values = load_yaml(file, root=root.parent if root.is_file() else root).values
    except UsageError:
        return OddFile(file, str(error))
    if isinstance(error, NoTaskError):
        group = str(values["group"]) if error.group else None
        return OddFile(file, str(error), group, harmless=True)
    tag = values.get("tag") or ()
    tags = (tag,) if isinstance(tag, str) else tuple(map(str, tag)) if isinstance(tag, list) else ()
    return OddFile(file, str(error), str(values.get("task")), tags)
