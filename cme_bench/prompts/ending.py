"""The end of an adapter's answers by its training, where that ends no answer of its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cme_bench.engines.base import TokenIds
from cme_bench.engines.stopping import end_token_ids


@dataclass(frozen=True, slots=True)
class TrainedEnd:
    """``tokens``: those that end a generation beside the base's own. ``note``: what a user must know."""

    tokens: TokenIds
    note: str


def trained_end(tokenization: Mapping[str, Any], tokenizer: Any, eos: Any) -> TrainedEnd | None:
    """Return the end that an adapter's training recorded; None if the base ends with it too, or none is told.

    ``tokenization``: as ``cme_training.json`` has it. ``eos``: of the base's generation config. They part
    where the adapter was trained with another tokenizer or EOS than it is evaluated with. Its answers would
    run on.
    """
    recorded = tokenization.get("end_of_answer")
    if not isinstance(recorded, list) or not recorded or not all(type(i) is int for i in recorded):
        return None
    if end_token_ids(eos, tokenizer).intersection(recorded):
        return None
    shown = tokenizer.decode(recorded)
    said = f"the adapter was trained to end its answers with {shown!r}, which does not end its base's"
    if len(recorded) == 1 or recorded[0] in tokenizer.all_special_ids:
        return TrainedEnd((recorded[0],), f"{said}: generation stops there too")
    return TrainedEnd((), f"{said}, and is no token of its own: answers may run on to their limit")
