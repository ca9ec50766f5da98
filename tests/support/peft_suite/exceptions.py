"""What of PEFT's generic tests does not apply to our methods, and why."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cme_bench.adapters.errors import AdapterError
from tests.support.adapter_cases import ON_LINEARS, ROUTED

UNSKIPPED = (
    "This PEFT method does not support Conv1D layers",
    "Mixed adapter batches not supported for",
)
"""Reasons for which PEFT's tests skip methods that they do not know, and that do not hold for ours."""


@dataclass(frozen=True)
class Inapplicable:
    """The test named ``test`` must fail for ``methods``, with an error of ``raises``."""

    test: str
    reason: str
    methods: frozenset[str]
    raises: type[BaseException] = AdapterError

    def meets(self, name: str, method: str) -> bool:
        return method in self.methods and name.partition("[")[0] == self.test

    def mark(self) -> pytest.MarkDecorator:
        return pytest.mark.xfail(raises=self.raises, strict=True, reason=self.reason)


_ROUTED = frozenset(ROUTED)
_LINEAR = _ROUTED & frozenset(ON_LINEARS)
_MERGES = (
    "test_merge_layers",
    "test_merge_layers_fp16",
    "test_merge_layers_multi",
    "test_merge_layers_nan",
)
_CUSTOM_MERGES = (
    "test_merge_layers_is_deterministic_in_train_mode",
    "test_merge_layers_is_idempotent",
    "test_safe_merge",
    "test_disable_adapters_with_merging",
    "test_delete_merged_adapter_only_rejects_the_merged_one",
    "test_delete_merged_adapter_raises_without_mutation",
    "test_mixed_adapter_batches_merged_raises",
    "test_multiple_active_adapters_merge_and_unmerge",
    "test_sequential_merge_matches_batch_merge",
    "test_unmerge_after_sequential_merge_restores_base",
)
_FORWARDS = (
    "test_forward_float16",
    "test_forward_bfloat16",
    "test_forward_float16_no_autocast",
    "test_forward_bfloat16_no_autocast",
)

LEFT_OUT: dict[tuple[str, str], str] = {
    ("mixlora", model): "MixLoRA knows no feed-forward block of this architecture, and says so"
    for model in ("tiny-gpt2", "tiny-t5", "tiny-bert")
}
"""(method, part of a test's name) -> why those tests are not run."""
EXCEPTIONS: tuple[Inapplicable, ...] = (
    *(
        Inapplicable(name, "an update that a router weighs anew for every token cannot be merged", _ROUTED)
        for name in _MERGES
    ),
    *(
        Inapplicable(name, "an update that a router weighs anew for every token cannot be merged", _LINEAR)
        for name in _CUSTOM_MERGES
    ),
    *(
        Inapplicable(name, "the forward passes; then the test merges, which a router forbids", _LINEAR)
        for name in _FORWARDS
    ),
)
"""All of them fail with our error for a merge. What PEFT's tests skip by themselves stands in its report."""
