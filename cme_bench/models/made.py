"""Models that are made on this machine when they are first wanted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cme_bench.util.errors import UsageError
from cme_bench.util.locks import locked


def made_once(folder: Path, name: str, make: Callable[[], None], *, offline: bool) -> Path:
    """Return the folder of a model, which ``make`` makes if it is not there.

    Processes that ask at the same time wait for the one that makes it. UsageError if it is absent and
    ``offline``.
    """
    if (folder / "config.json").is_file():
        return folder
    if offline:
        raise UsageError(f"{name} is not in {folder}; make it once without --offline")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f"{folder.name}.flock"):
        if not (folder / "config.json").is_file():
            make()
    return folder


@contextmanager
def appearing(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder, which stands in the place of ``folder`` after the block; a killed attempt leaves
    nothing that looks finished."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        done = Path(scratch) / "model"
        done.mkdir()
        yield done
        shutil.rmtree(folder, ignore_errors=True)
        done.replace(folder)
