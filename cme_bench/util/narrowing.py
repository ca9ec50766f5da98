"""Float32 numbers in 16 bits, as factors of a product that a GPU's matrix units compute.

A row whose numbers float16 holds with its 11 bits is rounded as it is. Any other row is brought there by a
power of two, which its products are multiplied by. Few rows are the sum of two 16-bit numbers each: a GPU
waits for the weights then, and multiplies twice as many rows in about the same time.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from cme_bench.util.kernels import compute, launched_on

_FEW_ROWS, _FEW_WITHOUT_HALF = 128, 384
"""Rows up to which each is two numbers. Without weights in float16 that takes less than to make some."""
_BIAS, _INFINITE = 127, 255
_LEAST, _MOST = _BIAS - 10, _BIAS + 15
"""Exponents, as float32 stores them, of the largest number in a row that is rounded as it is: from the first
to below the second. Then what is below float16's normal numbers is off by 2^-15 of the largest at most."""
_AIM = 14
"""The exponent that the largest number gets where a power of two is applied; float16 ends at 2^16."""
_SMALLEST = 15
"""Exponents below are taken for this one: float32's least numbers have no power that brings them there."""
_NO_SCALE = (0, _INFINITE)
_ALWAYS_SCALE = (_INFINITE, _INFINITE)
_EXACT = 2.0**-14
"""Share of a row of weights that may be lost where float16 has no digits for its least numbers. It loses none
above 2^-17; states lose 2^-12."""
_LARGEST = torch.finfo(torch.float16).max
_CHECKED_AT_ONCE = 1 << 26
_GATE = 2.0**-9
"""Most that a gate of a trial may be off, as a share: float16 rounds by a quarter of it."""
_BLOCKS, _BLOCK, _ROWS = 1 << 14, 1024, 32


class Way(NamedTuple):
    """The type of the factors, and how many numbers one float32 number is the sum of."""

    dtype: torch.dtype
    pieces: int

    @classmethod
    def of(cls, rows: int, weight: torch.dtype, *, half: bool) -> Way:
        """Return the way for so many rows and weights of a type, ``half`` if some in float16 are there."""
        if weight == torch.float16 or half:
            return cls(torch.float16, 2 if rows <= _FEW_ROWS else 1)
        return cls(weight, 2) if rows <= _FEW_WITHOUT_HALF else cls(torch.float16, 1)

    @property
    def kept(self) -> tuple[int, int]:
        """Return the exponents of rows that no power of two is applied to."""
        if self.dtype != torch.float16:
            return _NO_SCALE
        return (_LEAST, _MOST) if self.pieces == 1 else _ALWAYS_SCALE


