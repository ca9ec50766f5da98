"""A task as written: the checked contents of its YAML file, before any data or model is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.scoring.generation import ANSWER_TYPES, METRICS
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.tasks.yaml_loader import LoadedYaml, load_yaml

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
ANSWER_KEYS = frozenset({"type", "options"})


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
    """Keys known, values of a sensible shape, an evaluation split present."""
    values = loaded.values

    def fail(key: str, message: str) -> None:
        raise UsageError(f"{loaded.where.get(key, path)}: {message}")

    def known(prefix: str, mapping: Mapping[str, Any], keys: frozenset[str]) -> None:
        for key in mapping:
            if key not in keys:
                fail(f"{prefix}{key}", f"unknown key {prefix + str(key)!r}{did_you_mean(str(key), keys)}")

    known("", values, TASK_KEYS | LOADER_KEYS)
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        fail("metadata", "'metadata' must be a mapping")
    known("metadata.", metadata, METADATA_KEYS)
    answer = metadata.get("answer")
    if answer is not None:
        if not isinstance(answer, Mapping):
            fail("metadata.answer", "'metadata.answer' must be a mapping with a 'type'")
        for key in answer:
            if key not in ANSWER_KEYS:
                fail(
                    "metadata.answer", f"unknown key 'metadata.answer.{key}'{did_you_mean(key, ANSWER_KEYS)}"
                )
        if answer.get("type") not in ANSWER_TYPES:
            fail(
                "metadata.answer", f"answer type {answer.get('type')!r} is none of {', '.join(ANSWER_TYPES)}"
            )
    output_type = values.get("output_type", "generate_until")
    if output_type not in OUTPUT_TYPES:
        hint = did_you_mean(str(output_type), OUTPUT_TYPES)
        fail("output_type", f"output_type {output_type!r} is none of {', '.join(OUTPUT_TYPES)}{hint}")
    if not (values.get("test_split") or values.get("validation_split")):
        fail("task", "no test_split and no validation_split: nothing to evaluate")
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
