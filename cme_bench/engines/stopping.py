"""Where generated text ends: the rule that every engine follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cme_bench.engines.base import FinishReason, GenerateRequest, GenerateResponse


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """``text`` before the first stop string in it, None when there is none; an empty string never stops."""
    found = [text.find(s) for s in stop if s]
    found = [place for place in found if place >= 0]
    return text[: min(found)] if found else None


def read_answer(
    request: GenerateRequest, tokens: Sequence[int], *, ended: bool, decode: Callable[[Sequence[int]], str]
) -> GenerateResponse:
    """The response whose generated ``tokens`` are these; ``ended``: the last one ends the sequence."""
    text = decode(tokens[:-1] if ended else tokens)
    cut = cut_at_stop(text, request.stop)
    finish: FinishReason = "stop" if cut is not None else "eos" if ended else "length"
    return GenerateResponse(text if cut is None else cut, len(tokens), finish)
