"""The task files of the installed lm-eval: what becomes of each, and rows made up to their templates."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from lm_eval import utils

from cme_bench.harness.task_index import tasks_folder
from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.tasks.lm_eval_tasks import _spec
from cme_bench.tasks.spec import NoTaskError, TaskSpec
from cme_bench.tasks.suite import load_suite, task_files
from cme_bench.util.errors import UsageError

REASONS = (
    ("code of the hub is not run", "a metric of the hub (`hf_evaluate`)"),
    ("no beam search", "beam search"),
    ("whole texts are not scored", "`loglikelihood_rolling`"),
    ("a model of a server judges", "answers that a model of a server judges"),
    ("sound is not played", "sound (`doc_to_audio`)"),
    ("code that a model writes", "`unsafe_code`"),
    ("a Python class of lm-eval", "a Python class (`class`)"),
    ("rows that code makes", "rows made by code (`custom_dataset`)"),
    ("is no hub id", "rows made by code (`custom_dataset`)"),
    ("unknown filter", "a filter that lm-eval does not register"),
    ("dataset_kwargs.", "rows of another commit or with other types (`dataset_kwargs`)"),
    ("no 'task' key", "no task: only there to be included"),
    ("unknown metric", "a metric that lm-eval does not have"),
    ("names no aggregation", "a metric without an aggregation"),
    ("takes no 'high_is_better'", "an unknown option of a metric"),
)
"""What a refusal says -> its kind in docs/tasks.md."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The tasks that can be run, and how many files are refused for each kind of reason."""

    honoured: tuple[TaskSpec, ...]
    refused: Counter[str]
    groups: int


def survey() -> Survey:
    """Resolve every file of the installed lm-eval; nothing is built or fetched."""
    honoured: list[TaskSpec] = []
    refused: Counter[str] = Counter()
    groups = 0
    ours = list(load_suite().tasks.values())
    for file in task_files(tasks_folder()):
        try:
            honoured.append(_spec(file, tasks_folder(), ours, {}))
        except NoTaskError as err:
            groups += err.group
        except UsageError as err:
            assert "\n" not in str(err)
            kinds = [kind for part, kind in REASONS if part in str(err)]
            assert kinds, f"a new reason: {err}"
            refused[kinds[0]] += 1
    return Survey(tuple(honoured), refused, groups)


def kind_of(spec: TaskSpec) -> tuple[Any, ...]:
    """What distinguishes a task for us: its keys, metrics, filters and settings, not its texts."""
    config = spec.config
    metrics = tuple(
        (str(m["metric"]), str(m.get("aggregation")), *sorted(map(str, m.keys())))
        for m in config.get("metric_list") or ()
    )
    filters = tuple(
        (str(step["function"]), *sorted(step))
        for pipeline in config.get("filter_list") or ()
        for step in pipeline["filter"]
    )
    shapes = tuple(
        (key, type(config[key]).__name__, isinstance(config[key], FunctionRef))
        for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs", "process_results")
        if key in config
    )
    fewshot = tuple(sorted(config.get("fewshot_config") or {}))
    generation = tuple(sorted(config.get("generation_kwargs") or {}))
    keys = tuple(sorted(config.keys() - {"dataset_name", "task", "dataset_kwargs"}))
    return spec.output_type, metrics, filters, shapes, fewshot, generation, keys


def uses_code(value: Any) -> bool:
    """Whether a function of the task's own stands anywhere in a config."""
    if isinstance(value, FunctionRef):
        return True
    if isinstance(value, Mapping):
        return any(uses_code(part) for part in value.values())
    return isinstance(value, list) and any(uses_code(part) for part in value)


