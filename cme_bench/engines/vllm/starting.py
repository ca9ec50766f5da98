"""A start of vLLM in this process, which has imported all that it needs, for a job that is short."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from cme_bench.util.collection import uncollected

_WORKER = "vllm.v1.worker.gpu_worker"
_WARMING = ("kernel_warmup", "warmup_kernels")


@contextmanager
def starting_here(*, compiles: bool, quantised: bool) -> Iterator[None]:
    """Let vLLM do here what it would do elsewhere, or for a server that many will ask.

    * It would start a process of its own to look at the model's class, which imports torch and vLLM anew,
      unless it has kept what that found: a third of a first start. It does so to keep CUDA out of a process
      that may fork.
    * Around each part of a start it searches for garbage: half a second each, all over the imported
      libraries. When the engine stops, vLLM has everything searched again.
    * vLLM 0.26 builds Triton's kernels for every way to draw tokens before the first request, and warns of
      each that it builds later: half of a first start. Newer ones do so for an engine that ``compiles`` only.
    * It has functions compiled that few models use, for which torch's compiler is imported: here each is when
      it is first called, and on a CPU, where one that counts ranks takes two seconds for it, none is.
    * It copies the tokenizer for threads that ask for texts at the same time; here one thread asks for ids.
    * It imports the package ``humming``, which starts two processes to build kernels of ``quantised`` models.
    """
    from vllm.config.kernel import KernelConfig
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform
    from vllm.renderers import hf
    from vllm.utils import jit_monitor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    gc.freeze()
    with ExitStack() as stack:
        stack.enter_context(uncollected())
        stack.enter_context(_instead(registry, "_run_in_subprocess", lambda look: look()))
        stack.enter_context(_instead(hf, "maybe_make_thread_pool", lambda tokenizer, copies=1: tokenizer))
        if not compiles:
            late = _as_it_is if current_platform.is_cpu() else _compiled_late(torch.compile)
            stack.enter_context(_instead(torch, "compile", late))
        if not quantised:
            stack.enter_context(_variable("HUMMING_DISABLE_PARALLEL_BUILD", "1"))
        warms = compiles or "enable_jit_warmup" in KernelConfig.__dataclass_fields__
        stack.enter_context(_instead(WorkerWrapperBase, "init_worker", _initialised(stack, warms=warms)))
        if not warms:
            stack.enter_context(_instead(jit_monitor, "activate", _nothing))
        yield


def _initialised(stack: ExitStack, *, warms: bool) -> Callable[..., None]:
    """Return what makes a worker, which imports what is left: that is no garbage, either.

    One that does not warm up builds no kernel before it is used.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    init = WorkerWrapperBase.init_worker

    def init_worker(wrapper: Any, *args: Any, **kwargs: Any) -> None:
        init(wrapper, *args, **kwargs)
        gc.freeze()
        for name in () if warms else _WARMING:
            stack.enter_context(_instead(sys.modules.get(_WORKER), name, _nothing))

    return init_worker


def _compiled_late(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``torch.compile`` as ``compiled`` does it, but for functions when they are first called."""

    def late(function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda given: late(given, **options)
        if not inspect.isfunction(function):
            return compiled(function, **options)
        made = functools.cache(lambda: compiled(function, **options))

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return made()(*args, **kwargs)

        return called

    return late


def _as_it_is(function: Any = None, **options: Any) -> Any:
    """Stand for ``torch.compile``, without compiling."""
    return (lambda given: given) if function is None else function


def _nothing(*args: Any, **kwargs: Any) -> None: ...


@contextmanager
def _instead(owner: Any, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of one of vLLM's, where this version has it."""
    theirs = getattr(owner, name, None)
    if theirs is None:
        yield
        return
    setattr(owner, name, ours)
    try:
        yield
    finally:
        setattr(owner, name, theirs)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment meanwhile, unless it is set."""
    given = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not given:
            del os.environ[name]
