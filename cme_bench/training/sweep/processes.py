"""The processes of a sweep that ``accelerate launch`` started: each trains adapters of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cme_bench.training.prepared import Prepared
from cme_bench.training.ranks import Ranks

_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Process:
    """One of ``count`` processes, by its number from 0."""

    number: int = 0
    count: int = 1

    def share(self, members: Sequence[Prepared]) -> list[Prepared]:
        """Return the members that this process trains.

        Those that differ in seed and learning rate alone stay together: they are computed as one.
        """
        groups = [list(group) for _, group in groupby(members, key=_shape)]
        if len(groups) < self.count:
            groups = [[member] for member in members]
        return [member for group in groups[self.number :: self.count] for member in group]

    def files(self, whole: Path) -> StateFiles:
        """Return where what is unfinished is kept, if ``whole`` is where one process alone keeps it."""
        own = whole if self.count == 1 else whole.with_name(f"{whole.stem}.{self.number}{whole.suffix}")
        return StateFiles(own, whole)


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The file of one process, ``own``, and that of one that works alone, ``whole``."""

    own: Path
    whole: Path

    def all(self) -> list[Path]:
        """Return the files that processes left here, however many there were."""
        return sorted(self.whole.parent.glob(f"{self.whole.stem}*{self.whole.suffix}"))

    def remove(self) -> None:
        """Remove what is done with: a process that works alone has finished the others' work too."""
        for file in self.all() if self.own == self.whole else [self.own]:
            file.unlink(missing_ok=True)


def _shape(member: Prepared) -> str:
    identity = {k: v for k, v in member.options.plain().items() if k not in ("seed", "learning_rate", "out")}
    return repr(sorted(identity.items(), key=lambda pair: pair[0]))


@contextmanager
def one_process() -> Iterator[Process]:
    """Work in the block as a process of its own, on the GPU that a launcher meant for it.

    Adapters share nothing in training, so no process waits for another.
    """
    ranks = Ranks.here()
    held = {name: os.environ.pop(name) for name in _OF_A_LAUNCHER if name in os.environ}
    try:
        ranks.take_device()
        yield Process(ranks.number, ranks.count)
    finally:
        os.environ.update(held)