class Columns:
    """Columns that templates ask for, with a guess of what each holds, from how it is used."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.lists: set[str] = set()
        self.tables: dict[str, set[str]] = {}
        self.numbers: set[str] = set()
        self.texts: set[str] = set()
        for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"):
            value = config.get(key)
            for template in (value,) if isinstance(value, str) else value if isinstance(value, list) else ():
                self._read(key, str(template))

    def _read(self, key: str, template: str) -> None:
        if re.fullmatch(r"[A-Za-z_]\w*", template):  # the name of a column, or a fixed text
            if key == "doc_to_choice":
                self.lists.add(template)
            elif key == "doc_to_target" and self.config.get("doc_to_choice") is not None:
                self.numbers.add(template)
            elif key in ("doc_to_text", "doc_to_target"):
                self.texts.add(template)
            return
        tree = utils.env.parse(template)
        bound = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "store"}
        names = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"} - bound
        self.texts |= names - {"range", "loop", "zip", "enumerate"}
        for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
            self._read_part(node, bound)
        for loop in tree.find_all(nodes.For):
            if isinstance(loop.iter, nodes.Name) and loop.iter.name not in bound:
                self.lists.add(loop.iter.name)
        for test in tree.find_all(nodes.Filter):
            if test.name in ("join", "length", "first", "last") and isinstance(test.node, nodes.Name):
                self.lists.add(test.node.name)

    def _read_part(self, node: Any, bound: set[str]) -> None:
        if not isinstance(node.node, nodes.Name) or node.node.name in bound:
            return
        name = node.node.name
        if isinstance(node, nodes.Getattr):
            if node.attr not in (
                "strip",
                "split",
                "lower",
                "replace",
                "capitalize",
                "index",
                "rstrip",
                "lstrip",
                "items",
                "keys",
                "upper",
                "title",
                "format",
                "startswith",
                "endswith",
            ):
                self.tables.setdefault(name, set()).add(node.attr)
            return
        part = node.arg.value if isinstance(node.arg, nodes.Const) else None
        if isinstance(part, str):
            self.tables.setdefault(name, set()).add(part)
        elif isinstance(node.arg, nodes.Name) and not isinstance(node.node, nodes.Const):
            self.lists.add(name)
            self.numbers.add(node.arg.name)
        else:
            self.lists.add(name)

    def rows(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows that differ; a list has four texts, a number is one of its places."""
        for i in range(count):
            row: dict[str, Any] = {"row_number": i}  # there are rows, even where no template names a column
            for name in sorted(self.texts | self.lists | self.numbers | self.tables.keys()):
                row[name] = self._value(name, i)
            yield row

    def _value(self, name: str, i: int) -> Any:
        words = [f"{name} {chr(97 + k)}{i}" for k in range(4)]
        if name in self.tables:
            return {
                part: words if part in _LISTS else f"{name} {part} {i}" for part in sorted(self.tables[name])
            }
        if name in self.lists:
            return words
        if name in self.numbers or name in _NUMBERS:
            return i % 2
        return f"{name} {i}"


_LISTS = frozenset({"text", "label", "choices", "endings", "texts"})
_NUMBERS = frozenset({"label", "labels", "answer_index", "gold", "answer_idx", "correct", "answerKey_index"})


def guesses(config: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Rows for a task, in several readings of its right answer: a number, a letter, a text."""
    columns = Columns(config)
    rows = list(columns.rows(6))
    yield rows
    target = config.get("doc_to_target")
    named = [n for n in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", str(target))) if rows and n in rows[0]]
    readings = (("A", "B"), (0, 1), (1, 2), ("0", "1"), ("1", "2"), ("yes", "no"), ("a", "b"), (True, False))
    for name, values in itertools.product(named, readings):
        yield [row | {name: values[i % 2]} for i, row in enumerate(rows)]


def missing_value(name: str, i: int) -> Any:
    """A value for a column that only code asks for, by its name."""
    low = name.lower()
    if any(part in low for part in ("choices", "options", "endings", "answers", "candidates", "targets")):
        return [f"{name} {chr(97 + k)}{i}" for k in range(4)]
    if any(part in low for part in ("label", "gold", "answer", "correct", "idx", "index", "target")):
        return i % 2
    return f"{name} {i}"
