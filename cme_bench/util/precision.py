"""How many digits products of float32 matrices have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute no product of float32 matrices with fewer digits (TF32, or bfloat16 on a CPU) in the block.

    Both are off by default; a process may have asked for them (``torch.set_float32_matmul_precision``).
    """
    parts = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    if all(precision in {"none", "ieee"} for precision in before):
        yield
        return
    older = _older_precision()
    try:
        if older != "highest":
            torch.set_float32_matmul_precision("highest")
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def _older_precision() -> str:
    """Return what the older of torch's two settings says, which must agree where some code reads them."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer was set, and the two differ
        return "highest"
