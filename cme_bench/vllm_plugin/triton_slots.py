"""The Triton kernels behind ``slot_kernels.py``, which launches them and says what their arguments are.

A program works on one tile: up to BLOCK_T tokens of one slot. Tiles that a step does not have end at once.
Rows of a tile beyond its last repeat that one: they are loaded without a mask, and never stored.

Four things keep them fast. Where a piece of d_in begins is a multiple of BLOCK_K as the compiler sees it;
else each number is loaded alone. What differs from layer to layer or step to step is no reason to compile a
kernel anew. The pieces of a sum are added up by the program that finishes last, always in the same order.
Where loads take longer than products, a loop has those of its next turns under way.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0912, PLR0915, PLR0917

import triton
import triton.language as tl


@triton.jit
def _rows_of(tile, BLOCK_T: tl.constexpr):
    """Return the places of a tile's rows in ``order``, and which of them are no repetitions."""
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_T)
    stop = tl.load(tile + 2)
    return tl.minimum(rows, stop - 1), rows < stop


@triton.jit
def _store_gated(
    z,
    logits,
    gated,
    rows,
    live,
    part,
    chunk,
    interaction,
    settings,
    gated_stride,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write scale * omega_i z_i of the latent's columns [chunk * CHUNK, ...) for every expert that has some.

    ``logits`` [BLOCK_T, PADDED]; ``interaction`` and ``settings`` point to the slot's own. Without a router
    (one expert) the gate is the scale.
    """
    width: tl.constexpr = RANK * EXPERTS
    c = chunk * CHUNK + tl.arange(0, CHUNK)
    at = gated + rows.to(tl.int64)[:, None] * gated_stride + part * width
    scale = tl.load(settings)
    if EXPERTS == 1:
        tl.store(at + c[None, :], (z * scale).to(gated.dtype.element_ty), mask=live[:, None])
    else:
        e = tl.arange(0, PADDED)
        known = e < EXPERTS
        m_at = (
            interaction + e[None, :] * EXPERTS + e[:, None]
        )  # transposed, and at once: each load takes long
        m = tl.load(m_at, mask=known[None, :] & known[:, None], other=0.0)
        floor = tl.load(settings + 1)
        alive = e < tl.load(settings + 2).to(tl.int32)
        masked = tl.where(alive[None, :], logits, float("-inf"))
        powers = tl.exp(masked - tl.max(masked, axis=1)[:, None])
        phi = powers / tl.sum(powers, axis=1)[:, None]
        omega = tl.dot(phi, m, input_precision="ieee")
        total = tl.sum(omega, axis=1)
        factor = scale / tl.where(floor > 0.0, tl.maximum(total, floor), 1.0)
        for i in tl.static_range(EXPERTS):
            share = factor * tl.sum(tl.where((e == i)[None, :], omega, 0.0), axis=1)
            if SHARED:
                value = (z * share[:, None]).to(gated.dtype.element_ty)
                tl.store(at + i * RANK + c[None, :], value, mask=live[:, None])
            else:  # a column is of one expert: it is multiplied once
                z = tl.where((c // RANK == i)[None, :], z * share[:, None], z)
        if not SHARED:
            tl.store(at + c[None, :], z.to(gated.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["places", "parts", "n_slots", "steps", "splits", "partial"])
def shrink_kernel(
    x,
    order,
    tiles,
    down,
    router,
    interaction,
    settings,
    gated,
    z_terms,
    logit_terms,
    sums,
    counters,
    places,
    d_in,
    x_stride,
    gated_stride,
    parts,
    n_slots,
    steps,
    splits,
    partial,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute z = x A and the router's logits of a tile and a part, and from them omega z.

    That is written to ``gated`` (places, parts * k r), by the place of a token in ``order``. ``splits``
    programs share the sum over d_in, ``steps`` blocks each; their terms are in ``z_terms``
    (splits, places, parts * latent) and ``logit_terms`` (splits, places, pieces, PADDED). ``partial``: z goes
    to the first of ``z_terms`` and the logits to ``sums`` (places, parts * k), for ``gate_kernel``. EVEN:
    BLOCK_K divides d_in. ``counters`` are zero before and after. z is multiplied after the logits: of two
    products on the same x, the last says how the compiler shares out both among warps.
    """
    latent: tl.constexpr = RANK if SHARED else RANK * EXPERTS
    chunks: tl.constexpr = latent // CHUNK
    tile = tiles + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if (slot < 0) | (slot >= n_slots):
        return
    piece, split = tl.program_id(1), tl.program_id(2)
    part = piece // chunks
    chunk = piece % chunks
    rows, live = _rows_of(tile, BLOCK_T)
    t = tl.load(order + rows).to(tl.int64)
    c = tl.arange(0, CHUNK)
    e = tl.arange(0, PADDED)
    first = part * latent + chunk * CHUNK
    a_at = down + (slot.to(tl.int64) * (parts * latent) + first) * d_in + c[None, :] * d_in
    s_first = (slot.to(tl.int64) * parts + part) * EXPERTS
    s_at = router + s_first * d_in + tl.minimum(e, EXPERTS - 1)[None, :] * d_in
    x_at = x + t[:, None] * x_stride
    z = tl.zeros([BLOCK_T, CHUNK], tl.float32)
    logits = tl.zeros([BLOCK_T, PADDED], tl.float32)
    begin = split * steps
    for step in range(begin, min(begin + steps, tl.cdiv(d_in, BLOCK_K))):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        # x comes last: where it is, the order says, and loads begin one after the other.
        if EVEN:
            a = tl.load(a_at + k[:, None])
        else:
            a = tl.load(a_at + k[:, None], mask=(k < d_in)[:, None], other=0.0)
        if EXPERTS > 1:
            if EVEN:
                s = tl.load(s_at + k[:, None])
            else:
                s = tl.load(s_at + k[:, None], mask=(k < d_in)[:, None], other=0.0)
        if EVEN:
            xs = tl.load(x_at + k[None, :])
        else:
            xs = tl.load(x_at + k[None, :], mask=(k < d_in)[None, :], other=0.0)
        if EXPERTS > 1:
            logits = tl.dot(xs, s, logits)
        z = tl.dot(xs, a, z)
    z_row = rows.to(tl.int64)[:, None] * (parts * latent) + first + c[None, :]
    last = True
    if splits > 1:
        logit_row = (rows.to(tl.int64)[:, None] * (parts * chunks) + piece) * PADDED + e[None, :]
        z_size = places.to(tl.int64) * (parts * latent)
        logit_size = places.to(tl.int64) * (parts * chunks * PADDED)
        tl.store(z_terms + split * z_size + z_row, z, mask=live[:, None])
        if EXPERTS > 1:
            tl.store(logit_terms + split * logit_size + logit_row, logits, mask=live[:, None])
        tl.debug_barrier()  # this program's terms are written before it counts as done
        counter = counters + tl.program_id(0) * (parts * chunks) + piece
        last = tl.atomic_add(counter, 1, sem="acq_rel") == splits - 1
        if last:
            tl.store(counter, 0)
            z = tl.zeros([BLOCK_T, CHUNK], tl.float32)
            logits = tl.zeros([BLOCK_T, PADDED], tl.float32)
            for other in range(splits):
                z += tl.load(z_terms + other * z_size + z_row, cache_modifier=".cg")
                if EXPERTS > 1:
                    logits += tl.load(logit_terms + other * logit_size + logit_row, cache_modifier=".cg")
    if last:
        if partial != 0:
            tl.store(z_terms + z_row, z, mask=live[:, None])
            if EXPERTS > 1:
                s_row = rows.to(tl.int64)[:, None] * (parts * EXPERTS) + part * EXPERTS + e[None, :]
                known = live[:, None] & (e < tl.where(chunk == 0, EXPERTS, 0))[None, :]
                tl.store(sums + s_row, logits, mask=known)
        else:
            _store_gated(
                z, logits, gated, rows, live, part, chunk, interaction + s_first * EXPERTS,
                settings + 3 * slot, gated_stride, RANK, EXPERTS, PADDED, SHARED, CHUNK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "n_slots"])
