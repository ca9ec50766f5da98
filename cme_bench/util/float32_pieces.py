"""Float32's product ``x W^T`` on bfloat16 matrix units, of weights that are bfloat16's numbers.

A float32 number has 24 bits. It is, to the last of them, the sum of three bfloat16 numbers of 8 bits each.
So ``x W^T = [x3 | x2 | x1] [W | W | W]^T``, one product of bfloat16 matrices. Its terms are exact in float32,
and are summed there. That is three times the work, on units that are more than ten times as fast. The small
pieces come first: matrix units cut off what a sum is too large for, and it is small until x1 comes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cme_bench.util.early import Early
from cme_bench.util.exact_logits import product
from cme_bench.util.kernels import launched_on, tried

BY_PIECES = "float32 by bfloat16 pieces"
"""How records name it."""
PIECES = 3  # bfloat16 has 8 significant bits, float32 has 24
BYTES = 2 * PIECES
"""Of a weight in what :func:`thrice` returns."""
_BLOCK = 1024
_SINCE = (8, 0)
_WIDE = 8
"""Numbers of a row, for each row, from which W is dearer to read thrice than three products are to add."""


def has_units(device: torch.device) -> bool:
    """Return whether a device has matrix units for bfloat16, as NVIDIA's GPUs since 2020."""
    cuda = device.type == "cuda" and torch.version.hip is None
    return cuda and torch.cuda.get_device_capability(device) >= _SINCE


def thrice(weight: Tensor) -> Tensor | None:
    """Return ``[W | W | W]`` in bfloat16, [n, 3 d], of ``weight`` [n, d]; None for other than its numbers."""
    narrow = weight.detach().bfloat16()
    return narrow.repeat(1, PIECES) if torch.equal(narrow.float(), weight) else None


def thirds(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``[W1 | W1 | W1]``, ``[W2 | W2]`` and ``W3`` in bfloat16, of any float32 ``weight`` [n, d].

    W1 is ``weight`` rounded, W2 what is left of it rounded, W3 the rest.
    """
    third, second, first = split_plainly(weight.detach()).chunk(PIECES, 1)
    return first.repeat(1, PIECES), second.repeat(1, 2), third.contiguous()


def multiply_any(pieces: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return ``x W^T`` [rows, n], of ``x`` as by ``split`` and of any W as by ``thirds``.

    Of the nine products of pieces those three are left out that are below float32's last digit.
    """
    whole, half, rest = parts
    d = rest.shape[1]
    out = product(pieces[:, 2 * d :], rest)
    out += product(pieces[:, d:], half)
    return out.add_(product(pieces, whole))


def multiply(pieces: Tensor, repeated: Tensor) -> Tensor:
    """Return ``x W^T`` [rows, n], of ``x`` [rows, d] as by ``split`` and of W [n, d] as by ``thrice``.

    A GPU waits for the weights of few rows, so W is read once there: the pieces are rows of their own, and
    their products are added.
    """
    d = repeated.shape[1] // PIECES
    if len(pieces) * _WIDE < d:
        return product(pieces.view(-1, d), repeated[:, :d]).view(len(pieces), PIECES, len(repeated)).sum(1)
    return product(pieces, repeated)


def split(x: Tensor) -> Tensor:
    """Return ``[x3 | x2 | x1]`` in bfloat16, [rows, 3 d], of float32 ``x`` [rows, d].

    x1 is ``x`` rounded, x2 what is left of it rounded, x3 the rest.
    """
    return _split_by_kernel(x) if _runs_on(x) else split_plainly(x)


def split_plainly(x: Tensor) -> Tensor:
    """Return what ``split`` does, by operations of torch."""
    rows, d = x.shape
    out = x.new_empty(rows, PIECES * d, dtype=torch.bfloat16)
    third, second, first = (out.narrow(1, i * d, d) for i in range(PIECES))
    first.copy_(x)
    rest = x - first
    second.copy_(rest)
    third.copy_(rest.sub_(second))
    return out


def _split_by_kernel(x: Tensor) -> Tensor:
    from cme_bench.util.triton_pieces import split_kernel

    x = x.contiguous()
    rows, d = x.shape
    out = x.new_empty(rows, PIECES * d, dtype=torch.bfloat16)
    if out.numel():
        with launched_on(x):
            split_kernel[(rows,)](x, out, d, BLOCK=_BLOCK)
    return out


def _runs_on(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and _trial(x.device).result()


@functools.cache
def _trial(device: torch.device) -> Early[bool]:
    """Find whether the kernel can be built for a device, and splits there as torch does; once."""
    return tried(lambda: _splits(device), "float32 is split by torch's operations, slower")


def _splits(device: torch.device) -> bool:
    """Return whether rows are split so; they are as long as a kernel is built for that most models need."""
    columns = _BLOCK + 16
    wide = (
        torch.linspace(-9.0, 9.0, 3 * columns, device=device, dtype=torch.float32).exp().reshape(3, columns)
    )
    return torch.equal(_split_by_kernel(wide), split_plainly(wide))
