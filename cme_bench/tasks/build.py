"""From a task file and rows to a task that can be asked: lm-eval's object, its rows and its hash."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import random
from dataclasses import dataclass
from typing import Any

from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.tasks.cme_task import CmeTask
from cme_bench.tasks.identity import canonical
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sandbox import sandbox_templates
from cme_bench.tasks.sources import DataSource, source_of
from cme_bench.tasks.spec import LOADER_KEYS, TaskSpec
from cme_bench.tasks.suite import Suite
from cme_bench.tasks.yaml_loader import FunctionRef

_OUR_FUNCTIONS = frozenset({"cme_bench.tasks.cme_task.CmeTask", "cme_bench.tasks.docs.drop_unlabelled"})
"""What the built-in files name, so that a copy of one needs no --allow-code."""
_FALLBACK_SHOTS_KEYS = ("fewshot_split", "fewshot_config")


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its rows. ``hash``: sha256 over everything that decides its scores except the model and
    the prompt format: templates, shots, delimiters, filters, metrics and the rows themselves."""

    spec: TaskSpec
    lm_eval: ConfigurableTask
    rows: Rows
    shots: int
    hash: str
    revision: str | None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def docs(self) -> Any:
        """The rows that are scored, in order; an item's id is its index here."""
        return self.lm_eval.task_docs

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for messages."""
        kept_all = len(self.docs) == len(self.rows.table)
        return self.rows.place(index) if kept_all else f"{self.rows.origin} (row {index} after filtering)"

    def seed_fewshot(self, seed: int, index: int) -> None:
        """Make the exemplars of item ``index`` depend on (seed, task, index) only, so that they are the same
        for any limit, order or number of workers."""
        if hasattr(self.lm_eval, "sampler"):
            digest = hashlib.sha256(f"{seed}:{self.name}:{index}".encode()).digest()
            self.lm_eval.sampler.rnd = random.Random(int.from_bytes(digest[:8], "big"))

    def exemplars(self, seed: int, index: int) -> list[int]:
        """Places in the few-shot split of the exemplars that item ``index`` is shown, in order."""
        if not self.shots:
            return []
        sampler = self.lm_eval.sampler
        drawn: list[Any] = []
        draw = sampler.sample

        def listen(*args: Any, **kwargs: Any) -> Any:
            drawn.extend(draw(*args, **kwargs))
            return list(drawn)

        sampler.sample = listen
        try:
            self.seed_fewshot(seed, index)
            self.lm_eval.fewshot_context(self.docs[index], self.shots)
        finally:
            del sampler.sample  # the method of its class is seen again
        every = list(self.lm_eval.fewshot_docs())
        return [every.index(row) for row in drawn]


def build_task(spec: TaskSpec, suite: Suite, source: DataSource, *, shots: int | None = None) -> Task:
    """Load the rows ``spec`` needs and make lm-eval's task from them.

    ``shots`` overrides the file's ``num_fewshot``. Raises UsageError for missing splits, templates that do
    not fit the rows, and ``!function`` from a folder that is not trusted.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sandbox_templates()
    _check_metrics(spec)
    source = source_of(spec, source)
    shots = spec.num_fewshot if shots is None else shots
    eval_rows = source.rows(spec, spec.eval_split)
    splits = {spec.eval_split: eval_rows.table}
    digest = hashlib.sha256(canonical(spec.config))
    digest.update(f"shots={shots};rows={eval_rows.fingerprint()}".encode())
    config = {k: v for k, v in spec.config.items() if k not in LOADER_KEYS | {"tag"}}
    if shots:
        if spec.fewshot_split is None:
            raise UsageError(f"{spec.path}: {shots} shots asked for, but the task names no fewshot_split")
        shot_rows = source.rows(spec, spec.fewshot_split)
        splits[spec.fewshot_split] = shot_rows.table
        digest.update(shot_rows.fingerprint().encode())
    else:
        config = {k: v for k, v in config.items() if k not in _FALLBACK_SHOTS_KEYS}
    config = _resolve_functions(copy.deepcopy(config), spec, suite)
    config |= {"num_fewshot": shots, "custom_dataset": lambda **_: splits}
    make = _resolve_functions(spec.config.get("class"), spec, suite) or CmeTask
    try:
        task = make(config=config)
    except UsageError:
        raise
    except Exception as err:  # lm-eval and Jinja raise anything when a template does not fit the rows
        # it tries out the first row, and a label out of range is an IndexError there
        place = eval_rows.place(0)
        reason = "label is out of range" if isinstance(err, IndexError) else _one_line(err)
        raise UsageError(f"{place}: task {spec.name} ({spec.path}) does not fit: {reason}") from err
    return Task(spec, task, eval_rows, shots, digest.hexdigest(), source.revision(spec))


def _check_metrics(spec: TaskSpec) -> None:
    """Metrics known to lm-eval, by name: an unknown one it would fetch from the hub as code, and run."""
    if spec.metadata.get("answer") or spec.config.get("process_results"):
        return  # scored without lm-eval's metrics
    for entry in spec.config.get("metric_list") or ():
        name = entry["metric"]
        if isinstance(name, FunctionRef):
            continue
        if name not in metric_registry:
            known = list(metric_registry)
            raise UsageError(
                f"{spec.line('metric_list')}: unknown metric {name!r}{did_you_mean(str(name), known)}"
            )
        if entry.get("hf_evaluate"):
            raise UsageError(
                f"{spec.line('metric_list')}: metric {name!r}: code of the hub is not run (hf_evaluate)"
            )


def _resolve_functions(value: Any, spec: TaskSpec, suite: Suite) -> Any:
    """``value`` with every FunctionRef in it imported."""
    if isinstance(value, FunctionRef):
        return _import(value, spec, suite)
    if isinstance(value, dict):
        return {k: _resolve_functions(v, spec, suite) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve_functions(v, spec, suite) for v in value]
    return value


def _import(ref: FunctionRef, spec: TaskSpec, suite: Suite) -> Any:
    if not suite.trusts(spec) and (ref.is_local or ref.name not in _OUR_FUNCTIONS):
        raise UsageError(f"{ref.file}:{ref.line}: {ref} is Python code; it runs only with --allow-code")
    module, _, name = ref.name.rpartition(".")
    try:
        if ref.is_local:
            from lm_eval.tasks._yaml_loader import _import_func_in_yml

            return _import_func_in_yml(ref.name, ref.file.parent)
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as err:
        raise UsageError(f"{ref.file}:{ref.line}: {ref} cannot be imported ({err})") from err


def _one_line(err: BaseException) -> str:
    text = str(err).strip().splitlines()
    return f"{type(err).__name__}: {text[0]}" if text else type(err).__name__
