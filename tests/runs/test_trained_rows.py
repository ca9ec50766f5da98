"""An adapter is not asked rows that it was trained on."""

from __future__ import annotations

from typing import Any

import pytest

from cme_bench.models.adapter import Adapter, TrainedRows, trained_rows
from cme_bench.models.records import AdapterRecord
from cme_bench.runs.trained_rows import refuse_trained_rows
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

SUITE = load_suite()


def part(split: str, kept: int, task: str = "cme_snli") -> dict[str, Any]:
    return {"task": task, "split": split, "kept": kept}


def adapter(*parts: dict[str, Any]) -> Adapter:
    training = {"mixture": {"datasets": [{"dataset": "snli", "parts": list(parts)}]}}
    record = AdapterRecord(
        name="a",
        path="a",
        hash="",
        method="lora",
        rank=1,
        experts=None,
        targets=[],
        parameters=1,
        percent=1.0,
    )
    return Adapter(name="a", hash="", prompt_format=None, record=record, trained=trained_rows(training))


def test_an_adapter_of_scored_rows_is_refused_for_that_task_alone() -> None:
    seen = adapter(part("train", 5), part("train_from_validation", 4000))
    with pytest.raises(UsageError, match=r"cme_snli_2way scores \(snli/train_from_validation: 4,000 rows\)"):
        refuse_trained_rows(SUITE.select("cme2"), [None, seen], SUITE)
    with pytest.raises(UsageError, match="cme_snli_2way_ll scores"):
        refuse_trained_rows(SUITE.select("cme2_ll"), [seen], SUITE)
    refuse_trained_rows(SUITE.select("cme,cme_ll"), [seen], SUITE)


def test_rows_that_were_left_out_do_not_count() -> None:
    spared = adapter(part("train", 5), part("train_from_validation", 0))
    assert spared.trained == (TrainedRows("cme_snli", "train", 5),)
    anli = adapter(part("validation", 9, "cme_anli_r1"), part("validation", 9, "no_task_of_ours"))
    refuse_trained_rows(SUITE.tasks.values(), [spared, anli], SUITE)


@pytest.mark.parametrize("record", [{}, {"mixture": "012"}, {"mixture": {}}, {"mixture": {"datasets": [{}]}}])
def test_a_record_without_parts_says_nothing(record: dict[str, Any]) -> None:
    assert trained_rows(record) == ()
