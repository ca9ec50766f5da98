"""How the gradients of a batch are computed: as it comes, or with compiled layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from cme_bench.adapters.routing.balance import BalanceTape


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


def compile_layers(model: PeftModel) -> None:
    """Let torch compile each decoder layer; layers of one kind share what is compiled."""
    base: Any = model.get_base_model()
    for layer in base.base_model.layers:
        layer.compile(dynamic=False)
