"""What holds the house together beside its code: make targets, hooks, the hosted workflow, the citation."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import yaml

import cme_bench

ROOT = Path(__file__).resolve().parents[1]


def test_make_help_lists_every_target() -> None:
    source = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", source, re.M)
    assert targets is not None
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert set(lines) == set(targets[1].split()), "each with a sentence after ##"
    assert set(lines) == set(re.findall(r"^([a-z][a-z-]*):(?!=)", source, re.M))


def test_the_hosted_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    for step in job["steps"]:
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


def test_the_hooks_call_the_projects_own_tools() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    tools = [hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]]
    assert set(tools) == {".venv/bin/ruff", ".venv/bin/mypy", ".ci/small_files"}
    assert all(os.access(ROOT / tool, os.X_OK) for tool in tools if tool.startswith(".ci/"))


def test_large_files_are_named(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"0" * 3 * 2**20)
    large.write_bytes(b"0" * (3 * 2**20 + 1))
    check = [str(ROOT / ".ci" / "small_files")]
    assert subprocess.run([*check, str(small)], check=False).returncode == 0
    done = subprocess.run([*check, str(small), str(large)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [str(large)]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["version"] == cme_bench.__version__
    heading = f"\n## {citation['version']} ({citation['date-released']})\n"
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
