"""``sweep``: adapters of one file, trained together on one base; each folder is that of an ordinary training.

While anything is unfinished ``.sweep.pt`` beside the folders holds what all need to go on. Killed or
interrupted, the same call goes on where it stopped.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cme_bench.adapters.describe import describe
from cme_bench.models.load import choose_device, choose_dtype, load_config
from cme_bench.runs.progress import Listener
from cme_bench.training import record
from cme_bench.training.book import show
from cme_bench.training.choose import manner
from cme_bench.training.liger import models_restored
from cme_bench.training.memory import SHARE, free_bytes, gib
from cme_bench.training.options import TrainOptions
from cme_bench.training.packing import check_packing, prefer_varlen
from cme_bench.training.plan import ItemSet, load_sets
from cme_bench.training.prepared import Prepared
from cme_bench.training.replay import replaying
from cme_bench.training.reporting import report_whole
from cme_bench.training.shared import Shared
from cme_bench.training.signals import stop_on_signal
from cme_bench.training.sweep.beginning import begin, refuse
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.sweep.ledger import Ledger
from cme_bench.training.sweep.processes import StateFiles, one_process
from cme_bench.training.sweep.room import numbers_bytes
from cme_bench.training.sweep.states import States
from cme_bench.training.train import finish, frozen_base, name_base, only_writer, prepare
from cme_bench.util.building import builds_end
from cme_bench.util.collection import rarely_collected
from cme_bench.util.early import Early
from cme_bench.util.errors import CmeError, InterruptedRun, UsageError
from cme_bench.util.files import write_json
from cme_bench.util.phases import phase

STATES = ".sweep.pt"
_FIRST = 2
"""Steps in which kernels are built and a graph is captured."""
_DATA = (
    *("data", "row_form", "encoding", "delimiter", "quotes", "datasets", "cap", "holdout", "spare"),
    *("prompt_format", "max_length", "offline"),
)
"""Options that decide which rows are read."""


def sweep(
    options: Sequence[TrainOptions],
    listener: Listener | None = None,
    *,
    sets: Callable[[], Sequence[ItemSet]] | None = None,
    states: Path | None = None,
    shared: Shared | None = None,
) -> list[Path]:
    """Train all adapters, and return their folders, which lie in one folder.

    ``sets``: returns the rows that all draw from, as ``load_sets`` does, where they are kept;
    ``states``: the file of what is unfinished, by default ``.sweep.pt`` beside the folders; of several
    processes (:mod:`.processes`) each has one, with its number in the name. ``shared``: what sweeps before on
    the same base have made.

    Raises UsageError before weights are loaded for every setting that is impossible, InterruptedRun after a
    signal, once everything is stored, and CmeError at the end where the loss of some was not finite.
    """
    listener, shared = listener or Listener(), shared or Shared()
    with builds_end(), one_process() as process, models_restored():
        with phase("checks"):
            base = begin(options, listener, shared) if process.count == 1 else None
        prepared = process.share(_prepared(options, listener, sets, shared))
        waiting = [one for one in prepared if not one.finished]
        if waiting:
            with ExitStack() as stack:
                for one in waiting:
                    stack.enter_context(only_writer(one.options.out))
                stack.enter_context(replaying(choose_device()))
                stack.enter_context(rarely_collected())  # libraries and rows are most of what is there
                files = process.files(states or options[0].out.parent / STATES)
                if process.count > 1:
                    listener.note(f"process {process.number + 1} of {process.count}: {len(waiting)} adapters")
                _Sweep(waiting, listener, files=files, together=len(options), loading=base).run()
    return [one.out for one in options]


def _prepared(
    options: Sequence[TrainOptions],
    listener: Listener,
    sets: Callable[[], Sequence[ItemSet]] | None,
    shared: Shared,
) -> list[Prepared]:
    """Prepare every training; rows that several of them draw from are read once, if ``sets`` has none."""
    read: dict[tuple[Any, ...], Sequence[ItemSet]] = {}
    found = []
    for one in options:
        refuse(one, options[0])
        listener.note(f"{one.out.name}: preparing")
        key = tuple(getattr(one, name) for name in _DATA)
        if key not in read:
            with phase("rows"):
                read[key] = load_sets(one, note=listener.note) if sets is None else sets()
        with phase("batches"):
            found.append(prepare(one, listener, sets=read[key], shared=shared))
    return found


class _Sweep:
    """Everything between the prepared trainings and their folders."""

    def __init__(
        self,
        waiting: Sequence[Prepared],
        listener: Listener,
        *,
        files: StateFiles,
        together: int,
        loading: Early[PreTrainedModel] | None = None,
    ) -> None:
        self._waiting = {one.name: one for one in waiting}
        self._listener, self._together = listener, together
        first = waiting[0]
        self._dtype = choose_dtype(first.options.dtype, load_config(first.base), choose_device())
        with phase("weights"):
            self._base: PreTrainedModel = (
                frozen_base(first.base, self._dtype, choose_device(), first.options)
                if loading is None
                else loading.result()
            )
        if (book := next((one.book for one in waiting if one.book is not None), None)) is not None:
            show(self._base, book, listener.note)
        self._words = manner(self._base.device)
        with phase("attention"):
            self._packed = self._use_packs(waiting)
        identities = {name: one.content["identity"] for name, one in self._waiting.items()}
        self._states = States(files, identities)
        self._fitting: set[str] = set()
        self._ledger = Ledger(listener, [one.plan.steps for one in waiting])
        self._diverged: list[str] = []

    def _use_packs(self, waiting: Sequence[Prepared]) -> bool:
        """Return whether batches are laid out in packs by default. UsageError if a member asks for packed
        rows and the base cannot take them."""
        asked = any(one.options.pack is not None or one.options.pack_tokens for one in waiting)
        by_default = "packs" in self._words
        if not asked and not by_default:
            return False
        if "varlen" in self._words and all(one.options.pack is None for one in waiting):
            prefer_varlen(self._base, self._dtype, self._listener.note)
        try:
            check_packing(self._base)
        except UsageError as error:
            if asked:
                raise
            self._listener.note(f"note: batches are padded, not packed ({error})")
            return False
        return by_default

    def run(self) -> None:
        """Train what waits, neighbours in time together."""
        members = list(self._waiting.values())
        try:
            with stop_on_signal(self._ledger):
                self._ledger.start(sum(self._states.step_of(m.name) for m in members))
                for _, together in itertools.groupby(sorted(members, key=self._kind), key=self._kind):
                    self._train(list(together))
                self._states.remove()
        finally:
            with phase("states"):
                self._states.wait()  # nothing is written once a sweep has ended
        if self._diverged:
            raise CmeError(f"the loss of {', '.join(self._diverged)} was not finite; lower --learning-rate")

    def _kind(self, member: Prepared) -> tuple[int, int, bool, int]:
        """Members of one kind can share a forward pass."""
        options = member.options
        width = -1 if options.pack_tokens is None else options.pack_tokens
        return self._states.step_of(member.name), options.accumulate, options.pack is not None, width

    def _train(self, members: Sequence[Prepared]) -> None:
        """Train members until all are finished; those that are leave the others."""
        for part in self._parts(members, numbers_bytes(members)) or [list(members)]:
            left: Sequence[Prepared] = part
            while left:
                left, halves = self._train_crew(left)
                with phase("closing"):
                    gc.collect()  # modules that know each other hold what they computed
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                for half in halves:
                    self._train(half)

    def _parts(self, members: Sequence[Prepared], needed: int, share: float = SHARE) -> list[list[Prepared]]:
        """Return the members in parts that fit in a share of the free memory, where all together need more,
        ``needed`` bytes; none where they fit."""
        free = free_bytes(self._base.device)
        if free is None or len(members) == 1 or needed <= share * free:
            return []
        parts = min(len(members), -(-needed // max(1, int(share * free))))
        size = -(-len(members) // parts)
        self._listener.note(
            f"a step of {len(members)} adapters keeps about {gib(needed)}, {gib(free)} are free: "
            f"{size} at a time"
        )
        return [list(members[i : i + size]) for i in range(0, len(members), size)]

    def _apart(self, crew: Crew) -> list[list[Prepared]]:
        """Return the members in parts where a step of all is too large by an estimate, made once for each."""
        names = {member.name for member in crew.members}
        if names <= self._fitting or free_bytes(self._base.device) is None:
            return []
        share = SHARE / 2 if "graph" in self._words else SHARE  # a graph holds a step's memory once more
        parts = self._parts(crew.members, crew.step_bytes(), share)
        self._fitting |= set() if parts else names
        return parts

    def _train_crew(self, members: Sequence[Prepared]) -> tuple[list[Prepared], list[list[Prepared]]]:
        """Train until a member is finished or leaves; return those that are left, or parts of them where a
        step does not fit in memory."""
        with phase("adapters"):
            crew = Crew(
                self._base,
                members,
                step=self._states.step_of(members[0].name),
                states=self._states.held,
                bf16=self._dtype == torch.bfloat16,
                packed=self._packed,
                replay=self._listener.note if "graph" in self._words else None,
            )
        try:
            with phase("memory"):
                parts = self._apart(crew)
            if parts:
                return [], parts
            if crew.step == 0:
                with phase("records"):
                    self._describe(crew)
            return self._advance(crew), []
        except torch.OutOfMemoryError:
            return [], self._halves(crew)
        finally:
            with phase("closing"):
                crew.close()

    def _describe(self, crew: Crew) -> None:
        for number, member in enumerate(crew.members):
            name_base(member.config, member.base)
            with crew.alone(number) as model:
                member.content["adapter"] = describe(model).to_dict()
            write_json(member.options.out / record.FILE, member.content)

    def _advance(self, crew: Crew) -> list[Prepared]:
        """Advance until a member is finished or diverges; return those that are left."""
        end, begun = min(member.plan.steps for member in crew.members), crew.step
        options = crew.members[0].options
        self._ledger.open(crew.members, crew.step)
        while crew.step < end:
            with phase("first steps" if crew.step < begun + _FIRST else "steps"):
                self._ledger.add(crew.step + 1, crew.advance())
            due = crew.step == end or crew.step % options.save_every == 0
            if not due and not self._ledger.interrupted and crew.step % options.log_every:
                continue
            with phase("steps"):
                diverged = self._ledger.flush(wait=due or self._ledger.interrupted)
                diverged += self._ledger.flush() if diverged else []
            stopped = self._ledger.interrupted and crew.step < end
            if not diverged and (stopped or (due and crew.step < end)):
                self._keep(crew, crew.members)
            if stopped and not diverged:
                self._states.wait()
                raise InterruptedRun(f"stopped at step {crew.step}; the same command goes on there")
            if diverged:
                return self._part(crew, diverged)
        return self._part(crew, [])

    @phase("states")
    def _keep(self, crew: Crew, members: Sequence[Prepared]) -> None:
        """Keep the states of ``members`` as they are now; they are written meanwhile."""
        self._states.put(crew.states({member.name for member in members}))

    def _part(self, crew: Crew, diverged: Sequence[str]) -> list[Prepared]:
        """Write the folders of those that are finished; return those that go on.

        The states of the finished are not written, which takes longer than the folders: where one of these
        cannot be, they are, and killed meanwhile they are made again from the last states that were.
        """
        self._diverged += diverged
        for name in diverged:
            self._states.drop(name)
        good = [member for member in crew.members if member.name not in diverged]
        left = [member for member in good if member.plan.steps > crew.step]
        if left:
            self._keep(crew, left)
        try:
            for number, member in enumerate(crew.members):
                if member.name not in diverged and member.plan.steps == crew.step:
                    self._finish(crew, number)
        except BaseException:
            self._keep(crew, good)
            raise
        return left

    @phase("saving")
    def _finish(self, crew: Crew, number: int) -> None:
        member = crew.members[number]
        crew.detach(number)
        with crew.alone(number) as model:
            finish(model, self._ledger.curve(member.name), member, together=self._together)
        if member.options.report_to:
            curve = self._ledger.curve(member.name)
            report_whole(member.options, member.content, curve, self._listener.note)
        self._states.drop(member.name)

    def _halves(self, crew: Crew) -> list[list[Prepared]]:
        """Return the members of a crew that did not fit in memory, in two parts."""
        crew.forget_gradients()
        self._fitting.clear()
        if len(crew.members) == 1:
            raise CmeError(f"out of memory with {crew.members[0].name} alone; lower --batch-size")
        self._ledger.flush()
        self._keep(crew, crew.members)
        middle = (len(crew.members) + 1) // 2
        self._listener.note(
            f"out of memory with {len(crew.members)} adapters at a time: going on with {middle}"
        )
        return [crew.members[:middle], crew.members[middle:]]
