"""A recipe file: which adapters are trained, and at which scales the experiment can be run.

``rows`` name the trained adapters by fields of :class:`~cme_bench.training.options.TrainOptions`; ``like``
takes the fields, and the learning rate, of another row, and ``share`` trains on that share of the steps.
``scales`` are sizes of one experiment: whatever a scale does not say, the recipe's top level says; ``only``
names the rows that it trains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cme_bench.experiments.efficiency.options import PARTS
from cme_bench.experiments.reproduce.packaged import recipe_file
from cme_bench.experiments.reproduce.protocol import USUAL, Protocol, read_protocol
from cme_bench.experiments.reproduce.recipe_rows import TRAINING_FIELDS, RecipeRow, only_rows, read_rows
from cme_bench.harness.yaml_loader import load_yaml
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import DType, Engine

ABLATION = ("neither", "collaboration", "competition", "both")
SHAPE_MINUTES = 4.0
"""Expected of a measurement of speed unless the recipe says otherwise."""
_AT_TIMES = ("evaluation_dtype", "kept", "training_tasks", "training_limit", "side_tasks")
"""Parts of a recipe's identity that most recipes do not have."""
CLAIMS = ("text", "multimodal")
BASE = "base"
"""Name of the run of the bare model."""


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
    evaluation; side_tasks: of rows outside the protocol's headline, where they are asked less. workers:
    trainings and evaluations at once; together: trainings of one process at once, as in ``cme-bench sweep``.
    training: fields of TrainOptions that all rows share. sweeps: further tables by name, with the row of each
    value that varies. routers: rows whose router is measured, on ``router_limit`` items a task and
    ``subject_limit`` a subject. efficiency: what is measured of speed. keep_weights: False drops an adapter's
    weights once everything that needs them is done. kept: rows whose adapter of seed 0 is published with its
    weights, rounded to bfloat16 before it is evaluated. budget_minutes: what the plan compares its cost with.
    carry_scores: keep each run's scores of items in a small file, and carry those alone to other machines.
    evaluation_dtype: of evaluations, where it is not that of trainings. protocol: what is registered before
    the first score, where something is; row_seeds: what its stages decided of each row. training_tasks: made
    tasks on whose training rows adapters are trained, in place of CME's mixture, at most ``training_limit``
    of each dataset. claims: which of the paper's claims are checked, those on ``text`` or those on images
    (``multimodal``).
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
    side_tasks: str | None = None
    engine: Engine = "hf"
    dtype: DType = "auto"
    evaluation_dtype: DType | None = None
    sweeps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    routers: tuple[str, ...] = ()
    router_limit: int = 50
    subject_limit: int = 20
    efficiency: tuple[Shape, ...] = ()
    workers: int = 1
    together: int = 1
    keep_weights: bool = True
    kept: tuple[str, ...] = ()
    carry_scores: bool = False
    budget_minutes: float | None = None
    note: str = ""
    source: Path = field(default=Path())
    protocol: Protocol | None = None
    training_tasks: str | None = None
    training_limit: int | None = None
    claims: str = "text"
    row_seeds: Mapping[str, int] = field(default_factory=dict)

    @property
    def analysis(self) -> Protocol:
        """The rules that decide claims: the protocol, or the usual ones."""
        return self.protocol or USUAL

    def seeds_of(self, row: str) -> int:
        """Return how many seeds of a row are evaluated."""
        row = self.rows[row].busiest_of or row
        if self.protocol is not None:
            first = self.protocol.first_seeds if row in self.headline else 0
            return self.row_seeds.get(row, first)
        return self.seeds if row in self.main else self.side_seeds

    @property
    def headline(self) -> tuple[str, ...]:
        """The rows of the primary outcome, which are trained and evaluated before all others."""
        return self.analysis.headline or ()

    def tasks_of(self, row: str) -> str:
        """Return what a row is asked; the bare model is asked everything."""
        if self.side_tasks is None or row == BASE or row in self.headline:
            return self.tasks
        return self.side_tasks

    def of_rows(self, names: Collection[str]) -> Recipe:
        """Return the recipe of some of its rows alone, without measurements of speed."""
        return replace(
            self,
            rows={name: row for name, row in self.rows.items() if name in names},
            main=tuple(name for name in self.main if name in names),
            routers=tuple(name for name in self.routers if name in names),
            kept=tuple(name for name in self.kept if name in names),
            ablation={k: name for k, name in self.ablation.items() if name in names},
            experts={k: name for k, name in self.experts.items() if name in names},
            data_scale={k: name for k, name in self.data_scale.items() if name in names},
            sweeps={},
            efficiency=(),
        )

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
            "rows": {
                r.name: [dict(r.training), r.tuned_as, r.share, *([r.busiest_of] if r.busiest_of else [])]
                for r in self.rows.values()
            },
            "steps": self.steps,
            "grid_steps": self.grid_steps,
            "learning_rates": list(self.learning_rates),
            "training": dict(self.training),
            "limit": self.limit,
            "tasks": self.tasks,
            "engine": self.engine,
            "dtype": self.dtype,
        } | {
            name: list(value) if isinstance(value, tuple) else value
            for name in _AT_TIMES
            if (value := getattr(self, name))
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
    if own_rows := changes.pop("rows", None):
        content["rows"] = {**(content.get("rows") or {}), **own_rows}
    content |= {k: v for k, v in changes.items() if k != "training"}
    content["training"] = {**content.get("training", {}), **changes.get("training", {})}
    keys = {f.name for f in fields(Recipe)} - {"scale", "source", "row_seeds"}
    for key in content:
        if key not in keys:
            raise UsageError(
                f"{where.get(key, f'{file}: scale {scale}')}: unknown key {key!r}{did_you_mean(key, keys)}"
            )
    required = {f.name for f in fields(Recipe) if f.default is f.default_factory is MISSING} - {"scale"}
    if missing := sorted(required - content.keys()):
        raise UsageError(f"{file}: {', '.join(missing)} missing (scale {scale})")
    place = where.get(f"scales.{scale}.sweeps", where.get("sweeps", str(file)))
    _check_sweeps(content.get("sweeps") or {}, place, content["rows"])
    rows = read_rows(file, where, content.pop("rows"), scale)
    if only is not None:
        rows = only_rows(content, rows, only, where.get(f"scales.{scale}", str(file)))
    given = {
        "model": model,
        "data": data,
        "seeds": seeds,
        "side_seeds": side_seeds,
        "workers": workers,
    }
    content |= {k: v for k, v in given.items() if v is not None}
    for key in ("main", "routers", "learning_rates", "kept"):
        content[key] = tuple(content.get(key, ()))
    if content.get("protocol") is not None:
        place = where.get(f"scales.{scale}.protocol", f"{file}: scale {scale}")
        content["protocol"] = read_protocol(content["protocol"], rows, place)
        for key in ("seeds", "side_seeds"):
            if key in content:
                raise UsageError(f"{place}: a protocol decides the seeds of every row: leave {key} out")
    shapes = content.get("efficiency") or {}
    content["efficiency"] = tuple(Shape.of(name, given) for name, given in shapes.items())
    recipe = Recipe(**content, rows=rows, scale=scale, source=file)
    _check(recipe, where)
    return recipe


def _check_sweeps(sweeps: Any, place: str, rows: Mapping[str, Any]) -> None:
    """Raise UsageError unless every sweep maps values to rows of the recipe."""
    if not isinstance(sweeps, Mapping):
        raise UsageError(f"{place}: 'sweeps' must be a mapping")
    for name, varied in sweeps.items():
        if not isinstance(varied, Mapping):
            raise UsageError(f"{place}: sweep {name!r} is no mapping of values to rows")
        for row in varied.values():
            if row not in rows:
                hint = did_you_mean(str(row), rows)
                raise UsageError(f"{place}: sweeps names {row!r}, which is no row{hint}")


def _check(recipe: Recipe, where: Mapping[str, str]) -> None:
    places = {
        "main": recipe.main,
        "routers": recipe.routers,
        "kept": recipe.kept,
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
        if key not in TRAINING_FIELDS:
            hint = did_you_mean(key, TRAINING_FIELDS)
            raise UsageError(f"{where.get('training', recipe.source)}: unknown key {key!r}{hint}")
    if recipe.claims not in CLAIMS:
        raise UsageError(f"{where.get('claims', recipe.source)}: claims: one of {', '.join(CLAIMS)}")
    if recipe.training_tasks is not None and recipe.protocol is not None:
        place = where.get("training_tasks", recipe.source)
        raise UsageError(f"{place}: a protocol registers the rows of CME's mixture: leave training_tasks out")
    if recipe.side_tasks is not None and recipe.protocol is None:
        raise UsageError(f"{where.get('side_tasks', recipe.source)}: side_tasks needs a protocol")
    if not recipe.learning_rates:
        raise UsageError(f"{recipe.source}: learning_rates is empty")
