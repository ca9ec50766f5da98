"""The engine: requests become vLLM's, outputs become responses."""

from __future__ import annotations

import functools
import itertools
import math
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import unchanged
from cme_bench.engines.base import (
    Engine,
    EngineStats,
    Feed,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    TokenIds,
    gathered,
)
from cme_bench.engines.checks import check_generate, check_loglikelihood
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.stopping import read_answer
from cme_bench.engines.vllm.choices import Ask, Collector, Place, Score, Tail
from cme_bench.engines.vllm.host import Host
from cme_bench.engines.vllm.settings import on_cpu
from cme_bench.vllm_plugin.scoring import SCORED
from cme_bench.vllm_plugin.spec import GatedSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARAMETERS_KEPT = 4096
"""Sampling parameters that requests have in common; making them costs as much as asking."""


class VLLMEngine(Engine):
    """Computes on a ``Host`` with one adapter file, or as the base model.

    Likelihoods are asked in ways that use the prefix cache (``choices.py``) and are exact: the same logits,
    read at the same places. ``end_ids`` end a generation.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        *,
        adapter: Path | None = None,
        spec: GatedSpec | None = None,
    ) -> None:
        self.host = host
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.max_length = host.max_length
        self.appetite = 1 if on_cpu() else host.settings.window // 2
        self.stats = EngineStats()
        self._adapter, self._spec = adapter, spec

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        """Responses as questions finish. Raises as ``HFEngine.loglikelihood`` does."""
        check_loglikelihood(requests, self.max_length)
        return self.serve(enumerate(requests))

    def _loglikelihood(self, feed: Feed) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        collector = Collector(self.host.settings.cache_block)
        again: deque[tuple[int, Ask]] = deque()
        for (asker, ask), output in self._ask(_scored(feed, collector, again)):
            if isinstance(ask, Tail) and (output.num_cached_tokens or 0) >= len(ask.context):
                again.append((asker, ask))  # tokens of the choice came from the cache: they have no logits
                continue
            for index, request, response in collector.take(ask, _scores(ask, output)):
                if any(math.isnan(logprob) for logprob in response.logprobs):
                    raise LogitsError.at(index)
                self.stats.requests += 1
                self.stats.tokens_rowwise += sum(len(c) + len(t) - 1 for c, t in request.rows if t)
                yield index, response

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        """Responses as requests finish. Raises as ``HFEngine.generate`` does."""
        check_generate(requests, self.max_length)
        return self.serve(enumerate(requests))

    def serve(self, feed: Feed) -> Iterator[tuple[int, Any]]:
        """As ``Engine.serve``, without a pause: what arrives joins what is being computed. What is there is
        asked in the order of its tokens, so that questions that share a header follow one another."""
        first = next(feed, None)
        if first is None:
            return
        generated = isinstance(first[1], GenerateRequest)
        ask = self._generate if generated else self._loglikelihood
        yield from ask(_in_order(itertools.chain([first], feed)))

    def _generate(self, feed: Feed) -> Iterator[tuple[int, GenerateResponse]]:
        asked: dict[int, GenerateRequest] = {}
        for i, output in self._ask(self._prompted(feed, asked)):
            request = asked.pop(i)
            tokens = list(output.outputs[0].token_ids)
            self.stats.requests += 1
            self.stats.tokens_generated += len(tokens)
            self.stats.tokens_computed += len(tokens) - 1
            self.stats.tokens_rowwise += len(request.prompt) + len(tokens) - 1
            yield i, self._response(request, tokens)

    def _prompted(
        self, feed: Feed, asked: dict[int, GenerateRequest]
    ) -> Iterator[tuple[int, TokenIds, Any] | None]:
        """What to ask of the host for what ``feed`` brings; that is put into ``asked``."""
        for entry in feed:
            if entry is None:
                yield None
                continue
            index, request = entry
            assert isinstance(request, GenerateRequest)
            asked[index] = request
            yield index, request.prompt, _generating(request.max_new_tokens, request.stop, self.end_ids)

    def _response(self, request: GenerateRequest, tokens: list[int]) -> GenerateResponse:
        """Text and reason from the token ids alone, by the rules that every engine follows."""
        ended = bool(tokens) and tokens[-1] in self.end_ids
        return read_answer(request, tokens, ended=ended, decode=self._text)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _ask(self, requests: Iterator[tuple[Any, Any, Any] | None]) -> Iterator[tuple[Any, Any]]:
        """What the host streams, counted."""
        self.host.use(self._adapter, self._spec)
        stream = self.host.stream(requests, self.host.settings.window)
        while True:
            started = time.perf_counter()
            try:
                key, output = next(stream)
            except StopIteration:
                return
            finally:
                self.stats.model_seconds += time.perf_counter() - started
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                self.stats.peak_memory_bytes = max(self.stats.peak_memory_bytes, peak)
            self.stats.tokens_computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            yield key, output

    def check_liveness(self, name: str, prompt: TokenIds) -> None:
        """Raises AdapterError if the adapter called ``name`` changes no logit after ``prompt``."""
        self.host.use(None, self._spec)
        without = self._likeliest(prompt)
        self.host.use(self._adapter, self._spec)
        if self._likeliest(prompt) == without:
            raise AdapterError(unchanged(name))

    def _likeliest(self, prompt: TokenIds) -> dict[int, float]:
        """Log-probabilities of the likeliest tokens after ``prompt``, as the host is set."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20, detokenize=False)
        [(_, output)] = self.host.stream([(0, prompt, params)], window=1)
        return {token: found.logprob for token, found in output.outputs[0].logprobs[0].items()}

    def describe(self) -> dict[str, str]:
        """Engine, dtype, device and the versions that compute."""
        import torch
        import transformers
        import vllm

        device = "cpu" if not torch.cuda.is_available() else f"cuda ({torch.cuda.get_device_name()})"
        return {
            "engine": "vllm",
            "dtype": self.host.dtype,
            "logits": self.host.logits,
            "device": device,
            "tensor_parallel": str(self.host.settings.tensor_parallel),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _in_order(feed: Feed) -> Feed:
    for entries in gathered(feed):
        yield from sorted(entries, key=_tokens)
        yield None


def _tokens(entry: tuple[int, LoglikelihoodRequest | GenerateRequest]) -> Any:
    _, request = entry
    return request.prompt if isinstance(request, GenerateRequest) else request.rows


def _scored(
    feed: Feed, collector: Collector, again: deque[tuple[int, Ask]]
) -> Iterator[tuple[tuple[int, Ask], TokenIds, Any] | None]:
    """What to ask of the host for what ``feed`` brings, and ``again``, past the cache; each with the index of
    the request that asks it."""
    open_ = True
    while open_ or collector:
        if again:
            index, ask = again.popleft()
            yield (index, ask), ask.prompt, _scoring(ask.children, ask.scored, past_cache=True)
            continue
        try:
            entry = next(feed) if open_ else None
        except StopIteration:
            open_ = False
            continue
        if entry is None:
            yield None
            continue
        index, request = entry
        assert isinstance(request, LoglikelihoodRequest)
        for ask in collector.ask(index, request):
            yield (index, ask), ask.prompt, _scoring(ask.children, ask.scored, past_cache=False)


@functools.lru_cache(maxsize=PARAMETERS_KEPT)
def _scoring(children: TokenIds, scored: int, *, past_cache: bool) -> Any:
    """SamplingParams that score ``children`` after a prompt, and its own last ``scored`` tokens;
    ``past_cache``: compute the whole prompt."""
    from vllm import SamplingParams

    asked: dict[str, Any] = {"logprob_token_ids": list(children) or None}
    if scored:
        asked |= {"prompt_logprobs": 0, "flat_logprobs": True, "extra_args": {SCORED: scored}}
        asked |= {"skip_reading_prefix_cache": past_cache}
    return SamplingParams(max_tokens=1, detokenize=False, **asked, **_always())


@functools.lru_cache(maxsize=PARAMETERS_KEPT)
def _generating(max_new_tokens: int, stop: tuple[str, ...], end_ids: frozenset[int]) -> Any:
    """SamplingParams of a greedy continuation."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=max_new_tokens,
        stop=[text for text in stop if text],
        stop_token_ids=sorted(end_ids),
        **_always(),
    )


def _always() -> dict[str, Any]:
    """Greedy, one output at the end. Requests share their parameters: vLLM need not copy what is in them."""
    from vllm.sampling_params import RequestOutputKind

    return {"temperature": 0.0, "output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}


def _scores(ask: Ask, output: Any) -> dict[Place, Score]:
    found = output.outputs[0]
    argmax = int(found.token_ids[0])
    scores = {
        (ask.prompt, token): Score(float(found.logprobs[0][token].logprob), argmax == token)
        for token in ask.children
    }
    if isinstance(ask, Tail):
        before = ask.continuation[:-1]
        for depth, token in enumerate(before):
            place = output.prompt_logprobs[depth - len(before)][token]
            scores[ask.context + before[:depth], token] = Score(float(place.logprob), place.rank == 1)
    return scores
