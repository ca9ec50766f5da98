"""Scales of metrics: range, unit and direction, by name, by formula, and as a task declares them."""

from __future__ import annotations

import math

import pytest
from lm_eval.api.metrics import mean
from lm_eval.api.registry import aggregation_registry, metric_registry

import cme_bench.tasks.cme_task  # noqa: F401  # registers ours
from cme_bench.scoring.scales import AGGREGATED, KEEPING, SHARES, Measure, measure_from, measure_of


def test_every_metric_and_aggregation_of_lm_eval_has_one() -> None:
    assert mean
    assert set(aggregation_registry) - {"bypass"} == set(AGGREGATED) | set(KEEPING)
    by_formula = {"f1", "f1_macro", "mcc", "bleu", "chrf", "chrf++", "ter", "brier_score"}
    by_formula |= {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert set(metric_registry) - {"bypass", "likelihood"} - by_formula <= SHARES


@pytest.mark.parametrize(
    ("measure", "kind", "shown"),
    [
        (measure_of("acc", "mean", higher=True, values=[0.5]), "", "50.00"),
        (measure_of("acc", "median"), "", "50.00"),
        (measure_of("mcc", "matthews_corrcoef"), "correlation, higher is better", "0.5000"),
        (measure_of("bleu", "bleu"), "points, higher is better", "0.50"),
        (measure_of("ter", "ter", higher=True), "points, lower is better", "0.50"),
        (measure_of("perplexity", "perplexity"), "perplexity, lower is better", "0.5"),
        (measure_of("bits_per_byte", "bits_per_byte"), "bits, lower is better", "0.5"),
        (measure_of("f1", "!function utils.f1", higher=True, values=[0.4]), "", "50.00"),
        (measure_of("f1", "mean", higher=True, values=[40.0]), "raw, higher is better", "0.5"),
        (measure_of("rougeL", "mean", higher=True), "raw, higher is better", "0.5"),
        (measure_of("rougeL", "mean", higher=True, declared="points"), "points, higher is better", "0.50"),
        (measure_of("wer", "mean", higher=False, declared="share"), "share, lower is better", "50.00"),
        (measure_of("score", "mean"), "raw, direction unknown", "0.5"),
    ],
)
def test_scale_and_direction(measure: Measure, kind: str, shown: str) -> None:
    assert (measure.kind, measure.shown(0.5)) == (kind, shown)
    assert measure_from(measure.scale.name, measure.better, measure.aggregation) == measure


def test_an_older_run_has_shares() -> None:
    assert measure_from(None, None, None) == Measure()
    assert Measure().kind == ""


def test_a_share_without_a_value_is_a_share() -> None:
    assert measure_of("acc", "mean", values=[math.nan]).kind == ""
