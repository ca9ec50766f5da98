"""The feed-forward block of a decoder layer: its linears, and how it joins what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

Projection = Callable[[str, Tensor], Tensor]
"""From a linear's name and its input, (..., d_in), to its output."""
ARCHITECTURES = frozenset(
    "gemma gemma2 gemma3 gemma3_text gpt_neox llama mistral phi phi3 qwen2 qwen3".split()
)
"""``model_type`` of those whose blocks are known to compute as below."""
_ACTIVATIONS = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The linears of a block, by name. ``inputs``: those that read the block's input; ``output``: the other.

    ``act(gate) * up`` between them where there are two inputs, or one that holds both side by side (gate
    first); else ``act`` alone.
    """

    inputs: tuple[str, ...]
    output: str
    fused: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all linears."""
        return (*self.inputs, self.output)

    def join(self, first: dict[str, Tensor], act: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the input of the last linear, from the outputs of the first ones."""
        outputs = [first[name] for name in self.inputs]
        if self.fused:
            outputs = list(outputs[0].chunk(2, dim=-1))
        return act(outputs[0]) * outputs[1] if len(outputs) == 2 else act(outputs[0])


_KNOWN = (
    FeedForward(("gate_proj", "up_proj"), "down_proj"),
    FeedForward(("gate_up_proj",), "down_proj", fused=True),
    FeedForward(("fc1",), "fc2"),
    FeedForward(("dense_h_to_4h",), "dense_4h_to_h"),
)


def feed_forward(module: nn.Module) -> FeedForward | None:
    """Return the structure of a feed-forward block; None if a module is none."""
    children = dict(module.named_children())
    for known in _KNOWN:
        if all(isinstance(children.get(name), nn.Module) for name in known.names):
            return known
    return None


def activation(module: nn.Module, name: str | None) -> Callable[[Tensor], Tensor]:
    """Return the activation called ``name``, as transformers names it; the block's own for None."""
    if name is not None:
        found: Any = ACT2FN[name]
    else:
        found = next(getattr(module, own) for own in _ACTIVATIONS if hasattr(module, own))
    act: Callable[[Tensor], Tensor] = found
    return act


def activations() -> frozenset[str]:
    """Return the names of the activations that transformers has."""
    return frozenset(ACT2FN)
