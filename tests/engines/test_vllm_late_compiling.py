"""Functions that are to be compiled wait for their first call; what else is compiled does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cme_bench.engines.vllm.starting import _as_it_is, _compiled_late


@pytest.mark.parametrize("decorates", [True, False])
def test_a_function_is_compiled_once_when_it_is_first_called(decorates: bool) -> None:
    made: list[Any] = []

    def compiled(function: Any, **options: Any) -> Any:
        made.append((function, options))
        return lambda *args, **named: ("compiled", function(*args, **named))

    def double(number: int, *, more: int = 0) -> int:
        """Twice a number."""
        return 2 * number + more

    late = _compiled_late(compiled)
    doubled = late(dynamic=True)(double) if decorates else late(double, dynamic=True)
    assert (doubled.__name__, doubled.__doc__, made) == ("double", "Twice a number.", [])
    assert [doubled(2), doubled(3, more=1)] == [("compiled", 4), ("compiled", 7)]
    assert made == [(double, {"dynamic": True})]


def test_a_module_is_compiled_at_once() -> None:
    module = torch.nn.Linear(1, 1)
    assert _compiled_late(lambda given, **options: (given, options))(module, mode="default") == (
        module,
        {"mode": "default"},
    )


def test_on_a_cpu_nothing_is_compiled() -> None:
    assert _as_it_is(dynamic=True)(abs) is _as_it_is(abs, backend="inductor") is abs
