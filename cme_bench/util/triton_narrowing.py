"""The Triton kernels behind ``narrowing``, which launches them and says what their arguments are."""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl


@triton.jit
def _powers(largest, LEAST: tl.constexpr, MOST: tl.constexpr):
    """Return the power of two of a row of such ``largest`` numbers [BLOCK], and its inverse."""
    exponent = tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23
    kept = ((exponent >= LEAST) & (exponent < MOST)) | (exponent == 255)
    shift = tl.where(kept, 127, tl.maximum(exponent, 15) - 14)
    scale = (shift << 23).to(tl.float32, bitcast=True)
    return scale, ((254 - shift) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["rows"])
def narrow_kernel(
    x,
    out,
    scales,
    rows,
    d,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    read = x + row * d
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(read + column, mask=column < d, other=0.0)))
    scale, inverse = _powers(largest, LEAST, MOST)
    tl.store(scales + row, scale)
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        live = column < d
        scaled = tl.load(read + column, mask=live, other=0.0) * inverse
        first = scaled.to(out.dtype.element_ty)
        tl.store(out + row * d + column, first, mask=live)
        if PIECES == 2:
            second = (scaled - first.to(tl.float32)).to(out.dtype.element_ty)
            tl.store(out + (rows + row) * d + column, second, mask=live)


@triton.jit
def _gated(gate, up, column, live, scale):
    """Return silu(gate) * up, of numbers that are times ``scale``."""
    opened = tl.load(gate + column, mask=live, other=0.0) * scale
    return opened / (1.0 + tl.exp(-opened)) * (tl.load(up + column, mask=live, other=0.0) * scale)


@triton.jit
def gate_kernel(
    gate,
    up,
    scales,
    out,
    out_scales,
    d,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    gate, up, out = gate + row * d, up + row * d, out + row * d
    scale = tl.load(scales + row)
    column = tl.arange(0, BLOCK)
    if WHOLE:  # one block: read once
        numbers = _gated(gate, up, column, column < d, scale)
        largest = tl.abs(numbers)
    else:
        largest = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, d, BLOCK):
            part = _gated(gate, up, start + column, start + column < d, scale)
            largest = tl.maximum(largest, tl.abs(part))
    found, inverse = _powers(largest, LEAST, MOST)
    tl.store(out_scales + row, found)
    if WHOLE:
        tl.store(out + column, (numbers * inverse).to(tl.float16), mask=column < d)
    else:
        for start in range(0, d, BLOCK):
            part = _gated(gate, up, start + column, start + column < d, scale)
            tl.store(out + start + column, (part * inverse).to(tl.float16), mask=start + column < d)


@triton.jit(do_not_specialize=["rows"])
def add_kernel(product, scales, rows, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < n
    place = product + row * n + column
    both = tl.load(place, mask=live) + tl.load(place + rows.to(tl.int64) * n, mask=live)
    tl.store(place, both * tl.load(scales + row), mask=live)


@triton.jit(do_not_specialize=["rows"])
def rescale_kernel(product, scales, rows, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    others = tl.load(scales + row, mask=row < rows, other=1.0) != 1.0
    if tl.sum(others.to(tl.int32), 0) > 0:  # hardly ever: this kernel costs its start
        for index in range(first, tl.minimum(first + ROWS, rows)):
            scale = tl.load(scales + index)
            if scale != 1.0:
                place = product + index * n
                for start in range(0, n, BLOCK):
                    column = start + tl.arange(0, BLOCK)
                    live = column < n
                    tl.store(place + column, tl.load(place + column, mask=live) * scale, mask=live)


@triton.jit(do_not_specialize=["numbers"])
def halve_kernel(x, out, numbers, MOST: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < numbers
    found = tl.load(x + place, mask=live)
    found = tl.where(found > MOST, MOST, tl.where(found < -MOST, -MOST, found))  # no number stays none
    tl.store(out + place, found.to(tl.float16), mask=live)
