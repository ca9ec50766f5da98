"""The states of the unfinished adapters of a sweep, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cme_bench.training.sweep.processes import StateFiles
from cme_bench.util.early import Early
from cme_bench.util.files import replacing, storing
from cme_bench.util.phases import phase

State = dict[str, Any]


class States:
    """The states of adapters by name, all that each needs to go on; written beside what is done next.

    ``identities``: of the unfinished trainings, by name; of the stored states those of these very trainings
    are known from the start.
    """

    def __init__(self, files: StateFiles, identities: Mapping[str, Mapping[str, Any]]) -> None:
        self._files, self._identities = files, dict(identities)
        self._held = self._stored()
        self._writing: Early[None] | None = None

    @property
    def held(self) -> Mapping[str, State]:
        """All states, by name."""
        return self._held

    def step_of(self, name: str) -> int:
        """Return how many steps an adapter has made, as far as its state tells."""
        return int(self._held[name]["step"]) if name in self._held else 0

    def put(self, states: Mapping[str, State]) -> None:
        """Keep these states, and begin to write all. What failed in the writing before is raised here."""
        self.wait()
        self._held |= states
        content = {"identities": self._identities, "states": dict(self._held)}
        self._writing = Early(lambda: self._write(content))

    def drop(self, name: str) -> None:
        """Keep an adapter's state no more, if there is one."""
        self._held.pop(name, None)

    def wait(self) -> None:
        """Wait until the file is written; raise what failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def remove(self) -> None:
        """Remove the file, and those of other processes whose work is done here."""
        self.wait()
        self._files.remove()

    @phase("states")
    def _write(self, content: Mapping[str, Any]) -> None:
        with storing(self._files.own), replacing(self._files.own) as stream:
            torch.save(content, stream)

    def _stored(self) -> dict[str, State]:
        """Return the states in the files of all processes that there were, of each adapter the furthest."""
        found: dict[str, State] = {}
        for file in self._files.all():
            try:
                held: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except FileNotFoundError:  # of another process, which has just finished its work
                continue
            for name, state in held["states"].items():
                known = name in self._identities and name in held["identities"]
                if known and held["identities"][name] == self._identities[name]:
                    further = name not in found or state["step"] > found[name]["step"]
                    found |= {name: state} if further else {}
        return found
