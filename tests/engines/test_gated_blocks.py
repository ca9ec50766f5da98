"""Feed-forward blocks are known by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cme_bench.engines.hf.gated_blocks import gated_blocks
from tests.util.test_exact_logits import build


class Block(nn.Module):
    """A block with layers of names of its own, of which ``how`` tells what it computes."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor], *, bias: bool = False) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(8, 12, bias=bias), nn.Linear(8, 12, bias=bias)
        self.w2 = nn.Linear(12, 8, bias=bias)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.w2(self.how(self.w1(x), self.w3(x)))
        return found


def silu_of_the_first(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.silu(one) * other


def silu_of_the_second(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.silu(other) * one


OTHERS: dict[str, Any] = {
    "another gate": lambda one, other: nn.functional.gelu(one) * other,
    "capped": lambda one, other: nn.functional.silu(one) * other.clamp(-7, 7),
    "a gate of another slope": lambda one, other: one * torch.sigmoid(1.702 * one) * other,
    "of other shapes": lambda one, other: (nn.functional.silu(one) * other)[..., :1, :],
    "fails": lambda one, other: one @ other,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gate_is_found_whatever_the_layers_are_called(dtype: torch.dtype) -> None:
    blocks = [Block(how).to(dtype) for how in (silu_of_the_first, silu_of_the_second)]
    found = gated_blocks(blocks)
    assert [found[block].gate for block in blocks] == [blocks[0].w1, blocks[1].w3]
    assert [found[block].down for block in blocks] == [block.w2 for block in blocks]


@pytest.mark.parametrize("how", OTHERS)
def test_what_computes_something_else_is_none(how: str) -> None:
    assert not gated_blocks([Block(OTHERS[how])])


def test_layers_of_others_are_none() -> None:
    lent = Block(silu_of_the_first)
    lent.w1.forward = lambda x: x  # type: ignore[method-assign,assignment]
    square = Block(silu_of_the_first)
    square.w1, square.w2, square.w3 = (nn.Linear(8, 8, bias=False) for _ in range(3))
    assert not gated_blocks([Block(silu_of_the_first, bias=True), lent, square, nn.Linear(8, 12)])


@pytest.mark.parametrize(("family", "found"), [("llama", 2), ("qwen3", 2), ("gemma2", 0), ("gpt2", 0)])
def test_models(family: str, found: int) -> None:
    assert len(gated_blocks(build(family).modules())) == found


def test_a_block_is_tried_again_when_its_weights_change() -> None:
    tried: list[int] = []

    def how(one: Tensor, other: Tensor) -> Tensor:
        tried.append(len(one))
        return silu_of_the_first(one, other)

    block = Block(how)
    for _ in range(3):
        assert gated_blocks([block])
    assert len(tried) == 2  # for either layer as the gate
    with torch.no_grad():
        block.w1.weight.mul_(2)
    assert gated_blocks([block])
    assert len(tried) == 4
