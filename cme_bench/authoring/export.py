"""Copies of tasks that stock lm-eval runs by itself: one self-contained YAML file a task.

``lm_eval --include_path FOLDER --tasks cme_rte_ll`` (or a tag: ``cme_ll``, ``nli``, ``nli_ll``) reads them.
Rows come from the same files, so that both programs score the same items. A task that stock lm-eval scores by
itself needs no import of this package; the others say in their first lines why they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.tasks.open_source import source_of
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import selectors_of
from cme_bench.tasks.yaml_dump import dump_yaml
from cme_bench.util.errors import UsageError
from cme_bench.version import __version__

_BY_CLASS = "its class is of cme-bench"
_DATASET_KEYS = frozenset({"dataset_path", "dataset_name", "dataset_kwargs"})
_SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


def export_tasks(specs: Sequence[TaskSpec], source: DataSource, folder: Path) -> list[Path]:
    """Write every task of ``specs`` to ``folder/NAME.yaml``; the files' paths.

    Raises UsageError if rows are missing, a task needs Python code that lies beside its file, or the folder
    cannot be written; nothing is written then unless the disk itself fails.
    """
    texts = {}
    for spec in specs:
        config = stock_config(spec, source)
        texts[spec.name] = _header(spec, source, config) + dump_yaml(config)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            file = folder / f"{name}.yaml"
            file.write_text(text, encoding="utf-8")
            files.append(file)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
    return files


def stock_config(spec: TaskSpec, source: DataSource) -> dict[str, Any]:
    """Return ``spec`` with includes merged, tagged by its selectors, and its rows where ``source`` has them.

    Splits that ``source`` does not have are left out, and with the few-shot split the few-shot settings.
    """
    source = source_of(spec, source)
    if spec.config.get("doc_to_image") is not None:
        raise UsageError(
            f"{spec.line('doc_to_image')}: task {spec.name} shows images, which stock lm-eval neither reads "
            "from files beside rows nor scores choices of: it is not exported"
        )
    for ref in _functions(spec.config):
        if ref.is_local:
            raise UsageError(f"{ref.file}:{ref.line}: {ref} lies beside the task file and is not exported")
    named = [spec.config.get(key) for key in _SPLIT_KEYS] + [spec.fewshot_split]
    missing = {split: source.missing(spec, split) for split in dict.fromkeys(map(str, filter(None, named)))}
    needed = [spec.eval_split] + ([str(spec.fewshot_split)] if spec.num_fewshot else [])
    for split in needed:
        if problem := missing.get(split):
            raise UsageError(problem)
    left_out = _DATASET_KEYS | {"include", "task", "tag"}
    left_out |= {key for key in _SPLIT_KEYS if missing.get(str(spec.config.get(key)))}
    if missing.get(str(spec.fewshot_split)):
        left_out |= {"fewshot_split", "fewshot_config"}
    rows = source.dataset_keys(spec, [split for split, problem in missing.items() if not problem])
    kept = {key: value for key, value in spec.config.items() if key not in left_out}
    stock = {"task": spec.name, "tag": selectors_of(spec)} | rows | kept
    if why_ours(stock) == _BY_CLASS:
        del stock["class"]  # which adds nothing there
    return stock


def why_ours(config: dict[str, Any]) -> str | None:
    """Return why a task imports this package under stock lm-eval; None if it does not."""
    metadata = config.get("metadata") or {}
    if metadata.get("answer"):
        return "its answers are read by the rules of cme-bench"
    if metadata.get("fewshot_group"):
        return "its exemplars are chosen by a field"
    if any(metric.get("metric") == "f1_macro" for metric in config.get("metric_list") or ()):
        return "lm-eval has no f1_macro"
    ours = {
        key
        for key, value in config.items()
        if any(ref.name.startswith("cme_bench.") for ref in _functions(value))
    }
    if ours - {"class"}:
        return "its rows pass through a function of cme-bench"
    return _BY_CLASS if ours else None


def _header(spec: TaskSpec, source: DataSource, config: dict[str, Any]) -> str:
    header = f"# {spec.name} for stock lm-eval, written by cme-bench {__version__} (rows: {source.name})\n"
    why = why_ours(config)
    return header if why is None else f"{header}# cme-bench must be installed there: {why}\n"


def _functions(value: Any) -> Iterator[FunctionRef]:
    if isinstance(value, FunctionRef):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _functions(part)
    elif isinstance(value, list):
        for part in value:
            yield from _functions(part)
