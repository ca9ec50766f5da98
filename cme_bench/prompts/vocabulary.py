"""Whether every token id that a model is fed has an embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cme_bench.engines.base import GenerateRequest, Request, TokenIds
from cme_bench.engines.virtual import VIRTUAL
from cme_bench.util.errors import UsageError


def embeddings(config: Any) -> int:
    """Return the number of token embeddings of the model with this transformers config."""
    return int(config.get_text_config().vocab_size)


def check_vocabulary(tokenizer: Any, embeddings: int, highest: int, *, model: str) -> None:
    """Check the highest token id that a model is fed.

    A tokenizer may know more tokens than the model has embeddings: added tokens that no prompt contains do no
    harm. Raises UsageError with the token's text if ``highest`` has no embedding.
    """
    if highest >= embeddings:
        raise UsageError(
            f"{model}: the tokenizer has token ids up to {_last(tokenizer)}, the model {embeddings} "
            f"embeddings ({tokenizer.decode([highest])!r} is {highest})"
        )


def check_requests(tokenizer: Any, embeddings: int, requests: Iterable[Request], *, model: str) -> None:
    """Check that every token id of the requests has an embedding, as :func:`check_vocabulary` does."""
    highest = max(map(_highest, requests), default=0)
    check_vocabulary(tokenizer, embeddings, highest, model=model)


def _last(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values()))


def _highest(request: Request) -> int:
    if isinstance(request, GenerateRequest):
        return _most(request.prompt)
    contexts = {id(context): context for context, _ in request.rows}  # choices share their context
    parts = (*contexts.values(), *(continuation for _, continuation in request.rows))
    return max(map(_most, parts), default=0)


def _most(ids: TokenIds) -> int:
    """Return the highest id that no image stands for."""
    highest = max(ids, default=0)
    return highest if highest < VIRTUAL else max((i for i in ids if i < VIRTUAL), default=0)
