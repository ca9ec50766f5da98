"""Prepare a release, for a person who has an account at the package index.

    .venv/bin/python release/release.py 0.3.0                # changelog, citation, version, build, check
    .venv/bin/python release/release.py 0.3.0 --tag          # the same, then a commit and the tag v0.3.0
    .venv/bin/python release/release.py 0.3.0 --tag --upload # and the files go to the index, by twine

Nothing leaves this machine without ``--upload``; commit and tag are pushed by hand. uv builds, and runs
twine, which is no part of this project.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from metadata_hook import repository

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "cme_bench/py.typed",
    "cme_bench/suite/lock.json",
    "cme_bench/data/mini/rte/validation.jsonl",
    "cme_bench/data/recipes/smollm2.yaml",
    "cme_bench/data/adapters/teamlora-demo/adapter_model.safetensors",
    "cme_bench/training/templates/rte.yaml",
    "cme_bench/reports/page/page.html.j2",
)
"""One file of every kind that is no Python; without it a wheel is not whole."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that are asked for; a step that cannot be done ends with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="the new version, such as 0.3.0")
    parser.add_argument("--tag", action="store_true", help="commit, and tag the commit")
    parser.add_argument("--upload", action="store_true", help="upload with twine, which asks for your token")
    asked = parser.parse_args(arguments)
    if repository(ROOT) is None:
        sys.exit("no address of the repository: set CME_BENCH_REPOSITORY, for the links of the package page")
    if _git("status", "--porcelain"):
        sys.exit("the checkout has changes: commit them, or put them away")
    write_version(ROOT, asked.version, datetime.date.today().isoformat())
    files = build(ROOT)
    print(*files, sep="\n")
    if asked.tag:
        _git("commit", "--all", "--message", f"Release {asked.version}")
        _git("tag", "--annotate", f"v{asked.version}", "--message", f"cme-bench {asked.version}")
    if asked.upload:
        _tool("twine", "upload", *map(str, files))


def write_version(root: Path, version: str, day: str) -> None:
    """Set the version where it stands, and move the lines under "Unreleased" below a heading of their own."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        sys.exit(f"{version}: a version is such as 0.3.0 or 0.3.0rc1")
    log = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"\n## {version} " in log:
        sys.exit(f"CHANGELOG.md: {version} is there already")
    waiting = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", log, re.MULTILINE | re.DOTALL)
    if waiting is None or not waiting[1].strip():
        sys.exit("CHANGELOG.md: nothing stands under Unreleased")
    _replace(root / "CHANGELOG.md", r"^## Unreleased\n", f"## Unreleased\n\n## {version} ({day})\n")
    _replace(root / "cme_bench" / "version.py", r'__version__ = ".*"', f'__version__ = "{version}"')
    _replace(root / "CITATION.cff", r"^version: .*$", f"version: {version}")
    _replace(root / "CITATION.cff", r"^date-released: .*$", f'date-released: "{day}"')


def build(root: Path) -> list[Path]:
    """Build sdist and wheel into ``dist``, check both, and return their paths."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    subprocess.run([_uv(), "build", "--quiet", "--out-dir", "dist"], cwd=root, check=True)
    files = sorted([*(root / "dist").glob("*.whl"), *(root / "dist").glob("*.tar.gz")])
    wheel = next(file for file in files if file.suffix == ".whl")
    if missing := missing_parts(wheel):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    _tool("twine", "check", "--strict", *map(str, files))
    return files


def missing_parts(wheel: Path) -> list[str]:
    """Return what a whole wheel has and ``wheel`` lacks."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(set(PARTS) - set(archive.namelist()))


def _replace(file: Path, pattern: str, text: str) -> None:
    before = file.read_text(encoding="utf-8")
    after, count = re.subn(pattern, lambda _: text, before, count=1, flags=re.MULTILINE)
    if not count:
        sys.exit(f"{file.name}: nothing matches {pattern}")
    file.write_text(after, encoding="utf-8")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _tool(name: str, *words: str) -> None:
    done = subprocess.run([_uv(), "tool", "run", name, *words], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{name} {words[0]} failed")


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("uv") or sys.exit("uv is not here")


if __name__ == "__main__":
    main()
