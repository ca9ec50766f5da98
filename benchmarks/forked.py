"""The command line in forks of one process, and mounts that end with the process that made them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Trouble = Callable[[], None]
"""Breaks something in the process that it is called in."""
CRASHED = 99
"""Exit code of a fork that ended with a traceback."""
_CLONE_NEWNS = 0x00020000


def preload() -> None:
    """Import what every fork would import by itself, and compute nothing."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - imported when named

    import cme_bench.engines.hf.engine
    import cme_bench.runs.runner  # noqa: F401


class Process:
    """The command line in a fork of this process, which has imported everything and computed nothing."""

    def __init__(self, arguments: list[str], log: Path, trouble: Trouble | None = None) -> None:
        self.log = log
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_command_line(arguments, log, trouble))

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self) -> int:
        while self.running():
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def message(self) -> str:
        """The last line it wrote to standard error."""
        return (self.log.read_text().splitlines() or [""])[-1]


def _command_line(arguments: list[str], log: Path, trouble: Trouble | None) -> int:
    from cme_bench.cli import main

    with log.open("wb", buffering=0) as stream, Path(os.devnull).open("wb") as nothing:
        os.dup2(stream.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
    sys.argv = ["cme-bench", *arguments]
    try:
        if trouble is not None:
            trouble()
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return CRASHED
    return 0


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def in_mounts(act: Callable[[], float]) -> float:
    """``act()`` in a process with mounts of its own, which end with it. OSError if that is not allowed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) == 0:
                mount("--make-rprivate", "/")
                os.write(writer, repr(act()).encode())
                code = 0
            else:
                code = 2
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 2:
        raise OSError("mounts of its own are not allowed here")
    if code:
        raise SystemExit("an experiment with mounts failed")
    return float(said)
