"""The gate, its backward pass and the stacking of A and S as one GPU kernel each.

In plain operations (``gate``, ``bf16_products.stack``) they are some fifty small kernels for every linear and
step: on a small model most of a training step, on a large one a few per cent. All tensors here are (tokens,
...) or (adapters, tokens, ...).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cme_bench.util.early import Early
from cme_bench.util.kernels import compute, drawn, launched_on, tried

MOST_EXPERTS, WIDEST_RANK = 16, 256
"""Beyond these a program's tile would be too large."""
_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


def runs_on(tensor: Tensor) -> bool:
    """Return whether kernels are launched on a tensor: on CUDA where they work, and not within
    ``torch.compile``, which fuses plain operations itself."""
    return _takes(tensor) and work(tensor.device)


def _takes(tensor: Tensor) -> bool:
    return tensor.is_cuda and not torch.compiler.is_compiling()


@functools.cache
def work(device: torch.device) -> bool:
    """Return whether the kernels can be built for a device, and compute there what they should; tried once.

    Without them the plain operations do the same.
    """
    return compute(lambda: _gates(device), "routed layers train without their GPU kernels, slower")


@functools.cache
def drops(device: torch.device) -> bool:
    """Return whether :func:`drop` can be built for a device, and drops there what it should; tried once."""
    return compute(lambda: _drops(device), "dropout is drawn by torch's own kernel, slower")


def _gates(device: torch.device) -> bool:
    """Return whether a small gate is what autograd makes of the formula."""
    k, rank = 4, 8
    shapes = ((40, k * rank), (40, k), (k, k), (40, k * rank))
    z, logits, mixing, grad = (numbers.to(device) for numbers in drawn(shapes))
    inputs = [t.clone().requires_grad_() for t in (z, logits, mixing)]
    omega = inputs[1].softmax(-1) @ inputs[2].T
    wanted = 2.0 * omega.repeat_interleave(rank, -1) * inputs[0]
    grads = torch.autograd.grad(wanted, inputs, grad)
    settings = {"rank": rank, "scale": 2.0, "floor": None}
    gated, z, phi, _ = gate(z, logits, mixing, k, dtype=torch.float32, **settings)  # type: ignore[arg-type]
    to_z, to_logits, to_mixing, again = gate_backward(
        grad,
        z,
        phi,
        mixing,
        None,
        None,
        pieces=0,
        stacked=False,
        **settings,  # type: ignore[arg-type]
    )
    router = z.flip(0)
    rows = stack(z, router, 4 * len(z), 3).float()
    pairs: list[tuple[Any, Any]] = [
        (gated, wanted),
        (again, wanted),
        *zip((to_z, to_logits, to_mixing), grads, strict=True),
    ]
    pairs.append((sum(torch.split(rows, len(z))[1:]), router))
    alike = all(got is not None and torch.allclose(got, right, 1e-4, 1e-4) for got, right in pairs)
    alike = alike and torch.allclose(rows[: len(z)], z, 0.01)
    return alike and torch.allclose(add_kept(grad.clone(), z, z > 0, 2.0), grad + 2 * z.clamp(min=0), 1e-5)


def _drops(device: torch.device) -> bool:
    """Return whether dropout keeps about as many of some ones as it should, and others in every call."""
    ones = torch.ones(4096, device=device, dtype=torch.float32)
    seed = torch.full((1,), 5, dtype=torch.int64, device=ones.device)
    (seen, kept), (_, others), (_, again) = (drop(ones, 0.25, seed, call) for call in (0, 1, 0))
    share = float(kept.float().mean())
    fine = torch.allclose(seen, kept / 0.75) and 0.7 < share < 0.8
    return fine and torch.equal(kept, again) and 0.3 < float((kept != others).float().mean()) < 0.45


class Form(NamedTuple):
    """A gate whose inputs are columns of one matrix, as a kernel is built for it.

    Attributes:
        k, rank: Numbers of experts, and of latent values of one.
        width: Columns of z; those of the logits follow.
        pieces: The logits are the sum of so many.
        columns: Those of the matrix.
        mixed, divided: Whether omega is of a product with M, and is divided by its sum.
        found, dtype: Types of the matrix and of the gated latent.
    """

    k: int
    rank: int
    width: int
    pieces: int
    columns: int
    mixed: bool
    divided: bool
    found: torch.dtype
    dtype: torch.dtype


def infers(z: Tensor, form: Form) -> bool:
    """Return whether the forward kernel alone can be used: it is built, and tried, without those of a
    backward pass, which take most of the time of that."""
    fits = _common(z, form.k, form.rank) and form.found == torch.float32
    return _takes(z) and fits and _trial(z.device, form).result()


