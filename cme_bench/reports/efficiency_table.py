"""Results of ``cme-bench efficiency`` as one tidy table: a row for each model, method and part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cme_bench.reports.grids import markdown

_COLUMNS = ["model", "hardware", "part", "method", "form", "parameters", "percent", "metric", "value"]
_SHOWN = {
    "train_step": ("ms", "peak_gib"),
    "inference_hf": ("single_ms_token", "prefill_tokens_s", "decode_tokens_s", "batch_tokens_s"),
    "inference_vllm": ("single_ms_token", "prefill_tokens_s", "decode_tokens_s", "batch_tokens_s"),
}
"""Metrics of a method, by result."""


def efficiency_frame(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return ``form`` says how a method computes: as published, fused, by PEFT. Ratios have no method but
    their name as ``metric``."""
    rows: list[dict[str, Any]] = []
    for result in results:
        place = {"model": result["model"], "hardware": result["hardware"], "part": result["bench"]}
        left = dict(result["metrics"])
        names = sorted({*result["methods"], *result.get("seconds", {})}, key=len, reverse=True)
        for name in names:
            about = result["methods"].get(name, {})
            for metric in _SHOWN[result["bench"]]:
                if (value := left.pop(f"{name}_{metric}", None)) is not None:
                    rows.append({**place, "method": name, **about, "metric": metric, "value": value})
        rows += [{**place, "metric": metric, "value": value} for metric, value in left.items()]
    return pd.DataFrame(rows, columns=_COLUMNS)


def efficiency_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table a result: methods by metrics, with what each baseline is."""
    blocks = []
    for result in results:
        metrics = _SHOWN[result["bench"]]
        names = [
            n
            for n in {**result.get("seconds", {}), **result["methods"]}
            if f"{n}_{metrics[0]}" in result["metrics"]
        ]
        rows = []
        for name in names:
            about = result["methods"].get(name, {})
            percent = f"{about['percent']:.2f}" if about else "–"
            values = [result["metrics"].get(f"{name}_{metric}") for metric in metrics]
            rows.append([name, about.get("form", "–"), percent, *(_shown(v) for v in values)])
        setup = ", ".join(f"{k} {v}" for k, v in result["setup"].items())
        rounds = "paired rounds" if result["paired"] else "one engine after the other"
        blocks.append(
            f"**{result['bench']}: {result['model']} (random weights), {result['hardware']}, commit "
            f"{result['commit']}; {rounds}; {setup}**\n\n"
            + markdown(["method", "form", "params %", *metrics], rows, left=2)
        )
    return "\n\n".join(blocks)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
