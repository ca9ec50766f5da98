"""Run folders that somebody made to be read where they should not, and to break what reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.folders import ADAPTER, MadeTask, make_run

SECRET = "outside-7f3a"
"""Stands in files outside of the runs' folder only; no reader may show it."""
MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{ 7 * 7 }}"
TASKS = {"cme_a": MadeTask([1.0, 0.0, 1.0]), "cme_b": MadeTask([0.25, 0.5], "summarization", "b", "rouge_l")}


def outside(folder: Path) -> Path:
    """A whole run that the hostile ones try to show; every text and name in it is secret."""
    tasks = {
        name: MadeTask([1.0] * 3, texts=[SECRET] * 3, targets=[SECRET] * 3, docs=[{"q": SECRET}] * 3)
        for name in TASKS
    }
    return make_run(folder, tasks, name=SECRET).folder


def _changed(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _renamed(run: Path, name: str) -> None:
    """Call the first task by another name in both files."""
    for file in (run / "run.json", run / "results.json"):

        def change(content: dict[str, Any]) -> None:
            tasks = content.get("cme", content)["tasks"]
            tasks[name] = tasks.pop("cme_a")

        _changed(file, change)


def _linked(*parts: str) -> Callable[[Path, Path], None]:
    def make(run: Path, secret: Path) -> None:
        file = run.joinpath(*parts)
        if file.is_dir():
            file.rename(run / "moved")
        else:
            file.unlink()
        file.symlink_to(secret.joinpath(*parts))

    return make


def _replaced(name: str, content: bytes) -> Callable[[Path, Path], None]:
    return lambda run, secret: (run / name).write_bytes(content) and None


def _sparse(name: str) -> Callable[[Path, Path], None]:
    """A file of 2 TiB that takes no room on the disk."""
    return lambda run, secret: os.truncate(run / name, 2 * 2**40)


def _special(name: str, make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def replace(run: Path, secret: Path) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return replace


def _values(**values: Any) -> Callable[[Path, Path], None]:
    return lambda run, secret: _changed(run / "run.json", lambda content: content.update(values))


def _infinite(run: Path, secret: Path) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace("0.6666666666666666", "1e400"))


def _markup(run: Path, secret: Path) -> None:
    _values(model={"name": MARKUP}, adapter=ADAPTER | {"name": MARKUP, "method": MARKUP})(run, secret)


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "run.json is a link out": _linked("run.json"),
    "results.json is a link out": _linked("results.json"),
    "samples is a link out": _linked("samples"),
    "a task's samples are a link out": _linked("samples", "cme_a.jsonl"),
    "a task leads up": lambda run, secret: _renamed(run, f"../../{secret.name}/samples/cme_a"),
    "a task is a path from the root": lambda run, secret: _renamed(run, f"{secret}/samples/cme_a"),
    "a task with a zero byte": lambda run, secret: _renamed(run, "cme_a\0.jsonl"),
    "a task with a long name": lambda run, secret: _renamed(run, "a" * 5000),
    "markup in the names": _markup,
    "huge run.json": _sparse("run.json"),
    "huge results.json": _sparse("results.json"),
    "a line without an end": _sparse("samples/cme_a.jsonl"),
    "NaN": _replaced("run.json", b'{"seed": NaN}'),
    "infinity": _infinite,
    "broken UTF-8": _replaced("run.json", b'{"model": {"name": "\xff\xfe"}}'),
    "a lone surrogate": _replaced("run.json", b'{"model": {"name": "\\ud800"}}'),
    "nested deeply": _replaced("run.json", b'{"arguments":' + b"[" * 500_000),
    "nested as deeply as may be": _values(arguments={"x": json.loads("[" * 900 + "]" * 900)}),
    "run.json is a pipe": _special("run.json", os.mkfifo),
    "samples are a pipe": _special("samples/cme_a.jsonl", os.mkfifo),
    "the lock is a pipe": _special(".lock", os.mkfifo),
    "run.json is a device": _special("run.json", lambda file: file.symlink_to("/dev/zero")),
    "results.json is a folder": _special("results.json", Path.mkdir),
    "run.json is a link to itself": _special("run.json", lambda file: file.symlink_to(file)),
    "a lock of another process": _replaced(".lock", b"-1 \xff\n0"),
    "numbers beyond sense": _values(seed=10**30, sessions=[{"started": "9999-12-31", "seconds": 1e308}] * 3),
    "many rows": lambda run, secret: _changed(
        run / "run.json", lambda content: content["tasks"]["cme_a"].update(n=10**7, rows=10**7)
    ),
}
"""By what it is: what changes a run, given a whole run outside of its folder."""


def hostile_runs(root: Path, secret: Path) -> dict[str, Path]:
    """A run for each attack, below ``root``; beside them links to the run outside, and to ``root`` itself."""
    runs = {}
    for number, (name, attack) in enumerate(ATTACKS.items()):
        run = make_run(root / f"run{number:02d}", TASKS).folder
        attack(run, secret)
        runs[name] = run
    (root / "linked").symlink_to(secret)
    (root / "again").symlink_to(root)
    return runs
