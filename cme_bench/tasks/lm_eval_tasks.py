"""Tasks of lm-evaluation-harness itself, run by us: ``lm_eval:hellaswag``, or ``lm_eval:FILE.yaml``.

Their files are read with our loader and asked, filtered and scored by lm-eval's own code. The code of the
installed package is trusted as the package is; that of other files needs --allow-code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from cme_bench.harness.lm_eval_table import GROUP_KEYS
from cme_bench.harness.task_index import task_index, tasks_folder
from cme_bench.harness.yaml_loader import LoadedYaml, load_yaml
from cme_bench.tasks.spec import TaskSpec, check_config, check_is_task
from cme_bench.util.errors import UsageError, did_you_mean

PREFIX = "lm_eval:"
DOMAIN = "lm_eval"
_PLAIN = re.compile(r"^[^A-Za-z0-9]|[^\w.-]")
"""Characters that cannot stand in a plain name."""
Member: TypeAlias = tuple[Path, Mapping[str, Any]]
"""A task's file, and the keys that a group sets in it."""


@functools.cache
def lm_eval_specs(name: str, ours: Iterable[TaskSpec]) -> list[TaskSpec]:
    """Return the tasks that lm-eval calls ``name``: a task, a group or tag, or the path of a task file.

    ``ours``: the tasks whose data folders are known, for those that use the same datasets. Raises UsageError
    for a name that lm-eval does not know, and for a task with anything that is not honoured here.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"{PREFIX}{name}: no such file")
        members: list[Member] = [(path, {})]
        root = path.parent
    else:
        root = tasks_folder()
        members = [(path, {}) for path in _files_of_task(name, root)] or _members_of_group(name, root)
    known = list(ours)
    return [_spec(path, root, known, overrides) for path, overrides in members]


def _files_of_task(name: str, root: Path) -> list[Path]:
    """Find the file of the task ``name`` by its text: lm-eval's own index reads 13,000 files as YAML."""
    line = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *$".encode(), re.MULTILINE)
    files = (file for file in sorted(root.rglob("*.yaml")) if line.search(file.read_bytes()))
    return list(files)[:1]


def _members_of_group(name: str, root: Path) -> list[Member]:
    """Return the files of all tasks of a group or tag of lm-eval, with what its groups set in them."""
    index = task_index()
    if name not in index:
        raise UsageError(f"lm-eval has no task {name!r}{did_you_mean(name, index)}")
    found: dict[str, Member] = {}

    def collect(member: str, overrides: Mapping[str, Any]) -> None:
        entry = index.get(member)
        if entry is None:
            raise UsageError(f"lm-eval's group {name!r} names a task {member!r} that it does not have")
        if entry.yaml_path is None:
            for part in sorted(entry.tags):
                collect(part, overrides)
        elif isinstance((entry.cfg or {}).get("task"), list):
            group = load_yaml(
                entry.yaml_path, root=root, strict=False
            ).values  # its functions are named there
            own = {key: value for key, value in group.items() if key not in GROUP_KEYS}
            for part in group["task"]:
                below = (
                    {} if isinstance(part, str) else {k: v for k, v in part.items() if k not in GROUP_KEYS}
                )
                inner = part if isinstance(part, str) else str(part.get("task") or part.get("group"))
                collect(inner, {**own, **overrides, **below})
        elif member in found and found[member][1] != overrides:
            raise UsageError(f"lm-eval's group {name!r} asks {member!r} in two ways: name the tasks")
        else:
            found[member] = entry.yaml_path, overrides

    collect(name, {})
    return list(found.values())


def _spec(path: Path, root: Path, ours: Iterable[TaskSpec], overrides: Mapping[str, Any]) -> TaskSpec:
    """Return the task of a file, checked as our own files are; ``overrides``: keys that a group sets.

    Metadata is lm-eval's but for the version: it says nothing of ours.
    """
    loaded = load_yaml(path, root=root, strict=not path.is_relative_to(tasks_folder()))
    check_is_task(loaded.values, path)
    values = {
        k: v for k, v in {**loaded.values, **overrides}.items() if k not in ("tag", "group", "task_alias")
    }
    name = str(loaded.values["task"])
    theirs = values.get("metadata") or {}
    version = theirs.get("version", 0) if isinstance(theirs, Mapping) else 0
    if path.is_relative_to(tasks_folder()) and "class" in values:
        line = loaded.where.get("class", path)
        raise UsageError(f"{line}: a Python class of lm-eval reads its own rows and makes its own requests")
    split = str(values.get("test_split") or values.get("validation_split"))
    place = _data_place(values, split, ours)
    values["metadata"] = {"version": version, "domain": DOMAIN, "dataset": name, **place}
    try:
        notes = check_config(LoadedYaml(values | {"task": _PLAIN.sub("_", name)}, loaded.where), path)
    except UsageError as error:
        raise UsageError(f"{PREFIX}{name}: {error}") from error
    return TaskSpec(f"{PREFIX}{name}", path, values | {"task": name}, loaded.where, notes)


def _data_place(config: Mapping[str, Any], split: str, ours: Iterable[TaskSpec]) -> dict[str, Any]:
    """Return folder and file names of the dataset's rows under --data. They are those of our task on the same
    dataset, else the dataset's own name (and its configuration's)."""
    dataset = _PLAIN.sub("_", str(config.get("dataset_path") or config["task"]).rpartition("/")[2])
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
    named = dataset if variant in (None, "default", "main") else f"{dataset}_{variant}"
    return {"folder": _PLAIN.sub("_", named)}
