"""A running vLLM: started for a model and an adapter's shape, told which adapter to use, asked, stopped."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cme_bench.engines.logits import LogitsError
from cme_bench.engines.plan import PlanLimits
from cme_bench.engines.reader import ImageReader
from cme_bench.engines.requests import TokenIds
from cme_bench.engines.vllm.engine_thread import EngineThread
from cme_bench.engines.vllm.flight import Flight, Pump
from cme_bench.engines.vllm.seen import MOST_IMAGES, Prompts
from cme_bench.engines.vllm.settings import VllmSettings, engine_arguments, environment, on_cpu
from cme_bench.engines.vllm.starting import starting_here
from cme_bench.util.errors import CmeError, EngineDiedError, UsageError, first_line
from cme_bench.util.phases import phase
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.spec import GatedSpec

WATCH_SECONDS = 1.0
_UNSURE = Path()
"""Stands for an adapter that may be loaded in part: the next one must be loaded in any case."""
_DUMPS = "vllm.logging_utils.dump_input"
"""The logger by which an engine in this process prints all that it has in work when it fails: a page."""
_NAN = "NaNs detected in logits"
"""Part of vLLM's error where ``VLLM_RAISE_ON_LOGIT_NANS`` is set and a request's logits are NaN."""


class Host:
    """Hold at most one vLLM, and start it when it is first needed.

    An adapter of the running engine's spec is swapped in place. An engine that is not compiled takes one of
    another shape, too, if its layers were given room for one; else another spec needs another engine. The
    base model runs on any. One that was told to ``hold`` several has them in slots, and a flight names its
    own. ``note`` is told where logits are rounded; ``base``: the ``quantization_config`` of a model that is
    quantised; ``reader``: what reads images, for a model that takes some.
    """

    def __init__(  # noqa: PLR0917 - callers name what they leave out
        self,
        model: Path,
        dtype: str,
        settings: VllmSettings,
        note: Callable[[str], None] = lambda message: None,
        base: Mapping[str, Any] | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        self.model = model
        self.prompts = Prompts(reader)
        self._sees = reader is not None
        self.base = base
        self.dtype = dtype
        self.logits = "float32"
        """The dtype that logits are rounded to."""
        self.max_length = 0
        self.writes = True
        """Whether engines have a tokenizer, to make texts of what they generate. A small model loads sooner
        without."""
        self.packs: dict[GatedSpec | None, bool] = {}
        """Whether the running engine answers packs as it does requests, by the spec of the adapter with which
        that was tried."""
        self.pack_limits: PlanLimits | None = None
        """Sizes of packs of the running engine, which shrink where memory runs out."""
        self.settings = settings
        self.log = Path(tempfile.mkdtemp(prefix="cme-bench-vllm-")) / "engine.log"
        self._note = note
        self._llm: Any = None
        self._spec: GatedSpec | None = None
        self._expected: Sequence[GatedSpec] = ()
        self._adapter: Path | None = None
        self._slots = 0
        self._requests: dict[Path, Any] = {}
        self._pump: Pump
        self._lock = threading.RLock()
        self._thread = EngineThread()

    def allow(self, max_length: int) -> None:
        """Expect rows of up to ``max_length`` tokens; an engine that runs with less is stopped."""
        if max_length > self.max_length:
            self.close()
            self.max_length = max_length

    def write(self) -> None:
        """Expect texts; an engine without a tokenizer is stopped."""
        if not self.writes:
            self.close()
            self.writes = True

    def expect(self, specs: Sequence[GatedSpec]) -> None:
        """Start engines with room for adapters of these specs, where one engine can serve all."""
        self._expected = specs

    def hold(self, slots: int) -> None:
        """Have the next engine hold so many adapters at a time, of the specs that are expected."""
        self._slots = slots
        if slots:
            self._thread.begin()

    def adopt(self, llm: Any, max_length: int) -> None:
        """Use a ``vllm.LLM`` that somebody else started, as a base model."""
        self._llm, self.max_length = llm, max_length
        self._pump = Pump(llm.llm_engine, self._thread)

    def use(self, adapter: Path | None, spec: GatedSpec | None) -> Any:
        """Make the engine answer with this adapter file, or as the base model.

        Return what names the adapter in a flight; None where the whole engine answers so. Raises UsageError
        if the file does not fit the model, CmeError if vLLM does not start.
        """
        with self._lock:
            if self._slots:
                return self._slotted(adapter)
            self._swap(adapter, spec)
            return None

    def _slotted(self, adapter: Path | None) -> Any:
        """Return the LoRARequest of an adapter, once it is in a slot."""
        if self._llm is None:
            self._start(common_room(self._expected) if self._expected else None)
        if adapter is None:
            return None
        if adapter not in self._requests:
            from vllm.lora.request import LoRARequest

            request = LoRARequest(adapter.stem, len(self._requests) + 1, str(adapter))
            with self._pump.lock, _as_usage_error():
                self._thread.call(self._llm.llm_engine.add_lora, request)
            self._requests[adapter] = request
        return self._requests[adapter]

    def _swap(self, adapter: Path | None, spec: GatedSpec | None) -> None:
        if self._llm is None or not self._takes(spec):
            self.close()
            self._start_with_room(spec)
        if adapter == self._adapter:
            return
        self._adapter = _UNSURE  # should the next line fail half-way
        if adapter is None:
            self._rpc("clear_gated_adapter")
        else:
            self._rpc("load_gated_adapter", str(adapter))
        self._adapter = adapter
        self._llm.reset_prefix_cache()  # cached keys and values are those of the adapter before

    def _takes(self, spec: GatedSpec | None) -> bool:
        """Tell whether the running engine can serve adapters of ``spec``."""
        if spec is None or spec == self._spec:
            return True
        return not (self._spec is None or self.settings.compiles) and {*spec.modules} <= {*self._spec.modules}

    def _start_with_room(self, spec: GatedSpec | None) -> None:
        """Start an engine for ``spec`` and those that are expected, or, should that fail, for it alone."""
        specs = [*self._expected, *([] if spec is None else [spec])]
        room = spec if self.settings.compiles or not specs else GatedSpec.room_for(specs)
        try:
            self._start(room)
        except CmeError:
            if room == spec:
                raise
        else:
            return
        gc.collect()  # what the failed start holds
        self._start(spec)

    def _rpc(self, method: str, *args: str) -> None:
        with _as_usage_error():
            self._llm.collective_rpc(method, args=args)

    def why_no_packs(self) -> str:
        """Return why the running engine cannot be asked packs; "" if it can be tried."""
        if self._slots:
            return "the engine holds several adapters"
        return next(filter(None, self._llm.collective_rpc("why_no_packs")), "")

    @functools.cached_property
    def config(self) -> Any:
        """Return the model's config, as transformers reads it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, trust_remote_code=False)

    @property
    def step_tokens(self) -> int:
        """Return the tokens of a forward for which the running engine has left memory beside its cache."""
        return int(self._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens)

    def parameters(self) -> int:
        """Return the number of parameters of the running engine's model."""
        [count] = self._llm.collective_rpc("parameters")
        return int(count)

    def start_pack(self, packed: bytes, *, first: bool) -> None:
        """Start computing a pickled pack, the ``first`` of a batch or one that follows it.

        Raises RuntimeError where memory runs out, else CmeError.
        """
        self._ask_pack("start_pack", (packed,), {"first": first})

    def pack_reads(self) -> list[tuple[int, float, bool]]:
        """Wait for the pack that was started longest ago; return its reads. Raises as ``start_pack``."""
        return [(row, logprob, hit) for row, logprob, hit in self._ask_pack("pack_reads")]

    def _ask_pack(self, method: str, args: Sequence[Any] = (), named: Mapping[str, Any] | None = None) -> Any:
        try:
            [found] = self._llm.collective_rpc(method, args=tuple(args), kwargs=named)
        except Exception as error:  # what a worker raises arrives as whatever its transport makes of it
            if (failure := self.failure(error, {})) is not None:
                raise failure from error
            reason = first_line(error)
            if "out of memory" in reason:
                raise RuntimeError(reason) from error
            raise CmeError(f"vLLM did not score a pack: {reason} (log: {self.log})") from error
        return found

    def _start(self, spec: GatedSpec | None) -> None:
        with phase("engine"):
            self._thread.call(self._start_here, spec)

    def _start_here(self, spec: GatedSpec | None) -> None:
        for name, value in environment(self.settings, self.dtype).items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if self.settings.alone else "1"
        arguments = engine_arguments(
            self.model, self.dtype, self.max_length, self.settings, spec, self.base, self._slots
        )
        if not self.writes and not self._sees:
            arguments["skip_tokenizer_init"] = True
        if self._sees:
            arguments["limit_mm_per_prompt"] = {"image": MOST_IMAGES}
        started = time.monotonic()
        with output_to(self.log):
            try:
                from vllm import LLM

                self._build_early()
                with self._starting():
                    self._llm = LLM(**arguments)
                logging.getLogger(_DUMPS).setLevel(logging.CRITICAL)  # its start sets all levels anew
                logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
                self._llm.collective_rpc("score_together")
                reasons = self._llm.collective_rpc("exact_logits")
            except Exception as error:  # vLLM and what it builds on raise any type here
                if (refused := _refused(error)) is not None:
                    raise UsageError(f"vLLM takes no such model or settings: {refused}") from error
                raise CmeError(
                    f"vLLM did not start: {self._last_error() or first_line(error)} (log: {self.log})"
                ) from error
        self._spec, self._adapter = spec, None
        self._pump, self._requests = Pump(self._llm.llm_engine, self._thread), {}
        self.packs, self.pack_limits = {}, None
        self._tell(next(filter(None, reasons), ""))
        how = "compiled" if self.settings.compiles else "without compiling"
        self._note(f"vLLM started in {time.monotonic() - started:.0f} s, {how}")
        core = self._llm.llm_engine.engine_core
        threading.Thread(target=_wake_when_dead, args=(core,), daemon=True).start()

    def _build_early(self) -> None:
        """Begin to build the kernel by which packs attend, for an engine in this process on a GPU."""
        if on_cpu() or not (self.settings.alone and self.settings.takes_packs):
            return
        import torch

        from cme_bench.engines.hf.tree_kernel import Factors, build_early

        if (factors := Factors.of(getattr(torch, self.dtype))) is not None:
            build_early(self.config, torch.device("cuda"), factors)

    def _starting(self) -> contextlib.AbstractContextManager[None]:
        if not self.settings.alone:
            return contextlib.nullcontext()
        return starting_here(compiles=self.settings.compiles, quantised=self.base is not None)

    def tell(self, message: str) -> None:
        """Tell who started this."""
        self._note(message)

    def _tell(self, rounded: str) -> None:
        """Say once why logits are rounded, if they are."""
        logits = self.dtype if rounded else "float32"
        if logits != self.logits:
            self._note(
                f"vLLM rounds this model's logits: {rounded}; choices that are nearly as likely as each "
                "other may tie, and the first wins. --dtype float32 or --engine hf does not round"
            )
        self.logits = logits

    def flight(self, adapter: Any = None) -> Flight[Any]:
        """Return an empty set of requests in flight in the running engine; ``adapter``: what ``use`` gave."""
        return Flight(self, self._pump, adapter)

    def prompt(self, engine: Any, ids: TokenIds) -> Any:
        """Return what ``engine`` is asked for a prompt of ``ids``."""
        return self.prompts.of(engine, ids)

    def runs(self, engine: Any) -> bool:
        """Tell whether ``engine`` is still the running one."""
        return self._llm is not None and self._llm.llm_engine is engine

    def failure(self, error: Exception, numbers: Mapping[str, int]) -> CmeError | None:
        """Return what to raise for an error after which this engine is of no use; None for any other.

        ``numbers``: of the requests in flight, by the name that vLLM knows them by.
        """
        if self._llm is None:  # another flight in the engine has met the error first
            return EngineDiedError(f"vLLM's engine was stopped (log: {self.log})")
        dead = type(error).__name__ == "EngineDeadError" or self._noted_dead()
        reason = (self._last_error() or "its process ended") if dead else first_line(error)
        if not dead and _NAN not in reason:
            return None
        if dead:
            self._llm = None
        else:
            self.close()
        if _NAN in reason:
            return LogitsError.at(_broken(numbers, reason))
        return EngineDiedError(
            f"vLLM's engine died: {reason} (log: {self.log}); what was stored is intact, the same command "
            "goes on from there"
        )

    def _noted_dead(self) -> bool:
        """Tell whether vLLM has seen its process end.

        What it was just told then fails by any error: a thread closes its sockets.
        """
        core = self._llm.llm_engine.engine_core
        return bool(getattr(getattr(core, "resources", None), "engine_dead", False))

    def _last_error(self) -> str:
        """Return the last line of the log that reads like an exception, without vLLM's own prefixes."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        shape = re.compile(r"(?:^|\s)((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b: .+)$")
        for line in reversed(lines):
            if (error := shape.search(line)) and "EngineDeadError" not in line:
                return error[1]
        return ""

    def close(self) -> None:
        """Stop the engine and free what it holds."""
        if self._llm is None:
            return
        with output_to(self.log):
            self._thread.call(self._stop_here)
        self._spec = self._adapter = None

    def _stop_here(self) -> None:
        engine, self._llm = self._llm.llm_engine, None
        engine.engine_core.shutdown()
        if self.settings.alone:
            from vllm.distributed import cleanup_dist_env_and_memory

            del engine
            cleanup_dist_env_and_memory()


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    """Say that an adapter was not taken; a worker's error arrives as whatever its transport makes of it."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"vLLM did not take the adapter: {first_line(error)}") from error


