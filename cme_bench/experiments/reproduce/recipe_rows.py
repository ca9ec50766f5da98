"""The rows of a recipe: the adapters that are trained, and what they inherit from each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cme_bench.training.options import TrainOptions
from cme_bench.util.errors import UsageError, did_you_mean

TRAINING_FIELDS = frozenset(f.name for f in fields(TrainOptions)) - {
    "model",
    "out",
    "data",
    "seed",
    "max_steps",
}
"""Fields of TrainOptions that a recipe may set."""
_ROW = TRAINING_FIELDS | {"like", "share", "title", "busiest_of"}


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """One adapter to train, with every seed. ``training``: fields of TrainOptions; ``tuned_as``: the row
    whose learning rate it takes; ``share``: of the scale's steps. ``busiest_of``: a MoELoRA row of which each
    layer's busiest expert is kept; nothing is trained then."""

    name: str
    title: str
    training: Mapping[str, Any]
    tuned_as: str
    share: float = 1.0
    busiest_of: str = ""


def read_rows(
    file: Path, where: Mapping[str, str], given: Mapping[str, Any], scale: str
) -> dict[str, RecipeRow]:
    """Return the rows of a recipe and of its scale by name. UsageError with file and line for unknown keys
    and parents."""
    rows: dict[str, RecipeRow] = {}
    for name, values in given.items():
        place = where.get(f"scales.{scale}.rows.{name}", where.get(f"rows.{name}", str(file)))
        for key in values:
            if key not in _ROW:
                raise UsageError(f"{place}: row {name}: unknown key {key!r}{did_you_mean(key, _ROW)}")
        busiest_of = str(values.get("busiest_of", ""))
        if busiest_of and values.keys() - {"busiest_of", "title"}:
            raise UsageError(f"{place}: row {name} is trained by {busiest_of}: give it a title and no more")
        parent = values.get("like", busiest_of or None)
        if parent is not None and parent not in rows:
            raise UsageError(f"{place}: row {name} is like {parent!r}, which is no row above it")
        if busiest_of and rows[busiest_of].training.get("method") != "moelora":
            raise UsageError(f"{place}: row {name}: busiest_of names {busiest_of!r}, which is no MoELoRA")
        inherited = dict(rows[parent].training) if parent else {}
        changes = {k: v for k, v in values.items() if k in TRAINING_FIELDS}
        rows[name] = RecipeRow(
            name=name,
            title=str(values.get("title", name)),
            training=inherited | changes,
            tuned_as=rows[parent].tuned_as if parent else name,
            share=float(values.get("share", 1.0)),
            busiest_of=busiest_of,
        )
        if "method" not in rows[name].training:
            raise UsageError(f"{place}: row {name} has no method")
    return rows


def only_rows(
    content: dict[str, Any], rows: Mapping[str, RecipeRow], only: list[str], place: str
) -> dict[str, RecipeRow]:
    """Return the named rows; whatever the recipe says of others is left out of ``content``."""
    for name in only:
        if name not in rows:
            raise UsageError(f"{place}: only names {name!r}, which is no row{did_you_mean(name, rows)}")
        if rows[name].busiest_of and rows[name].busiest_of not in only:
            raise UsageError(f"{place}: {name} is made of {rows[name].busiest_of}, left out")
        if rows[name].tuned_as not in only:
            raise UsageError(f"{place}: {name} takes the learning rate of {rows[name].tuned_as}, left out")
    for key in ("main", "routers", "kept"):
        content[key] = [name for name in content.get(key, ()) if name in only]
    for key in ("ablation", "experts", "data_scale"):
        content[key] = {k: name for k, name in content[key].items() if name in only}
    content["sweeps"] = {
        title: {k: name for k, name in own.items() if name in only}
        for title, own in (content.get("sweeps") or {}).items()
    }
    return {name: row for name, row in rows.items() if name in only}
