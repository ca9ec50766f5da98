"""How a training runs on its device, decided once the model is there: layout, attention, checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel

from cme_bench.adapters import balance_tape
from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.runs.progress import Listener
from cme_bench.training.batches import Layout, width_multiple
from cme_bench.training.choose import packs_are_free
from cme_bench.training.fresh import leave_casts
from cme_bench.training.loss import target_loss
from cme_bench.training.memory import Decision, decide, free_bytes
from cme_bench.training.packing import check_packing, prefer_varlen
from cme_bench.training.packs import choose_width, most_learnt
from cme_bench.training.prepared import Prepared
from cme_bench.training.ranks import Ranks
from cme_bench.training.reporting import TrainingReport
from cme_bench.training.varlen import bound_examples, looks_apart
from cme_bench.util.errors import UsageError


@dataclass(slots=True)
class Session:
    """A prepared training, its model with the adapter, and how it runs.

    ``by_trainer``: why transformers' Trainer makes the steps; None where the loop does. ``words``: of
    MANNERS, for the loop.
    """

    prepared: Prepared
    model: PeftModel
    listener: Listener
    by_trainer: str | None
    words: frozenset[str]
    ranks: Ranks
    device: torch.device
    bf16: bool
    layout: Layout = field(init=False)
    checkpointing: Decision = field(init=False)

    def __post_init__(self) -> None:
        if self.bf16:
            leave_casts(self.model.modules(), self.device)
        self.layout = self._layout()
        self.checkpointing = self._decided()

    def _decided(self) -> Decision:
        """Return whether to use gradient checkpointing; in the loop all processes do if one must."""
        looped = self.by_trainer is None
        alone = self.ranks.count == 1 and self.prepared.options.device_map is None
        found = decide(
            self.model,
            asked=self.prepared.options.checkpointing,
            tokens=self._most_tokens(),
            autocast=self.bf16,
            free=free_bytes(self.device),
            whole=looped or alone,
        )
        if looped and self.ranks.any(found.checkpointing, self.device) and not found.checkpointing:
            return Decision(True, "another process has less free memory")
        return found

    def _layout(self) -> Layout:
        """Return how batches are laid out. UsageError if packing is asked for and the model cannot."""
        options, plan, base = self.prepared.options, self.prepared.plan, self.model.get_base_model()
        fill = self.prepared.pad_token, width_multiple(self.device.type)
        width = options.pack_tokens or None
        default = "packs" in self.words and packs_are_free(options)
        if not default and options.pack is None and width is None:
            return Layout(*fill)
        if options.pack is None and "varlen" in self.words:
            dtype = torch.bfloat16 if self.bf16 else next(base.parameters()).dtype
            prefer_varlen(base, dtype, self.listener.note)
        try:
            check_packing(base)
        except UsageError as error:
            if not default:
                raise
            self.listener.note(f"note: batches are padded, not packed ({error})")
            return Layout(*fill)
        if default:
            width = choose_width(plan.examples.lengths, plan.batches, apart=looks_apart(base))
        if width is None:
            bound_examples(base, None)
            return Layout(*fill, per_row=options.pack)
        longest = int(plan.examples.lengths.max())
        bound_examples(base, longest)
        learnt = most_learnt(plan.examples.target_lengths, plan.batches)
        return Layout(*fill, width=width, longest=longest, learnt=learnt)

    def _most_tokens(self) -> int:
        """Return the places of the largest batch."""
        if self.device.type != "cuda":
            return 0
        lengths = self.prepared.plan.examples.lengths
        return max(self.layout.places([int(lengths[i]) for i in b]) for b in self.prepared.plan.batches)

    def note(self) -> None:
        """Say how the training runs."""
        count = self.ranks.count
        how = "one process, one device" if count == 1 else f"{count} processes, one device each"
        if self.by_trainer is not None:
            how = f"transformers' Trainer ({self.by_trainer})"
        rows = "padded rows"
        if self.layout.width is not None:
            rows = f"packs of {self.layout.width:,} tokens"
        elif self.layout.per_row is not None:
            rows = f"about {self.layout.per_row} examples a row"
        self.listener.note(f"steps: {how}, {rows}; {self.checkpointing.line}")

    @contextmanager
    def report(self, last_step: int) -> Iterator[TrainingReport]:
        """Tell trackers in the block, if the options name some."""
        report = TrainingReport(
            self.prepared.options,
            self.prepared.content,
            last_step=last_step,
            balanced=self._balanced,
            note=self.listener.note,
        )
        try:
            yield report
        finally:
            report.close()

    @property
    def _balanced(self) -> bool:
        return getattr(self.prepared.config, "balance_coefficient", 0.0) > 0

    @contextmanager
    def open(self) -> Iterator[BalanceTape | None]:
        """Make the model return its loss on targets in the block; yield the tape of its balance loss."""
        with ExitStack() as stack:
            stack.enter_context(target_loss(self.model.get_base_model()))
            yield stack.enter_context(balance_tape(self.model)) if self._balanced else None
