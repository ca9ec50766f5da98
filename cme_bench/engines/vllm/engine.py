"""The engine: requests become vLLM's, outputs become responses."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import unchanged
from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    TokenIds,
)
from cme_bench.engines.checks import check_generate, check_loglikelihood
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.stopping import read_answer
from cme_bench.engines.vllm.choices import Ask, Collector, Place, Score, Tail
from cme_bench.engines.vllm.host import Host
from cme_bench.vllm_plugin.spec import GatedSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        self.stats = EngineStats()
        self._adapter, self._spec = adapter, spec

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        """Responses as questions finish. Questions are asked in the order of their tokens, so that those
        that share a header follow one another. Raises as ``HFEngine.loglikelihood`` does."""
        check_loglikelihood(requests, self.max_length)
        return self._loglikelihood(requests)

    def _loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        collector = Collector(requests, self.host.settings.cache_block)
        order = sorted(range(len(requests)), key=lambda i: requests[i].rows)
        empty = [i for i in order if not any(continuation for _, continuation in requests[i].rows)]
        for index in empty:
            n = len(requests[index].rows)
            yield self._counted(requests[index], index, LoglikelihoodResponse((0.0,) * n, (True,) * n))
        order = [i for i in order if i not in set(empty)]
        again: list[Ask] = []
        asked = ((ask, ask.prompt, _scoring(ask, past_cache=False)) for ask in collector.asks(order))
        for ask, output in self._ask(asked):
            if isinstance(ask, Tail) and (output.num_cached_tokens or 0) >= len(ask.context):
                again.append(ask)  # tokens of the choice came from the cache: they have no logits
                continue
            for index, response in collector.take(ask, _scores(ask, output)):
                yield self._counted(requests[index], index, response)
        rest = ((ask, ask.prompt, _scoring(ask, past_cache=True)) for ask in again)
        for ask, output in self._ask(rest) if again else ():
            for index, response in collector.take(ask, _scores(ask, output)):
                yield self._counted(requests[index], index, response)

    def _counted(
        self, request: LoglikelihoodRequest, index: int, response: LoglikelihoodResponse
    ) -> tuple[int, LoglikelihoodResponse]:
        if any(math.isnan(logprob) for logprob in response.logprobs):
            raise LogitsError.at(index)
        self.stats.requests += 1
        self.stats.tokens_rowwise += sum(len(c) + len(t) - 1 for c, t in request.rows if t)
        return index, response

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        """Responses as requests finish. Raises as ``HFEngine.generate`` does."""
        check_generate(requests, self.max_length)
        return self._generate(requests)

    def _generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        order = sorted(range(len(requests)), key=lambda i: requests[i].prompt)
        asked = (
            (
                i,
                requests[i].prompt,
                SamplingParams(
                    max_tokens=requests[i].max_new_tokens,
                    temperature=0.0,
                    stop=[text for text in requests[i].stop if text],
                    stop_token_ids=sorted(self.end_ids),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
            for i in order
        )
        for i, output in self._ask(asked):
            tokens = list(output.outputs[0].token_ids)
            self.stats.requests += 1
            self.stats.tokens_generated += len(tokens)
            self.stats.tokens_computed += len(tokens) - 1
            self.stats.tokens_rowwise += len(requests[i].prompt) + len(tokens) - 1
            yield i, self._response(requests[i], tokens)

    def _response(self, request: GenerateRequest, tokens: list[int]) -> GenerateResponse:
        """Text and reason from the token ids alone, by the rules that every engine follows."""
        ended = bool(tokens) and tokens[-1] in self.end_ids
        return read_answer(request, tokens, ended=ended, decode=self._text)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _ask(self, requests: Iterator[tuple[Any, Any, Any]]) -> Iterator[tuple[Any, Any]]:
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
            "device": device,
            "tensor_parallel": str(self.host.settings.tensor_parallel),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _scoring(ask: Ask, *, past_cache: bool) -> Any:
    """SamplingParams that score ``ask``; ``past_cache``: compute the whole prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    tail: dict[str, Any] = {"prompt_logprobs": 0, "skip_reading_prefix_cache": past_cache}
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(ask.children),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **(tail if isinstance(ask, Tail) else {}),
    )


def _scores(ask: Ask, output: Any) -> dict[Place, Score]:
    found = output.outputs[0]
    argmax = int(found.token_ids[0])
    scores = {
        (ask.prompt, token): Score(float(found.logprobs[0][token].logprob), argmax == token)
        for token in ask.children
    }
    if isinstance(ask, Tail):
        before = ask.continuation[:-1]
        places = output.prompt_logprobs[-len(before) :]
        for depth, (token, place) in enumerate(zip(before, places, strict=True)):
            prompt = ask.context + before[:depth]
            scores[prompt, token] = Score(float(place[token].logprob), place[token].rank == 1)
    return scores
