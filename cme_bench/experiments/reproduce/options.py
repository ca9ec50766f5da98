"""Options of `reproduce`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cme_bench.util.options import Offline, Option


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """A recipe at one of its scales, and what replaces parts of it. None: as the recipe says."""

    recipe: Annotated[
        Path, Option("A recipe file, or one that ships with this: smollm2, smollava.", argument=True)
    ]
    scale: Annotated[str, Option("One of the recipe's scales.")]
    model: Annotated[str | None, Option("Instead of the recipe's.")] = None
    data: Annotated[str | None, Option("Instead of the recipe's: 'hub', 'mini' or a folder.")] = None
    seeds: Annotated[int | None, Option("Seeds of the main rows.", minimum=1)] = None
    side_seeds: Annotated[int | None, Option("Seeds of all other rows.", minimum=1)] = None
    workers: Annotated[
        int | None, Option("Processes that share the machine, dealt over its GPUs.", minimum=1)
    ] = None


@dataclass(frozen=True, slots=True)
class CallOptions:
    """One call of the command: where it works, and when it stops.

    helper_command: what starts a further process of the same recipe; is_helper: whether this is one;
    stage_seeds: the seeds of the headline's rows and of all others that a helper computes, as "20,0".
    """

    out: Annotated[Path, Option("Folder of everything that is computed.")]
    offline: Offline = False
    minutes: Annotated[float | None, Option("Stop cleanly before so many minutes are over.", minimum=0.5)] = (
        None
    )
    state: Annotated[
        Path | None,
        Option("Folder of files of at most 16 MiB: read at the start, added to each minute and at the end."),
    ] = None
    published: Annotated[
        Path | None,
        Option(
            "Copy results here: no texts of items, no weights but those the recipe keeps.", flag="--publish"
        ),
    ] = None
    helper_command: tuple[str, ...] = ()
    is_helper: Annotated[bool, Option("", flag="--helper", hidden=True)] = False
    stage_seeds: Annotated[str | None, Option("", hidden=True)] = None
