"""A small training loop for the common case: one device a process, and nothing that needs a Trainer.

It makes the steps of :class:`~cme_bench.training.trainer.MixtureTrainer`, equal up to rounding, with less to
do between them: the adapter's numbers lie in one array, so that clipping and the optimizer are a few
operations for all of it, and batches are made in another thread. Interrupted, it goes on bit for bit.

Several processes make a step together: each computes batches of its own, their gradients are averaged in one
exchange, and then all make the same update.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor

from cme_bench.training.ahead import made_ahead
from cme_bench.training.batches import count_learnt, count_targets, count_tokens, share
from cme_bench.training.checkpoints import allocation, rank_allocator, restore_allocation
from cme_bench.training.numbers import Numbers
from cme_bench.training.options import TrainOptions
from cme_bench.training.ranks import Ranks
from cme_bench.training.schedule import rate
from cme_bench.training.step_log import StepLog
from cme_bench.util.devices import sent
from cme_bench.util.errors import CmeError
from cme_bench.util.files import replacing, storing

STATE = "step.pt"
"""The file of a checkpoint."""
_SEEDS = 1 << 32
"""Seeds are below it; a process adds its number to the training's."""
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[dict[str, Any]]], Batch]


@dataclass(slots=True)
class Step:
    """The batches that this process has of one step, and what is known without a look at the device.

    ``targets``, ``tokens``: of these batches; ``learnt``: target tokens of the whole step, of all processes.
    """

    batches: list[Batch]
    targets: int
    tokens: int
    learnt: int


Backward = Callable[[Batch, Tensor], Tensor]
"""Adds the gradients of a batch, whose loss is weighted by a scalar; returns loss and balance loss, [2]."""


class Loop:
    """Trains ``model``, its base inside ``target_loss``, on the planned batches, which are those of all
    processes.

    ``backward``: computes a batch (:mod:`~cme_bench.training.steps`); ``folder``: of the checkpoint;
    ``ranks``: the processes that train together, each with dropout of its own.
    """

    def __init__(
        self,
        model: PeftModel,
        options: TrainOptions,
        *,
        examples: Any,
        batches: Sequence[list[int]],
        collate: Collate,
        backward: Backward,
        numbers: Numbers,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        self.model, self.options, self.numbers = model, options, numbers
        self._per_step = options.accumulate * ranks.count
        self.step, self.steps = 0, len(batches) // self._per_step
        self._examples, self._batches, self._collate = examples, batches, collate
        self._backward = backward
        self._file, self._ranks = folder / STATE, ranks
        self._device = numbers.values.device
        ranks.spread(numbers.values)
        set_seed((options.seed + ranks.number) % _SEEDS)
        torch.empty((), dtype=torch.int64).random_()  # what a data loader draws for its seed

    def run(self, log: StepLog) -> None:
        """Train to the end, or until the log is interrupted; write the curve, and checkpoints."""
        options = self.options
        self.model.train()
        log.start(self.step, self.steps)
        for made in made_ahead(self._make, range(self.step, self.steps)):
            lr = rate(options, self.steps, self.step)
            log.add(self.step + 1, lr, self._advance(made, lr))
            last = self.step == self.steps
            due = last or self.step % options.save_every == 0
            stopped = log.interrupted and self._ranks.count == 1  # several stop where all are asked
            if due or stopped or self.step % options.log_every == 0:
                log.flush(self._ranks.summed)
                stopped = self._ranks.any(log.interrupted, self._device)
            if not last and (due or stopped):
                self.save()
            if stopped:
                break
        log.listener.finish("training")

    def _advance(self, made: Step, lr: float) -> Tensor:
        """Make one step; return its sums, as the log takes them."""
        self.numbers.grads.zero_()
        weight = sent(self._ranks.count / max(made.learnt, 1), self._device)
        found = [
            self._backward({k: v.to(self._device, non_blocking=True) for k, v in batch.items()}, weight)
            for batch in made.batches
        ]
        self.numbers.average(self._ranks)
        self.numbers.update(lr, self.options.max_grad_norm)
        if rank_allocator(self.model) is not None:
            self.model.base_model.update_and_allocate(self.step)
        self.step += 1
        nll, balance = torch.stack(found).double().sum(0)
        targets, tokens, count = sent([made.targets, made.tokens, len(found)], self._device).double()
        return torch.stack([nll, targets, tokens, balance, count])

    def _make(self, number: int) -> Step:
        planned = self._batches[number * self._per_step : (number + 1) * self._per_step]
        own = share(planned, process=self._ranks.number, processes=self._ranks.count)
        batches = [self._collate([self._examples[i] for i in batch]) for batch in own]
        targets, tokens = sum(map(count_targets, batches)), sum(map(count_tokens, batches))
        learnt = sum(count_learnt(self._examples[i]) for batch in planned for i in batch)
        if self._device.type == "cuda":
            batches = [{key: value.pin_memory() for key, value in batch.items()} for batch in batches]
        return Step(batches, targets, tokens, learnt)

    def save(self) -> None:
        """Write all that the training needs to go on, in place of what is there; the first process does."""
        random = self._ranks.of_all(self._random())
        if self._ranks.number > 0:
            return
        state = {
            "step": self.step,
            "values": self.numbers.values,
            "optimizer": self.numbers.optimizer.state_dict(),
            **random[0],
            "others": random[1:],
            "allocation": allocation(self.model),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with storing(self._file), replacing(self._file) as stream:
            torch.save(state, stream)

    @torch.no_grad()
    def restore(self) -> bool:
        """Go on where the checkpoint stands; return whether there is one.

        CmeError if it cannot be read, or some processes do not see it.
        """
        seen = self._ranks.of_all(self._file.exists())
        if any(seen) and not all(seen):
            raise CmeError(f"{self._file}: some processes do not see it; --out must be one folder for all")
        if not all(seen):
            return False
        try:
            state = torch.load(self._file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
            raise CmeError(f"{self._file}: cannot be read; remove it to begin anew") from err
        self.step = int(state["step"])
        self.numbers.values.copy_(state["values"])
        self.numbers.optimizer.load_state_dict(state["optimizer"])
        restore_allocation(self.model, state["allocation"])
        random = [state, *state.get("others", ())][self._ranks.number]
        torch.set_rng_state(random["random"])
        if self._device.type == "cuda" and random["random_cuda"] is not None:
            torch.cuda.set_rng_state(random["random_cuda"], self._device)
        return True

    def _random(self) -> dict[str, Tensor | None]:
        """Return where this process's random numbers stand."""
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return {"random": torch.get_rng_state(), "random_cuda": cuda}
