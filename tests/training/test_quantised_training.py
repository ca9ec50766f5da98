"""Adapters trained on quantised bases, and on bases whose parts lie on several devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.load import load_adapter
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_model
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError

Make = Callable[..., TrainOptions]


def losses(folder: Path) -> list[float]:
    return [point.loss for point in read_curve(folder / "loss.csv")]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cme_training.json").read_text())
    return found


@pytest.mark.parametrize(("method", "quantize"), [("teamlora", "4bit"), ("moslora", "8bit")])
def test_an_adapter_learns_on_a_quantised_base(method: str, quantize: str, options: Make) -> None:
    asked = options(method, quantize=quantize, dtype="float32")
    folder = train(asked)
    found = losses(folder)
    assert found[-1] < 0.7 * found[0]
    assert record(folder)["identity"]["quantize"] == quantize
    plain = options(method, out=asked.out.with_name("plain"), max_steps=1)
    assert "quantize" not in record(train(plain))["identity"]
    described = [record(out)["adapter"]["base_parameters"] for out in (folder, plain.out)]
    assert described[0] == described[1], "packed weights were counted, not the base's own"
    with pytest.raises(UsageError, match="holds a training with other quantize"):
        train(options(method, quantize=None))
    base = resolve_model(asked.model)
    model = load_model(base, torch.float32, torch.device("cpu"), quantize=asked.quantize)
    adapted = load_adapter(model, folder)
    assert torch.isfinite(adapted(torch.tensor([[5, 6, 7]])).logits).all()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and f"{method}_" not in n]


@pytest.mark.parametrize(
    ("settings", "quantize", "said"),
    [
        ({"use_dora": True}, "8bit", "cannot read 8-bit ones on a CPU"),
        ({"init_lora_weights": "pissa"}, "4bit", r"PEFT cannot start this adapter on the base \(Please init"),
    ],
)
def test_what_peft_cannot_start_on_a_quantised_base_is_one_line(
    settings: dict[str, Any], quantize: str, said: str, options: Make
) -> None:
    with pytest.raises(AdapterError, match=said):
        train(options("lora", settings=settings, quantize=quantize, dtype="float32"))
