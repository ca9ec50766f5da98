"""Instruction templates: how a training row of each CME dataset becomes instruction, input and output.

One YAML file a dataset in ``templates/``, read with the loader of the task files (includes, lines in errors):
``parts`` (where the rows come from), ``columns`` (texts derived from a row), ``keep`` (an expression: which
rows count), ``key`` (what makes two rows the same item), ``output`` (the answer) and at least four
``paraphrases``. ``evaluation: true`` stands for the wording of the task file itself, so it cannot drift.
Templates are Jinja in a sandbox.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, meta
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import SandboxedEnvironment

from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import Suite
from cme_bench.util.errors import UsageError, did_you_mean, first_line

FOLDER = Path(__file__).resolve().parent / "templates"
MIN_PARAPHRASES = 4
_FILE_KEYS = frozenset({"dataset", "note", "parts", "columns", "keep", "key", "output", "paraphrases"})
_PART_KEYS = frozenset({"task", "hub", "folder", "optional"})
_PARAPHRASE_KEYS = frozenset({"instruction", "input", "output", "evaluation", "when"})

Row = Mapping[str, Any]
Condition = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Prompted:
    """One row as text. ``source``: instruction and input as one message; ``target``: the answer."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One place in a data folder: ``folder`` None for the task's own; ``columns`` rename what differs."""

    folder: str | None
    stem: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TemplatePart:
    """Rows of one task: a split on the hub, or the first of ``files`` that a data folder has."""

    task: TaskSpec
    hub: str | None
    files: tuple[SplitFile, ...]
    optional: bool


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """One way to ask. ``source`` of None: the wording of the row's task file."""

    source: str | None
    output: str
    when: str | None


