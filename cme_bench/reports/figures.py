"""The paper's figures from runs, benchmark results and training logs, each with its numbers as csv beside it.

A figure is a frame of numbers and a drawing of it: nothing is drawn that the frame does not hold. Colours are
Okabe and Ito's, safe for colour-blind readers; methods differ by marker too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figure_inputs import FigureInputs
from cme_bench.reports.grids import frame_csv
from cme_bench.reports.router_figures import OKABE_ITO, load_bars
from cme_bench.reports.runs import RunView, check_alike, labels, provenance_notes, watermarks
from cme_bench.reports.scores import AVERAGE
from cme_bench.runs.store import write_text

ENGINE_NAMES = {"inference_hf": "transformers", "inference_vllm": "vLLM"}
"""Benchmarks of inference, and the engine that each measures."""
_MARKERS = "osD^vPX*"
_DPI = 150
_PDF = {"CreationDate": None, "ModDate": None}  # the same numbers give the same file


class MissingInputError(Exception):
    """What a figure lacks, in words."""


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """``frame`` raises MissingInputError; ``draw`` gets its frame."""

    name: str
    frame: Callable[[FigureInputs], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


def write_figures(
    inputs: FigureInputs, out: Path, *, allow_mixed: bool = False, names: Collection[str] | None = None
) -> Iterator[str]:
    """Writes NAME.png, NAME.pdf and NAME.csv of every figure that has its inputs, and SOURCES.md, which says
    where the numbers come from; a line for each figure. ``names``: only these figures.

    UsageError if the runs differ, unless ``allow_mixed``.
    """
    if inputs.runs:
        mixed = check_alike(inputs.runs, allow_mixed=allow_mixed)
        notes = [*watermarks(inputs.runs), *(f"MIXED: {difference}" for difference in mixed)]
    else:
        notes = []
    for spec in (spec for spec in FIGURES if names is None or spec.name in names):
        try:
            frame = spec.frame(inputs)
        except MissingInputError as missing:
            yield f"{spec.name}: skipped, {missing}"
            continue
        figure = spec.draw(frame)
        if notes and _shows_runs(frame):
            figure.supxlabel("\n".join(notes), fontsize=7, x=0.01, ha="left")
        figure.savefig(out / f"{spec.name}.png", dpi=_DPI)
        figure.savefig(out / f"{spec.name}.pdf", metadata=_PDF)
        write_text(out / f"{spec.name}.csv", frame_csv(frame))
        yield f"{spec.name}: png, pdf, csv"
    write_text(out / "SOURCES.md", "".join(f"- {line}\n" for line in [*notes, *_sources(inputs)]))


def _sources(inputs: FigureInputs) -> Iterator[str]:
    """Model, task hashes, versions and commit of every run; file, machine and commit of every benchmark."""
    yield from provenance_notes(inputs.runs, labels(inputs.runs))
    for bench in inputs.benchmarks:
        yield f"{bench['file']}: {bench['bench']}, {bench['hardware']}, commit {bench['commit']}"
    for curve in inputs.curves:
        yield f"loss curve of {curve['name'].iloc[0]} ({curve['method'].iloc[0]}), {len(curve)} steps"


def _shows_runs(frame: pd.DataFrame) -> bool:
    """Whether numbers of runs are in the frame, so that their notes belong under the figure."""
    return "score" in frame or "runs" in set(frame.get("source", []))


def run_frame(runs: Sequence[RunView]) -> pd.DataFrame:
    """One row a run and form: what was run, how long it took, and its average in %.

    ``inference_seconds``: time in the model for each item, over all sessions.
    """
    rows = []
    for run, name in zip(runs, labels(runs), strict=True):
        adapter = run.run.get("adapter") or {}
        sessions = [s for s in run.run.get("sessions", []) if "engine" in s]
        items = sum(s["items"] for s in sessions)
        seconds = sum(s["engine"]["model_seconds"] for s in sessions)
        for form, summary in run.results["forms"].items():
            rows.append(
                {
                    "name": name,
                    "method": run.method,
                    "form": form,
                    "rank": adapter.get("rank"),
                    "experts": adapter.get("experts"),
                    "parameters": adapter.get("parameters"),
                    "tokens_trained": adapter.get("tokens_trained"),
                    "training_seconds": adapter.get("training_seconds"),
                    "inference_seconds": seconds / items if items else None,
                    "score": 100 * summary["average"]["value"],
                    "stderr": 100 * (summary["average"]["stderr"] or np.nan),
                    "n": summary["average"]["n"],
                }
            )
    return pd.DataFrame(rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as mappings."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _runs_of(inputs: FigureInputs) -> pd.DataFrame:
    """Rows of the form that most runs have."""
    if not inputs.runs:
        raise MissingInputError("no run folders are given")
    frame = run_frame(inputs.runs)
    commonest = frame["form"].value_counts().index[0]
    return pd.DataFrame(frame.loc[frame["form"] == commonest])


def tradeoff_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 1: adapters whose training time and inference time are known; without runs, the methods of
    ``cme-bench efficiency``, which have no score."""
    if not inputs.runs and (measured := _measured_tradeoff(inputs)):
        return pd.DataFrame(measured)
    frame = _runs_of(inputs).dropna(subset=["training_seconds", "inference_seconds", "parameters"])
    if frame.empty:
        raise MissingInputError("no run has an adapter with a recorded training time")
    return frame


