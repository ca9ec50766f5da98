"""Python's search for garbage: it costs a fifth of what makes much that stays, such as imports and rows."""

from __future__ import annotations

import atexit
import functools
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_NEW = 50_000
"""Objects that are made between two searches, 700 otherwise."""


_lock = threading.Lock()
_seldom: list[bool] = []
"""Of each who wants it to be seldom, whether it is the one who put aside what was there."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Search for garbage seldom meanwhile, and not among what is there already, which is much and stays."""
    most, *others = gc.get_threshold()
    with _lock:
        _seldom.append(not _seldom and not _frozen_by_others())
        if _seldom[-1]:
            gc.freeze()
    gc.set_threshold(most and max(most, MOST_NEW), *others)
    try:
        yield
    finally:
        gc.set_threshold(most, *others)
        with _lock:
            if _seldom.pop():
                gc.unfreeze()


@functools.cache
def _frozen_by_others() -> bool:
    """Return whether the process had put objects aside before we did; counting them takes long, so once."""
    return gc.get_freeze_count() > 0


_waiting: list[bool] = []
"""Whether the search was on, as each of those that want none now found it; the first one's is given back."""


@contextmanager
def uncollected(*, staying: bool = False) -> Iterator[None]:
    """Search for no garbage in cycles meanwhile; what nobody refers to is freed at once, as always.

    Where several threads want that, the search is on again after the last of them. ``staying``: while it is
    seldom, it leaves alone what was made here as well.
    """
    with _lock:
        _waiting.append(gc.isenabled() if not _waiting else _waiting[0])
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _waiting.pop() and not _waiting:
                if staying and _seldom:
                    gc.freeze()
                gc.enable()


def uncollected_at_exit() -> None:
    """Search for no garbage when the process ends: a second of its end, for memory that nobody wants back.

    What is to be done at exit, such as removing temporary folders, is done.
    """
    atexit.register(gc.freeze)
