"""Provenance: the commit of a checkout and the machine."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import cme_bench
from cme_bench.util import provenance

ROOT = Path(__file__).resolve().parents[2]


def test_the_commit_is_looked_for_where_this_package_lies() -> None:
    assert Path(cme_bench.__file__).is_relative_to(provenance._ROOT)
    assert ROOT == provenance._ROOT


def test_commit_of_a_checkout_marks_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit.__wrapped__() is None, "no checkout, no commit"
    monkeypatch.setenv("CME_BENCH_COMMIT", "0123456789ab")
    assert provenance.commit.__wrapped__() == "0123456789ab", "the source came without its history"
    monkeypatch.delenv("CME_BENCH_COMMIT")
    (tmp_path / "cme_bench").mkdir()
    (tmp_path / "cme_bench" / "a.py").write_text("1")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch(r"[0-9a-f]{12}", str(provenance.commit.__wrapped__()))
    (tmp_path / "cme_bench" / "a.py").write_text("2")
    assert str(provenance.commit.__wrapped__()).endswith("-dirty")


def test_hardware_is_fit_for_a_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"cpu-\d+x-\w+", provenance.hardware())
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert provenance.hardware(cuda=True) == "nvidia-h100-80gb-hbm3"


def test_machine_names_cores_and_processor() -> None:
    found = provenance.machine()
    assert found["cores"] == os.cpu_count()
    assert found["processor"]


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"][0] == "version"
    file = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{cme_bench.__version__}"' in file.read_text()
    assert provenance.versions()["cme-bench"] == cme_bench.__version__
    assert next(iter(provenance.versions())) == "cme-bench"
