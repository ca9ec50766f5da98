"""A task as written: the checked contents of its YAML file, before any data or model is touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.scoring.generation import ANSWER_TYPES, METRICS
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.tasks.yaml_loader import FunctionRef, LoadedYaml, load_yaml

GENERATED, LIKELIHOOD = "cme", "cme_ll"
"""Tags of the two forms: generated and extracted as the paper does; likelihood of the choices."""

OutputType = Literal["generate_until", "multiple_choice", "loglikelihood", "loglikelihood_rolling"]
OUTPUT_TYPES = ("generate_until", "multiple_choice", "loglikelihood")

# The keys of lm-eval's TaskConfig (a test compares this list with lm-eval's), and those its loader adds.
TASK_KEYS = frozenset(
    """task task_alias tag custom_dataset dataset_path dataset_name dataset_kwargs training_split
    validation_split test_split fewshot_split process_docs doc_to_text doc_to_target doc_to_image
    doc_to_audio unsafe_code doc_to_choice process_results use_prompt description target_delimiter
    fewshot_delimiter fewshot_config num_fewshot output_type generation_kwargs repeats metric_list
    filter_list should_decontaminate doc_to_decontamination_query gen_prefix metadata""".split()
)
LOADER_KEYS = frozenset({"include", "class"})
METADATA_KEYS = frozenset(
    """version domain dataset folder splits primary answer fewshot_group cluster items random_baseline licence
    citation note""".split()
)
ANSWER_KEYS = frozenset({"type", "options", "decimal"})

Fail: TypeAlias = Callable[[str, str], NoReturn]
"""Raises UsageError: (key, message)."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_TEXT, _NUMBER, _TABLE, _LIST = "a text", "a number of 0 or more", "a mapping", "a list"
_TEXT_OR_CODE = "a text or !function"
_SHAPES = {
    **dict.fromkeys(
        ("training_split", "validation_split", "test_split", "fewshot_split", "dataset_name"), _TEXT
    ),
    **dict.fromkeys(("description", "target_delimiter", "fewshot_delimiter", "task_alias"), _TEXT),
    **dict.fromkeys(("dataset_kwargs", "fewshot_config", "generation_kwargs"), _TABLE),
    **dict.fromkeys(("process_docs", "doc_to_text"), _TEXT_OR_CODE),
    "num_fewshot": _NUMBER,
    "filter_list": _LIST,
    **dict.fromkeys((f"metadata.{key}" for key in ("domain", "dataset", "primary", "fewshot_group")), _TEXT),
    **dict.fromkeys((f"metadata.{key}" for key in ("cluster", "licence", "citation", "note")), _TEXT),
    "metadata.folder": _TEXT,
    "metadata.splits": _TABLE,
    "metadata.items": _NUMBER,
    "metadata.random_baseline": _NUMBER,
}
"""What the value of a key must be, where it is given at all."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of the suite.

    ``domain``: its evaluation task in CME's sense; ``dataset``: the dataset it belongs to (several tasks may
    share one, as ANLI's rounds do); ``folder``: the folder its rows lie in under ``--data``; ``primary``: the
    metric that stands for it in tables.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    where: Mapping[str, str]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}

    @property
    def output_type(self) -> str:
        return str(self.config.get("output_type", "generate_until"))

    @property
    def tags(self) -> tuple[str, ...]:
        tag = self.config.get("tag") or ()
        return (tag,) if isinstance(tag, str) else tuple(tag)

    @property
    def in_cme(self) -> bool:
        """Whether it is one of CME's own tasks, over which CME's averages are taken."""
        return not {GENERATED, LIKELIHOOD}.isdisjoint(self.tags)

    @property
    def items(self) -> int | None:
        """Items of the evaluation split as published, where the file says so."""
        items = self.metadata.get("items")
        return None if items is None else int(items)

    @property
    def domain(self) -> str:
        return str(self.metadata.get("domain", "other"))

    @property
    def dataset(self) -> str:
        return str(self.metadata.get("dataset", self.name))

    @property
    def folder(self) -> str:
        return str(self.metadata.get("folder", self.dataset))

    @property
    def primary(self) -> str:
        """The metric that stands for the task in tables, by its formula's name."""
        if "primary" in self.metadata:
            name = str(self.metadata["primary"])
        elif answer := self.metadata.get("answer"):
            name = METRICS[answer["type"]][0]
        else:
            name = str((self.config.get("metric_list") or [{"metric": "acc"}])[0]["metric"])
        return LM_EVAL_ALIASES.get(name, name)

    @property
    def eval_split(self) -> str:
        """The split that is scored, by its name on the hub: test if there is one, else validation."""
        return str(self.config.get("test_split") or self.config.get("validation_split"))

    @property
    def fewshot_split(self) -> str | None:
        split = self.config.get("fewshot_split") or (self.config.get("fewshot_config") or {}).get("split")
        return None if split is None else str(split)

    @property
    def num_fewshot(self) -> int:
        return int(self.config.get("num_fewshot") or 0)

    def file_stem(self, split: str) -> str:
        """Name without suffix of the file that holds ``split`` in a data folder."""
        return str((self.metadata.get("splits") or {}).get(split, split))

    def line(self, key: str) -> str:
        """``file:line`` of a key, for messages."""
        return self.where.get(key, str(self.path))


