"""What the host of vLLM makes of errors; a race that the real engine of test_vllm.py seldom runs into."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pydantic
import pytest

from cme_bench.engines.vllm.host import Host, _refused
from cme_bench.engines.vllm.settings import VllmSettings
from cme_bench.util.errors import EngineDiedError


class ClosedSocket(SimpleNamespace):
    """vLLM's side of an engine whose process has just ended."""

    def add_request(self, *arguments: Any, **named: Any) -> None:
        raise OSError("Socket operation on non-socket")

    def abort_request(self, names: list[str]) -> None: ...

    def has_unfinished_requests(self) -> bool:
        return False


def ask(*, dead: bool) -> None:
    host = Host(Path("model"), "float32", VllmSettings())
    engine = ClosedSocket(engine_core=SimpleNamespace(resources=SimpleNamespace(engine_dead=dead)))
    host.adopt(SimpleNamespace(llm_engine=engine), 100)
    with host.flight() as flight:
        flight.add(SimpleNamespace(number=0, prompt=(1, 2), params=None))


def test_any_error_of_a_dead_engine_says_that_it_died() -> None:
    with pytest.raises(EngineDiedError, match=r"died: its process ended .*the same command goes on"):
        ask(dead=True)


def test_an_error_of_a_living_engine_is_itself() -> None:
    with pytest.raises(OSError, match="non-socket"):
        ask(dead=False)


def test_what_vllm_takes_in_no_case_is_bad_input() -> None:
    def unknown(value: str) -> str:
        raise ValueError(f"Model architectures [{value!r}] are not supported for now. Known: many")

    settings = pydantic.create_model("ModelConfig", name=(str, ...))
    checked = pydantic.TypeAdapter(Annotated[str, pydantic.AfterValidator(unknown)])
    with pytest.raises(pydantic.ValidationError) as one:
        checked.validate_python("Foo")
    assert _refused(one.value) == "Model architectures ['Foo'] are not supported for now. Known: many"
    with pytest.raises(pydantic.ValidationError) as other:
        settings()
    assert "1 validation error for ModelConfig" in str(_refused(other.value))
    assert _refused(RuntimeError("no memory")) is None