class Half(NamedTuple):
    """A weight is ``numbers`` in float16 times ``scale``, of one number, or 1 for None."""

    numbers: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor) -> Half:
        """Return a weight in float16, whatever its range; the device is waited for."""
        weight = weight.detach()
        half = weight.half()
        rows = max(1, _CHECKED_AT_ONCE // weight.shape[1])
        if all(map(_is_exact, torch.split(half, rows), torch.split(weight, rows))):
            return cls(half)
        return cls._scaled(weight, _ALWAYS_SCALE)

    def is_of(self, weight: Tensor) -> bool:
        """Return whether these are the numbers of ``weight`` as it is now."""
        scaled = weight if self.scale is None else weight / self.scale
        return torch.equal(self.numbers, scaled.half())

    @classmethod
    def at_once(cls, weight: Tensor) -> Half:
        """Return a weight in float16, for one product; nothing waits for the device."""
        return cls._scaled(weight.detach(), (_LEAST, _MOST))

    @classmethod
    def _scaled(cls, weight: Tensor, kept: tuple[int, int]) -> Half:
        most = torch.linalg.vector_norm(weight, torch.inf).float().reshape(1)
        scale, inverse = (power.reshape(()) for power in _powers(most, kept))
        return cls((weight * inverse).half(), scale)


def _is_exact(half: Tensor, weight: Tensor) -> bool:
    wide = weight.float()
    lost, size = (torch.linalg.vector_norm(part, 1, dim=1) for part in (half.float() - wide, wide))
    return bool(torch.all(lost <= _EXACT * size))


class Narrowed(NamedTuple):
    """Rows as factors ``parts`` [pieces * rows, d] in 16 bits, and the power of two of each, [rows]."""

    parts: Tensor
    scales: Tensor

    def restored(self, product: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the product of the rows [rows, n], of that of ``parts`` with what is times ``scale``; the
        memory is that of ``product``."""
        scales = self.scales if scale is None else self.scales * scale
        if _runs_on(product):
            return _restored_by_kernel(product, scales)
        return restored_plainly(product, scales)


def halved(x: Tensor) -> Tensor:
    """Return ``x`` in float16, laid out alike; what is beyond its range becomes its largest number."""
    if _runs_on(x) and _is_dense(x):
        return _halved_by_kernel(x)
    return halved_plainly(x)


def halved_plainly(x: Tensor) -> Tensor:
    """Return what ``halved`` does, by operations of torch."""
    return x.half().clamp_(-_LARGEST, _LARGEST)


def narrowed(x: Tensor, way: Way) -> Narrowed:
    """Return float32 ``x`` [rows, d] as factors."""
    return _narrowed_by_kernel(x, way) if _runs_on(x) else narrowed_plainly(x, way)


def narrowed_plainly(x: Tensor, way: Way) -> Narrowed:
    """Return what ``narrowed`` does, by operations of torch."""
    scales, inverse = _powers(torch.linalg.vector_norm(x, torch.inf, dim=1), way.kept)
    scaled = x * inverse[:, None]
    first = scaled.to(way.dtype)
    if way.pieces == 1:
        return Narrowed(first, scales)
    return Narrowed(torch.cat([first, (scaled - first).to(way.dtype)]), scales)


def gated(gate: Tensor, up: Tensor, scales: Tensor, way: Way) -> Narrowed:
    """Return ``silu(gate) * up`` as factors, one number each, of float32 [rows, d] that are times ``scales``
    [rows]: as ``narrowed`` does, without its float32 numbers."""
    if _runs_on(gate):
        return _gated_by_kernel(gate, up, scales, way)
    return gated_plainly(gate, up, scales, way)


def gated_plainly(gate: Tensor, up: Tensor, scales: Tensor, way: Way) -> Narrowed:
    """Return what ``gated`` does, by operations of torch."""
    opened = torch.nn.functional.silu(gate * scales[:, None])
    return narrowed_plainly(opened.mul_(up).mul_(scales[:, None]), way)


def restored_plainly(product: Tensor, scales: Tensor) -> Tensor:
    """Return what ``Narrowed.restored`` does, by operations of torch."""
    rows = len(scales)
    out = product[:rows]
    if len(product) > rows:
        out += product[rows:]
    return out.mul_(scales[:, None])


def _powers(most: Tensor, kept: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return powers of two and their inverses, by the largest numbers ``most`` [n]; 1 for ``kept``."""
    found = most.contiguous().view(torch.int32) >> 23
    as_it_is = ((found >= kept[0]) & (found < kept[1])) | (found == _INFINITE)
    shift = torch.where(as_it_is, _BIAS, found.clamp_min(_SMALLEST) - _AIM)
    return (shift << 23).view(torch.float32), ((2 * _BIAS - shift) << 23).view(torch.float32)


def _is_dense(x: Tensor) -> bool:
    """Return whether the numbers of ``x`` fill their memory, in whatever order."""
    last = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1
    ):
        if stride != last:
            return False
        last *= size
    return True


def _halved_by_kernel(x: Tensor) -> Tensor:
    from cme_bench.util.triton_narrowing import halve_kernel

    out = torch.empty_strided(x.shape, x.stride(), dtype=torch.float16, device=x.device)
    if x.numel():
        with launched_on(x):
            halve_kernel[(-(-x.numel() // _BLOCK),)](x, out, x.numel(), _LARGEST, BLOCK=_BLOCK)
    return out


def _narrowed_by_kernel(x: Tensor, way: Way) -> Narrowed:
    from cme_bench.util.triton_narrowing import narrow_kernel

    x = x.contiguous()
    rows, d = x.shape
    parts = x.new_empty(way.pieces * rows, d, dtype=way.dtype)
    scales = x.new_empty(rows)
    if x.numel():
        block = min(_BLOCKS, 1 << (d - 1).bit_length())
        with launched_on(x):
            narrow_kernel[(rows,)](
                x, parts, scales, rows, d, *way.kept, PIECES=way.pieces, BLOCK=block,
                num_warps=max(4, min(16, block // 512)),
            )  # fmt: skip
    return Narrowed(parts, scales)


def _gated_by_kernel(gate: Tensor, up: Tensor, scales: Tensor, way: Way) -> Narrowed:
    from cme_bench.util.triton_narrowing import gate_kernel

    rows, d = gate.shape
    parts = gate.new_empty(rows, d, dtype=way.dtype)
    found = gate.new_empty(rows)
    if gate.numel():
        block = min(_BLOCKS, 1 << (d - 1).bit_length())
        with launched_on(gate):
            gate_kernel[(rows,)](
                gate, up, scales, parts, found, d, *way.kept, WHOLE=d <= block, BLOCK=block,
                num_warps=max(4, min(16, block // 512)),
            )  # fmt: skip
    return Narrowed(parts, found)


def _restored_by_kernel(product: Tensor, scales: Tensor) -> Tensor:
    from cme_bench.util.triton_narrowing import add_kernel, rescale_kernel

    rows, n = len(scales), product.shape[1]
    if product.numel():
        with launched_on(product):
            if len(product) > rows:
                add_kernel[(rows, -(-n // _BLOCK))](product, scales, rows, n, BLOCK=_BLOCK)
            else:
                rescale_kernel[(-(-rows // _ROWS),)](product, scales, rows, n, ROWS=_ROWS, BLOCK=_BLOCK)
    return product[:rows]


def _runs_on(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and _works(x.device)


@functools.cache
def _works(device: torch.device) -> bool:
    """Return whether the kernels can be built for a device, and compute there what torch does; tried once."""
    ways = (Way(torch.float16, 1), Way(torch.float16, 2), Way(torch.bfloat16, 2))
    return compute(
        lambda: all(_is_right(way, device) for way in ways),
        "states are rounded by torch's operations, slower",
    )


def _is_right(way: Way, device: torch.device) -> bool:
    sizes = torch.tensor([1e-30, 1e-4, 1.0, 300.0, 1e6], device=device)[:, None]
    x = torch.linspace(-2.0, 2.0, 5 * 1400, device=device).exp().reshape(5, 1400) * sizes
    found, wanted = _narrowed_by_kernel(x, way), narrowed_plainly(x, way)
    product = wanted.parts.float()
    same = map(torch.equal, found, wanted)
    wide = restored_plainly(product.clone(), wanted.scales)
    turned = x.T[:, :, None]
    halves = torch.equal(_halved_by_kernel(turned), halved_plainly(turned))
    if way.dtype == torch.float16 and way.pieces == 1:
        halves = halves and _gates_are_right(x, way)
    return halves and all(same) and torch.equal(_restored_by_kernel(product, found.scales), wide)


def _gates_are_right(x: Tensor, way: Way) -> bool:
    """Return whether gates are those of torch, but for the rounding of an exponential."""
    given = x.sin() * x, x.cos(), x.new_tensor([1.0, 4.0, 0.25, 1.0, 1.0])
    found, wanted = _gated_by_kernel(*given, way), gated_plainly(*given, way)
    numbers, others = (part.parts.float() * part.scales[:, None] for part in (found, wanted))
    most = torch.linalg.vector_norm(others, torch.inf, dim=1, keepdim=True)
    return bool(torch.all((numbers - others).abs() <= _GATE * (others.abs() + 2.0**-13 * most)))