@dataclass(frozen=True, slots=True)
class DatasetTemplate:
    """Everything that one file in ``templates/`` says."""

    dataset: str
    domain: str
    path: Path
    note: str
    parts: tuple[TemplatePart, ...]
    columns: Mapping[str, str]
    keep: str | None
    key: str
    paraphrases: tuple[Paraphrase, ...]

    def widened(self, row: Row, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return ``row`` with the derived columns; later ones may use earlier ones."""
        wide = dict(row)
        for name, text in {**(extra or {}), **self.columns}.items():
            wide[name] = render(text, wide)
        return wide

    def sifting(self, row: Row, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return ``row`` with those derived columns alone that say whether it counts, and as which item."""
        wide = dict(row)
        texts = {**(extra or {}), **self.columns}
        for name in _needed((self.keep or "", self.key), tuple(texts.items())):
            wide[name] = render(texts[name], wide)
        return wide

    def sifter(self, extra: Mapping[str, str] | None = None) -> Sifter:
        """Return what :meth:`kept` and :meth:`item_key` say of many rows, several times faster."""
        return Sifter(self, extra or {})

    def kept(self, wide: Row) -> bool:
        """Return whether the row counts at all."""
        return self.keep is None or holds(self.keep, wide)

    def item_key(self, wide: Row) -> str:
        """Return a key that is equal for two rows of the same item."""
        return render(self.key, wide)

    def eligible(self, wide: Row) -> list[Paraphrase]:
        """Return the paraphrases that fit this row."""
        return [p for p in self.paraphrases if p.when is None or holds(p.when, wide)]

    def prompted(self, wide: Row, paraphrase: Paraphrase, task: TaskSpec) -> Prompted:
        """Return the row asked in one way; ValueError if question or answer comes out empty."""
        text = str(task.config["doc_to_text"]) if paraphrase.source is None else paraphrase.source
        source = render(text, wide)
        target = render(paraphrase.output, wide).strip()
        if not source.strip() or not target:
            raise ValueError("the template gives an empty question or answer")
        return Prompted(source, target)


class Sifter:
    """Says of one row after another whether it counts and as which item: one template for both, rendered in
    one context. A row that the template does not fit is sifted step by step, for the error or the answer."""

    def __init__(self, template: DatasetTemplate, extra: Mapping[str, str]) -> None:
        self._by_step, self._extra = template, extra
        texts = {**extra, **template.columns}
        needed = _needed((template.keep or "", template.key), tuple(texts.items()))
        columns = "".join(f"{{% set {name} %}}{texts[name]}{{% endset %}}" for name in needed)
        condition = f"{{% if {template.keep} %}}{_COUNTS}{{% endif %}}" if template.keep else _COUNTS
        self._template = _template(f"{columns}{condition}{template.key}")
        self._context = _context(self._template, {})
        read: set[str] = set()
        self._together = True  # not where a column hides a field that it, or one before it, reads
        for name in needed:
            read |= _names(texts[name])
            self._together &= name not in read

    def __call__(self, row: Row) -> tuple[bool, str]:
        """Return whether the row counts, and its item key. ValueError if the templates do not fit it."""
        if not self._together:
            return self._step_by_step(row)
        context = self._context
        context.parent = {**_environment().globals, **row}
        context.vars.clear()
        context.exported_vars.clear()
        try:
            text = "".join(self._template.root_render_func(context))
        except Exception:  # whatever it is, the steps say it in their words
            return self._step_by_step(row)
        counts = text.startswith(_COUNTS)
        return counts, text[len(_COUNTS) :] if counts else text

    def _step_by_step(self, row: Row) -> tuple[bool, str]:
        wide = self._by_step.sifting(row, self._extra)
        counts = self._by_step.kept(wide)
        return counts, self._by_step.item_key(wide)


_COUNTS = "\x00+"
"""Before the key of a row that counts."""


def load_templates(suite: Suite, folder: Path = FOLDER) -> dict[str, DatasetTemplate]:
    """Load every dataset's template by dataset name, in the order of the suite's datasets.

    Raises UsageError with file and line for unknown keys, unknown tasks and too few paraphrases.
    """
    found = {}
    for path in sorted(folder.glob("[!_]*.yaml")):
        template = _load(path, folder, suite)
        found[template.dataset] = template
    order = list(dict.fromkeys(spec.dataset for spec in suite.tasks.values()))
    return dict(sorted(found.items(), key=lambda pair: (order.index(pair[0]), pair[0])))


def _load(path: Path, folder: Path, suite: Suite) -> DatasetTemplate:
    loaded = load_yaml(path, root=folder)
    values = loaded.values

    def line(key: str) -> str:
        return loaded.where.get(key, f"{path}:1")

    _check_keys(values, _FILE_KEYS, line)
    for key in ("dataset", "parts", "key", "output", "paraphrases"):
        if key not in values:
            raise UsageError(f"{path}:1: no {key!r}")
    output = str(values["output"])
    paraphrases = tuple(_paraphrase(p, output, line("paraphrases")) for p in values["paraphrases"])
    if len(paraphrases) < MIN_PARAPHRASES:
        raise UsageError(f"{line('paraphrases')}: {len(paraphrases)} paraphrases; give {MIN_PARAPHRASES}")
    parts = tuple(_part(part, suite, line("parts")) for part in values["parts"])
    return DatasetTemplate(
        dataset=str(values["dataset"]),
        domain=parts[0].task.domain,
        path=path,
        note=str(values.get("note", "")).strip(),
        parts=parts,
        columns={str(k): str(v) for k, v in (values.get("columns") or {}).items()},
        keep=values.get("keep"),
        key=str(values["key"]),
        paraphrases=paraphrases,
    )


def _check_keys(values: Mapping[str, Any], known: frozenset[str], line: Callable[[str], str]) -> None:
    for key in values:
        if key not in known:
            raise UsageError(f"{line(key)}: unknown key {key!r}{did_you_mean(str(key), known)}")


def _part(values: Mapping[str, Any], suite: Suite, line: str) -> TemplatePart:
    _check_keys(values, _PART_KEYS, lambda _: line)
    name = str(values.get("task"))
    if name not in suite.tasks:
        raise UsageError(f"{line}: unknown task {name!r}{did_you_mean(name, suite.tasks)}")
    files = tuple(_split_file(entry) for entry in values.get("folder") or ())
    return TemplatePart(suite.tasks[name], values.get("hub"), files, bool(values.get("optional", False)))


def _split_file(entry: str | Mapping[str, Any]) -> SplitFile:
    name = entry if isinstance(entry, str) else str(entry["file"])
    folder, _, stem = name.rpartition("/")
    columns = {} if isinstance(entry, str) else dict(entry.get("columns") or {})
    return SplitFile(folder or None, stem, columns)


def _paraphrase(values: Mapping[str, Any], output: str, line: str) -> Paraphrase:
    _check_keys(values, _PARAPHRASE_KEYS, lambda _: line)
    source = None
    if not values.get("evaluation"):
        source = (
            f"{values['instruction']}\n{values['input']}" if values.get("input") else values["instruction"]
        )
    return Paraphrase(source, str(values.get("output", output)), values.get("when"))


def render(text: str, row: Row) -> str:
    """Render a Jinja template on the fields of a row. ValueError with one line if it does not fit."""
    try:
        template = _template(text)
        return "".join(template.root_render_func(_context(template, row)))
    except (TemplateError, TypeError, ArithmeticError, ValueError, LookupError, AttributeError) as err:
        raise ValueError(f"{type(err).__name__}: {first_line(err) if str(err) else text}") from err


def holds(expression: str, row: Row) -> bool:
    """Evaluate a Jinja expression on the fields of a row, as a truth value."""
    try:
        template = _expression(expression)
        context = _context(template, row)
        for _ in template.root_render_func(context):
            pass
        found = context.vars["result"]
        return not isinstance(found, Undefined) and bool(found)
    except (TemplateError, TypeError, ArithmeticError, ValueError, LookupError, AttributeError) as err:
        raise ValueError(f"{expression}: {err}") from err


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """Replace by a pattern, as lm-eval's filter of this name does, which the task files use."""
    return re.sub(pattern, replacement, text, count=count)


class _Environment(SandboxedEnvironment):
    """The sandbox, quicker with what needs no guard: a field of a row, and where a loop is."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj and not hasattr(obj, attribute):
            return obj[attribute]
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


_OF_LOOPS = frozenset({"index", "index0", "first", "last"})


@functools.cache
def _environment() -> SandboxedEnvironment:
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    return environment


@functools.lru_cache(maxsize=512)
def _needed(uses: tuple[str, str], columns: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return the columns that an expression and a template read, by way of others too, in their order."""
    expression, text = uses
    wanted = _names(f"{{{{ {expression} }}}}") | _names(text) if expression else _names(text)
    found: list[str] = []
    for name, column in reversed(columns):
        if name in wanted:
            found.append(name)
            wanted = wanted | _names(column)
    return tuple(reversed(found))


def _names(text: str) -> set[str]:
    return meta.find_undeclared_variables(_environment().parse(text))


def _context(template: Template, row: Row) -> Context:
    """Return the names that a template sees. ``render`` would copy them twice, for every row."""
    return template.new_context({**_environment().globals, **row}, shared=True)


@functools.lru_cache(maxsize=512)
def _template(text: str) -> Template:
    return _environment().from_string(text)


@functools.lru_cache(maxsize=512)
def _expression(text: str) -> Template:
    """Return a template that sets ``result`` to the value of an expression."""
    template: Template = _environment().compile_expression(text)._template
    return template


def select_datasets(templates: Mapping[str, DatasetTemplate], names: str) -> list[DatasetTemplate]:
    """Return the templates named by a comma-separated list of datasets and domains; ``all`` for every one.

    Raises UsageError for an unknown name, with the nearest known one.
    """
    known: dict[str, Sequence[str]] = {"all": list(templates)}
    for template in templates.values():
        known[template.domain] = [*known.get(template.domain, ()), template.dataset]
    known |= {name: [name] for name in templates}  # after the domains: `emotion` is both, and the same rows
    chosen: dict[str, DatasetTemplate] = {}
    for name in (n.strip() for n in names.split(",") if n.strip()):
        if name not in known:
            raise UsageError(f"unknown dataset {name!r}{did_you_mean(name, known)}")
        chosen.update((dataset, templates[dataset]) for dataset in known[name])
    if not chosen:
        raise UsageError("no dataset named")
    return list(chosen.values())
