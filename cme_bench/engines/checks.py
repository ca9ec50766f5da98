"""Checks of requests, before anything is computed: one place for all engines."""

from __future__ import annotations

from collections.abc import Sequence

from cme_bench.engines.requests import GenerateRequest, LoglikelihoodRequest


def check_loglikelihood(requests: Sequence[LoglikelihoodRequest], max_length: int) -> None:
    """Raise ValueError for the first row that cannot be scored; the message has its index."""
    for index, request in enumerate(requests):
        for choice, (context, continuation) in enumerate(request.rows):
            if not context:
                raise ValueError(f"request {index}, choice {choice}: the context is empty")
            if len(context) + len(continuation) > max_length:
                raise ValueError(
                    f"request {index}, choice {choice}: {len(context)} + {len(continuation)} tokens exceed "
                    f"max_length {max_length}"
                )


def check_generate(requests: Sequence[GenerateRequest], max_length: int) -> None:
    """Raise ValueError for the first request that cannot be run; the message has its index."""
    for index, request in enumerate(requests):
        if not request.prompt:
            raise ValueError(f"request {index}: the prompt is empty")
        if request.max_new_tokens < 1:
            raise ValueError(
                f"request {index}: max_new_tokens must be positive, not {request.max_new_tokens}"
            )
        if request.n_tokens > max_length:
            raise ValueError(
                f"request {index}: {len(request.prompt)} + {request.n_new} new tokens exceed "
                f"max_length {max_length}"
            )
