"""Runs as rows of numbers, for figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cme_bench.reports.figures.inputs import FigureInputs, MissingInputError
from cme_bench.reports.runs import RunView, labels


def run_frame(runs: Sequence[RunView]) -> pd.DataFrame:
    """Return one row a run and form: what was run, how long it took, and its average (a share in %).

    ``inference_seconds``: time in the model for each item, over all sessions.
    """
    rows = []
    for run, name in zip(runs, labels(runs), strict=True):
        adapter = run.run.adapter
        items = sum(session.items for session in run.run.sessions if session.engine)
        seconds = run.run.stats.model_seconds
        for form, summary in run.results.forms.items():
            average = summary.average
            if average is None or average.value is None:
                continue  # its tasks have no mean
            factor = run.measure(form).scale.factor
            rows.append(
                {
                    "name": name,
                    "method": run.method,
                    "form": form,
                    "rank": adapter and adapter.rank,
                    "experts": adapter and adapter.experts,
                    "parameters": adapter and adapter.parameters,
                    "tokens_trained": adapter and adapter.tokens_trained,
                    "training_seconds": adapter and adapter.training_seconds,
                    "inference_seconds": seconds / items if items else None,
                    "score": factor * average.value,
                    "stderr": factor * (average.stderr or np.nan),
                    "n": average.n,
                }
            )
    return pd.DataFrame(rows)


def runs_of(inputs: FigureInputs) -> pd.DataFrame:
    """Return rows of the form that most runs have."""
    if not inputs.runs:
        raise MissingInputError("no run folders are given")
    frame = run_frame(inputs.runs)
    if frame.empty:
        raise MissingInputError("no run has tasks whose scores have a mean")
    commonest = frame["form"].value_counts().index[0]
    return pd.DataFrame(frame.loc[frame["form"] == commonest])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as mappings."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
