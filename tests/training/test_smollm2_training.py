"""A real model on real data: the loss falls, the adapter reloads, and it changes what the model says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import cme_bench.adapters  # noqa: F401 - registers our methods with PEFT
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_model, load_tokenizer
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.train import train

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.mark.parametrize("method", ["teamlora", "lora"])
def test_smollm2_learns_from_real_data(method: str, shared_data: Path, tmp_path: Path) -> None:
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
        learning_rate=5e-4,
    )
    folder = train(options)
    losses = [point.loss for point in read_curve(folder / "loss.csv")]
    assert sum(losses[-20:]) / 20 < 0.7 * sum(losses[:10]) / 10
    checkpoint = resolve_model("smollm2")
    base = load_model(checkpoint, torch.float32, torch.device("cpu"))
    ids = torch.tensor([load_tokenizer(checkpoint)("The capital of France is")["input_ids"]])
    with torch.no_grad():
        before = base(ids).logits.clone()
        after = PeftModel.from_pretrained(base, str(folder))(ids).logits
    assert (before - after).abs().max() > 0.1
