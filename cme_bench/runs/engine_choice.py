"""The rule of ``--engine auto``: hf, or vLLM where its start costs less time than it saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cme_bench.engines.base import GenerateRequest, Request

LocalChoice = Literal["hf", "vllm"]
WORTH_A_START = 8e14
"""Tokens to generate x parameters from which vLLM is chosen.

vLLM's first answer came 116 s after the tasks were planned (H200). At LLaMA-2-7B's shape transformers
generates 921 tokens/s and vLLM 7,515 (H100, bfloat16), so that start is worth 122,000 tokens there; a token's
time goes with the parameters. Choices are scored as fast by transformers, which shares every prefix.
"""
HF_SETTINGS = ("tokens_per_batch", "shared_prefixes", "graphs", "wide_states", "float32_pieces")
"""Keys of ``--set`` that only the transformers engine reads."""


class Choice(NamedTuple):
    """An engine, and why it computes."""

    engine: LocalChoice
    because: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The work of a command, of all of its adapters together.

    ``scored``: questions whose choices are scored; ``generated``: most tokens that may be generated.
    """

    scored: int = 0
    generated: int = 0

    @classmethod
    def of(cls, requests: Iterable[Request], rows: int = 1) -> Waiting:
        """Count ``requests``, each of which ``rows`` adapters are asked."""
        scored = generated = 0
        for request in requests:
            if isinstance(request, GenerateRequest):
                generated += request.n_new
            else:
                scored += 1
        return cls(rows * scored, rows * generated)


def by_work(waiting: Waiting, parameters: int) -> Choice:
    """Return the faster engine on a GPU for what waits. The same work always gives the same engine."""
    if not waiting.generated:
        return Choice("hf", "only choices are scored, for which vLLM's start is not worth it")
    size = f"up to {waiting.generated:,} tokens to generate with {parameters / 1e6:,.0f} M parameters"
    if waiting.generated * parameters >= WORTH_A_START:
        return Choice("vllm", f"{size} are worth its start")
    return Choice("hf", f"{size} are not worth vLLM's start")


def by_options(
    device: str, *, quantised: str | None, device_map: str | None, settings: Mapping[str, int]
) -> Choice | None:
    """Return the engine that options and the device leave, asked in this order; None if there are two."""
    if device_map is not None:
        return Choice("hf", "--device-map spreads the model")
    if quantised is not None:
        return Choice("hf", f"the base is quantised ({quantised})")
    if named := [name for name in HF_SETTINGS if name in settings]:
        return Choice("hf", f"--set {named[0]} is its setting")
    if device != "cuda":
        return Choice("hf", "no GPU" if device == "cpu" else f"the device is {device}")
    return None
