"""What was read from files is read again once one of them is another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cme_bench.tasks import suite
from cme_bench.tasks.suite import load_suite
from cme_bench.util.unchanged import Unchanged, note_read

LONG_AGO = 1_600_000_000


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("a", "b", "beside"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    return [tmp_path / "a", tmp_path / "b"]


def reader(listed: list[Path], seen: list[str]) -> str:
    beside = listed[0].with_name("beside")
    note_read(beside)
    seen.append("".join(file.read_text() for file in [*listed, beside] if file.exists()))
    return seen[-1]


@pytest.mark.parametrize("name", ["a", "b", "beside"])
@pytest.mark.parametrize("change", ["rewritten", "touched", "removed"])
def test_a_change_of_any_file_is_seen(files: list[Path], name: str, change: str) -> None:
    kept: Unchanged[str] = Unchanged()
    seen: list[str] = []
    for _ in range(3):
        assert kept.get(files, lambda: reader(files, seen)) == "abbeside"
    assert len(seen) == 1
    file = files[0].with_name(name)
    if change == "removed":
        file.unlink()
    else:
        file.write_text("x" if change == "rewritten" else name)
        os.utime(file, (LONG_AGO + 1, LONG_AGO + 1))
    found = kept.get(files, lambda: reader(files, seen))
    assert len(seen) == 2
    assert found == seen[-1]


def test_other_files_are_read_and_young_ones_are_not_kept(files: list[Path]) -> None:
    kept: Unchanged[str] = Unchanged()
    seen: list[str] = []
    kept.get(files, lambda: reader(files, seen))
    assert kept.get(files[:1], lambda: reader(files[:1], seen)) == "abeside"
    files[0].write_text("a")  # just now
    for _ in range(2):
        kept.get(files[:1], lambda: reader(files[:1], seen))
    assert len(seen) == 4


def test_the_built_in_tasks_are_read_once_and_a_folder_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_suite()
    own = tmp_path / "own.yaml"
    rest = 'output_type: generate_until\ntest_split: test\ndoc_to_text: "{{a}}"\ndoc_to_target: "{{b}}"\n'
    for name in ("one", "two"):
        own.write_text(f"task: {name}\n{rest}")
        assert name in load_suite([tmp_path]).tasks
    assert "two" not in load_suite().tasks
    monkeypatch.setattr(suite, "_add", lambda *_, **__: pytest.fail("read again"))
    assert load_suite().tasks == first.tasks
