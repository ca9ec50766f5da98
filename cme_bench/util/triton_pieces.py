"""The Triton kernel behind ``float32_pieces``, which launches it and says what its arguments are."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def split_kernel(x, out, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    read, written = x + row * d, out + row * d * 3
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        live = column < d
        whole = tl.load(read + column, mask=live, other=0.0)
        first = whole.to(tl.bfloat16)
        rest = whole - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        tl.store(written + column, third, mask=live)
        tl.store(written + d + column, second, mask=live)
        tl.store(written + 2 * d + column, first, mask=live)