def _refused(error: Exception) -> str | None:
    """Return what vLLM says of a model or a setting that it takes in no case; None for any other error."""
    if type(error).__name__ != "ValidationError":  # pydantic's, of vLLM's configurations
        return None
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line.startswith(("Value error, ", "Assertion failed, "))), "")
    return said.partition(", ")[2].partition(" [type=")[0] or first_line(error)


def _broken(numbers: Mapping[str, int], reason: str) -> int | None:
    """Return the number of the first request whose name, which vLLM may lengthen, stands in ``reason``."""
    named = (number for name, number in numbers.items() if re.search(rf"\b{re.escape(name)}(?!\d)", reason))
    return next(named, None)


def _wake_when_dead(core: Any) -> None:
    """Wake who waits for the engine's outputs when its process has died.

    vLLM 0.32 notes the death but leaves a caller of ``step`` waiting on an empty queue for ever. An engine in
    this process has neither the note nor the queue.
    """
    while hasattr(core, "resources") and hasattr(core, "outputs_queue"):
        if core.resources.engine_dead:
            from vllm.v1.engine.exceptions import EngineDeadError

            core.outputs_queue.put_nowait(EngineDeadError())
            return
        time.sleep(WATCH_SECONDS)


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send to ``log`` what this process and those it starts write to standard output and error.

    Processes that are started in here keep doing so afterwards.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
