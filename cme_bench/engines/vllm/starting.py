"""A start of vLLM in this process, which has imported all that it needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting_here() -> Iterator[None]:
    """Let vLLM look at a model's class in this process, and for garbage among new objects only.

    It would start a process of its own to look at the class, which imports torch and vLLM anew, unless it has
    kept what that found: a third of a first start. It does so to keep CUDA out of a process that may fork.
    Around each part of a start it searches for garbage: half a second each, all over the imported libraries.
    When the engine stops, vLLM has everything searched again.
    """
    from vllm.model_executor.models import registry

    gc.freeze()
    name = "_run_in_subprocess"
    theirs = getattr(registry, name, None)
    if theirs is None:  # another version
        yield
        return
    setattr(registry, name, lambda look: look())
    try:
        yield
    finally:
        setattr(registry, name, theirs)
