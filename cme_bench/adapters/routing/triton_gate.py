"""The Triton kernels behind ``gate_kernels``, which launches them and says what their arguments are."""
# mypy: ignore-errors
# ruff: noqa: PLR0915, PLR0917

import triton
import triton.language as tl


@triton.jit
def _shares(phi, matrix, experts, real, floor, K: tl.constexpr, MIXED: tl.constexpr, NORMALIZE: tl.constexpr):
    """Compute omega and what it is divided by, [BLOCK, PADDED] and [BLOCK]; and M, [PADDED, PADDED]."""
    mixing = tl.zeros((1, 1), tl.float32)
    omega = phi
    if MIXED:
        both = real[:, None] & real[None, :]
        mixing = tl.load(matrix + experts[:, None] * K + experts[None, :], mask=both, other=0.0).to(
            tl.float32
        )
        omega = tl.sum(phi[:, None, :] * mixing[None, :, :], axis=2)
    divisor = tl.sum(omega, axis=1) * 0 + 1.0
    if NORMALIZE:
        divisor = tl.maximum(tl.sum(omega, axis=1), floor)
        omega = omega / divisor[:, None]
    return omega, divisor, mixing


@triton.jit(do_not_specialize=["tokens"])  # one build serves every number of tokens
def gate_kernel(
    z,
    logits,
    matrix,
    gated,
    z_out,
    phi_out,
    omega_out,
    tokens,
    z_slot,
    z_row,
    logits_slot,
    logits_row,
    scale,
    floor,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    RANK: tl.constexpr,
    WIDE: tl.constexpr,
    SHARED: tl.constexpr,
    PIECES: tl.constexpr,
    MIXED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    STORE_Z: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = token < tokens
    row = slot * tokens + token
    experts = tl.arange(0, PADDED)
    real = experts < K
    cells = live[:, None] & real[None, :]
    at = logits + slot * logits_slot + token[:, None].to(tl.int64) * logits_row + experts[None, :]
    found = tl.load(at, mask=cells, other=0.0).to(tl.float32)
    for piece in tl.static_range(1, PIECES):
        found += tl.load(at + piece * K, mask=cells, other=0.0).to(tl.float32)
    found = tl.where(real[None, :], found, float("-inf"))
    powers = tl.exp(found - tl.max(found, axis=1)[:, None])
    phi = powers / tl.sum(powers, axis=1)[:, None]
    omega, _, _ = _shares(phi, matrix + slot * K * K, experts, real, floor, K, MIXED, NORMALIZE)
    tl.store(phi_out + row[:, None] * K + experts[None, :], phi, mask=cells)
    tl.store(omega_out + row[:, None] * K + experts[None, :], omega, mask=cells)
    columns = tl.arange(0, WIDE)
    inside = live[:, None] & (columns < RANK)[None, :]
    latent: tl.constexpr = RANK if SHARED else K * RANK
    for expert in tl.static_range(K):
        share = tl.sum(tl.where(experts[None, :] == expert, omega, 0.0), axis=1) * scale
        first = 0 if SHARED else expert * RANK
        at_z = z + slot * z_slot + token[:, None].to(tl.int64) * z_row + first + columns[None, :]
        own = tl.load(at_z, mask=inside, other=0.0).to(gated.dtype.element_ty)
        if STORE_Z and (not SHARED or expert == 0):
            tl.store(z_out + row[:, None] * latent + first + columns[None, :], own, mask=inside)
        out = own.to(tl.float32) * share[:, None]
        place = row[:, None] * (K * RANK) + expert * RANK + columns[None, :]
        tl.store(gated + place, out.to(gated.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward_kernel(
    grad,
    z,
    phi_at,
    matrix,
    grad_phi,
    grad_omega,
    gated,
    to_z,
    to_logits,
    to_matrix,
    tokens,
    z_row,
    logits_row,
    scale,
    floor,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    RANK: tl.constexpr,
    WIDE: tl.constexpr,
    SHARED: tl.constexpr,
    PIECES: tl.constexpr,
    ZEROS: tl.constexpr,
    MIXED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OF_PHI: tl.constexpr,
    OF_OMEGA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = token < tokens
    row = slot * tokens + token
    experts = tl.arange(0, PADDED)
    real = experts < K
    cells = live[:, None] & real[None, :]
    places = row[:, None] * K + experts[None, :]
    phi = tl.load(phi_at + places, mask=cells, other=0.0)
    omega, divisor, mixing = _shares(phi, matrix + slot * K * K, experts, real, floor, K, MIXED, NORMALIZE)
    columns = tl.arange(0, WIDE)
    inside = live[:, None] & (columns < RANK)[None, :]
    latent: tl.constexpr = RANK if SHARED else K * RANK
    to_omega = tl.zeros((BLOCK, PADDED), tl.float32)
    summed = tl.zeros((BLOCK, WIDE), tl.float32)
    for expert in tl.static_range(K):
        share = tl.sum(tl.where(experts[None, :] == expert, omega, 0.0), axis=1) * scale
        first = 0 if SHARED else expert * RANK
        own = tl.load(z + row[:, None] * latent + first + columns[None, :], mask=inside, other=0.0)
        own = own.to(tl.float32)
        place = row[:, None] * (K * RANK) + expert * RANK + columns[None, :]
        wide = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(gated + place, (own * share[:, None]).to(gated.dtype.element_ty), mask=inside)
        dot = tl.sum(wide * own, axis=1) * scale
        to_omega = tl.where(experts[None, :] == expert, dot[:, None], to_omega)
        if SHARED:
            summed += wide * share[:, None]
        else:
            out = (wide * share[:, None]).to(to_z.dtype.element_ty)
            tl.store(to_z + row[:, None] * z_row + first + columns[None, :], out, mask=inside)
    if SHARED:
        tl.store(
            to_z + row[:, None] * z_row + columns[None, :], summed.to(to_z.dtype.element_ty), mask=inside
        )
    if OF_OMEGA:
        to_omega += tl.load(grad_omega + places, mask=cells, other=0.0)
    if NORMALIZE:
        of_sum = tl.where(divisor > floor, tl.sum(to_omega * omega, axis=1), 0.0)
        to_omega = (to_omega - of_sum[:, None]) / divisor[:, None]
    to_phi = to_omega
    if MIXED:
        to_phi = tl.sum(to_omega[:, :, None] * mixing[None, :, :], axis=1)
        total = tl.sum(to_omega[:, :, None] * phi[:, None, :], axis=0)
        block = slot * tl.num_programs(0) + tl.program_id(0)
        square = experts[:, None] * PADDED + experts[None, :]
        tl.store(to_matrix + block * (PADDED * PADDED) + square, total)
    if OF_PHI:
        to_phi += tl.load(grad_phi + places, mask=cells, other=0.0)
    left = phi * (to_phi - tl.sum(phi * to_phi, axis=1)[:, None])
    at = to_logits + row[:, None] * logits_row + experts[None, :]
    for piece in tl.static_range(PIECES):
        part = left.to(to_logits.dtype.element_ty)
        tl.store(at + piece * K, part, mask=cells)
        left = left - part.to(tl.float32)
    if ZEROS > 0:
        rest = tl.arange(0, 16)
        nothing = tl.zeros((BLOCK, 16), to_logits.dtype.element_ty)
        at_rest = to_logits + row[:, None] * logits_row + PIECES * K + rest[None, :]
        tl.store(at_rest, nothing, mask=live[:, None] & (rest < ZEROS)[None, :])


@triton.jit
def stack_kernel(
    down,
    router,
    out,
    down_slot,
    down_row,
    router_slot,
    router_row,
    width,
    d_in,
    rows,
    K: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d_in
    value = tl.zeros((BLOCK,), tl.float32)
    if row < width:
        value = tl.load(down + slot * down_slot + row * down_row + columns, mask=inside, other=0.0).to(
            tl.float32
        )
    elif row < width + PIECES * K:
        piece, expert = (row - width) // K, (row - width) % K
        at = router + slot * router_slot + expert * router_row + columns
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        for before in tl.static_range(PIECES - 1):
            rest = value - value.to(out.dtype.element_ty).to(tl.float32)
            value = tl.where(piece > before, rest, value)
    tl.store(out + (slot * rows + row) * d_in + columns, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_kept_kernel(total, through, kept, scale, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    added = tl.load(through + at, mask=live, other=0.0).to(tl.float32) * scale
    added = tl.where(tl.load(kept + at, mask=live, other=0) != 0, added, 0.0)
    whole = tl.load(total + at, mask=live, other=0.0).to(tl.float32) + added
    tl.store(total + at, whole.to(total.dtype.element_ty), mask=live)


@triton.jit
def _drop(x, seen, kept, at, drawn, p, scale, size):
    live = at < size
    stays = drawn >= p
    value = tl.load(x + at, mask=live, other=0.0).to(tl.float32) * scale
    tl.store(seen + at, tl.where(stays, value, 0.0).to(seen.dtype.element_ty), mask=live)
    tl.store(kept + at, stays, mask=live)


@triton.jit(do_not_specialize=["call"])
def drop_kernel(x, seen, kept, seed, call, p, scale, size, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, BLOCK)
    counter = program * BLOCK + inner + (call.to(tl.int64) << 32)
    first, second, third, fourth = tl.rand4x(tl.load(seed), counter)
    at = program * 4 * BLOCK + inner
    _drop(x, seen, kept, at, first, p, scale, size)
    _drop(x, seen, kept, at + BLOCK, second, p, scale, size)
    _drop(x, seen, kept, at + 2 * BLOCK, third, p, scale, size)
    _drop(x, seen, kept, at + 3 * BLOCK, fourth, p, scale, size)
