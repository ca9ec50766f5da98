"""Requests in flight in a running vLLM: added, computed step by step, aborted if nobody waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from cme_bench.engines.base import TokenIds
from cme_bench.engines.vllm.engine_thread import EngineThread
from cme_bench.util.errors import CmeError
from cme_bench.util.turns import let_go


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
SEPARATOR = "-"
"""Between the name of a flight and the number of a call, in the name by which vLLM knows the call."""


class Pump:
    """Step an engine for all flights in it: what one thread's step finishes of another's waits for it.

    A thread lets go of its turn while it steps, or waits for another thread's step.
    """

    def __init__(self, engine: Any, thread: EngineThread) -> None:
        self.engine = engine
        self._thread = thread
        self.lock = threading.RLock()
        self._finished: dict[str, list[Any]] = {}
        """Outputs that nobody has taken yet, by the name of the flight."""

    def enter(self, flight: str) -> None:
        with self.lock:
            self._finished[flight] = []

    def add(self, *request: Any, **named: Any) -> None:
        """Hand a request to the engine; arguments as of its ``add_request``."""
        with self.lock:
            self._thread.call(self.engine.add_request, *request, **named)

    def leave(self, flight: str, left: Sequence[str]) -> None:
        """Abort what is left of a flight; with the last one in the engine, step it until it is empty."""
        with self.lock:
            if left:
                self._thread.call(self.engine.abort_request, list(left))
            del self._finished[flight]
            while left and not self._finished and self.engine.has_unfinished_requests():
                self._thread.call(self.engine.step)

    def step(self, flight: str) -> list[Any]:
        """Return the finished outputs of ``flight``, after a step if there are none yet."""
        with let_go(), self.lock:
            if not self._finished[flight]:
                for output in self._thread.call(self.engine.step):
                    owner = output.request_id.partition(SEPARATOR)[0]
                    if output.finished and owner in self._finished:
                        self._finished[owner].append(output)
            found, self._finished[flight] = self._finished[flight], []
        return found


class Flight(Generic[CallT]):
    """Hold calls in an engine of ``host``; leaving the context aborts those that are not finished.

    ``add`` and ``step`` raise EngineDiedError, with the engine's own last error, if the engine dies, and
    LogitsError, with the number of a request, if it meets NaN. ``adapter``: the LoRARequest of its calls.
    """

    def __init__(self, host: EngineOwner, pump: Pump, adapter: Any = None) -> None:
        self._host = host
        self._pump = pump
        self._engine = pump.engine
        self._adapter = adapter
        self._calls: dict[str, CallT] = {}
        self._n_added = 0
        self._name = str(id(self))

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: CallT) -> None:
        """Hand a call to the engine."""
        name = f"{self._name}{SEPARATOR}{self._n_added}"
        self._n_added += 1
        self._calls[name] = call
        with self._explained(), self._pump.lock:
            prompt = self._host.prompt(self._engine, call.prompt)
            self._pump.add(name, prompt, call.params, lora_request=self._adapter)

    def step(self) -> list[tuple[CallT, Any]]:
        """Compute one step of what is in flight; return ``(call, RequestOutput)`` of what it finished."""
        if not self._calls:
            return []
        with self._explained():
            outputs = self._pump.step(self._name)
        return [(self._calls.pop(output.request_id), output) for output in outputs]

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
        self._pump.enter(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._host.runs(self._engine):
            self._pump.leave(self._name, list(self._calls))
        self._calls.clear()
