"""The engine: requests become vLLM's, outputs become responses."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import unchanged
from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
    TokenIds,
)
from cme_bench.engines.hf.batching import NoRoomError
from cme_bench.engines.inbox import Given, Inbox, Numbered, Resumed, batch_by_batch
from cme_bench.engines.vllm.flight import Call, Flight
from cme_bench.engines.vllm.host import Host
from cme_bench.engines.vllm.packs import TRIAL_LENGTH, agree, by_packs, trial_requests
from cme_bench.engines.vllm.questions import Continuations, Likelihoods, ProbeCall, Questions
from cme_bench.engines.vllm.settings import on_cpu
from cme_bench.images.image import Image
from cme_bench.util.errors import CmeError, EngineDiedError
from cme_bench.vllm_plugin.spec import GatedSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NO_PACKS = "choices are scored without packs"


def _are_letters(asked: Sequence[LoglikelihoodRequest]) -> bool:
    """Tell whether every question is one request: packs save it nothing but the compiled code."""
    return all(len(choice) <= 1 for request in asked for _, choice in request.rows)


class VLLMEngine(Engine):
    """Compute on a ``Host`` with one adapter file, or as the base model.

    Likelihoods are asked in ways that use the prefix cache (``choices.py``) and are exact: the same logits,
    read at the same places. ``end_ids`` end a generation; ``states``: what a record says of the type of
    hidden states, where there was a choice.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        *,
        adapter: Path | None = None,
        spec: GatedSpec | None = None,
        states: str | None = None,
    ) -> None:
        self.host = host
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.max_length = host.max_length
        self.target_in_flight = 1 if on_cpu() else host.settings.window // 2
        self.stats = EngineStats()
        self._adapter, self._spec = adapter, spec
        self._states = states
        self._named: Any = None
        """What names the adapter in a flight, where the engine holds several."""

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        """As ``Engine.serve``, continuously: the next batch joins what is computed as soon as there is room.

        A batch is asked in the order of its prompts, so that those that share a header follow one another.
        """
        batch = inbox.take(wait=True)
        if not batch:
            return
        generated = isinstance(batch[0][1], GenerateRequest)
        if generated:
            self.host.write()
        self._named = self.host.use(self._adapter, self._spec)
        if not generated and not any(request.images for _, request in batch) and self._takes_packs():
            yield from batch_by_batch(Resumed(batch, inbox), self._by_packs)
            return
        yield from self._served(batch, inbox, self._questions(generated=generated))

    def _served(
        self, batch: list[Numbered], inbox: Inbox, questions: Questions
    ) -> Iterator[tuple[int, Response]]:
        """Answer ``batch``, and what follows it in ``inbox``, by vLLM's own requests."""
        with self.host.flight(self._named) as flight:
            while batch or questions:
                self.host.prompts.know(request for _, request in batch)
                questions.add(sorted(batch, key=lambda numbered: numbered[1].prompt))
                for call, output in self._step(flight, questions):
                    for number, request, response in questions.read(call, output):
                        self.stats.count(request, response)
                        yield number, response
                room = len(flight) < self.host.settings.window and not questions.waiting
                batch = inbox.take(wait=not questions) if room else []

    def _takes_packs(self) -> bool:
        """Tell whether choices are scored by packs: asked for, possible, and tried on a few short rows."""
        host, spec = self.host, None if self._adapter is None else self._spec
        if not host.settings.takes_packs:
            return False
        if spec not in host.packs:
            reason = host.why_no_packs() if host.max_length >= TRIAL_LENGTH else "rows are too short"
            found = "" if reason else self._tried()
            if found or (reason and host.settings.packs):
                host.tell(f"{_NO_PACKS}: {reason or found}")
            host.packs[spec] = not (reason or found)
        return host.packs[spec]

    def _tried(self) -> str:
        """Return what is wrong with packs of a few short rows; "" if nothing."""
        asked, counted = trial_requests(), self.stats
        self.stats = EngineStats()  # a trial is not counted
        wanted = dict(self._served(list(enumerate(asked)), Given(()), self._questions(generated=False)))
        self.stats = counted
        try:
            found = dict(by_packs(self.host, asked, EngineStats()))
        except EngineDiedError:
            raise
        except CmeError as error:
            return str(error)
        right = (agree(found[i], cast("LoglikelihoodResponse", wanted[i]), self.host.dtype) for i in found)
        return "" if all(right) else "a trial gave other scores"

    def _by_packs(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        """Answer a batch; what there is no memory for in packs, and all that follows, without them."""
        asked = cast("Sequence[LoglikelihoodRequest]", requests)
        left = dict(enumerate(asked))
        packed = self._takes_packs() and not (self.host.settings.compiles and _are_letters(asked))
        try:
            for index, response in by_packs(self.host, asked, self.stats) if packed else ():
                self.stats.count(left.pop(index), response)
                yield index, response
        except NoRoomError as error:
            self.host.tell(f"{_NO_PACKS}: {error}")
            self.host.packs = dict.fromkeys(self.host.packs, False)
        if left:
            yield from self._served([*left.items()], Given(()), self._questions(generated=False))

    def _questions(self, *, generated: bool) -> Questions:
        if generated:
            return Continuations(self.end_ids, self._text)
        return Likelihoods(self.host.settings.cache_block)

    def _text(self, tokens: Sequence[int], *, special: bool) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special))

    def _step(self, flight: Flight[Call], questions: Questions) -> list[tuple[Call, Any]]:
        """Fill the window, compute a step, and count what it took."""
        started = time.perf_counter()
        try:
            while len(flight) < self.host.settings.window and (call := questions.next_call()):
                flight.add(call)
            finished = flight.step()
        finally:
            self.stats.model_seconds += time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self.stats.peak_memory_bytes = max(self.stats.peak_memory_bytes, peak)
        for _, output in finished:
            n_generated = len(output.outputs[0].token_ids)
            computed = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            self.stats.tokens_computed += computed + n_generated - 1
        return finished

    def check_liveness(self, name: str, prompt: TokenIds, images: tuple[Image, ...] = ()) -> None:
        """Raise AdapterError if the adapter called ``name`` changes no logit after ``prompt``, which has
        ``images``."""
        self.host.prompts.know([GenerateRequest(prompt, 1, images=images)])
        without = self._likeliest(prompt, self.host.use(None, self._spec))
        if self._likeliest(prompt, self.host.use(self._adapter, self._spec)) == without:
            raise AdapterError(unchanged(name))

    def _likeliest(self, prompt: TokenIds, named: Any) -> dict[int, float]:
        """Return log-probabilities of the likeliest tokens after ``prompt``, by what ``use`` gave."""
        with self.host.flight(named) as flight:
            flight.add(ProbeCall(0, prompt))
            [(_, output)] = flight.finish()
        return {token: likely.logprob for token, likely in output.outputs[0].logprobs[0].items()}

    def describe(self) -> dict[str, str]:
        """Return engine, dtype, device and the versions that compute."""
        import torch
        import transformers
        import vllm

        device = "cpu" if not torch.cuda.is_available() else f"cuda ({torch.cuda.get_device_name()})"
        return {
            "engine": "vllm",
            "dtype": self.host.dtype,
            "logits": self.host.logits,
            **({} if self._states is None else {"states": self._states}),
            "device": device,
            "compiled": "yes" if self.host.settings.compiles else "no",
            "tensor_parallel": str(self.host.settings.tensor_parallel),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
