"""Figures of a router: how the experts share the tokens (TeamLoRA's figure 5b), and the interaction matrix M.

Pure functions of the frames that :mod:`cme_bench.experiments.router` makes. Values are in cividis and PuOr,
safe for colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.figures.style import DPI, MARKERS, OKABE_ITO

_HATCHES = ("", "//", "..", "xx")
_MOST_CELLS = 12  # k above which cells of M carry no number


def write_router_figures(load: pd.DataFrame, interaction: pd.DataFrame, title: str, out: Path) -> list[Path]:
    """Write router_load.png, router_layers.png, router_entropy.png, and router_interaction.png if the adapter
    has an M; return the files.

    Args:
        load: ``load_frame``'s columns. Bars are groups where there are groups, else domains.
        interaction: ``interaction_frame``'s columns; may be empty.
        title: Stands above every figure: model, adapter, hash, number of items.
        out: Existing folder.
    """
    draw: dict[str, Callable[[], Figure]] = {
        "router_load.png": lambda: load_bars(load, title),
        "router_layers.png": lambda: layer_maps(load, title),
        "router_entropy.png": lambda: entropy_lines(load, title),
    }
    if len(interaction):
        draw["router_interaction.png"] = lambda: interaction_maps(interaction, title)
    for name, figure in draw.items():
        figure().savefig(out / name, dpi=DPI)
    return [out / name for name in draw]


def router_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return figure 5b: the load of every expert, as ``cme-bench router`` measured it, mean over layers."""
    if not inputs.router:
        raise MissingInputError("no folder of cme-bench router is given")
    load = pd.concat(inputs.router, ignore_index=True)
    keys = ["task", "domain", "group", "expert"]
    return load.groupby(keys, sort=False, as_index=False)[["load", "top1", "entropy"]].mean()


def draw_router(frame: pd.DataFrame) -> Figure:
    """Return a stacked bar for each group or domain."""
    return load_bars(frame, "")


def load_bars(load: pd.DataFrame, title: str) -> Figure:
    """Return a stacked bar for each group or domain: mean load of every expert over tasks and layers."""
    label = "group" if load["group"].any() else "domain"
    shares = _pivot(load, label, "expert", "load")
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(shares)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(shares))
    for expert in range(len(shares.columns)):
        axes.barh(
            range(len(shares)),
            shares[expert],
            left=left,
            color=OKABE_ITO[expert % len(OKABE_ITO)],
            hatch=_HATCHES[expert // len(OKABE_ITO) % len(_HATCHES)],
            edgecolor="white",
            label=f"expert {expert + 1}",
        )
        left += shares[expert].to_numpy()
    for edge in range(1, len(shares.columns)):
        axes.axvline(edge / len(shares.columns), color="0.25", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(shares)), list(shares.index))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("mean softmax weight of each expert (dotted: equal shares)")
    figure.legend(loc="outside lower center", ncols=min(8, len(shares.columns)), frameon=False)
    _title(figure, f"Router load by {label}", title)
    return figure


def layer_maps(load: pd.DataFrame, title: str) -> Figure:
    """Return a heat map for each kind of layer: mean load of every expert over tasks, decoder block by
    block."""
    modules = list(dict.fromkeys(load["module"]))
    blocks, experts = load["block"].nunique(), load["expert"].nunique()
    size = (max(6, 0.28 * blocks + 2.5), 1.2 + len(modules) * (0.7 + 0.25 * experts))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(modules), 1, squeeze=False)[:, 0]
    top = max(float(_pivot(load, "layer", "expert", "load").to_numpy().max()), 2 / experts)
    for axes, module in zip(rows, modules, strict=True):
        shares = _pivot(load[load["module"] == module], "expert", "block", "load")
        image = _map(axes, shares, cmap="cividis", low=0.0, high=top)
        axes.set_yticks(range(experts), [str(expert + 1) for expert in shares.index])
        axes.set_ylabel("expert")
        axes.set_title(module, fontsize=9)
    rows[-1].set_xlabel("decoder block")
    figure.colorbar(image, ax=list(rows), label="mean softmax weight")
    _title(figure, "Router load by layer", title)
    return figure


