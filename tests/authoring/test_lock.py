"""The lock of the built-in tasks: nothing changes unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cme_bench.authoring.lock import changes, lock_file, read_lock, renewed, write_lock
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

SPECS = list(load_suite().tasks.values())
VERSION = SPECS[0].metadata["version"]


def changed(spec: TaskSpec, *, version: int) -> TaskSpec:
    config = dict(spec.config) | {"target_delimiter": ":"}
    return replace(spec, config=config | {"metadata": {**spec.metadata, "version": version}})


def test_the_built_in_tasks_are_as_locked() -> None:
    found = changes(SPECS, read_lock(lock_file()))
    assert not found, "\n".join(["built-in tasks changed:", *found])


def test_a_change_is_named_with_both_hashes_and_its_day(tmp_path: Path) -> None:
    first, second = SPECS[:2]
    lock = renewed([first, second], {}, today="2026-01-02")
    write_lock(tmp_path / "lock.json", lock)
    assert read_lock(tmp_path / "lock.json") == lock
    assert changes([first, second], lock) == []

    [same_version] = changes([changed(first, version=VERSION), second], lock)
    old = lock[first.name].sha256[:8]
    assert same_version.startswith(f"{first.name} ({first.path}) changed: {old} since 2026-01-02, now ")
    assert same_version.endswith(f"raise its metadata.version above {VERSION} if that is meant")
    [new_version] = changes([changed(first, version=VERSION + 1), second], lock)
    assert new_version.endswith(f"`cme-bench tasks lock` records version {VERSION + 1}")
    assert changes([first], lock) == [f"{second.name} is gone: `cme-bench tasks lock` forgets it"]
    assert changes([first, second], {}) == [
        f"{spec.name} is new: `cme-bench tasks lock` adds it" for spec in (first, second)
    ]


def test_a_change_is_locked_only_with_a_higher_version() -> None:
    first, second = SPECS[:2]
    lock = renewed([first, second], {}, today="2026-01-02")
    with pytest.raises(UsageError, match=rf"{first.name} changed .*; raise its version above {VERSION}"):
        renewed([changed(first, version=VERSION)], lock, today="2026-02-03")
    new = renewed([changed(first, version=VERSION + 1), second], lock, today="2026-02-03")
    assert (new[first.name].version, new[first.name].since) == (VERSION + 1, "2026-02-03")
    assert new[second.name] == lock[second.name]


def test_a_broken_lock_is_one_line(tmp_path: Path) -> None:
    for text in ("{", '{"a": 1}', '{"a": {"sha": 1}}'):
        (tmp_path / "lock.json").write_text(text)
        with pytest.raises(UsageError, match=r"lock\.json: broken lock file"):
            read_lock(tmp_path / "lock.json")