def _measured_tradeoff(inputs: FigureInputs) -> list[dict[str, Any]]:
    """Methods whose training step and inference by transformers were measured on one model and machine."""
    benches = {(b["bench"], b.get("model"), b["hardware"]): b for b in inputs.benchmarks}
    rows = []
    for (kind, model, hardware), bench in benches.items():
        trained = benches.get(("train_step", model, hardware))
        if kind == "inference_hf" and trained is not None:
            rows += [
                {
                    "name": name,
                    "form": f"{model}, {hardware}",
                    "parameters": about["parameters"],
                    "training_seconds": trained["metrics"][f"{name}_ms"] / 1000,
                    "inference_seconds": bench["seconds"][name]["batch"],
                    "score": np.nan,
                    "source": f"efficiency, {hardware}",
                }
                for name, about in bench["methods"].items()
                if name in trained["methods"]
            ]
    return rows


def draw_tradeoff(frame: pd.DataFrame) -> Figure:
    """Training time against inference time; colour: score, where there is one; area: added parameters."""
    if frame["score"].isna().all():
        return _draw_measured(frame)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    area = 80 + 900 * frame["parameters"] / frame["parameters"].max()
    image = axes.scatter(
        frame["training_seconds"] / 60,
        1000 * frame["inference_seconds"],
        s=area,
        c=frame["score"],
        cmap="cividis",
        edgecolor="0.2",
        alpha=0.9,
    )
    for row in _records(frame):
        axes.annotate(
            f"{row['name']}\n{row['score']:.2f} %, {row['parameters'] / 1e6:.2f} M",
            (row["training_seconds"] / 60, 1000 * row["inference_seconds"]),
            xytext=(0, 16),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.margins(0.25)
    axes.set_xlabel("training time (min)")
    axes.set_ylabel("model time an item (ms)")
    axes.set_title("Training time, inference time and score; area: added parameters", fontsize=9)
    figure.colorbar(image, ax=axes, label=f"{frame['form'].iloc[0]}: macro average (%)")
    return figure


def _draw_measured(frame: pd.DataFrame) -> Figure:
    """A training step against a full batch of inference."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(_records(frame)):
        axes.scatter(
            1000 * row["training_seconds"],
            row["inference_seconds"],
            s=80 + 900 * row["parameters"] / frame["parameters"].max(),
            color=OKABE_ITO[number % len(OKABE_ITO)],
            edgecolor="0.2",
            alpha=0.9,
            label=f"{row['name']}, {row['parameters'] / 1e6:.2f} M",
        )
    axes.margins(0.25)
    axes.set_xlabel("training step (ms)")
    axes.set_ylabel("full batch of inference (s)")
    axes.set_title(f"{frame['form'].iloc[0]}, random weights; area: added parameters", fontsize=9)
    axes.legend(frameon=False, fontsize=7, markerscale=0.4)
    return figure


def _varied(inputs: FigureInputs, by: str, same: list[str], what: str) -> pd.DataFrame:
    """Runs of adapters that differ in ``by`` and agree in ``same``."""
    frame = _runs_of(inputs).dropna(subset=[by, "rank"])
    kept = [group for _, group in frame.groupby(same, dropna=False) if group[by].nunique() > 1]
    if not kept:
        raise MissingInputError(f"no two runs of one method differ in {what}")
    return pd.concat(kept).sort_values([*same, by])


def experts_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 3a: one method and rank, several numbers of experts. LoRA of the rank of one expert is one
    expert of each of the methods: its router has nothing to choose."""
    frame = _varied(inputs, "experts", ["method", "rank"], "the number of experts")
    runs = _runs_of(inputs)
    single = runs[runs["method"] == "lora"]
    for (method, rank), group in frame.groupby(["method", "rank"], sort=False):
        alone = single[single["rank"] == rank].assign(method=str(method), experts=1)
        if method != "lora" and 1 not in set(group["experts"]):
            frame = pd.concat([frame, alone])
    return frame.sort_values(["method", "rank", "experts"])


def scale_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 3b: one method, rank and number of experts, several amounts of training data."""
    return _varied(inputs, "tokens_trained", ["method", "rank", "experts"], "the tokens they were trained on")


def _draw_lines(frame: pd.DataFrame, x: str, same: list[str], label: str) -> Figure:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (key, group) in enumerate(frame.groupby(same, dropna=False, sort=False)):
        method, rank, *_ = key
        axes.errorbar(
            group[x],
            group["score"],
            yerr=1.96 * group["stderr"],
            label=f"{method}, rank {rank:.0f}",
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=_MARKERS[number % len(_MARKERS)],
            capsize=3,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("macro average (%), 95 % interval")
    axes.legend(frameon=False)
    return figure


def draw_experts(frame: pd.DataFrame) -> Figure:
    """Score over the number of experts."""
    figure = _draw_lines(frame, "experts", ["method", "rank"], "experts")
    figure.axes[0].set_xticks(sorted(frame["experts"].unique()))
    return figure


def draw_scale(frame: pd.DataFrame) -> Figure:
    """Score over training tokens."""
    return _draw_lines(frame, "tokens_trained", ["method", "rank", "experts"], "tokens trained on")


def latency_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 4a: times relative to LoRA's: training steps and inference as ``cme-bench efficiency`` measured
    them, inference from runs. Each source is compared with its own LoRA of the lowest rank."""
    rows: list[dict[str, Any]] = []
    for bench in (b for b in inputs.benchmarks if b["bench"] == "train_step"):
        times = {k.removesuffix("_ms"): v for k, v in bench["metrics"].items() if k.endswith("_ms")}
        if "lora32" in times:
            of = f", {bench['model']}" if "model" in bench else ""
            source = f"train_step{of}, {bench['hardware']}"
            rows += [
                _relative("training step", name, ms / 1000, times["lora32"] / 1000, source)
                for name, ms in times.items()
            ]
    for bench in (b for b in inputs.benchmarks if b["bench"] in ENGINE_NAMES and "lora32" in b["seconds"]):
        for workload, base in bench["seconds"]["lora32"].items():
            source = f"{ENGINE_NAMES[bench['bench']]}, {bench['model']}, {bench['hardware']}"
            rows += [
                _relative(f"{workload} inference", name, seconds[workload], base, source)
                for name, seconds in bench["seconds"].items()
            ]
    if inputs.runs:
        runs = _runs_of(inputs).dropna(subset=["inference_seconds", "rank"])
        lora = runs[runs["method"] == "lora"].sort_values("rank")
        if len(lora) and len(runs) > 1:
            base = float(lora["inference_seconds"].iloc[0])
            rows += [
                _relative("inference", row["name"], row["inference_seconds"], base, "runs")
                for row in _records(runs)
            ]
    if not rows:
        raise MissingInputError("no train_step benchmark, and no runs of LoRA and another adapter")
    return pd.DataFrame(rows)


def _relative(kind: str, name: str, seconds: float, base: float, source: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "seconds": seconds, "relative": seconds / base, "source": source}


def draw_latency(frame: pd.DataFrame) -> Figure:
    """A bar for each method and source; the line at 1 is LoRA."""
    groups = list(frame.groupby(["kind", "source"], sort=False))
    heights = [len(group) for _, group in groups]
    figure = Figure(figsize=(7, 1.2 + 0.26 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    colors = itertools.cycle(OKABE_ITO)
    for axes, (key, group), color in zip(panels, groups, colors, strict=False):
        kind, source = key
        axes.barh(range(len(group)), group["relative"], color=color)
        for place, value in enumerate(group["relative"]):
            axes.text(value, place, f" {value:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(group)), list(group["name"]), fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="0.25", linewidth=0.8, linestyle=":")
        axes.margins(x=0.1)
        axes.set_title(f"{kind} time relative to LoRA of the lowest rank ({source})", fontsize=8)
    return figure


def curve_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 4b: the loss curves of all trainings."""
    if not inputs.curves:
        raise MissingInputError("no training folder with a loss.csv is given or named by a run")
    return pd.concat(inputs.curves, ignore_index=True)


def draw_curves(frame: pd.DataFrame) -> Figure:
    """Loss over steps: single steps faint, a running mean over a fiftieth of the training strong."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, group) in enumerate(frame.groupby("name", sort=False)):
        color = OKABE_ITO[number % len(OKABE_ITO)]
        window = max(1, len(group) // 50)
        axes.plot(group["step"], group["loss"], color=color, alpha=0.25, linewidth=0.6)
        axes.plot(
            group["step"],
            group["loss"].rolling(window, min_periods=1).mean(),
            color=color,
            linestyle=("-", "--", "-.", ":")[number // len(OKABE_ITO) % 4],
            label=str(name),
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss of target tokens (nats)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def router_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Figure 5b: the load of every expert, as ``cme-bench router`` measured it, mean over layers."""
    if not inputs.router:
        raise MissingInputError("no folder of cme-bench router is given")
    load = pd.concat(inputs.router, ignore_index=True)
    keys = ["task", "domain", "group", "expert"]
    return load.groupby(keys, sort=False, as_index=False)[["load", "top1", "entropy"]].mean()


def draw_router(frame: pd.DataFrame) -> Figure:
    """A stacked bar for each group or domain."""
    return load_bars(frame, "")


def domains_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Scores by domain of every run."""
    form = _runs_of(inputs)["form"].iloc[0]
    rows = []
    for run, name in zip(inputs.runs, labels(inputs.runs), strict=True):
        summary = run.results["forms"].get(form)
        if summary is None:
            continue
        for domain, e in [*summary["domains"].items(), (AVERAGE, summary["average"])]:
            stderr = 100 * (e["stderr"] or np.nan)
            rows.append(
                {
                    "name": name,
                    "form": form,
                    "domain": domain,
                    "score": 100 * e["value"],
                    "stderr": stderr,
                    "n": e["n"],
                }
            )
    return pd.DataFrame(rows)


def draw_domains(frame: pd.DataFrame) -> Figure:
    """Bars by domain, one a run, with 95 % intervals (1.96 SE)."""
    domains, names = list(dict.fromkeys(frame["domain"])), list(dict.fromkeys(frame["name"]))
    figure = Figure(figsize=(max(6.0, 0.5 + 0.9 * len(domains)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = frame[frame["name"] == name].set_index("domain").reindex(domains)
        axes.bar(
            np.arange(len(domains)) + (number - (len(names) - 1) / 2) * width,
            own["score"],
            width,
            yerr=1.96 * own["stderr"],
            capsize=2,
            label=name,
            color=OKABE_ITO[number % len(OKABE_ITO)],
            edgecolor="white",
        )
    axes.set_xticks(range(len(domains)), domains, rotation=30, ha="right")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{frame['form'].iloc[0]}: score (%), 95 % interval")
    axes.legend(frameon=False, fontsize=8)
    return figure


FIGURES = (
    FigureSpec("figure1_tradeoff", tradeoff_frame, draw_tradeoff),
    FigureSpec("figure3a_experts", experts_frame, draw_experts),
    FigureSpec("figure3b_data_scale", scale_frame, draw_scale),
    FigureSpec("figure4a_latency", latency_frame, draw_latency),
    FigureSpec("figure4b_loss", curve_frame, draw_curves),
    FigureSpec("figure5b_router", router_frame, draw_router),
    FigureSpec("domains", domains_frame, draw_domains),
)