@functools.cache
def _trial(device: torch.device, form: Form) -> Early[bool]:
    return tried(lambda: _infers(device, form), "routed layers run without their GPU kernel, slower")


def _infers(device: torch.device, form: Form) -> bool:
    """Return whether the kernel gives what the formula does."""
    tokens, width, logits = 40, form.width, form.pieces * form.k
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "dtype": torch.float32}  # whatever the usual one is now
    out = torch.randn(tokens, form.columns, **made).to(device, form.found)
    matrix = torch.rand(form.k, form.k, **made).to(device) if form.mixed else None
    z, parts = out[:, :width], out[:, width : width + logits]
    phi = parts.float().reshape(tokens, form.pieces, form.k).sum(1).softmax(-1)
    omega = phi if matrix is None else phi @ matrix.T
    if form.divided:
        omega = omega / omega.sum(-1, keepdim=True)
    latent = z.to(form.dtype).float().reshape(tokens, width // form.rank, form.rank)
    wanted = (2.0 * omega[:, :, None] * latent).flatten(1)
    floor = 1e-6 if form.divided else None
    gated, _, *routing = gate(
        z,
        parts,
        matrix,
        form.k,
        rank=form.rank,
        scale=2.0,
        floor=floor,
        dtype=form.dtype,
        for_backward=False,
    )
    near = 1e-4 if form.dtype == torch.float32 else 2e-2  # rounded twice
    alike = (torch.allclose(got, right, 1e-4, 1e-4) for got, right in zip(routing, (phi, omega), strict=True))
    return torch.allclose(gated.float(), wanted, near, near) and all(alike)


def suits(z: Tensor, logits: Tensor, k: int, rank: int) -> bool:
    """Return whether the gate's kernels can be used: for some tokens and a gate of common size."""
    return _common(z, k, rank) and logits.dtype == torch.float32 and runs_on(z)


def _common(z: Tensor, k: int, rank: int) -> bool:
    return z.dtype in _DTYPES and k <= MOST_EXPERTS and rank <= WIDEST_RANK and z.numel() > 0


def gate(
    z: Tensor,
    logits: Tensor,
    interaction: Tensor | None,
    k: int,
    *,
    rank: int,
    scale: float,
    floor: float | None,
    dtype: torch.dtype,
    for_backward: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gated latent (..., k rank), z in ``dtype``, phi and omega (..., k).

    ``logits``: (..., pieces k), a sum over pieces. ``floor``: of omega's divisor; None where it is not
    divided. ``for_backward``: whether z is needed; else it is returned as it came.
    """
    from cme_bench.adapters.routing.triton_gate import gate_kernel

    z, logits = (t if t.stride(-1) == 1 else t.contiguous() for t in (z, logits))
    lead, slots, tokens = _lead(z)
    gated = z.new_empty(*lead, k * rank, dtype=dtype)
    store_z = for_backward and z.dtype != dtype
    rounded = z.new_empty(z.shape, dtype=dtype) if store_z else z.contiguous() if for_backward else z
    phi, omega = (logits.new_empty(*lead, k) for _ in range(2))
    block = _block(k)
    with launched_on(z):
        gate_kernel[(-(-tokens // block), slots)](
            z,
            logits,
            phi if interaction is None else interaction.contiguous(),
            gated,
            rounded,
            phi,
            omega,
            tokens,
            _slot_stride(z),
            z.stride(-2),
            _slot_stride(logits),
            logits.stride(-2),
            scale,
            floor or 0.0,
            PIECES=logits.shape[-1] // k,
            NORMALIZE=floor is not None,
            STORE_Z=store_z,
            BLOCK=block,
            **_sizes(z, interaction, k, rank),
        )
    return gated, rounded, phi, omega


def gate_backward(  # noqa: PLR0917
    grad: Tensor,
    z: Tensor,
    phi: Tensor,
    interaction: Tensor | None,
    grad_phi: Tensor | None,
    grad_omega: Tensor | None,
    *,
    rank: int,
    scale: float,
    floor: float | None,
    pieces: int,
    stacked: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of z, of the logits and of M; and the gated latent once more.

    With ``pieces`` the logits' are that many of bfloat16 side by side, then zeros up to a multiple of 16
    columns; 0 leaves them in float32. ``stacked``: z's and the logits' gradients are views of one tensor, the
    latter at the end of the former's columns; the first is returned as the whole.
    """
    from cme_bench.adapters.routing.triton_gate import gate_backward_kernel

    grad, z, phi = grad.contiguous(), z.contiguous(), phi.contiguous()
    lead, slots, tokens = _lead(z)
    k, width = phi.shape[-1], z.shape[-1]
    columns = pieces * k
    zeros = -((width if stacked else 0) + columns) % 16 if pieces else 0
    if stacked:
        to_z = z.new_empty(*lead, width + columns + zeros)
        to_logits = to_z[..., width:]
    else:
        to_z = torch.empty_like(z)
        size, dtype = (columns + zeros, torch.bfloat16) if pieces else (k, phi.dtype)
        to_logits = phi.new_empty(*lead, size, dtype=dtype)
    gated = torch.empty_like(grad, dtype=z.dtype)
    block, sizes = _block(k), _sizes(z, interaction, k, rank)
    blocks = -(-tokens // block)
    mixed = interaction is not None
    squares = phi.new_empty(slots, blocks, sizes["PADDED"], sizes["PADDED"]) if mixed else phi
    of_phi, of_omega = (phi if t is None else t.to(phi.dtype).contiguous() for t in (grad_phi, grad_omega))
    gate_backward_kernel[(blocks, slots)](
        grad,
        z,
        phi,
        phi if interaction is None else interaction.contiguous(),
        of_phi,
        of_omega,
        gated,
        to_z,
        to_logits,
        squares,
        tokens,
        to_z.stride(-2),
        to_logits.stride(-2),
        scale,
        floor or 0.0,
        PIECES=max(pieces, 1),
        ZEROS=zeros,
        NORMALIZE=floor is not None,
        OF_PHI=grad_phi is not None,
        OF_OMEGA=grad_omega is not None,
        BLOCK=block,
        **sizes,
    )
    to_interaction = None
    if mixed:
        to_interaction = squares.sum(1)[:, :k, :k].reshape(*lead[:-1], k, k)
    return to_z, to_logits, to_interaction, gated


def stack(down: Tensor, router: Tensor, rows: int, pieces: int) -> Tensor:
    """Return [A; S1; S2; ...; 0] in bfloat16, (..., rows, d_in): A rounded, the pieces of S, zeros."""
    from cme_bench.adapters.routing.triton_gate import stack_kernel

    down, router = (t if t.stride(-1) == 1 else t.contiguous() for t in (down, router))
    d_in, slots = router.shape[-1], router.numel() // (router.shape[-1] * router.shape[-2])
    out = router.new_empty(*router.shape[:-2], rows, d_in, dtype=torch.bfloat16)
    block = 1024
    stack_kernel[(-(-d_in // block), rows, slots)](
        down,
        router,
        out,
        _slot_stride(down),
        down.stride(-2),
        _slot_stride(router),
        router.stride(-2),
        down.shape[-2],
        d_in,
        rows,
        K=router.shape[-2],
        PIECES=pieces,
        BLOCK=block,
    )
    return out


def add_kept(total: Tensor, through: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Return ``total + scale * through`` where ``kept`` is true, else ``total``; written over ``total``.

    All of one shape, in order in memory; summed in float32, rounded once.
    """
    from cme_bench.adapters.routing.triton_gate import add_kept_kernel

    block = 1024
    add_kept_kernel[(-(-total.numel() // block),)](total, through, kept, scale, total.numel(), BLOCK=block)
    return total


def drop(x: Tensor, p: float, seed: Tensor, call: int) -> tuple[Tensor, Tensor]:
    """Return ``x`` after dropout, and which of its elements were kept, bool.

    ``seed``: int64 [1], read on the device; ``call``: a number of its own for each call with one seed.
    """
    from cme_bench.adapters.routing.triton_gate import drop_kernel

    x = x.contiguous()
    seen, kept = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    block = 512
    programs = -(-x.numel() // (4 * block))
    drop_kernel[(programs,)](x, seen, kept, seed, call, p, 1.0 / (1.0 - p), x.numel(), BLOCK=block)
    return seen, kept


def _lead(z: Tensor) -> tuple[tuple[int, ...], int, int]:
    lead = tuple(z.shape[:-1])
    return lead, 1 if len(lead) == 1 else lead[0], lead[-1]


def _slot_stride(tensor: Tensor) -> int:
    return tensor.stride(0) if tensor.ndim == 3 else 0


def _sizes(z: Tensor, interaction: Tensor | None, k: int, rank: int) -> dict[str, Any]:
    return {
        "K": k,
        "PADDED": 1 << (k - 1).bit_length(),
        "RANK": rank,
        "WIDE": 1 << (rank - 1).bit_length(),
        "SHARED": z.shape[-1] != k * rank,
        "MIXED": interaction is not None,
    }


def _block(k: int) -> int:
    return 32 if k <= 8 else 16
