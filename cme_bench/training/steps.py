"""How the gradients of a batch are computed: eagerly, with compiled layers, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.training.replay import Replay

_WEIGHT = "weight"


class Eager:
    """Computes each batch as it comes. ``tape``: of the balance loss, which is a mean over the batches of a
    step."""

    def __init__(self, model: PeftModel, tape: BalanceTape | None, *, bf16: bool, accumulate: int) -> None:
        self._model, self._tape = model, tape
        self._bf16, self._accumulate = bf16, accumulate

    def __call__(self, batch: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Add the gradients of a batch; return its summed loss and its balance loss, [2]."""
        device = batch["input_ids"].device.type
        if self._tape is not None:
            self._tape.forget()  # of a pass that failed
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            output: Any = self._model(**batch, weight=weight)
        loss = output.loss
        balance = torch.zeros((), device=loss.device)
        if self._tape is not None:
            balance = self._tape.loss(mask=batch["attention_mask"])
            loss = loss + balance / self._accumulate
        loss.backward()
        return torch.stack([output.nll, balance.detach()])


class Replayed:
    """Computes batches as ``eager`` does, those of shapes that come again as a CUDA graph.

    Gradients must have memory that stays, as in one array.
    """

    def __init__(self, eager: Eager, note: Callable[[str], None]) -> None:
        self._replay = Replay(lambda inputs: eager(*_without_weight(inputs)), note)

    def __call__(self, batch: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Add the gradients of a batch; return its summed loss and its balance loss, [2]."""
        return self._replay({**batch, _WEIGHT: weight})


def _without_weight(inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return {name: value for name, value in inputs.items() if name != _WEIGHT}, inputs[_WEIGHT]


def compile_layers(model: PeftModel) -> None:
    """Let torch compile each decoder layer; layers of one kind share what is compiled."""
    base: Any = model.get_base_model()
    for layer in base.base_model.layers:
        layer.compile(dynamic=False)
