"""Runs to one HTML file: tables, bars, tests and provenance as HTML; items as blocks for the script.

The file asks for nothing from anywhere: its Content-Security-Policy names the hashes of its own script and
style and forbids everything else, so that nothing a model wrote could run even if it were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import orjson

from cme_bench.reports.cells import CME_FORMS, FIXED, ComparisonTable
from cme_bench.reports.compare_text import pvalue
from cme_bench.reports.intervals import estimate_of, interval_of
from cme_bench.reports.page.payload import PageBlocks, task_payload
from cme_bench.reports.references import KNOWN
from cme_bench.reports.runs import RunView, described_dtype, labels, tasks_hash
from cme_bench.reports.scores import AVERAGE
from cme_bench.reports.significance import SIGNIFICANT
from cme_bench.reports.table import comparison_tables
from cme_bench.runs.folder import read_arguments, run_file
from cme_bench.scoring.scales import Measure
from cme_bench.tasks.blind import ENDING


@dataclass(frozen=True, slots=True)
class Bar:
    """One score with its 95 % interval, in the unit of the table; ``at``, ``start`` and ``end``: where score
    and interval lie along the axis, from 0 to 100."""

    run: int
    value: float
    low: float
    high: float
    at: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of one column; ``ticks``: the labels at each quarter of their axis."""

    column: str
    ticks: list[str]
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Pair:
    """Cell of a significance matrix: row less column in points, adjusted p."""

    difference: str
    p: str
    significant: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """All pairs of runs in one column; ``best``: how often each is best among resampled items, in %."""

    column: str
    pairs: list[list[Pair | None]]
    best: list[str]


@dataclass(frozen=True, slots=True)
class Form:
    """The part of the page for one form."""

    table: ComparisonTable
    bars: list[Bars]
    matrices: list[Matrix]
    tasks: list[dict[str, Any]]

    @property
    def lead(self) -> list[Bar]:
        """The bars of the average, which stand first; none where scores have no average."""
        return next((group.bars for group in self.bars if group.column == AVERAGE), [])

    @property
    def shows_empty(self) -> bool:
        """Whether some task extracts answers, so that there are shares without one."""
        return any(share is not None for task in self.tasks for share in task["empty"])

    @property
    def known(self) -> list[str]:
        """Which of chance and majority some task says."""
        return [name for name in KNOWN if any(task["known"][name] is not None for task in self.tasks)]

    @property
    def unseen(self) -> list[int]:
        """The runs that were asked some task without its images as well."""
        found = (i for task in self.tasks for i, score in enumerate(task["unseen"]) if score is not None)
        return sorted(set(found))


def render_page(
    runs: Sequence[RunView],
    *,
    title: str = "CME report",
    allow_mixed: bool = False,
    back: str | None = None,
) -> str:
    """Return the page; ``back``: the address of the page that it was opened from.

    UsageError if the runs differ, unless ``allow_mixed``.
    """
    blocks = PageBlocks()
    names = labels(runs)
    tables = comparison_tables(runs, allow_mixed=allow_mixed, blind_apart=True)
    forms = [_form(table, runs, blocks) for table in tables]
    script, style = _file("page.js"), _file("page.css")
    meta = {
        "runs": names,
        "tasks": [task for form in forms for task in form.tasks if task["payload"] is not None],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_file("page.html.j2")).render(
        title=title,
        names=names,
        forms=forms,
        fixed=len(FIXED),
        level=SIGNIFICANT,
        provenance=[_provenance(run) for run in runs],
        script=script,
        style=style,
        policy=page_policy(script, style, images=bool(blocks.images)),
        back=back,
        meta=orjson.dumps(meta).decode().replace("<", "\\u003c"),
        blocks=blocks.texts,
    )


def page_policy(script: str, style: str, *, images: bool = False) -> str:
    """Return the Content-Security-Policy of a page with one script and one style: they and nothing else.

    ``images``: it holds images as data.
    """
    shown = "img-src data:; " if images else ""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; {shown}"
        "base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return resources.files("cme_bench.reports.page").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _form(table: ComparisonTable, runs: Sequence[RunView], blocks: PageBlocks) -> Form:
    numbered = [(i, run) for i, run in enumerate(runs) if table.form in run.results.forms]
    tasks = dict.fromkeys(task for run in runs for task in run.tasks(table.form))
    return Form(
        table=table,
        bars=[_bars(numbered, table, column) for column in table.columns[len(FIXED) :]],
        matrices=list(_matrices(table)),
        tasks=[_task(task, runs, table.measure, blocks) for task in tasks],
    )


