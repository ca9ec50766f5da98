"""Python's search for garbage: it costs a fifth of what makes much that stays, such as imports and rows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Search for no garbage in cycles meanwhile; what nobody refers to is freed at once, as always."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
