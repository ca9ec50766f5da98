"""Trainings that differ in the adapter alone share one plan, and it is the one that each would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cme_bench.models.load import load_tokenizer
from cme_bench.runs.progress import Listener
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import TrainingPlan, load_sets
from cme_bench.training.shared import Shared
from cme_bench.training.train import prepare

Make = Callable[..., TrainOptions]


def same(one: TrainingPlan, other: TrainingPlan) -> bool:
    ids = [
        np.concatenate([plan.examples[i]["ids"] for i in range(len(plan.examples))]) for plan in (one, other)
    ]
    return one.batches == other.batches and one.mixture == other.mixture and np.array_equal(*ids)


def test_methods_and_rates_share_the_plan(options: Make) -> None:
    first, other = options("teamlora"), options("lora", learning_rate=1e-3, rank=8, targets="q_proj")
    shared, sets = Shared(), load_sets(first, note=lambda _: None)
    plans = [prepare(one, Listener(), sets=sets, shared=shared).plan for one in (first, other)]
    assert plans[0] is plans[1]
    assert same(plans[1], prepare(other, Listener()).plan)


def test_the_tokenizer_is_read_once(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    real = load_tokenizer

    def counted(base: Any) -> Any:
        read.append(base)
        return real(base)

    monkeypatch.setattr("cme_bench.training.train.load_tokenizer", counted)
    shared, first = Shared(), options("lora")
    sets = load_sets(first, note=lambda _: None)
    for one in (first, options("teamlora", seed=2)):
        prepare(one, Listener(), sets=sets, shared=shared)
    assert len(read) == 1
    prepare(first, Listener(), sets=sets)
    assert len(read) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_steps": 3},
        {"batch_size": 4},
        {"accumulate": 2},
        {"samples": 7},
        {"epochs": 3, "max_steps": None},
        {"max_length": 64},
        {"prompt_format": "plain"},
        {"pack_tokens": 512},
    ],
    ids=str,
)
def test_what_decides_the_examples_is_not_shared(changes: dict[str, Any], options: Make) -> None:
    first, other = options("lora"), options("lora", **changes)
    shared, sets = Shared(), load_sets(first, note=lambda _: None)
    before = prepare(first, Listener(), sets=sets, shared=shared).plan
    after = prepare(other, Listener(), sets=sets, shared=shared).plan
    assert after is not before
    assert same(after, prepare(other, Listener()).plan)


def test_other_rows_are_not_shared(options: Make, tmp_path: Path) -> None:
    chosen, shared = options("lora"), Shared()
    plans = [
        prepare(chosen, Listener(), sets=load_sets(chosen, note=lambda _: None), shared=shared).plan
        for _ in range(2)
    ]
    assert plans[0] is not plans[1]
