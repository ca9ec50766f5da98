"""The published rows that ``cme-bench table --paper`` puts beside ours, read from ``data/paper.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

_EVIDENCE = {
    "abstract": "from the paper's abstract",
    "note": "after a third party's note on the paper, not checked against it",
    "derived": "derived by us",
}


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method as published. ``percent``: parameters, % of the base; ``average``: CME average in %."""

    method: str
    experts: int
    rank: int
    training_hours: float
    percent: float
    average: float


@dataclass(frozen=True, slots=True)
class Published:
    """The rows, the base model they were measured on, and the note that must stand below them."""

    base: str
    rows: tuple[PublishedRow, ...]
    note: str


def published() -> Published:
    """Return the paper's CME averages, with their source and evidence level."""
    text = resources.files("cme_bench").joinpath("data", "paper.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    note = (
        f"‡ published on another base model ({content['base']}; {content['setting']}) and with the authors' "
        f"data, not measured here: {content['source']}, {_EVIDENCE[content['evidence']]}."
    )
    return Published(content["base"], tuple(PublishedRow(**row) for row in content["rows"]), note)
