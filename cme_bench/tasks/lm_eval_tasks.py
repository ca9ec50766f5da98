"""Tasks of lm-evaluation-harness itself, run by us: ``lm_eval:hellaswag``, or ``lm_eval:FILE.yaml``.

Their files are read with our loader and asked, filtered and scored by lm-eval's own code. The code of the
installed package is trusted as the package is; that of other files needs --allow-code.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.tasks.spec import OUTPUT_TYPES, TASK_KEYS, TaskSpec
from cme_bench.tasks.yaml_loader import load_yaml

PREFIX = "lm_eval:"
DOMAIN = "lm_eval"
_SPLITS = ("test_split", "validation_split", "training_split")


def tasks_folder() -> Path:
    """Where the installed lm-eval keeps its task files; nothing of it is imported."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.origin is not None  # a dependency of this package
    return Path(found.origin).parent / "tasks"


def lm_eval_specs(name: str, ours: Iterable[TaskSpec]) -> list[TaskSpec]:
    """The tasks that lm-eval calls ``name``: a task, a group or tag, or the path of a task file.

    ``ours``: the tasks whose data folders are known, for those that use the same datasets. Raises UsageError
    for a name that lm-eval does not know, and for tasks that score whole texts.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"{PREFIX}{name}: no such file")
        files = [(path, path.parent)]
    else:
        root = tasks_folder()
        files = [(path, root) for path in _files_of_task(name, root) or _files_of_group(name)]
    known = list(ours)
    return [_spec(path, root, known) for path, root in files]


def _files_of_task(name: str, root: Path) -> list[Path]:
    """The file of the task ``name``, found by its text: lm-eval's own index reads 13,000 files as YAML."""
    line = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *$".encode(), re.MULTILINE)
    files = (file for file in sorted(root.rglob("*.yaml")) if line.search(file.read_bytes()))
    return list(files)[:1]


@functools.cache
def _index() -> Mapping[str, Any]:
    """lm-eval's own, of all its tasks, groups and tags; reading it takes some ten seconds."""
    from lm_eval.tasks import TaskManager

    index: Mapping[str, Any] = TaskManager().task_index
    return index


def _files_of_group(name: str) -> list[Path]:
    """The files of all tasks of a group or tag of lm-eval."""
    index = _index()
    if name not in index:
        raise UsageError(f"lm-eval has no task {name!r}{did_you_mean(name, index)}")
    found: dict[str, Path] = {}

    def collect(member: str) -> None:
        entry = index.get(member)
        if entry is None:
            return
        below = sorted(entry.tags) if entry.yaml_path is None else (entry.cfg or {}).get("task")
        if isinstance(below, list):
            for part in below:
                collect(part if isinstance(part, str) else str(part.get("task") or part.get("group")))
        else:
            found[member] = entry.yaml_path

    collect(name)
    return list(found.values())


def _spec(path: Path, root: Path, ours: Iterable[TaskSpec]) -> TaskSpec:
    loaded = load_yaml(path, root=root)
    values, name = loaded.values, str(loaded.values.get("task"))
    output_type = values.get("output_type", "generate_until")
    if "class" not in values and output_type not in OUTPUT_TYPES:
        raise UsageError(f"{PREFIX}{name} ({path}): output_type {output_type!r} is not supported")
    config = {key: value for key, value in values.items() if key in TASK_KEYS | {"class"} and key != "tag"}
    named = {key: values[key] for key in _SPLITS if values.get(key)}
    if not named.keys() & {"test_split", "validation_split"}:
        raise UsageError(f"{PREFIX}{name} ({path}): names no test_split and no validation_split")
    evaluated = next(key for key in _SPLITS if key in named)
    shots = values.get("fewshot_split") or (values.get("fewshot_config") or {}).get("split")
    for key in named.keys() - {evaluated}:
        config.pop(key)
    # lm-eval's order where no split is named for exemplars: train, validation, test
    config["fewshot_split"] = shots or next(named[key] for key in reversed(_SPLITS) if key in named)
    if kwargs := dict(values.get("dataset_kwargs") or {}):
        kwargs.pop("trust_remote_code", None)  # data-set scripts are never run
        config["dataset_kwargs"] = kwargs
    theirs = values.get("metadata") or {}
    version = theirs.get("version", 0) if isinstance(theirs, Mapping) else 0
    place = _data_place(config, str(named[evaluated]), ours)
    config["metadata"] = {"version": version, "domain": DOMAIN, "dataset": name, **place}
    return TaskSpec(f"{PREFIX}{name}", path, config | {"task": name}, loaded.where)


def _data_place(config: Mapping[str, Any], split: str, ours: Iterable[TaskSpec]) -> dict[str, Any]:
    """Folder and file names of the dataset's rows under --data: those of our task on the same dataset if
    there is one, else the dataset's own name (and its configuration's)."""
    dataset = str(config.get("dataset_path") or config["task"]).rpartition("/")[2]
    variant = config.get("dataset_name")
    same = [
        spec
        for spec in ours
        if str(spec.config.get("dataset_path")).rpartition("/")[2] == dataset
        and spec.config.get("dataset_name") in (variant, None)
    ]
    same.sort(key=lambda spec: spec.eval_split != split)
    if same:
        return {"folder": same[0].folder, "splits": dict(same[0].metadata.get("splits") or {})}
    return {"folder": dataset if variant in (None, "default", "main") else f"{dataset}_{variant}"}