def gate_kernel(
    tiles,
    z,
    sums,
    interaction,
    settings,
    gated,
    gated_stride,
    parts,
    n_slots,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write omega z of a tile and a part from z (places, parts * latent) and the logits ``sums``."""
    latent: tl.constexpr = RANK if SHARED else RANK * EXPERTS
    chunks: tl.constexpr = latent // CHUNK
    tile = tiles + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if (slot < 0) | (slot >= n_slots):
        return
    part = tl.program_id(1) // chunks
    chunk = tl.program_id(1) % chunks
    rows, live = _rows_of(tile, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    c = part * latent + chunk * CHUNK + tl.arange(0, CHUNK)
    e = tl.arange(0, PADDED)
    own = tl.load(z + row * (parts * latent) + c[None, :])
    logits = tl.zeros([BLOCK_T, PADDED], tl.float32)
    if EXPERTS > 1:
        at = sums + row * (parts * EXPERTS) + part * EXPERTS + e[None, :]
        logits = tl.load(at, mask=(e < EXPERTS)[None, :], other=0.0)
    m = interaction + (slot.to(tl.int64) * parts + part) * EXPERTS * EXPERTS
    _store_gated(
        own, logits, gated, rows, live, part, chunk, m, settings + 3 * slot, gated_stride,
        RANK, EXPERTS, PADDED, SHARED, CHUNK,
    )  # fmt: skip


@triton.jit
def _with_update(acc, g_at, b_at, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Return ``acc`` + (omega z) B; ``g_at`` [BLOCK_T, 1] and ``b_at`` [1, BLOCK_N] point to where rows
    begin."""
    for chunk in tl.static_range(WIDTH // CHUNK):
        c = chunk * CHUNK + tl.arange(0, CHUNK)
        acc = tl.dot(tl.load(g_at + c[None, :]), tl.load(b_at + c[:, None]), acc)
    return acc


@triton.jit(do_not_specialize=["n_slots"])
def expand_add_slots_kernel(
    gated,
    order,
    tiles,
    up,
    part_of_grain,
    y,
    d_out,
    gated_stride,
    y_stride,
    n_slots,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute y += (omega z) B of a tile, in place, for BLOCK_N output columns, which are of one part."""
    tile = tiles + 3 * tl.program_id(1)
    slot = tl.load(tile)
    part = tl.load(part_of_grain + tl.program_id(0) * BLOCK_N // GRAIN)
    if (slot < 0) | (slot >= n_slots) | (part < 0):
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, live = _rows_of(tile, BLOCK_T)
    t = tl.load(order + rows).to(tl.int64)
    at = y + t[:, None] * y_stride + n[None, :]
    acc = tl.load(at).to(tl.float32)
    b_at = up + (slot.to(tl.int64) * d_out + n.to(tl.int64)[None, :]) * WIDTH
    g_at = gated + rows.to(tl.int64)[:, None] * gated_stride + part * WIDTH
    acc = _with_update(acc, g_at, b_at, WIDTH, CHUNK)
    tl.store(at, acc.to(y.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["places", "n_slots"])
def expand_silu_slots_kernel(
    gated,
    order,
    tiles,
    up,
    y,
    out,
    places,
    half,
    gated_stride,
    y_stride,
    n_slots,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute out = silu(g) * u, where [g | u] is what ``expand_add_slots_kernel`` makes of y.

    g and u are rounded as that kernel would store them. Tokens of the base model are in tiles, too; so are
    more than ``places`` tokens, the last of which a step may not have.
    """
    tile = tiles + 3 * tl.program_id(1)
    slot = tl.load(tile)
    if slot < 0:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, live = _rows_of(tile, BLOCK_T)
    t = tl.load(order + rows).to(tl.int64)
    live = live & (t < places)
    t = tl.minimum(t, places - 1)
    at = y + t[:, None] * y_stride + n[None, :]
    g = tl.load(at).to(tl.float32)
    u = tl.load(at + half).to(tl.float32)
    if slot < n_slots:
        first = slot.to(tl.int64) * (2 * half)
        b_at = up + (first + n.to(tl.int64)[None, :]) * WIDTH
        g_at = gated + rows.to(tl.int64)[:, None] * gated_stride
        g = _with_update(g, g_at, b_at, WIDTH, CHUNK)
        u = _with_update(u, g_at + WIDTH, b_at + half.to(tl.int64) * WIDTH, WIDTH, CHUNK)
    kind = out.dtype.element_ty
    g = g.to(kind).to(tl.float32)
    u = u.to(kind).to(tl.float32)
    to = out + t[:, None] * half + n[None, :]
    tl.store(to, (g * tl.sigmoid(g) * u).to(kind), mask=live[:, None])


@triton.jit(do_not_specialize=["n_slots", "blocks"])
def expand_add_slots_loop(
    gated,
    order,
    tiles,
    up,
    part_of_grain,
    y,
    d_out,
    gated_stride,
    y_stride,
    n_slots,
    blocks,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute what ``expand_add_slots_kernel`` does, for ``blocks`` times BLOCK_N columns, which are of one
    part: B and y of the next STAGES - 1 blocks are loaded meanwhile."""
    tile = tiles + 3 * tl.program_id(1)
    slot = tl.load(tile)
    first = tl.program_id(0) * blocks
    part = tl.load(part_of_grain + first * BLOCK_N // GRAIN)
    if (slot < 0) | (slot >= n_slots) | (part < 0):
        return
    rows, live = _rows_of(tile, BLOCK_T)
    t = tl.load(order + rows).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, WIDTH)
    y_at = y + t[:, None] * y_stride + n[None, :]
    b_at = up + (slot.to(tl.int64) * d_out + n[None, :]) * WIDTH + c[:, None]
    own = tl.load(gated + rows.to(tl.int64)[:, None] * gated_stride + part * WIDTH + c[None, :])
    for block in tl.range(first, first + blocks, num_stages=STAGES):
        b = tl.load(b_at + block * (BLOCK_N * WIDTH))
        acc = tl.dot(own, b, tl.load(y_at + block * BLOCK_N).to(tl.float32))
        tl.store(y_at + block * BLOCK_N, acc.to(y.dtype.element_ty), mask=live[:, None])


@triton.jit
def _silu_of(g, u, kind):
    """Return silu(g) * u, both rounded to ``kind`` before."""
    g = g.to(kind).to(tl.float32)
    return (g * tl.sigmoid(g) * u.to(kind).to(tl.float32)).to(kind)


@triton.jit(do_not_specialize=["places", "n_slots", "blocks"])
def expand_silu_slots_loop(
    gated,
    order,
    tiles,
    up,
    y,
    out,
    places,
    half,
    gated_stride,
    y_stride,
    n_slots,
    blocks,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute what ``expand_silu_slots_kernel`` does, for ``blocks`` times BLOCK_N columns: see
    ``expand_add_slots_loop``."""
    tile = tiles + 3 * tl.program_id(1)
    slot = tl.load(tile)
    if slot < 0:
        return
    rows, live = _rows_of(tile, BLOCK_T)
    t = tl.load(order + rows).to(tl.int64)
    live = live & (t < places)
    t = tl.minimum(t, places - 1)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, WIDTH)
    y_at = y + t[:, None] * y_stride + n[None, :]
    to = out + t[:, None] * half + n[None, :]
    kind = out.dtype.element_ty
    first = tl.program_id(0) * blocks
    last = tl.minimum(first + blocks, half // BLOCK_N)
    if slot < n_slots:
        b_at = up + (slot.to(tl.int64) * (2 * half) + n[None, :]) * WIDTH + c[:, None]
        other = half.to(tl.int64) * WIDTH
        g_at = gated + rows.to(tl.int64)[:, None] * gated_stride + c[None, :]
        own_g = tl.load(g_at)
        own_u = tl.load(g_at + WIDTH)
        for block in tl.range(first, last, num_stages=STAGES):
            b_g = tl.load(b_at + block * (BLOCK_N * WIDTH))
            b_u = tl.load(b_at + other + block * (BLOCK_N * WIDTH))
            y_g = tl.load(y_at + block * BLOCK_N)
            y_u = tl.load(y_at + half + block * BLOCK_N)
            g = tl.dot(own_g, b_g, y_g.to(tl.float32))
            u = tl.dot(own_u, b_u, y_u.to(tl.float32))
            tl.store(to + block * BLOCK_N, _silu_of(g, u, kind), mask=live[:, None])
    else:
        for block in range(first, last):
            g = tl.load(y_at + block * BLOCK_N).to(tl.float32)
            u = tl.load(y_at + half + block * BLOCK_N).to(tl.float32)
            tl.store(to + block * BLOCK_N, _silu_of(g, u, kind), mask=live[:, None])
