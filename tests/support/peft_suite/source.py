"""PEFT's source package, fetched once by the package installer at hand, and its folder of tests."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from cme_bench.util.paths import cache_folder

PACKAGE = "peft_tests"
"""Name of PEFT's tests as a package; by their own name they would hide ours."""


class NoSourceError(Exception):
    """PEFT's source package could not be fetched: one line that says why."""


def source_folder() -> Path:
    """Return the folder of the package ``peft_tests`` of the installed PEFT, fetched if it is not there.

    Raises NoSourceError if it cannot be fetched or holds no tests.
    """
    folder = cache_folder() / "peft-tests" / version("peft")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / PACKAGE).is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _unpack(_fetch(Path(scratch)), Path(scratch)).rename(folder / PACKAGE)
    return folder


def _fetch(folder: Path) -> Path:
    name = f"peft=={version('peft')}"
    # No isolated build: only the archive is wanted, and its build tool is at hand.
    options = ["--no-deps", "--no-binary", "peft", "--no-build-isolation", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        lines = (done.stderr.strip() or "no archive came").splitlines()
        raise NoSourceError(f"the source of {name} could not be fetched: {lines[-1]}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    found = next(folder.glob("*/tests"), None)
    if found is None:
        raise NoSourceError(f"{archive.name} holds no tests")
    (found / "__init__.py").touch()
    return found
