"""From a task file and rows to a task that can be asked: lm-eval's object, its rows and its hash."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import logging
import random
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.harness.cme_task import CmeTask, LmEvalTask
from cme_bench.harness.row_images import RowImages
from cme_bench.harness.sandbox import refuse_hub_code, sandbox_templates
from cme_bench.harness.task_index import local_function
from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.images.image import ImageError
from cme_bench.tasks.exemplars import ExemplarPool, place_of_exemplars
from cme_bench.tasks.identity import canonical
from cme_bench.tasks.image_rows import pixels_hash, with_images
from cme_bench.tasks.open_source import source_of
from cme_bench.tasks.plain_table import real_table
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import LOADER_KEYS, TaskSpec
from cme_bench.tasks.suite import Suite
from cme_bench.tasks.trial import check_scoring
from cme_bench.util.errors import UsageError, first_line, template_problem

_OUR_FUNCTIONS = frozenset({"cme_bench.tasks.cme_task.CmeTask", "cme_bench.tasks.docs.drop_unlabelled"})
"""Functions that the built-in files name, so that a copy of one needs no --allow-code."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its rows. ``identity`` computes its hash."""

    spec: TaskSpec
    lm_eval: LmEvalTask
    rows: Rows
    shots: int
    identity: Callable[[], str]
    revision: str | None
    pool: ExemplarPool | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def hash(self) -> str:
        """sha256 over everything that decides its scores except the model and the prompt format: templates,
        shots, delimiters, filters, metrics, the rows themselves and the pixels of their images.

        It is computed when it is first asked for. ImageError, with the row's place, for an image that cannot
        be read.
        """
        return self.identity()

    @property
    def docs(self) -> Any:
        """The rows that are scored, in order; an item's id is its index here."""
        return self.lm_eval.task_docs

    def place(self, index: int) -> str:
        """Return the place of row ``index``, for messages."""
        kept_all = len(self.docs) == len(self.rows.table)
        return self.rows.place(index) if kept_all else f"{self.rows.origin} (row {index} after filtering)"

    def seed_fewshot(self, seed: int, index: int) -> None:
        """Make the exemplars of item ``index`` depend on (seed, task, index) only. They are then the same for
        any limit, order or number of workers."""
        if hasattr(self.lm_eval, "sampler"):
            digest = hashlib.sha256(f"{seed}:{self.name}:{index}".encode()).digest()
            self.lm_eval.sampler.rnd = random.Random(int.from_bytes(digest[:8], "big"))

    def exemplars(self, seed: int, index: int) -> list[int]:
        """Return the numbers, in the few-shot split or the file, of the exemplars that item ``index`` is
        shown."""
        if self.pool is None:
            return []
        self.seed_fewshot(seed, index)
        self.lm_eval.fewshot_context(self.docs[index], self.shots)
        return list(self.pool.drawn)