def entropy_lines(load: pd.DataFrame, title: str) -> Figure:
    """Draw, for each kind of layer over the decoder blocks, the router's entropy divided by log k, and the
    share of tokens that the busiest expert leads."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    experts = load["expert"].nunique()
    for number, module in enumerate(dict.fromkeys(load["module"])):
        part = load[load["module"] == module]
        style: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": OKABE_ITO[number % len(OKABE_ITO)],
            "label": module,
        }
        entropy = part.groupby("block")["entropy"].mean() / np.log(experts)
        top1 = _pivot(part, "block", "expert", "top1").max(axis=1)
        upper.plot(entropy.index, entropy, **style)
        lower.plot(top1.index, top1, **style)
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("entropy / log k")
    lower.axhline(1 / experts, color="0.25", linewidth=0.8, linestyle=":")
    lower.set_ylim(0, 1.02)
    lower.set_ylabel("top-1 share, busiest expert")
    lower.set_xlabel("decoder block (dotted: equal shares)")
    upper.legend(frameon=False)
    _title(figure, "How decided the router is", title)
    return figure


def interaction_maps(interaction: pd.DataFrame, title: str) -> Figure:
    """Return a heat map of M for each kind of layer, the mean over decoder blocks; single layers are in the
    csv."""
    modules = list(dict.fromkeys(interaction["module"]))
    figure = Figure(figsize=(1.2 + 3.2 * len(modules), 4.0), layout="constrained")
    panels = figure.subplots(1, len(modules), squeeze=False)[0]
    means = {m: _pivot(interaction[interaction["module"] == m], "row", "column", "value") for m in modules}
    bound = max(float(np.abs(mean.to_numpy()).max()) for mean in means.values())
    for axes, (module, mean) in zip(panels, means.items(), strict=True):
        image = _map(axes, mean, cmap="PuOr", low=-bound, high=bound)
        axes.set_yticks(range(len(mean)), [str(i + 1) for i in mean.index])
        axes.set_title(module, fontsize=9)
        axes.set_xlabel("softmax weight of expert j")
        if len(mean) <= _MOST_CELLS:
            for (row, column), value in np.ndenumerate(mean.to_numpy()):
                dark = abs(value) > 0.6 * bound
                axes.text(
                    column,
                    row,
                    f"{round(value, 2) + 0.0:.2f}",
                    ha="center",
                    va="center",
                    color="w" if dark else "k",
                    fontsize=8,
                )
    panels[0].set_ylabel("share of expert i")
    figure.colorbar(image, ax=list(panels), label="M_ij, mean over blocks")
    _title(figure, "Interaction matrix M", title)
    return figure


def _pivot(frame: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    """Return the means of ``value``: a row for each value of ``rows`` in order of appearance, sorted
    columns."""
    table = frame.pivot_table(index=rows, columns=columns, values=value, aggfunc="mean", sort=True)
    return table.reindex(list(dict.fromkeys(frame[rows])))


def _map(axes: Any, table: pd.DataFrame, *, cmap: str, low: float, high: float) -> Any:
    image = axes.imshow(table.to_numpy(), cmap=cmap, vmin=low, vmax=high, aspect="auto")
    step = max(1, len(table.columns) // 16)
    ticks = range(0, len(table.columns), step)
    shift = 1 if table.columns.name == "column" else 0  # experts are counted from 1 in figures
    axes.set_xticks(ticks, [str(int(str(table.columns[i])) + shift) for i in ticks])
    return image


def _title(figure: Figure, what: str, title: str) -> None:
    figure.suptitle(f"{what}\n{title}", fontsize=9)