def _bars(numbered: Sequence[tuple[int, RunView]], table: ComparisonTable, column: str) -> Bars:
    """Return the scores of one column, on an axis of the whole scale, or of what occurs where that has no
    end."""
    found = [
        (number, *interval_of(run, table.form, column))
        for number, run in numbered
        if estimate_of(run, table.form, column) is not None
    ]
    scale = table.measure.scale
    low = scale.low if scale.averaged else min([0.0, *(low for _, _, low, _ in found)])
    high = scale.high if scale.averaged else max([low + 1e-9, *(high for *_, high in found)])

    def place(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    bars = [
        Bar(number, *(scale.factor * x for x in numbers), *(place(x) for x in numbers))
        for number, *numbers in found
    ]
    ticks = [low + quarter * (high - low) / 4 for quarter in range(5)]
    return Bars(column, [f"{scale.factor * tick:.3g}" for tick in ticks], bars)


def _matrices(table: ComparisonTable) -> Iterator[Matrix]:
    if table.tested is None:
        return
    names = [AVERAGE, *(c for c in table.columns[len(FIXED) :] if c != AVERAGE)]
    for column in names:
        if column not in table.tested.columns:
            continue
        found = table.tested.columns[column]
        p = found.adjusted()
        pairs = [
            [
                None
                if i == j
                else Pair(
                    table.measure.shown(found.means[i] - found.means[j], signed=True),
                    pvalue(float(p[i, j])),
                    bool(p[i, j] < SIGNIFICANT),
                )
                for j in range(len(p))
            ]
            for i in range(len(p))
        ]
        best = ["–" if np.isnan(share) else f"{100 * share:.0f} %" for share in found.best]
        yield Matrix(column, pairs, best)


def _task(task: str, runs: Sequence[RunView], measure: Measure, blocks: PageBlocks) -> dict[str, Any]:
    results = [run.results.tasks.get(task) for run in runs]
    first = next(r for r in results if r is not None)
    return {
        "name": task,
        "domain": first.domain,
        "metric": first.primary,
        "n": max(r.score.n for r in results if r is not None),
        "scores": [_score(run, task, measure) for run in runs],
        "known": {name: _known(runs, task, key, measure) for name, key in KNOWN.items()},
        "unseen": [_score(run, f"{task}{ENDING}", measure) for run in runs],
        "sign": _item_sign(first.score.measure),
        "empty": [None if r is None else r.quality.get("empty") for r in results],
        "payload": task_payload(runs, task, blocks),
    }


def _score(run: RunView, task: str, measure: Measure) -> float | None:
    found = run.results.tasks.get(task)
    return None if found is None or found.score.value is None else measure.scale.factor * found.score.value


def _known(runs: Sequence[RunView], task: str, key: str, measure: Measure) -> float | None:
    """Return what a task outside CME says of guessing, or of the most frequent answer."""
    run = next(run for run in runs if task in run.results.tasks)
    value: float | None = getattr(run.run.tasks[task], key)
    outside = run.results.tasks[task].form not in CME_FORMS
    return measure.scale.factor * value if value is not None and outside and not measure.kind else None


def _item_sign(measure: Measure) -> int:
    """Return -1 where less is better of an item, else 1; of log-likelihoods and the like more is better."""
    return -1 if measure.better == "lower" and measure.aggregation == "mean" else 1


def _provenance(run: RunView) -> list[tuple[str, str]]:
    """Return the origin of a run, as pairs of name and value."""
    record, identity, adapter = run.run, run.run.identity, run.run.adapter
    arguments = read_arguments(record, run_file(run.folder))
    pairs = [
        ("folder", str(run.folder)),
        ("command", " ".join(arguments.command or [])),
        ("model", f"{record.model.path or record.model.name} ({identity.model[:12]})"),
        ("adapter", f"{adapter.path} ({identity.adapter[:12]})" if adapter and adapter.path else "none"),
        ("engine, dtype", f"{identity.engine}, {described_dtype(record)}"),
        ("data", identity.data),
        ("shots, seed", f"{', '.join(str(s) for s in run.shots)}; {record.seed}"),
        ("tasks", f"{len(run.results.tasks)}, together {tasks_hash(run)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
        ("commit", record.commit or "unknown"),
        ("machine", ", ".join(str(v) for v in (record.machine or {}).values())),
        ("time", f"{record.seconds:,.0f} s in {len(record.sessions)} session(s)"),
    ]
    return [(name, value) for name, value in pairs if value]
