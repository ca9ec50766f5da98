"""A small training loop for the common case: one process, one device, and nothing that needs a Trainer.

It makes the steps of :class:`~cme_bench.training.trainer.MixtureTrainer`, equal up to rounding, with less to
do between them: the adapter's numbers lie in one array, so that clipping and the optimizer are a few
operations for all of it, and batches are made in another thread. Interrupted, it goes on bit for bit.
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
from torch import Tensor, nn

from cme_bench.adapters.decay import decayed_names
from cme_bench.training.ahead import made_ahead
from cme_bench.training.batches import count_targets, count_tokens
from cme_bench.training.checkpoints import allocation, rank_allocator, restore_allocation
from cme_bench.training.options import TrainOptions
from cme_bench.training.schedule import BETAS, EPSILON, rate
from cme_bench.training.step_log import StepLog
from cme_bench.util.devices import sent
from cme_bench.util.errors import CmeError
from cme_bench.util.files import replacing, storing

STATE = "step.pt"
"""The file of a checkpoint."""
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[dict[str, Any]]], Batch]


class Numbers:
    """The trained numbers of an adapter in one array, its parameters views of it; likewise the gradients.

    Those with weight decay come first. All must have one dtype and device.
    """

    def __init__(self, model: PeftModel, *, weight_decay: float) -> None:
        names = set(decayed_names(model))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decayed = [p for name, p in trained if name in names]
        others = [p for name, p in trained if name not in names]
        self._parameters = [*decayed, *others]
        like = self._parameters[0]
        sizes = [p.numel() for p in self._parameters]
        self.values = torch.cat([p.detach().flatten() for p in self._parameters])
        self.grads = torch.zeros_like(self.values)
        for parameter, value, grad in zip(
            self._parameters, torch.split(self.values, sizes), torch.split(self.grads, sizes), strict=True
        ):
            parameter.data, parameter.grad = value.view_as(parameter), grad.view_as(parameter)
        first = sum(p.numel() for p in decayed)
        cuda = like.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self._part(slice(None, first))], "weight_decay": weight_decay},
                {"params": [self._part(slice(first, None))], "weight_decay": 0.0},
            ],
            lr=torch.zeros((), device=like.device) if cuda else 0.0,
            betas=BETAS,
            eps=EPSILON,
            fused=True,
            capturable=cuda,
        )

    def _part(self, here: slice) -> Tensor:
        part = self.values[here]
        part.grad = self.grads[here]
        return part

    def update(self, lr: float, most: float) -> None:
        """Clip the gradients to a norm of ``most``, if it is above 0, and make an optimizer step."""
        if most > 0:
            norm = torch.linalg.vector_norm(self.grads)
            self.grads.mul_((most / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self.optimizer.step()

    def release(self) -> None:
        """Give each parameter memory of its own again, as for saving."""
        for parameter in self._parameters:
            parameter.data, parameter.grad = parameter.data.clone(), None


@dataclass(slots=True)
class Step:
    """The batches of one step, and what is known of them without a look at the device."""

    batches: list[Batch]
    targets: int
    tokens: int


Backward = Callable[[Batch, Tensor], Tensor]
"""Adds the gradients of a batch, whose loss is weighted by a scalar; returns loss and balance loss, [2]."""


class Loop:
    """Trains ``model``, its base inside ``target_loss``, on the planned batches.

    ``backward``: computes a batch (:mod:`~cme_bench.training.steps`); ``folder``: of the checkpoint.
    """

    def __init__(
        self,
        model: PeftModel,
        options: TrainOptions,
        *,
        examples: Any,
        batches: Sequence[Sequence[int]],
        collate: Collate,
        backward: Backward,
        numbers: Numbers,
        folder: Path,
    ) -> None:
        self.model, self.options, self.numbers = model, options, numbers
        self.step, self.steps = 0, len(batches) // options.accumulate
        self._examples, self._batches, self._collate = examples, batches, collate
        self._backward = backward
        self._file = folder / STATE
        self._device = numbers.values.device
        set_seed(options.seed)
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
            if due or log.interrupted or self.step % options.log_every == 0:
                log.flush()
            if not last and (due or log.interrupted):
                self.save()
            if log.interrupted:
                break
        log.listener.finish("training")

    def _advance(self, made: Step, lr: float) -> Tensor:
        """Make one step; return its sums, as the log takes them."""
        self.numbers.grads.zero_()
        weight = sent(1.0 / max(made.targets, 1), self._device)
        found = [
            self._backward({k: v.to(self._device, non_blocking=True) for k, v in batch.items()}, weight)
            for batch in made.batches
        ]
        self.numbers.update(lr, self.options.max_grad_norm)
        if rank_allocator(self.model) is not None:
            self.model.base_model.update_and_allocate(self.step)
        self.step += 1
        nll, balance = torch.stack(found).double().sum(0)
        targets, tokens, count = sent([made.targets, made.tokens, len(found)], self._device).double()
        return torch.stack([nll, targets, tokens, balance, count])

    def _make(self, number: int) -> Step:
        count = self.options.accumulate
        planned = self._batches[number * count : (number + 1) * count]
        batches = [self._collate([self._examples[i] for i in batch]) for batch in planned]
        targets, tokens = sum(map(count_targets, batches)), sum(map(count_tokens, batches))
        if self._device.type == "cuda":
            batches = [{key: value.pin_memory() for key, value in batch.items()} for batch in batches]
        return Step(batches, targets, tokens)

    def save(self) -> None:
        """Write all that the training needs to go on, in place of what is there."""
        state = {
            "step": self.step,
            "values": self.numbers.values,
            "optimizer": self.numbers.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
            "allocation": allocation(self.model),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with storing(self._file), replacing(self._file) as stream:
            torch.save(state, stream)

    @torch.no_grad()
    def restore(self) -> bool:
        """Go on where the checkpoint stands; return whether there is one. CmeError if it cannot be read."""
        if not self._file.exists():
            return False
        try:
            state = torch.load(self._file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
            raise CmeError(f"{self._file}: cannot be read; remove it to begin anew") from err
        self.step = int(state["step"])
        self.numbers.values.copy_(state["values"])
        self.numbers.optimizer.load_state_dict(state["optimizer"])
        restore_allocation(self.model, state["allocation"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        return True


def mixed_numbers(model: nn.Module) -> str | None:
    """Return why a model's trained parameters cannot lie in one array; None if they can."""
    trained = [p for p in model.parameters() if p.requires_grad]
    mixed = len({(p.dtype, p.device) for p in trained}) != 1
    return "trained parameters of several dtypes or devices" if mixed else None
