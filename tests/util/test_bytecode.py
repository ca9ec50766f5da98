"""A user learns that bytecode is not kept, and how to keep it."""

from __future__ import annotations

import compileall
import sys
from pathlib import Path

import pytest

from cme_bench.util.bytecode import bytecode


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "somewhat_large").mkdir()
    (tmp_path / "somewhat_large" / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    return "somewhat_large"


def test_without_bytecode_it_says_what_to_run(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    said = bytecode((package, "not_installed"))
    assert said.startswith(
        "not kept (PYTHONDONTWRITEBYTECODE is set), so each command compiles somewhat_large"
    )
    assert said.endswith(f"python -m compileall -q -j 0 {tmp_path}")
    compileall.compile_dir(tmp_path, quiet=1)
    assert bytecode((package,)) == "kept"


def test_what_will_be_written_needs_nothing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert bytecode((package,)) == "written when a library is first imported"
    assert bytecode(("not_installed",)) == "kept"
