"""What is compared: adapters as PEFT configs, and forms of them that no package of ours has.

``moelora32`` is MoELoRA as published, a loop over experts, written here; ``moelora32_fused`` is this
package's. "_k2", "_k4", "_k8": number of experts, each of rank 32; without a suffix there are 4.
``lora128_lean`` is LoRA without PEFT's cast of the input to float32, the fastest we know, for those who
suspect the yardstick. Rank and alpha: alpha = 2 r.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.shared.lowrank import fitted, project


class LeanLora(nn.Module):
    """``base(x) + (alpha / r) x A B`` with alpha = 2r: two products, an addition, no cast under autocast."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base = base
        self.down = _weight(r, base.in_features, base)
        self.up = _weight(base.out_features, r, base)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        base: Tensor = self.base(x)
        return (base + nn.functional.linear(project(x, self.down) * 2.0, self.up)).to(base.dtype)


class PublishedMoeLora(nn.Module):
    """MoELoRA in its published form: 2k products and k tensors of full width, each gated by a softmax router.

    ``base(x) + (alpha / r) sum_i g_i x A_i B_i``, alpha = 2r. The gates are float32 and are rounded to the
    experts' dtype before they meet them, which is kinder to this form than the promotion to float32.
    """

    def __init__(self, base: nn.Linear, r: int, k: int) -> None:
        super().__init__()
        self.base = base
        self.router = _weight(k, base.in_features, base)
        self.down = nn.ParameterList([_weight(r, base.in_features, base) for _ in range(k)])
        self.up = nn.ParameterList([_weight(base.out_features, r, base) for _ in range(k)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        base: Tensor = self.base(x)
        result = base
        x = fitted(x, self.router)  # once, for all products
        gates = nn.functional.linear(x, self.router).softmax(dim=-1, dtype=torch.float32)
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            expert = nn.functional.linear(nn.functional.linear(x, down), up)
            result = result + (2.0 * gates[..., i : i + 1]).to(expert.dtype) * expert
        return result.to(base.dtype)


def _weight(rows: int, columns: int, base: nn.Linear) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns, device=base.weight.device, dtype=torch.float32))


Wrap = Callable[[nn.Linear], nn.Module]
How: TypeAlias = PeftConfig | Wrap
"""How a method is put on a model: by PEFT, or by wrapping each linear."""


@dataclass(frozen=True, slots=True)
class Method:
    """``form``: how it computes, in words that stand beside every number of it."""

    name: str
    how: How
    form: str


_PEFT = "PEFT's own"
_FUSED = "fused: experts side by side in two products"
_LOOP = "as published: a loop over experts"


def all_methods(targets: Sequence[str]) -> dict[str, Method]:
    """Every method on the linears with these names."""
    names = list(targets)

    def lora(r: int) -> PeftConfig:
        return LoraConfig(r=r, lora_alpha=2 * r, target_modules=names, bias="none")

    def moe(k: int) -> PeftConfig:
        return MoeLoraConfig(r=32, alpha=64.0, num_experts=k, target_modules=names)

    def team(r: int, k: int) -> PeftConfig:
        return TeamLoraConfig(r=r, alpha=2.0 * r, num_experts=k, target_modules=names)

    # Ranks stay as they start: what is timed is a step, not the allocation of ranks.
    ada = AdaLoraConfig(
        init_r=128, target_r=128, lora_alpha=256, total_step=10, tinit=1, tfinal=1, target_modules=names
    )
    found = [
        Method("lora32", lora(32), _PEFT),
        Method("lora64", lora(64), _PEFT),
        Method("lora128", lora(128), _PEFT),
        Method("lora128_lean", lambda linear: LeanLora(linear, 128), "LoRA without PEFT's cast of the input"),
        Method("adalora128", ada, f"{_PEFT}, without its allocation of ranks"),
        Method("moslora128", MosLoraConfig(r=128, alpha=256.0, target_modules=names), "ours"),
        Method("hydralora32", HydraLoraConfig(r=32, alpha=64.0, num_experts=4, target_modules=names), _FUSED),
        Method("moelora32_k2", lambda linear: PublishedMoeLora(linear, 32, 2), _LOOP),
        Method("moelora32", lambda linear: PublishedMoeLora(linear, 32, 4), _LOOP),
        Method("moelora32_k8", lambda linear: PublishedMoeLora(linear, 32, 8), _LOOP),
        Method("moelora32_fused_k2", moe(2), _FUSED),
        Method("moelora32_fused", moe(4), _FUSED),
        Method("moelora32_fused_k8", moe(8), _FUSED),
        Method("teamlora16", team(16, 4), _FUSED),
        Method("teamlora32_k2", team(32, 2), _FUSED),
        Method("teamlora32", team(32, 4), _FUSED),
        Method("teamlora32_k8", team(32, 8), _FUSED),
    ]
    return {method.name: method for method in found}


@contextmanager
def attached(model: nn.Module, how: How, targets: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """The adapter's parameters, random, while it is on the model."""
    torch.manual_seed(1)
    if isinstance(how, PeftConfig):
        tuned = get_peft_model(model, how)
        undo: Callable[[], Any] = tuned.unload
    else:
        undo = functools.partial(_put_back, _wrap_all(model, how, targets))
    try:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        for name, parameter in named:
            if ".teamlora_interaction." not in name:  # M keeps its start, ones on the diagonal
                nn.init.normal_(parameter, std=0.02)
        yield [parameter for _, parameter in named]
    finally:
        undo()


def _wrap_all(model: nn.Module, wrap: Wrap, targets: Sequence[str]) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if name in targets and isinstance(child, nn.Linear)
    ]
    for parent, name, linear in found:
        setattr(parent, name, wrap(linear))
    return found


def _put_back(replaced: list[tuple[nn.Module, str, nn.Linear]]) -> None:
    for parent, name, linear in replaced:
        setattr(parent, name, linear)