def build_task(spec: TaskSpec, suite: Suite, source: DataSource, *, shots: int | None = None) -> Task:
    """Load the rows ``spec`` needs and make lm-eval's task from them.

    ``shots`` overrides the file's ``num_fewshot``. Raises UsageError for missing splits, templates that do
    not fit the rows, and ``!function`` from a folder that is not trusted.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sandbox_templates()
    source = source_of(spec, source)
    shots = spec.num_fewshot if shots is None else shots
    eval_rows = source.rows(spec, spec.eval_split)
    shot_rows = _shot_rows(spec, source, shots)
    config = _resolve_functions(_lm_eval_config(spec, shots), spec, suite)
    if (named := _resolve_functions(spec.config.get("doc_to_image"), spec, suite)) is not None:
        eval_rows, config["row_images"] = with_images(eval_rows, named)
        if shot_rows is None:
            config["shot_images"] = RowImages(named, _samples_folder(spec))
        else:
            shot_rows, config["shot_images"] = with_images(shot_rows, named)
    splits = {spec.eval_split: eval_rows.table}
    if shot_rows is not None and spec.fewshot_split is not None:
        splits[spec.fewshot_split] = shot_rows.table
    if _has_code(spec.config):  # which may do anything with a table
        splits = {name: real_table(table) for name, table in splits.items()}
    config["custom_dataset"] = lambda **_: splits
    lm_task = _make(spec, suite, config, eval_rows)
    pool = _pool(spec, lm_task, shots, shot_rows) if shots else None
    identity = functools.cache(lambda: _hash(task, shot_rows))
    task = Task(spec, lm_task, eval_rows, shots, identity, source.revision(spec), pool)
    if not spec.in_cme:
        check_scoring(task)
    return task


def _hash(task: Task, shot_rows: Rows | None) -> str:
    lm_task = task.lm_eval
    images, shot_images = lm_task.row_images, lm_task.shot_images
    columns = frozenset() if images is None else images.columns
    digest = hashlib.sha256(canonical(task.spec.config))
    digest.update(f"shots={task.shots};rows={task.rows.fingerprint(columns)}".encode())
    if shot_rows is not None:
        digest.update(shot_rows.fingerprint(columns).encode())
    if images is not None:
        digest.update(f"images={pixels_hash(task.docs, images, task.place)}".encode())
    if task.pool is not None and shot_images is not None:
        digest.update(f"images={pixels_hash(task.pool.rows, shot_images, task.pool.place)}".encode())
    return digest.hexdigest()


def _shot_rows(spec: TaskSpec, source: DataSource, shots: int) -> Rows | None:
    """Return the rows that exemplars come from; None if they stand in the task file. UsageError if they come
    from nowhere."""
    if not shots or spec.samples is not None:
        return None
    if spec.fewshot_split is None:
        raise UsageError(
            f"{spec.line('num_fewshot')}: {shots} shots asked for, but the task names no fewshot_split"
        )
    return source.rows(spec, spec.fewshot_split)


def _samples_folder(spec: TaskSpec) -> Path:
    """Return where the paths of exemplars begin that stand in the task file."""
    place = spec.line("fewshot_config.samples")
    return Path(place.rpartition(":")[0] or place).parent


def _lm_eval_config(spec: TaskSpec, shots: int) -> dict[str, Any]:
    """Return lm-eval's configuration of the task: with the splits that are loaded, and nothing that loads
    others."""
    left_out = {
        *LOADER_KEYS,
        "doc_to_image",
        "tag",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "fewshot_split",
    }
    left_out |= set() if shots else {"fewshot_config"}
    config = copy.deepcopy({k: v for k, v in spec.config.items() if k not in left_out})
    # lm-eval takes an item out of its exemplars if their split is the test split, not if it is another one
    config |= {"num_fewshot": shots, "test_split": spec.eval_split}
    if spec.prompt_format is not None:  # the run puts it around the question, or another one
        config["metadata"] = {key: value for key, value in spec.metadata.items() if key != "format"}
    if shots:
        fewshot = dict(config.get("fewshot_config") or {})
        fewshot.pop("split", None)
        config["fewshot_config"] = fewshot | (
            {} if spec.fewshot_split is None else {"split": spec.fewshot_split}
        )
    return config


def _make(spec: TaskSpec, suite: Suite, config: dict[str, Any], rows: Rows) -> LmEvalTask:
    """Return lm-eval's task object, which tries out the first row. UsageError if the row does not fit."""
    make = _resolve_functions(spec.config.get("class"), spec, suite) or CmeTask
    if not (isinstance(make, type) and issubclass(make, CmeTask)):
        raise UsageError(f"{spec.line('class')}: class: {make} is none on cme_bench.tasks.cme_task.CmeTask")
    try:
        return make(config=config)
    except ImageError as error:
        raise ImageError(f"{rows.place(0)}: task {spec.name}: {error}") from error
    except UsageError:
        raise
    except Exception as error:  # lm-eval and Jinja raise anything when a template does not fit the rows
        reason = _trial_problem(error) or template_problem(error)
        raise UsageError(f"{rows.place(0)}: task {spec.name} ({spec.path}) does not fit: {reason}") from error


def _trial_problem(error: BaseException) -> str:
    """Describe an error that lm-eval raised in trying out the first row, by where it was raised."""
    if not isinstance(error, IndexError | TypeError):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = next(
        (f.f_locals for f in frames if "check_choices" in f.f_locals or "test_target" in f.f_locals), {}
    )
    choices, target = last.get("test_choice"), last.get("test_target")
    if "check_choices" in last and isinstance(choices, list) and "" in choices:
        return f"option {choices.index('') + 1} is empty"
    if isinstance(choices, list) and None in choices:
        return f"option {choices.index(None) + 1} is null"
    if isinstance(error, IndexError) and isinstance(choices, list) and isinstance(target, int):
        return f"label {target} is out of range: there are {len(choices)} choices"
    return ""


def _pool(spec: TaskSpec, lm_task: LmEvalTask, shots: int, rows: Rows | None) -> ExemplarPool:
    """Return the exemplars; check that there are enough."""
    own_rows = spec.fewshot_split == spec.eval_split
    count = len(lm_task.sampler.fewshot_docs())
    pool = ExemplarPool(lm_task, spec.name, place_of_exemplars(spec, rows, count))
    origin = spec.line("fewshot_config.samples") if rows is None else rows.origin
    pool.check_enough(shots, own_rows=own_rows, origin=origin)
    return pool


def _has_code(value: Any) -> bool:
    """Return whether a configuration names a function that is not ours."""
    if isinstance(value, FunctionRef):
        return value.is_local or value.name not in _OUR_FUNCTIONS
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, list) and any(map(_has_code, value))


def _resolve_functions(value: Any, spec: TaskSpec, suite: Suite) -> Any:
    """Return ``value`` with every FunctionRef in it imported."""
    if isinstance(value, FunctionRef):
        return _import(value, spec, suite)
    if isinstance(value, dict):
        return {k: _resolve_functions(v, spec, suite) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve_functions(v, spec, suite) for v in value]
    return value


def _import(ref: FunctionRef, spec: TaskSpec, suite: Suite) -> Any:
    if not suite.trusts(spec) and _has_code(ref):
        raise UsageError(f"{ref.file}:{ref.line}: {ref} is Python code; it runs only with --allow-code")
    module, _, name = ref.name.rpartition(".")
    if ref.name not in _OUR_FUNCTIONS:
        refuse_hub_code()
    try:
        if ref.is_local:
            return local_function(ref.name, ref.file.parent)
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise UsageError(f"{ref.file}:{ref.line}: {ref} cannot be imported ({first_line(error)})") from error
