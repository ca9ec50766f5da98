"""Classes of transformers that vLLM runs where it has none of its own for an architecture.

vLLM prepares such a class for compilation in place, and for good: the next model of it that this process
builds, for whatever reason, asks for a vLLM that starts. Where nothing is compiled nothing is prepared here.
"""

from __future__ import annotations

import functools
from typing import Any

_METHOD = "_decorate_cls_for_torch_compile"
_MARK = "_cme_bench_leaves"


def install() -> None:
    """Leave transformers' classes as they are unless the model is compiled. Raises ImportError or
    AttributeError where this vLLM prepares them elsewhere."""
    from vllm.config import CompilationMode, get_current_vllm_config
    from vllm.model_executor.models.transformers.base import Base

    own = getattr(Base, _METHOD)
    if hasattr(own, _MARK):
        return

    @functools.wraps(own)
    def prepare(self: Any, *args: Any, **named: Any) -> None:
        if get_current_vllm_config().compilation_config.mode != CompilationMode.NONE:
            own(self, *args, **named)

    setattr(prepare, _MARK, True)
    setattr(Base, _METHOD, prepare)
