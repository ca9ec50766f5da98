"""The trained numbers of an adapter in one array.

Clipping, the optimizer and what processes exchange are a few operations for all of it.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from cme_bench.adapters.decay import decayed_names
from cme_bench.training.ranks import Ranks
from cme_bench.training.schedule import BETAS, EPSILON


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

    def average(self, ranks: Ranks) -> None:
        """Put the mean of the processes' gradients in the place of this one's."""
        if ranks.count > 1:
            ranks.summed(self.grads).div_(ranks.count)

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


def mixed_numbers(model: nn.Module) -> str | None:
    """Return why a model's trained parameters cannot lie in one array; None if they can."""
    trained = [p for p in model.parameters() if p.requires_grad]
    mixed = len({(p.dtype, p.device) for p in trained}) != 1
    return "trained parameters of several dtypes or devices" if mixed else None
