"""Scores by domain, a bar for each run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cme_bench.reports.figures.inputs import FigureInputs
from cme_bench.reports.figures.run_rows import runs_of
from cme_bench.reports.figures.style import OKABE_ITO
from cme_bench.reports.runs import labels
from cme_bench.reports.scores import AVERAGE
from cme_bench.scoring.aggregate import BLIND, OUTSIDE


def domains_frame(inputs: FigureInputs) -> pd.DataFrame:
    """Return the scores by domain of every run."""
    form = runs_of(inputs)["form"].iloc[0]
    rows = []
    for run, name in zip(inputs.runs, labels(inputs.runs), strict=True):
        summary = run.results.forms.get(form)
        if summary is None:
            continue
        factor = run.measure(form).scale.factor
        for domain, e in [*summary.domains.items(), (AVERAGE, summary.average)]:
            if e is None or e.value is None:
                continue
            rows.append(
                {
                    "name": name,
                    "form": form,
                    "domain": domain,
                    "score": factor * e.value,
                    "stderr": factor * (e.stderr or np.nan),
                    "n": e.n,
                }
            )
    return pd.DataFrame(rows)


def _unit(form: str) -> str:
    """Return the unit: shares are in percent; the form names another scale itself."""
    return " (%)" if form.removeprefix(OUTSIDE).removeprefix(BLIND) in ("generated", "likelihood") else ""


def draw_domains(frame: pd.DataFrame) -> Figure:
    """Draw bars by domain, one for each run, with 95 % intervals (1.96 SE)."""
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
    axes.set_ylabel(f"{frame['form'].iloc[0]}: score{_unit(str(frame['form'].iloc[0]))}, 95 % interval")
    axes.legend(frameon=False, fontsize=8)
    return figure
