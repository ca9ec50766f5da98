"""A recipe file: which adapters are trained, and at which scales the experiment can be run.

``rows`` name the trained adapters by fields of :class:`~cme_bench.training.options.TrainOptions`; ``like``
takes the fields, and the learning rate, of another row, and ``share`` trains on that share of the steps.
``scales`` are sizes of one experiment: whatever a scale does not say, the recipe's top level says; ``only``
names the rows that it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from cme_bench.experiments.efficiency.options import PARTS
from cme_bench.experiments.reproduce.packaged import recipe_file
from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.training.options import TrainOptions
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import DType, Engine

_TRAINING = frozenset(f.name for f in fields(TrainOptions)) - {"model", "out", "data", "seed", "max_steps"}
_ROW = _TRAINING | {"like", "share", "title"}
ABLATION = ("neither", "collaboration", "competition", "both")
SHAPE_MINUTES = 4.0
"""Expected of a measurement of speed unless the recipe says otherwise."""
BASE = "base"
"""Name of the run of the bare model."""


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """One adapter to train, with every seed. ``training``: fields of TrainOptions; ``tuned_as``: the row
    whose learning rate it takes; ``share``: of the scale's steps."""

    name: str
    title: str
    training: Mapping[str, Any]
    tuned_as: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A measurement of speed on one model or preset. ``parts``: a job each, expected to take ``minutes``;
    ``settings``: fields of EfficiencyOptions."""

    name: str
    settings: Mapping[str, Any]
    parts: tuple[str, ...]
    minutes: float

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any] | None) -> Shape:
        settings = dict(given or {})
        parts, minutes = tuple(settings.pop("parts", PARTS)), float(settings.pop("minutes", SHAPE_MINUTES))
        return cls(name, settings, parts, minutes)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe at one scale.

    steps: optimizer steps of a whole training; grid_steps: of each learning rate that is tried. seeds: of the
    rows in ``main``; side_seeds: of all others. limit: items of each task, None for all. tasks: of the
    evaluation. workers: trainings and evaluations at once; together: trainings of one process at once, as in
    ``cme-bench sweep``. training: fields of TrainOptions that all rows
    share. routers: rows whose router is measured, on ``router_limit`` items a task and
    ``subject_limit`` a subject. efficiency: what is measured of speed. keep_weights: False drops an adapter's
    weights once everything that needs them is done. budget_minutes: what the plan compares its cost with.
    """

    name: str
    scale: str
    model: str
    data: str
    rows: Mapping[str, RecipeRow]
    main: tuple[str, ...]
    ablation: Mapping[str, str]
    experts: Mapping[int, str]
    data_scale: Mapping[int, str]
    steps: int
    grid_steps: int
    learning_rates: tuple[float, ...]
    training: Mapping[str, Any]
    seeds: int = 1
    side_seeds: int = 1
    limit: int | None = None
    tasks: str = "cme,cme_ll"
    engine: Engine = "hf"
    dtype: DType = "auto"
    routers: tuple[str, ...] = ()
    router_limit: int = 50
    subject_limit: int = 20
    efficiency: tuple[Shape, ...] = ()
    workers: int = 1
    together: int = 1
    keep_weights: bool = True
    budget_minutes: float | None = None
    note: str = ""
    source: Path = field(default=Path())

    def seeds_of(self, row: str) -> int:
        """Return how many seeds of a row are trained."""
        return self.seeds if row in self.main else self.side_seeds

    def steps_of(self, row: str) -> int:
        """Return the optimizer steps of a whole training of a row."""
        return max(2, round(self.rows[row].share * self.steps))

    def identity(self) -> dict[str, Any]:
        """Return everything that results depend on, as JSON values; the number of seeds and workers may
        change."""
        return {
            "name": self.name,
            "scale": self.scale,
            "model": self.model,
            "rows": {r.name: [dict(r.training), r.tuned_as, r.share] for r in self.rows.values()},
            "steps": self.steps,
            "grid_steps": self.grid_steps,
            "learning_rates": list(self.learning_rates),
            "training": dict(self.training),
            "limit": self.limit,
            "tasks": self.tasks,
            "engine": self.engine,
            "dtype": self.dtype,
        }


