"""Models whose logits must not be rounded, and a look at what a running vLLM computes them of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cme_bench.engines import LoglikelihoodRequest, TokenIds

LENGTH = 96
EXACT = 2e-4
"""Natural log, of a token; a bfloat16 logit of the size seen here has steps of 0.06 and more."""
TWIN, OTHER = 40, 41
"""Tokens whose rows of the output layer differ in one number by its smallest step."""
CONTEXTS: list[TokenIds] = [tuple((7 * n + 11 * i) % 250 + 3 for i in range(n)) for n in (1, 5, 31, 40, 63)]


def twins(model: Any) -> Any:
    """The model in bfloat16, with large logits and two tokens that rounded logits cannot tell apart."""
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head *= 16
        head[OTHER] = head[TWIN]
        head[OTHER, 3] += head[TWIN, 3].abs() * 2**-7
    assert not torch.equal(head[TWIN], head[OTHER])
    return model


class Spy:
    """The hidden states of which a running engine has computed logits, and what they are exactly."""

    def __init__(self, llm: Any) -> None:
        self.rows: list[Tensor] = []
        self._processor: Any = None
        llm.collective_rpc(self._watch)

    def _watch(self, worker: Any) -> None:
        self._processor = worker.get_model().logits_processor
        own = self._processor._apply_head

        def watched(lm_head: Any, hidden: Tensor, bias: Tensor | None) -> Tensor:
            assert bias is None and hidden.dtype == lm_head.weight.dtype == torch.bfloat16
            self.rows.append(hidden.double() @ lm_head.weight.double().t())
            answer: Tensor = own(lm_head, hidden, bias)
            return answer

        self._processor._apply_head = watched

    def logits(self) -> Tensor:
        """In float64, of every place since the last call, in the order of computing."""
        logits, self.rows = torch.cat(self.rows), []
        cap = self._processor.soft_cap
        return cap * torch.tanh(logits / cap) if cap else logits


def scored(engine: Any, context: TokenIds, *choices: TokenIds) -> tuple[float, ...]:
    """Log-likelihoods of one question's choices."""
    request = LoglikelihoodRequest(tuple((context, choice) for choice in choices))
    [(_, response)] = engine.loglikelihood([request])
    logprobs: tuple[float, ...] = response.logprobs
    return logprobs
