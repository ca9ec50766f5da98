"""Feed-forward blocks ``down(silu(gate(x)) * up(x))`` of a model, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.kept_weights import state_of

_SIZES = torch.tensor([0.1, 1.0, 30.0, 1000.0])
"""Of the rows of a trial: a block that caps its numbers is another."""


class GatedBlock(NamedTuple):
    """The linear layers of a block."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    def plainly(self, x: Tensor) -> Tensor:
        """Return what the block computes, by operations of torch."""
        return self.down.forward(nn.functional.silu(self.gate.forward(x)) * self.up.forward(x))


def is_heard(module: nn.Module) -> bool:
    """Return whether somebody listens to what the parts of a module are given or return."""
    everywhere = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    own = any(child._forward_hooks or child._forward_pre_hooks for child in module.children())
    return own or bool(everywhere)


_tried: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], GatedBlock | None]] = WeakKeyDictionary()
"""Of a module: the states of its weights when it was tried, and the block that it is."""


def gated_blocks(modules: Iterable[nn.Module]) -> dict[nn.Module, GatedBlock]:
    """Return which of ``modules`` are such blocks, without biases; each is tried once with its weights."""
    shaped = {module: found for module in modules if (found := _by_shape(module))}
    states = {module: _states(found[0]) for module, found in shaped.items()}
    new = [module for module in shaped if _tried.get(module, (None,))[0] != states[module]]
    agreeing = [[_agrees(module, block) for block in shaped[module]] for module in new]
    agreed = torch.tensor(agreeing).tolist() if new else []
    for module, agrees in zip(new, agreed, strict=True):
        named = [block for block, right in zip(shaped[module], agrees, strict=True) if right]
        _tried[module] = states[module], named[0] if named else None
    known = {module: _tried[module][1] for module in shaped}
    return {module: block for module, block in known.items() if block is not None}


def _states(block: GatedBlock) -> tuple[int, ...]:
    return tuple(part for layer in block for part in (id(layer.weight), *state_of(layer.weight)))


def _by_shape(module: nn.Module) -> tuple[GatedBlock, GatedBlock] | None:
    """Return the two blocks that a module with such layers may be; None for others."""
    children = list(module.children())
    layers = [child for child in children if type(child) is nn.Linear]
    weights = list(module.parameters())
    if len(layers) != 3 or len(weights) != 3:  # a bias is a fourth
        return None
    if any(weight.is_meta for weight in weights) or any("forward" in p.__dict__ for p in (module, *layers)):
        return None
    first = layers[0].weight.shape
    alike = [layer for layer in layers if layer.weight.shape == first]
    one, other = alike if len(alike) == 2 else layers[1:]
    [down] = [layer for layer in layers if layer is not one and layer is not other]
    if {one.weight.shape, other.weight.shape} != {down.weight.T.shape}:
        return None
    return GatedBlock(one, other, down), GatedBlock(other, one, down)


@torch.no_grad()
def _agrees(module: nn.Module, block: GatedBlock) -> Tensor | bool:
    """Return whether a module computes what ``block`` does, to the last digit."""
    weight = block.gate.weight
    x = torch.randn(len(_SIZES), weight.shape[1], generator=torch.Generator().manual_seed(0))
    x = (x * _SIZES[:, None]).to(weight)
    try:
        own = module.forward(x)  # whoever listens to the block need not hear of it
        ours = block.plainly(x)
    except Exception:  # it takes more than states
        return False
    if not isinstance(own, Tensor) or own.shape != ours.shape:
        return False
    return torch.eq(own.nan_to_num(), ours.nan_to_num()).all()
