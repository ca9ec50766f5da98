"""The rule by which generated text ends, in every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cme_bench.engines.base import FinishReason, GenerateRequest, GenerateResponse


def end_token_ids(eos: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a sequence: ``eos`` of a model (one, several or None) and of the tokenizer."""
    several = list(eos) if isinstance(eos, (list, tuple)) else [eos]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return ``text`` before its first stop string; None if there is none. An empty string never stops."""
    starts = [text.find(s) for s in stop if s and s in text]
    return text[: min(starts)] if starts else None


def read_answer(
    request: GenerateRequest, tokens: Sequence[int], *, ended: bool, decode: Callable[[Sequence[int]], str]
) -> GenerateResponse:
    """Return the response whose generated ``tokens`` are these; ``ended``: the last one ends the sequence."""
    text = decode(tokens[:-1] if ended else tokens)
    cut = cut_at_stop(text, request.stop)
    finish: FinishReason = "stop" if cut is not None else "eos" if ended else "length"
    return GenerateResponse(text if cut is None else cut, len(tokens), finish)
