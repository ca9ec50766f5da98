"""What both kinds of request say of themselves."""

from __future__ import annotations

import pytest

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest, Request


@pytest.mark.parametrize(
    ("request_", "prompt", "n_prompt", "n_tokens"),
    [
        (GenerateRequest((1, 2, 3), 4), (1, 2, 3), 3, 7),
        (LoglikelihoodRequest((((1, 2), (3,)), ((1, 2), (4, 5)))), (1, 2), 2, 4),
        (LoglikelihoodRequest((((1, 2), (3, 4, 5)), ((1, 2, 9), ()))), (1, 2), 3, 5),
    ],
)
def test_a_request_knows_its_prompt_and_its_sizes(
    request_: Request, prompt: tuple[int, ...], n_prompt: int, n_tokens: int
) -> None:
    """Contexts that differ: the first one is the prompt, the longest one counts."""
    assert (request_.prompt, request_.n_prompt, request_.n_tokens) == (prompt, n_prompt, n_tokens)