def read_recipe(
    file: Path,
    scale: str,
    *,
    model: str | None = None,
    data: str | None = None,
    seeds: int | None = None,
    side_seeds: int | None = None,
    workers: int | None = None,
) -> Recipe:
    """Read the recipe in ``file``, or ours of that name, at ``scale``; arguments not None win.

    Raises UsageError with file and line for unknown keys, rows and scales, and for what is missing.
    """
    file = recipe_file(file)
    loaded = load_yaml(file, root=file.resolve().parent)
    content, where = dict(loaded.values), loaded.where
    scales = content.pop("scales", None)
    if not isinstance(scales, dict) or scale not in scales:
        known = sorted(scales) if isinstance(scales, dict) else []
        raise UsageError(f"{file}: no scale {scale!r}{did_you_mean(scale, known)} (has: {', '.join(known)})")
    changes = dict(scales[scale])
    only = changes.pop("only", None)
    content |= {k: v for k, v in changes.items() if k != "training"}
    content["training"] = {**content.get("training", {}), **changes.get("training", {})}
    keys = {f.name for f in fields(Recipe)} - {"scale", "source"}
    for key in content:
        if key not in keys:
            raise UsageError(
                f"{where.get(key, f'{file}: scale {scale}')}: unknown key {key!r}{did_you_mean(key, keys)}"
            )
    required = {f.name for f in fields(Recipe) if f.default is MISSING} - {"scale"}
    if missing := sorted(required - content.keys()):
        raise UsageError(f"{file}: {', '.join(missing)} missing (scale {scale})")
    rows = _rows(file, where, content.pop("rows"))
    if only is not None:
        rows = _only(content, rows, only, where.get(f"scales.{scale}", str(file)))
    given = {
        "model": model,
        "data": data,
        "seeds": seeds,
        "side_seeds": side_seeds,
        "workers": workers,
    }
    content |= {k: v for k, v in given.items() if v is not None}
    for key in ("main", "routers", "learning_rates"):
        content[key] = tuple(content.get(key, ()))
    shapes = content.get("efficiency") or {}
    content["efficiency"] = tuple(Shape.of(name, given) for name, given in shapes.items())
    recipe = Recipe(**content, rows=rows, scale=scale, source=file)
    _check(recipe, where)
    return recipe


def _rows(file: Path, where: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, RecipeRow]:
    rows: dict[str, RecipeRow] = {}
    for name, values in given.items():
        place = where.get(f"rows.{name}", str(file))
        for key in values:
            if key not in _ROW:
                raise UsageError(f"{place}: row {name}: unknown key {key!r}{did_you_mean(key, _ROW)}")
        parent = values.get("like")
        if parent is not None and parent not in rows:
            raise UsageError(f"{place}: row {name} is like {parent!r}, which is no row above it")
        inherited = dict(rows[parent].training) if parent else {}
        changes = {k: v for k, v in values.items() if k in _TRAINING}
        rows[name] = RecipeRow(
            name=name,
            title=str(values.get("title", name)),
            training=inherited | changes,
            tuned_as=rows[parent].tuned_as if parent else name,
            share=float(values.get("share", 1.0)),
        )
        if "method" not in rows[name].training:
            raise UsageError(f"{place}: row {name} has no method")
    return rows


def _only(
    content: dict[str, Any], rows: Mapping[str, RecipeRow], only: list[str], place: str
) -> dict[str, RecipeRow]:
    """Return the named rows; whatever the recipe says of others is left out of ``content``."""
    for name in only:
        if name not in rows:
            raise UsageError(f"{place}: only names {name!r}, which is no row{did_you_mean(name, rows)}")
        if rows[name].tuned_as not in only:
            raise UsageError(f"{place}: {name} takes the learning rate of {rows[name].tuned_as}, left out")
    for key in ("main", "routers"):
        content[key] = [name for name in content.get(key, ()) if name in only]
    for key in ("ablation", "experts", "data_scale"):
        content[key] = {k: name for k, name in content[key].items() if name in only}
    return {name: row for name, row in rows.items() if name in only}


def _check(recipe: Recipe, where: Mapping[str, str]) -> None:
    places = {
        "main": recipe.main,
        "routers": recipe.routers,
        "ablation": recipe.ablation.values(),
        "experts": recipe.experts.values(),
        "data_scale": recipe.data_scale.values(),
    }
    for key, names in places.items():
        for name in names:
            if name not in recipe.rows:
                raise UsageError(
                    f"{where.get(key, recipe.source)}: {key} names {name!r}, which is no row"
                    f"{did_you_mean(name, recipe.rows)}"
                )
    for key in recipe.ablation:
        if key not in ABLATION:
            raise UsageError(f"{where.get('ablation', recipe.source)}: {key!r}: one of {', '.join(ABLATION)}")
    for key in recipe.training:
        if key not in _TRAINING:
            raise UsageError(
                f"{where.get('training', recipe.source)}: unknown key {key!r}{did_you_mean(key, _TRAINING)}"
            )
    if not recipe.learning_rates:
        raise UsageError(f"{recipe.source}: learning_rates is empty")
