"""A task as written: the checked contents of its YAML file, before any data or model is touched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cme_bench.harness import lm_eval_table
from cme_bench.harness.lm_eval_rules import Fail, check_rules
from cme_bench.harness.yaml_loader import FunctionRef, LoadedYaml, load_yaml
from cme_bench.prompts.alpaca import WRAPPERS
from cme_bench.scoring.generation import ANSWER_TYPES, GENERATE_UNTIL, METRICS
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.scoring.scales import SCALES
from cme_bench.util.errors import UsageError, did_you_mean

GENERATED, LIKELIHOOD = "cme", "cme_ll"
"""Tags of the two forms: generated and extracted as the paper does; likelihood of the choices."""
ADDED, ADDED_LIKELIHOOD = "cme2_adds", "cme2_adds_ll"
"""Tags of what version 2 of the suite adds to the two forms."""

TASK_KEYS = frozenset(lm_eval_table.TASK_KEYS)
LOADER_KEYS = frozenset(lm_eval_table.LOADER_KEYS)
METADATA_KEYS = frozenset(
    """version domain dataset folder splits primary answer fewshot_group cluster items random_baseline
    majority_baseline licence citation note scales format""".split()
)
"""The keys of ``metadata`` that we read; it may hold others, but none that looks like one of these."""
ANSWER_KEYS = frozenset({"type", "options", "decimal"})
_NEAR = 0.75
"""Keys of metadata as alike as this (difflib's ratio) are taken for a slip."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_OTHER_BUILDERS = frozenset(
    "text arrow pandas xml sql webdataset imagefolder audiofolder videofolder".split()
)
"""Readers of files that ``datasets`` has and we have not."""
_TEXT, _NUMBER, _TABLE, _LIST = "a text", "a number of 0 or more", "a mapping", "a list"
_COUNT = "a whole number of 0 or more"
_TEXT_OR_CODE = "a text or !function"
_SHAPES = {
    **dict.fromkeys(
        ("training_split", "validation_split", "test_split", "fewshot_split", "dataset_name"), _TEXT
    ),
    **dict.fromkeys(("description", "target_delimiter", "fewshot_delimiter", "task_alias"), _TEXT),
    **dict.fromkeys(("dataset_kwargs", "fewshot_config", "generation_kwargs"), _TABLE),
    **dict.fromkeys(("process_docs", "doc_to_text"), _TEXT_OR_CODE),
    "num_fewshot": _COUNT,
    "filter_list": _LIST,
    **dict.fromkeys((f"metadata.{key}" for key in ("domain", "dataset", "primary", "fewshot_group")), _TEXT),
    **dict.fromkeys((f"metadata.{key}" for key in ("cluster", "licence", "citation", "note")), _TEXT),
    "metadata.folder": _TEXT,
    "metadata.splits": _TABLE,
    "metadata.scales": _TABLE,
    "metadata.items": _NUMBER,
    "metadata.random_baseline": _NUMBER,
    "metadata.majority_baseline": _NUMBER,
}
"""The form of a key's value, where it is given at all."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of the suite.

    ``domain``: its evaluation task in CME's sense; ``dataset``: the dataset it belongs to (several tasks may
    share one, as ANLI's rounds do); ``folder``: the folder its rows lie in under ``--data``; ``primary``: the
    metric that stands for it in tables; ``notes``: what its file says without effect.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    where: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}

    @property
    def output_type(self) -> str:
        return str(self.config.get("output_type", GENERATE_UNTIL))

    @property
    def generated(self) -> bool:
        """Tell whether answers are texts; else choices are scored."""
        return self.output_type == GENERATE_UNTIL

    @property
    def scored_here(self) -> bool:
        """Tell whether answers are read and scored by rules of ours; else all is as in lm-eval."""
        return "class" in self.config or bool(self.metadata.get("answer"))

    @property
    def tags(self) -> tuple[str, ...]:
        tag = self.config.get("tag") or ()
        return (tag,) if isinstance(tag, str) else tuple(tag)

    @property
    def in_cme(self) -> bool:
        """Whether it is one of CME's own tasks, over which CME's averages are taken."""
        return not {GENERATED, LIKELIHOOD, ADDED, ADDED_LIKELIHOOD}.isdisjoint(self.tags)

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
            usual = "exact_match" if self.generated else "acc"  # lm-eval's, where the file names none
            name = str((self.config.get("metric_list") or [{"metric": usual}])[0]["metric"])
        return LM_EVAL_ALIASES.get(name, name)

    @property
    def prompt_format(self) -> str | None:
        """The prompt format that the task has of its own, where it has one."""
        return self.metadata.get("format")

    @property
    def eval_split(self) -> str:
        """The split that is scored, by its name on the hub: test if there is one, else validation."""
        return str(self.config.get("test_split") or self.config.get("validation_split"))

    @property
    def fewshot_split(self) -> str | None:
        """The split that exemplars come from; None where they stand in the file or come from nowhere.

        As in lm-eval: the split that is named, else the training or the validation split. The scored split
        must be named: its other rows, with their answers, are no usual exemplars.
        """
        if named := self._named_split:
            return named
        if self.samples is not None:
            return None
        split = self.config.get("training_split") or self.config.get("validation_split")
        return None if split in (None, self.eval_split) else str(split)

    @property
    def _named_split(self) -> str | None:
        config = self.config.get("fewshot_config") or {}
        split = config["split"] if "split" in config else self.config.get("fewshot_split")
        return None if split is None else str(split)

    @property
    def samples(self) -> list[Mapping[str, Any]] | FunctionRef | None:
        """Exemplars that the file itself holds; a split goes before them, as in lm-eval."""
        found: list[Mapping[str, Any]] | FunctionRef | None
        found = (self.config.get("fewshot_config") or {}).get("samples")
        return None if self._named_split else found

    @property
    def num_fewshot(self) -> int:
        return int(self.config.get("num_fewshot") or 0)

    def file_stem(self, split: str) -> str:
        """Name without suffix of the file that holds ``split`` in a data folder."""
        return self.file_stems(split)[0]

    def file_stems(self, split: str) -> tuple[str, ...]:
        """Names without suffix of the files that may hold ``split`` in a data folder: the first that is
        there does."""
        return _stems((self.metadata.get("splits") or {}).get(split, split))

    def line(self, key: str) -> str:
        """Return ``file:line`` of a key, for messages; of the mapping around it where the key has none of its
        own."""
        return place_of(self.where, key) or str(self.path)


def _stems(named: Any) -> tuple[str, ...]:
    """Return the file names of one entry of ``metadata.splits``, which is a name or a list of names."""
    return tuple(map(str, named)) if isinstance(named, list) and named else (str(named),)


class NoTaskError(UsageError):
    """The file is a good one, but defines no task: a ``group``, or what is only there to be included."""

    def __init__(self, message: str, *, group: bool = False) -> None:
        super().__init__(message)
        self.group = group


def place_of(where: Mapping[str, str], key: str) -> str | None:
    """Return ``file:line`` of a dotted key, or of the nearest key around it."""
    while key:
        if key in where:
            return where[key]
        key = key.rpartition(".")[0]
    return None


def load_spec(path: Path, *, root: Path) -> TaskSpec:
    """Load the task in ``path``.

    Raises UsageError naming file and line for unknown keys (with the nearest valid one) and bad values;
    NoTaskError for a group file, and for one that is only there to be included (it names no task).
    """
    loaded = load_yaml(path, root=root)
    check_is_task(loaded.values, path)
    metadata = loaded.values.get("metadata")
    if isinstance(metadata, list):  # free text for lm-eval
        loaded = LoadedYaml(loaded.values | {"metadata": {"_metadata": metadata}}, loaded.where)
    notes = check_config(loaded, path)
    return TaskSpec(str(loaded.values["task"]), path, loaded.values, loaded.where, notes)


def check_is_task(values: Mapping[str, Any], path: Path) -> None:
    """Raise NoTaskError for a group file and for one that is only included; UsageError where a task has no
    name."""
    if "group" in values and not isinstance(values.get("task"), str):
        text = "a group of tasks, which is not read; name its tasks, or their tag"
        raise NoTaskError(f"{path}:1: {text}", group=True)
    if "task" not in values:
        if path.name.startswith("_") or not values.keys() & {"doc_to_text", "output_type", "test_split"}:
            raise NoTaskError(f"{path}:1: no 'task' key: only there to be included")
        raise UsageError(f"{path}:1: no 'task' key (files that are only included begin with '_')")


def check_config(loaded: LoadedYaml, path: Path) -> tuple[str, ...]:
    """Check that keys are known, values have a sensible shape, and a split is scored. UsageError with file
    and line.

    Returns what the file says without effect, each with its place.
    """
    values = loaded.values
    metadata = values.get("metadata") or {}

    def fail(key: str, message: str) -> NoReturn:
        raise UsageError(f"{place_of(loaded.where, key) or path}: {message}")

    for key in values:
        if key not in TASK_KEYS | LOADER_KEYS:
            fail(key, f"unknown key {key!r}{did_you_mean(str(key), TASK_KEYS | LOADER_KEYS)}")
    if not isinstance(metadata, Mapping):
        fail("metadata", "'metadata' must be a mapping")
    _check_metadata(metadata, fail)
    for key, shape in _SHAPES.items():
        top, _, below = key.partition(".")
        value = metadata.get(below) if below else values.get(top)
        if value is not None and not _has_shape(value, shape):
            fail(key, f"{key!r} must be {shape}, not {value!r}")
    _check_names(values, metadata, fail)
    _check_answer(values, metadata.get("answer"), fail)
    notes = check_rules(values, fail)
    _check_question(values, fail)
    return tuple(f"{place_of(loaded.where, key) or path}: {text}" for key, text in notes)


def _check_metadata(metadata: Mapping[str, Any], fail: Fail) -> None:
    """Check the metadata, which is free but for what looks like a slip of one of our keys."""
    for key in metadata:
        if not isinstance(key, str):
            fail("metadata", f"a key of 'metadata' is a text, not {key!r}")
        if key in METADATA_KEYS:
            continue
        if near := difflib.get_close_matches(key, METADATA_KEYS, n=1, cutoff=_NEAR):
            fail(f"metadata.{key}", f"unknown key 'metadata.{key}'; did you mean {near[0]!r}?")
    if (own := metadata.get("format")) is not None and own not in tuple(WRAPPERS):
        fail("metadata.format", f"format {own!r} is none of {', '.join(WRAPPERS)}")
    scales = metadata.get("scales")
    for metric, name in scales.items() if isinstance(scales, Mapping) else ():
        if not isinstance(name, str) or name not in SCALES:
            hint = did_you_mean(str(name), SCALES)
            fail("metadata.scales", f"scale {name!r} of {metric!r} is none of {', '.join(SCALES)}{hint}")


def _check_answer(values: Mapping[str, Any], answer: Any, fail: Fail) -> None:
    """Check ``metadata.answer``: how a generated response is read."""
    key = "metadata.answer"
    if answer is None:
        return
    for other in ("metric_list", "filter_list", "process_results"):
        if values.get(other):
            fail(other, f"'{other}' has no effect beside '{key}', which says how an answer is scored")
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
    """Check the question: its text, its split, and how it is scored."""
    if not (values.get("test_split") or values.get("validation_split")):
        fail("task", "no test_split and no validation_split: nothing to evaluate")
    choices = values.get("doc_to_choice")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, str):
            fail("doc_to_choice", f"choice {choice!r} is no text: quote it (YAML reads yes as true)")
    for key in ("doc_to_text", "doc_to_target"):
        if key not in values and "class" not in values:
            fail("task", f"no {key!r}")


def _has_shape(value: Any, shape: str) -> bool:
    match shape:
        case "a text":
            return isinstance(value, str)
        case "a text or !function":
            return isinstance(value, str | FunctionRef)
        case "a number of 0 or more":
            return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        case "a whole number of 0 or more":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "a mapping":
            return isinstance(value, Mapping)
        case _:
            return isinstance(value, list)


def _check_names(values: Mapping[str, Any], metadata: Mapping[str, Any], fail: Fail) -> None:
    """Check that names that become parts of paths are single names, and that nothing asks for code of the hub
    or the model."""
    name, tag = values["task"], values.get("tag")
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        fail("task", f"task name {name!r} is no plain name (letters, digits, '_', '-', '.')")
    tags = tag if isinstance(tag, list) else [tag or ""]
    if not all(isinstance(t, str) for t in tags):
        fail("tag", f"'tag' must be a text or a list of texts, not {tag!r}")
    path = values.get("dataset_path")
    if path is not None and not (isinstance(path, str) and _DATASET.fullmatch(path)):
        fail("dataset_path", f"dataset_path {path!r} is no hub id ('owner/name'), json, csv or parquet")
    if path in _OTHER_BUILDERS:
        fail("dataset_path", f"dataset_path {path!r}: files of rows are json, csv or parquet")
    folder = metadata.get("folder", metadata.get("dataset", name))
    splits = metadata.get("splits") or {}
    stems = [stem for named in splits.values() for stem in (named if isinstance(named, list) else [named])]
    for key, part in [("folder", folder), *(("splits", stem) for stem in stems)]:
        if not isinstance(part, str) or not PLAIN_NAME.fullmatch(part):
            fail(f"metadata.{key}", f"'metadata.{key}': {part!r} is no plain name and could lead elsewhere")
