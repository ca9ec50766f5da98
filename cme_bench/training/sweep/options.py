"""Options of `sweep`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cme_bench.util.options import Offline, Option


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """A sweep file, and what the command line says of all its adapters. None: as the file says."""

    file: Annotated[Path, Option("A YAML file of adapters, by the options of `train`.", argument=True)]
    out: Annotated[Path, Option("Folder of the adapters' folders.", short="-o")]
    data: Annotated[
        str | None, Option("The rows of all adapters, as for `train`, instead of the file's.")
    ] = None
    model: Annotated[str | None, Option("The base, instead of the file's.")] = None
    offline: Offline = False