def load_spec(path: Path, *, root: Path) -> TaskSpec | None:
    """The task in ``path``, or None if the file is only there to be included (it names no task).

    Raises UsageError naming file and line for unknown keys (with the nearest valid one) and bad values.
    """
    loaded = load_yaml(path, root=root)
    if "task" not in loaded.values:
        if not path.name.startswith("_"):
            raise UsageError(f"{path}:1: no 'task' key (files that are only included begin with '_')")
        return None
    check_config(loaded, path)
    return TaskSpec(str(loaded.values["task"]), path, loaded.values, loaded.where)


def check_config(loaded: LoadedYaml, path: Path) -> None:
    """Keys known, values of a sensible shape, an evaluation split present; UsageError with file and line."""
    values = loaded.values
    metadata = values.get("metadata") or {}

    def fail(key: str, message: str) -> NoReturn:
        place = loaded.where.get(key) or loaded.where.get(key.partition(".")[0]) or path
        raise UsageError(f"{place}: {message}")

    _check_keys("", values, TASK_KEYS | LOADER_KEYS, fail)
    if not isinstance(metadata, Mapping):
        fail("metadata", "'metadata' must be a mapping")
    _check_keys("metadata.", metadata, METADATA_KEYS, fail)
    for key, shape in _SHAPES.items():
        top, _, below = key.partition(".")
        value = metadata.get(below) if below else values.get(top)
        if value is not None and not _has_shape(value, shape):
            fail(key, f"{key!r} must be {shape}, not {value!r}")
    _check_names(values, metadata, fail)
    _check_answer(metadata.get("answer"), fail)
    _check_question(values, fail)


def _check_keys(prefix: str, values: Mapping[str, Any], known: frozenset[str], fail: Fail) -> None:
    for key in values:
        if key not in known:
            fail(f"{prefix}{key}", f"unknown key {prefix + str(key)!r}{did_you_mean(str(key), known)}")


def _check_answer(answer: Any, fail: Fail) -> None:
    """``metadata.answer``: how a generated response is read."""
    key = "metadata.answer"
    if answer is None:
        return
    if not isinstance(answer, Mapping):
        fail(key, f"'{key}' must be a mapping with a 'type'")
    for part in answer:
        if part not in ANSWER_KEYS:
            fail(key, f"unknown key '{key}.{part}'{did_you_mean(str(part), ANSWER_KEYS)}")
    if answer.get("type") not in ANSWER_TYPES:
        fail(key, f"answer type {answer.get('type')!r} is none of {', '.join(ANSWER_TYPES)}")
    if answer.get("decimal") not in (None, "point", "comma"):
        fail(key, f"'{key}.decimal' is {answer['decimal']!r}, not 'point' or 'comma'")


def _check_question(values: Mapping[str, Any], fail: Fail) -> None:
    """What is asked, of which split, and how it is scored."""
    output_type = values.get("output_type", "generate_until")
    if output_type not in OUTPUT_TYPES:
        hint = did_you_mean(str(output_type), OUTPUT_TYPES)
        fail("output_type", f"output_type {output_type!r} is none of {', '.join(OUTPUT_TYPES)}{hint}")
    if not (values.get("test_split") or values.get("validation_split")):
        fail("task", "no test_split and no validation_split: nothing to evaluate")
    choices = values.get("doc_to_choice")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, str):
            fail("doc_to_choice", f"choice {choice!r} is no text: quote it (YAML reads yes as true)")
    for key in ("doc_to_text", "doc_to_target"):
        if key not in values and "use_prompt" not in values and "class" not in values:
            fail("task", f"no {key!r}")
    metrics = values.get("metric_list")
    if metrics is not None and not (
        isinstance(metrics, list)
        and metrics
        and all(isinstance(m, Mapping) and "metric" in m for m in metrics)
    ):
        fail("metric_list", "'metric_list' must be a list of mappings with a 'metric'")


def _has_shape(value: Any, shape: str) -> bool:
    match shape:
        case "a text":
            return isinstance(value, str)
        case "a text or !function":
            return isinstance(value, str | FunctionRef)
        case "a number of 0 or more":
            return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        case "a mapping":
            return isinstance(value, Mapping)
        case _:
            return isinstance(value, list)


def _check_names(values: Mapping[str, Any], metadata: Mapping[str, Any], fail: Fail) -> None:
    """Names that become parts of paths stay single names; nothing asks for code of the hub or the model."""
    name, tag = values["task"], values.get("tag")
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        fail("task", f"task name {name!r} is no plain name (letters, digits, '_', '-', '.')")
    tags = tag if isinstance(tag, list) else [tag or ""]
    if not all(isinstance(t, str) for t in tags):
        fail("tag", f"'tag' must be a text or a list of texts, not {tag!r}")
    path = values.get("dataset_path")
    if path is not None and not (isinstance(path, str) and _DATASET.fullmatch(path)):
        fail("dataset_path", f"dataset_path {path!r} is no hub id ('owner/name'), json, csv or parquet")
    if "trust_remote_code" in (values.get("dataset_kwargs") or {}):
        fail("dataset_kwargs", "trust_remote_code: data-set scripts are never run")
    if values.get("unsafe_code"):
        fail("unsafe_code", "unsafe_code: code that a model writes is never run")
    folder = metadata.get("folder", metadata.get("dataset", name))
    splits = metadata.get("splits") or {}
    for key, part in [("folder", folder), *(("splits", stem) for stem in splits.values())]:
        if not isinstance(part, str) or not PLAIN_NAME.fullmatch(part):
            fail(f"metadata.{key}", f"'metadata.{key}': {part!r} is no plain name and could lead elsewhere")
