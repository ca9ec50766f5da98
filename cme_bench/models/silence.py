"""Keeping transformers' remarks from the terminal, where ours say the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def transformers_silent() -> Iterator[None]:
    """Keep all but transformers' errors from the terminal for the block."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
