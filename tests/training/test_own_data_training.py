"""Trainings on own rows, end to end: the format is saved and followed, other rows are another training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cme_bench.models.adapter import read_training, training_arguments
from cme_bench.runs.folder import read_run
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import load_sets
from cme_bench.training.train import train
from cme_bench.training.validation import validate
from cme_bench.util.errors import UsageError

Make = Callable[..., TrainOptions]
ROWS = [
    {"instruction": f"Say {n}.", "input": "", "output": word}
    for n, word in enumerate("one two three".split())
]


def asked(row: dict[str, str]) -> dict[str, str]:
    return {"role": "user", "content": row["instruction"]}


def answered(row: dict[str, str]) -> dict[str, str]:
    return {"role": "assistant", "content": row["output"]}


def write(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    ("named", "rows", "form"),
    [
        ("", [{"prompt": row["instruction"], "completion": row["output"]} for row in ROWS], "plain"),
        (
            "",
            [{"messages": [asked(row), answered(row)]} for row in ROWS],
            "chat",
        ),
        ("math-14k=", ROWS, "llm-adapters"),
    ],
    ids=["pairs", "messages", "published"],
)
def test_a_run_follows_the_format_of_the_training(
    options: Make, tmp_path: Path, named: str, rows: list[dict[str, object]], form: str
) -> None:
    data = named + write(tmp_path / "mine.jsonl", rows)
    chosen = options("lora", data=data, datasets="all", max_steps=12, batch_size=3)
    adapter = train(chosen)
    curve = read_curve(adapter / "loss.csv")
    assert curve[-1].loss < curve[0].loss
    said = read_training(adapter)
    assert said["prompt_format"] == said["arguments"]["prompt_format"] == form
    [folder] = run(
        RunOptions(
            chosen.model,
            adapters=(str(adapter),),
            tasks="cme_rte",
            data="mini",
            limit=2,
            out=tmp_path / "run",
            offline=True,
        )
    )
    assert read_run(folder).tasks["cme_rte"].prompt_format == form


def test_other_rows_are_another_training(options: Make, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    chosen = options("lora", data=write(file, ROWS), datasets="all", max_steps=2, batch_size=3)
    train(chosen)
    train(replace(chosen, data=write(tmp_path / "renamed.jsonl", ROWS)))  # the same rows: it is done
    write(file, [*ROWS[:-1], ROWS[-1] | {"output": "four"}])
    with pytest.raises(UsageError, match="holds a training with other data"):
        train(chosen)
    with pytest.raises(UsageError, match="holds a training with other data"):
        train(replace(chosen, data=(f"{tmp_path / 'renamed.jsonl'}=1", "cme=mini=1"), datasets="sst2"))
    other = replace(chosen, out=tmp_path / "other")
    first, second = (
        training_arguments(read_training(train(o)))
        for o in (replace(chosen, data=str(tmp_path / "renamed.jsonl")), other)
    )
    assert first is not None and second is not None
    assert first["data"] != second["data"]  # by which `table --pool-seeds` tells them apart
    assert {k: v for k, v in first.items() if k != "data"} == {k: v for k, v in second.items() if k != "data"}


def test_the_loss_of_held_out_rows(options: Make, tmp_path: Path) -> None:
    chosen = options(
        "lora", data=write(tmp_path / "mine.jsonl", ROWS), datasets="all", max_steps=2, holdout=1
    )
    sets = load_sets(chosen, note=lambda _: None)
    found = validate(train(chosen, sets=sets), chosen, sets)
    assert found.items == 1 and found.loss > 0
