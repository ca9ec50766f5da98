"""Requests in flight in a running vLLM: added, computed step by step, aborted if nobody waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from cme_bench.engines.base import TokenIds
from cme_bench.util.errors import CmeError


class EngineOwner(Protocol):
    """Know whether an engine still runs, and what its errors mean; ``vllm.host.Host`` does."""

    def runs(self, engine: Any) -> bool: ...
    def prompt(self, engine: Any, ids: TokenIds) -> Any: ...
    def failure(self, error: Exception, numbers: Mapping[str, int]) -> CmeError | None: ...


class Call(Protocol):
    """Name what vLLM is asked for request ``number`` of ours. ``params``: its SamplingParams."""

    @property
    def number(self) -> int: ...
    @property
    def prompt(self) -> TokenIds: ...
    @property
    def params(self) -> Any: ...


CallT = TypeVar("CallT", bound=Call)


class Flight(Generic[CallT]):
    """Hold calls in the engine of ``host``; leaving the context aborts those that are not finished.

    ``add`` and ``step`` raise EngineDiedError, with the engine's own last error, if the engine dies, and
    LogitsError, with the number of a request, if it meets NaN.
    """

    def __init__(self, host: EngineOwner, engine: Any) -> None:
        self._host = host
        self._engine = engine
        self._calls: dict[str, CallT] = {}
        self._n_added = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: CallT) -> None:
        """Hand a call to the engine."""
        name = f"{id(self)}-{self._n_added}"
        self._n_added += 1
        self._calls[name] = call
        with self._explained():
            prompt = self._host.prompt(self._engine, call.prompt)
            self._engine.add_request(name, prompt, call.params)

    def step(self) -> list[tuple[CallT, Any]]:
        """Compute one step of what is in flight; return ``(call, RequestOutput)`` of what it finished."""
        if not self._calls:
            return []
        with self._explained():
            outputs = self._engine.step()
        return [(self._calls.pop(output.request_id), output) for output in outputs if output.finished]

    def finish(self) -> list[tuple[CallT, Any]]:
        """Compute until nothing is in flight; return ``(call, RequestOutput)`` of every call."""
        finished = []
        while self._calls:
            finished += self.step()
        return finished

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise an error after which the engine is of no use as what it means for a user."""
        try:
            yield
        except Exception as error:
            failure = self._host.failure(error, {name: call.number for name, call in self._calls.items()})
            if failure is None:
                raise
            self._calls.clear()
            raise failure from error

    def __enter__(self) -> Flight[CallT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls and self._host.runs(self._engine):
            self._engine.abort_request(list(self._calls))
            while self._engine.has_unfinished_requests():
                self._engine.step()
        self._calls.clear()
