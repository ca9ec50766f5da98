"""A file of a package of the registry, by pip, by uv, by Python's own pip, or by none."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from cme_bench.models import registry_file
from cme_bench.models.registry_file import RegistryFile
from cme_bench.util.errors import CmeError

WANTED = RegistryFile("a-package==1.0", "a/file.txt", "0" * 64)


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


@pytest.mark.usefixtures("without_pip")
def test_uv_unpacks_what_has_the_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, work = tmp_path / "asked", tmp_path / "work"
    work.mkdir()
    uv = program(tmp_path / "tools" / "uv", f'/bin/cat "$(echo "$@" | /bin/sed "s/.*-r //")" > {record}')
    monkeypatch.setenv("UV", str(uv))
    assert registry_file.pip_command() is None, "Python's own pip is not taken where uv is"
    assert WANTED.fetch(work) == work / "unpacked" / "a" / "file.txt"
    assert record.read_text() == f"a-package==1.0 --hash=sha256:{'0' * 64}\n"


@pytest.mark.usefixtures("without_pip")
def test_what_uv_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "noise\\nerror: Hash mismatch\\n  ╰─▶ token hf_abcdefghijkl"
    monkeypatch.setenv("UV", str(program(tmp_path / "uv", f'printf "{said}" >&2; exit 1')))
    with pytest.raises(CmeError) as error:
        WANTED.fetch(tmp_path)
    assert str(error.value) == ("could not download a-package==1.0 (error: Hash mismatch token (hub token))")


@pytest.mark.usefixtures("without_pip")
def test_pythons_own_pip_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    command = registry_file.pip_command()
    bundled = Path(os.__file__).parent / "ensurepip" / "_bundled"
    if not bundled.is_dir():
        pytest.skip("this Python comes without ensurepip's wheels")
    assert command is not None and command[1].endswith(".whl/pip")


@pytest.mark.usefixtures("without_pip")
def test_without_any_of_them_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CmeError, match="neither pip nor uv is here"):
        WANTED.fetch(tmp_path)
