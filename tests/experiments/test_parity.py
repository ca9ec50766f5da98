"""Two engines on the same items: what the differences of their answers do to the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cme_bench.engines.base import GenerateRequest, GenerateResponse, LoglikelihoodResponse
from cme_bench.experiments.parity import compare_answers, measure_parity, task_items
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import RunOptions
from cme_bench.runs.responder import Responder

TASKS = "cme_rte_ll,cme_arc_easy_ll,cme_arc_challenge_ll,cme_rte"


def test_an_engine_against_itself(tiny_checkpoint: Path) -> None:
    options = RunOptions(model=str(tiny_checkpoint), tasks=TASKS, data="mini", limit=4)
    found = measure_parity(options, ("hf", "hf"))
    assert found.alike
    assert (found.tolerance, found.labels, found.texts) == (1e-4, 12, 4)
    assert all(line.gap == 0 for line in found.scores)
    assert [(line.kind, line.form) for line in found.scores].count(("task", "likelihood")) == 3


def test_gaps_of_tasks_domains_and_the_average(tiny_checkpoint: Path) -> None:
    options = RunOptions(model=str(tiny_checkpoint), tasks=TASKS, data="mini", limit=4)
    items = list(task_items(options, Responder(open_engines(options))))
    right, wrong = [], []
    for item in items:
        if isinstance(item.request, GenerateRequest):
            right.append(GenerateResponse(item.made.target, 1, "eos"))
            wrong.append(GenerateResponse("I cannot say.", 4, "eos"))
        else:
            gold = [choice.strip() for choice in item.made.choices].index(item.made.target.strip())
            logprobs = [-1.0 if j == gold else -2.0 for j in range(len(item.made.choices))]
            right.append(LoglikelihoodResponse(tuple(logprobs), (False,) * len(logprobs)))
            low = [-3.0 if j == gold else v for j, v in enumerate(logprobs)]
            wrong.append(LoglikelihoodResponse(tuple(low), (False,) * len(low)))
    mixed = [w if item.task == "cme_arc_easy_ll" or item.id % 2 else r
             for item, r, w in zip(items, right, wrong, strict=True)]  # fmt: skip
    found = compare_answers(items, right, mixed, engines=("a", "b"), dtype="bfloat16", tolerance=5.0)
    gaps = {(line.kind, line.form, line.name): line.gap for line in found.scores}
    own = {task: [i.id % 2 for i in items if i.task == task] for task in TASKS.split(",")}
    lost = {task: -sum(odd) / len(odd) for task, odd in own.items()} | {"cme_arc_easy_ll": -1.0}
    for task in TASKS.split(","):
        form = "likelihood" if task.endswith("_ll") else "generated"
        assert gaps["task", form, task] == pytest.approx(lost[task])
    science = (lost["cme_arc_easy_ll"] + lost["cme_arc_challenge_ll"]) / 2
    assert gaps["domain", "likelihood", "science"] == pytest.approx(science)
    assert gaps["average", "likelihood", "average"] == pytest.approx((science + lost["cme_rte_ll"]) / 2)
    assert found.alike, "in 16 bits log-likelihoods decide"
    assert not replace(found, dtype="float32").alike
    assert not replace(found, tolerance=0.1).alike
