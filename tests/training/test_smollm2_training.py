"""A real model on real data: the loss falls, the adapter reloads, changes what the model says, and is
evaluated under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import cme_bench.adapters  # noqa: F401 - registers our methods with PEFT
from cme_bench.models.checkpoint import resolve_model
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.hf_source import HFSource
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import ask
from cme_bench.runs.store import read_records, samples_file
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.packing import check_packing
from cme_bench.training.train import train

pytestmark = pytest.mark.slow
STEPS = 24
LEARNING_RATE = dict.fromkeys(method_names(), 5e-4) | {"adalora": 1e-2}
"""AdaLoRA's update starts as a product of three factors, one of them zero, and needs larger steps."""
EVALUATED = RunOptions(
    model="smollm2", tasks="cme_emotion_ll", data="mini", prompt_format="teamlora", offline=True
)


@pytest.fixture(scope="module")
def engines() -> Iterator[HFSource]:
    with open_engines(
        replace(EVALUATED, engine="hf", offline=False)
    ) as found:  # made if this is its first use
        assert isinstance(found, HFSource)
        yield found


@pytest.fixture(scope="module")
def plain(engines: HFSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without an adapter."""
    (folder,) = ask(engines, replace(EVALUATED, out=tmp_path_factory.mktemp("plain") / "base"))
    return folder


@pytest.mark.parametrize("method", method_names())
def test_smollm2_learns_from_real_data(
    method: str, engines: HFSource, plain: Path, shared_data: Path, tmp_path: Path
) -> None:
    options = TrainOptions(
        model="smollm2",
        method=method,
        out=tmp_path / method,
        data=str(shared_data),
        datasets="sst2,emotion,nq_open",
        weighting="equal",
        cap=500,
        rank=8,
        max_length=96,
        max_steps=STEPS,
        batch_size=2,
        learning_rate=LEARNING_RATE[method],
    )
    folder = train(options)
    losses = [point.loss for point in read_curve(folder / "loss.csv")]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])  # 0.83 of it where nothing is learnt
    base = engines.model
    ids = torch.tensor([base.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        before = base.model(ids).logits
        adapted = PeftModel.from_pretrained(base.model, str(folder))
        after = adapted(ids).logits
        adapted.unload()
    assert (before - after).abs().max() > 0.1
    (evaluated,) = ask(engines, replace(EVALUATED, out=tmp_path / "adapted", adapters=(str(folder),)))
    assert logprobs(plain) != logprobs(evaluated)
    (table,) = comparison_tables([open_run(plain), open_run(evaluated)])
    assert [row[1].text for row in table.rows] == ["base", method]
    assert f"smollm2 + {method}" in render([table], "md")


def logprobs(folder: Path) -> list[list[float]]:
    records = sorted(read_records(samples_file(folder, "cme_emotion_ll")), key=lambda r: r.id)
    return [record.response.logprobs for record in records]


def test_packs_are_kept_apart_in_bfloat16_too() -> None:
    """Thirty layers of rounding are no sign of a model that mixes examples."""
    folder = resolve_model("smollm2", offline=False).path
    check_packing(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
