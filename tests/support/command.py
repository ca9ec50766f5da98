"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

from cme_bench.cli import main


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Return the exit code of ``cme-bench ARGUMENTS``, and what it wrote to stdout and to stderr."""
    monkeypatch.setattr(sys, "argv", ["cme-bench", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
