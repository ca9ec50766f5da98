"""Tables and figures of a finished recipe, from its run folders alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from cme_bench.experiments.reproduce.jobs import Folder, Job, all_jobs
from cme_bench.experiments.reproduce.recipe import ABLATION, Recipe
from cme_bench.experiments.reproduce.views import alike, forms, of_forms, open_base, open_rows, titled
from cme_bench.reports.figures.inputs import CURVE, ROUTER, FigureInputs, read_curve_frame
from cme_bench.reports.figures.write import write_figures
from cme_bench.reports.grids import markdown
from cme_bench.reports.runs import RunView
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.util.csv_text import csv_text
from cme_bench.util.files import read_json, write_text

_ABLATION_NOTE = (
    "neither: plain LoRA of as many parameters. Collaboration alone, one shared A whose output is sliced, is "
    "MoELoRA as a function: k independent A_i side by side are the same matrix. So collaboration and "
    "competition together are the same function as competition alone, and one training stands for both."
)
_EXPERTS_NOTE = "One expert is LoRA of the same rank: the router has nothing to choose."


def write_tables(recipe: Recipe, folder: Folder, out: Path, *, said: str = "") -> Iterator[str]:
    """Yield table1, ablation, experts and data_scale as md, tex and csv, and trainings.csv; the files'
    names. ``said``: of the registration, in every one of them."""
    out.mkdir(parents=True, exist_ok=True)
    main = [row.pooled for row in open_rows(recipe, folder, recipe.main)]
    yield from _table([open_base(folder), *main], out / "table1", paper=True, said=said)
    parts = {name: [k for k in ABLATION if recipe.ablation.get(k) == name] for name in recipe.rows}
    groups: dict[str, tuple[Mapping[str, str], str]] = {
        "ablation": (
            {n: f"{', '.join(keys)}: {recipe.rows[n].title}" for n, keys in parts.items() if keys},
            _ABLATION_NOTE,
        ),
        "experts": (
            {n: f"{k} expert{'s' * (k != 1)}: {recipe.rows[n].title}" for k, n in recipe.experts.items()},
            _EXPERTS_NOTE,
        ),
        "data_scale": (
            {n: f"{k} %: {recipe.rows[n].title}" for k, n in recipe.data_scale.items()},
            "The share of the steps, with a schedule of its own; each step shows new examples.",
        ),
    }
    for name, varied in recipe.sweeps.items():
        groups[name] = ({n: f"{value}: {recipe.rows[n].title}" for value, n in varied.items()}, "")
    for name, (titles, note) in groups.items():
        if len(titles) > 1:
            rows = [titled(row.pooled, titles[row.name]) for row in open_rows(recipe, folder, titles)]
            yield from _table(rows, out / name, note=note, said=said)
    write_text(out / "trainings.csv", with_column(_trainings(recipe, folder) + "\n", said))
    yield "trainings.csv"


def _table(
    views: Sequence[RunView], stem: Path, *, paper: bool = False, note: str = "", said: str = ""
) -> Iterator[str]:
    tables = [table for group in alike(views) for table in comparison_tables(group, paper=paper)]
    for fmt, ending in (("md", "md"), ("latex", "tex"), ("csv", "csv")):
        text = render(tables, fmt)
        if fmt == "md":
            text = "\n\n".join([*(line for line in (said, note) if line), text])
        elif fmt == "csv":
            text = with_column(text, said)
        elif said:
            text = f"% {said}\n{text}"
        write_text(stem.with_suffix(f".{ending}"), text)
        yield f"{stem.name}.{ending}"


def with_column(text: str, said: str) -> str:
    """Return csv with a last column ``registration`` that says the same in every row."""
    if not said:
        return text
    columns, *rows = csv.reader(io.StringIO(text))
    return csv_text([*columns, "registration"], [[*row, said] for row in rows]) + "\n"


def _trainings(recipe: Recipe, folder: Folder) -> str:
    """Return a row for each training, grids included: learning rate, tokens, loss, time, hash of the
    adapter."""
    rows = []
    for job in (job for job in all_jobs(recipe) if job.kind in ("grid", "train")):
        done = folder.outcome(job.name)
        keys = ("learning_rate", "steps", "tokens_trained", "target_tokens_trained", "final_loss")
        rows.append(
            [
                job.kind,
                job.row,
                "" if job.kind == "grid" else job.seed,
                *(done[k] for k in keys),
                done.get("validation_loss", ""),
                done["training_seconds"],
                done.get("together", 1),
                done.get("sha256", ""),
                done["hardware"],
                done["commit"],
            ]
        )
    return csv_text(
        "kind row seed learning_rate steps tokens target_tokens final_loss validation_loss seconds together "
        "sha256 hardware commit".split(),
        rows,
    )


def write_all_figures(recipe: Recipe, folder: Folder, out: Path) -> Iterator[str]:
    """Yield the paper's figures into ``out`` (1, 4a, 4b and domains of the main rows), ``out/experts`` (3a),
    ``out/data_scale`` (3b) and a folder a routed row (5b, by subject of MMLU, and by domain)."""
    main = _shared([row.pooled for row in open_rows(recipe, folder, recipe.main)])
    curves = [
        read_curve_frame(folder.adapter(name, 0), recipe.rows[name].title)
        for name in recipe.main
        if (folder.adapter(name, 0) / CURVE).is_file()
    ]
    jobs = [job for job in all_jobs(recipe) if job.kind == "efficiency"]
    benchmarks = [_benchmark(folder, job) for job in jobs]
    inputs = FigureInputs(runs=main, curves=curves, benchmarks=benchmarks)
    yield from _figures(inputs, out, ("figure1_tradeoff", "figure4a_latency", "figure4b_loss", "domains"))
    for name, names in (("experts", recipe.experts), ("data_scale", recipe.data_scale)):
        if len(names) > 1:
            runs = _shared([row.pooled for row in open_rows(recipe, folder, names.values())])
            figure = {"experts": "figure3a_experts", "data_scale": "figure3b_data_scale"}[name]
            yield from _figures(FigureInputs(runs=runs), out / name, (figure,))
    for row in recipe.routers:
        for by in ("subject", "domain"):
            source = folder.router(row, by) / ROUTER
            if source.is_file():
                frame = pd.read_csv(source, keep_default_na=False)
                yield from _figures(FigureInputs(router=[frame]), out / f"{row}-{by}", ("figure5b_router",))


def _shared(views: Sequence[RunView]) -> list[RunView]:
    """Return the views with the forms that all of them have: a figure compares them all."""
    if len(alike(views)) == 1:
        return list(views)
    return [of_forms(view, forms(views)) for view in views]


def _benchmark(folder: Folder, job: Job) -> dict[str, object]:
    file = folder.efficiency(job.row, job.part)
    return read_json(file) | {"file": file.name}


def _figures(inputs: FigureInputs, out: Path, names: Sequence[str]) -> Iterator[str]:
    out.mkdir(parents=True, exist_ok=True)
    for line in write_figures(inputs, out, names=names):
        yield f"{out.name}/{line}"


def _all_seconds(outcome: Mapping[str, float]) -> float:
    """Return the seconds of a job over all calls: its last one counts itself, trainings and runs count all of
    theirs; trainings together, each its part."""
    found = [outcome[key] for key in ("seconds", "run_seconds") if key in outcome]
    training = outcome.get("training_seconds", 0.0) / outcome.get("together", 1)
    return max(*found, training)


def _company(recipe: Recipe) -> list[str]:
    """Explain the times of trainings and runs where several processes shared the machine."""
    lines = []
    measured = " `efficiency/` measures {} alone." if recipe.efficiency else ""
    if recipe.together > 1:
        lines += [
            f"Up to {recipe.together} adapters were trained together on one base (`cme-bench sweep`): a "
            f"training has no time of its own.{measured.format('a step of each method')}",
            "",
        ]
    if recipe.workers < 2:
        return lines
    return [
        *lines,
        f"{recipe.workers} processes shared the machine: the times of trainings and of runs, in Table 1 and "
        f"figure 1, are those of a process in that company.{measured.format('each method')}",
        "",
    ]


def _seeds(recipe: Recipe) -> str:
    """Say how many seeds the rows have."""
    if recipe.protocol is None:
        s = "s" * (recipe.seeds != 1)
        return f"{recipe.seeds} seed{s} of main rows and {recipe.side_seeds} of the others"
    numbers: dict[int, list[str]] = {}
    for name in recipe.rows:
        numbers.setdefault(recipe.seeds_of(name), []).append(name)
    return "; ".join(f"{number} seeds of {', '.join(names)}" for number, names in numbers.items())


def write_summary(recipe: Recipe, folder: Folder, out: Path, *, said: str = "") -> None:
    """Write README.md: what was computed, by which command, on what, and where the rest is."""
    jobs = all_jobs(recipe)
    done = {job.name: folder.outcome(job.name) for job in jobs}
    rows = []
    for kind in dict.fromkeys(job.kind for job in jobs):
        own = [done[job.name] for job in jobs if job.kind == kind]
        tokens = sum(o.get("tokens_trained", 0) for o in own)
        items = sum(o.get("items", 0) for o in own)
        minutes = sum(_all_seconds(o) for o in own) / 60
        rows.append(
            [
                kind,
                str(len(own)),
                f"{tokens:,}" if tokens else "–",
                f"{items:,}" if items else "–",
                f"{minutes:.1f}",
            ]
        )
    hardware = ", ".join(sorted({str(o["hardware"]) for o in done.values()}))
    commits = ", ".join(sorted({str(o["commit"]) for o in done.values()}))
    limit = "all items" if recipe.limit is None else f"{recipe.limit} items of each task (a fixed shuffle)"
    command = f"cme-bench reproduce {recipe.source} --scale {recipe.scale} --data {recipe.data} --out OUT"
    text = [
        f"# {recipe.name}: the paper's experiments at scale `{recipe.scale}`",
        "",
        *([said, ""] if said else []),
        *([recipe.note.strip(), ""] if recipe.note else []),
        f"```\n{command}\n```",
        "",
        f"Hardware: {hardware}. Commits: {commits}. Model: {recipe.model}. {recipe.steps} steps a training, "
        f"{_seeds(recipe)}; "
        f"{limit}; learning rates tried on held-out training items: "
        f"{', '.join(f'{rate:g}' for rate in recipe.learning_rates)}.",
        "",
        *_company(recipe),
        markdown(["jobs", "number", "tokens trained", "items", "minutes of computing"], rows, left=1),
        "",
        "- `claims.md`, `claims.json`: the paper's claims, one by one; `figures/forest.png`: all at one look",
        "- `tables/`: Table 1, ablation, experts and data scale (md, tex, csv); `trainings.csv`",
        "- `figures/`: the paper's figures, each with its numbers as csv",
        "- `trainings.json`: configurations and records of all trainings, as published; weights are not kept",
        "- `runs/` (`runs.tar.xz` where runs are many): results of every run, and scores of its items "
        f"without texts{'; `efficiency/`' if recipe.efficiency else ''}",
        "",
    ]
    write_text(out / "README.md", "\n".join(text))
