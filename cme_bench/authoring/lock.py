"""The lock file of the built-in tasks, ``lock.json`` beside them: what each said, and since when.

A changed template, delimiter, filter or metric makes other scores, so it must not happen unnoticed: a test
compares the files with the lock, and a changed task must raise its ``metadata.version`` to be locked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from cme_bench.tasks.identity import config_hash
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import builtin_folder
from cme_bench.util.errors import UsageError

LOCK_FILE = "lock.json"


@dataclass(frozen=True, slots=True)
class LockedTask:
    """``sha256``: of the resolved task file without rows; ``since``: the day from which it has said this."""

    version: int
    sha256: str
    since: str


def lock_file() -> Path:
    return builtin_folder() / LOCK_FILE


def read_lock(file: Path) -> dict[str, LockedTask]:
    """Return the locked tasks by name; empty if there is no file. UsageError if it is broken."""
    if not file.exists():
        return {}
    try:
        return {name: LockedTask(**entry) for name, entry in orjson.loads(file.read_bytes()).items()}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: broken lock file ({error})") from error


def changes(specs: Iterable[TaskSpec], lock: Mapping[str, LockedTask]) -> list[str]:
    """Return one sentence for every task that is new, changed or gone since it was locked."""
    lines = []
    names = set()
    for spec in specs:
        names.add(spec.name)
        locked, now = lock.get(spec.name), config_hash(spec.config)
        if locked is None:
            lines.append(f"{spec.name} is new: `cme-bench tasks lock` adds it")
        elif locked.sha256 != now:
            change = (
                f"{spec.name} ({spec.path}) changed: {locked.sha256[:8]} since {locked.since}, now {now[:8]}"
            )
            if _version(spec) > locked.version:
                lines.append(f"{change}; `cme-bench tasks lock` records version {_version(spec)}")
            else:
                lines.append(f"{change}; raise its metadata.version above {locked.version} if that is meant")
    lines += [f"{name} is gone: `cme-bench tasks lock` forgets it" for name in lock if name not in names]
    return lines


def renewed(
    specs: Iterable[TaskSpec], lock: Mapping[str, LockedTask], *, today: str
) -> dict[str, LockedTask]:
    """Return the lock of the tasks as they are. UsageError for a changed task whose version was not
    raised."""
    new = {}
    for spec in specs:
        locked, now, version = lock.get(spec.name), config_hash(spec.config), _version(spec)
        if locked is not None and locked.sha256 != now and version <= locked.version:
            raise UsageError(
                f"{spec.line('metadata.version')}: {spec.name} changed ({locked.sha256[:8]} -> {now[:8]}); "
                f"raise its version above {locked.version}"
            )
        same = locked is not None and locked.sha256 == now
        new[spec.name] = LockedTask(version, now, locked.since if same and locked else today)
    return new


def write_lock(file: Path, lock: Mapping[str, LockedTask]) -> None:
    content = {name: asdict(entry) for name, entry in sorted(lock.items())}
    file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def _version(spec: TaskSpec) -> int:
    return int(spec.metadata.get("version", 0))
