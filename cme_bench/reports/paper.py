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
    """One method as published. ``percent``: parameters, % of the base; ``average``: in %."""

    method: str
    experts: int
    rank: int
    average: float
    training_hours: float | None = None
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The rows, the base model they were measured on, and the notes that must stand below them."""

    base: str
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...]


def published() -> Published:
    """Return the paper's CME averages, with their source and evidence level."""
    content = _content()
    note = (
        f"‡ published on another base model ({content['base']}; {content['setting']}) and with the authors' "
        f"data, not measured here: {content['source']}, {_EVIDENCE[content['evidence']]}."
    )
    return Published(content["base"], tuple(PublishedRow(**row) for row in content["rows"]), (note,))


def published_on_images() -> Published:
    """Return the paper's averages on a vision-language model, which nothing here is comparable with."""
    content = _content()
    part = content["multimodal"]
    note = (
        f"‡ paper, not comparable: another model ({part['base']}) and other benchmarks; {part['known']} "
        f"({content['source']}, {_EVIDENCE[part['evidence']]})."
    )
    return Published(part["base"], tuple(PublishedRow(**row) for row in part["rows"]), (note,))


def _content() -> dict[str, Any]:
    text = resources.files("cme_bench").joinpath("data", "paper.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
