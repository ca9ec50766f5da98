"""Sampling parameters of the requests that vLLM is asked."""

from __future__ import annotations

import functools
from typing import Any

from cme_bench.engines.base import GenerateRequest, Sampling, TokenIds
from cme_bench.vllm_plugin.scoring import SCORED

PARAMETERS_KEPT = 4096
"""Sampling parameters that requests have in common; making them costs as much as asking."""


@functools.lru_cache(maxsize=PARAMETERS_KEPT)
def scoring_params(children: TokenIds, scored: int, *, past_cache: bool) -> Any:
    """Return SamplingParams that score ``children`` after a prompt, and its own last ``scored`` tokens.

    ``past_cache``: compute the whole prompt.
    """
    from vllm import SamplingParams

    wanted: dict[str, Any] = {"logprob_token_ids": list(children) or None}
    if scored:
        wanted |= {"prompt_logprobs": 0, "flat_logprobs": True, "extra_args": {SCORED: scored}}
        wanted |= {"skip_reading_prefix_cache": past_cache}
    return SamplingParams(max_tokens=1, detokenize=False, **wanted, **_always())


def generating_params(request: GenerateRequest, end_ids: frozenset[int]) -> Any:
    """Return SamplingParams of one leg of a continuation."""
    return _generating_params(
        request.max_new_tokens,
        request.stop,
        end_ids.union(request.ends),
        request.sampling,
        special=request.special,
    )


@functools.lru_cache(maxsize=PARAMETERS_KEPT)
def _generating_params(
    max_new_tokens: int,
    stop: tuple[str, ...],
    end_ids: frozenset[int],
    sampling: Sampling | None,
    *,
    special: bool,
) -> Any:
    from vllm import SamplingParams

    drawn: dict[str, Any] = {}
    if sampling is not None:
        # a request with a seed has a generator of its own, so that its batch does not matter
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        drawn |= {"top_k": sampling.top_k}
    return SamplingParams(
        max_tokens=max_new_tokens,
        stop=[text for text in stop if text],
        stop_token_ids=sorted(end_ids),
        skip_special_tokens=not special,
        **_always() | drawn,
    )


def likeliest_params(count: int) -> Any:
    """Return SamplingParams that give the ``count`` likeliest tokens after a prompt."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, logprobs=count, detokenize=False)


def _always() -> dict[str, Any]:
    """Greedy, one output at the end. Requests share their parameters: vLLM need not copy what is in them."""
    from vllm.sampling_params import RequestOutputKind

    return {"temperature": 0.0, "output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}
