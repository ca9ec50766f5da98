"""How vLLM learns what a model's class can do, before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def inspected_here() -> Iterator[None]:
    """Let vLLM look at a model's class in this process, where the model will run.

    It would start a process of its own for that, which imports torch and vLLM anew, unless it has kept what
    that found: a third of a first start. It does so to keep CUDA out of a process that may fork.
    """
    from vllm.model_executor.models import registry

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
