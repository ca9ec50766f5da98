"""Attention over short examples against each by itself; on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cme_bench.training import short_attention as short
from cme_bench.training import varlen
from cme_bench.training.each_example import one_by_one

pytest.importorskip("triton", reason="the kernels are Triton's")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="no GPU, and TRITON_INTERPRET=1 is not set"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16
"""The interpreter multiplies no bfloat16."""
CASES = [
    # lengths, heads, kept heads, width, most tokens of an example
    ((5, 64, 65, 130, 1, 0, 0), 4, 2, 16, 130),
    ((3, 100, 70), 3, 1, 32, 256),
    ((128, 128), 2, 2, 64, 128),
    ((200,), 2, 1, 128, 200),
]


def drawn(lengths: tuple[int, ...], heads: int, kept: int, width: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), n, width) for n in (heads, kept, kept, heads)]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    return [torch.randn(shape, generator=generator).to(DEVICE, DTYPE) for shape in shapes], starts


@pytest.mark.parametrize(("lengths", "heads", "kept", "width", "longest"), CASES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_results_and_gradients(
    lengths: tuple[int, ...], heads: int, kept: int, width: int, longest: int, scale: float | None
) -> None:
    parts, starts = drawn(lengths, heads, kept, width)
    found = []
    for attend, dtype in ((short.short_attention, DTYPE), (one_by_one, torch.float32)):
        q, k, v = (part.to(dtype, copy=True).requires_grad_() for part in parts[:3])
        out = attend(q, k, v, starts, longest, scale)
        found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), parts[3].to(dtype))])
    for ours, wanted in zip(*found, strict=True):
        assert float((ours.float() - wanted).norm() / wanted.norm()) < 0.01


def test_inputs_may_lie_anyhow_in_memory() -> None:
    """Queries, keys and values of one product, and of heads before tokens."""
    parts, starts = drawn((40, 90), 4, 2, 32)
    wanted = attended(parts, starts)
    beside = torch.cat([part.flatten(1) for part in parts[:3]], dim=1).view(130, 8, 32)
    assert torch.equal(attended([beside[:, :4], beside[:, 4:6], beside[:, 6:]], starts), wanted)
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts[:3]]
    assert torch.equal(attended(turned, starts), wanted)


def attended(parts: list[Tensor], starts: Tensor) -> Tensor:
    query, key, value, *_ = parts
    return short.short_attention(query, key, value, starts, 90)


@pytest.mark.skipif(INTERPRETED, reason="a model's own attention is asked on a GPU")
def test_a_gpu_attends_by_them() -> None:
    """And by torch's kernels where they are not made for it: long examples, other widths, windows."""
    assert short.work(torch.device("cuda", 0)), "the kernels compute what they should"
    parts, starts = drawn((40, 90), 4, 2, 32)
    q, k, v = (part.view(1, 130, -1, 32).transpose(1, 2) for part in parts[:3])
    for longest, window in ((90, None), (90, 20), (short.LONGEST + 1, None)):
        module = SimpleNamespace(config=SimpleNamespace(_longest_example=longest))
        out, _ = varlen.attention(module, q, k, v, None, starts=starts, sliding_window=window)  # type: ignore[arg-type]
        query, key, value = (part.float() for part in parts[:3])
        wanted = one_by_one(query, key, value, starts, longest, None, window)
        assert float((out[0].float() - wanted).norm() / wanted.norm()) < 0.01
