"""The code on the page about extending runs as it stands there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from cme_bench.adapters import registry
from cme_bench.adapters.plugins import load_plugins
from cme_bench.engines.requests import GenerateRequest, LoglikelihoodRequest
from cme_bench.scoring.generation import GoldAnswer, score_text
from cme_bench.scoring.item_metrics import ITEM_METRICS
from cme_bench.scoring.scales import ITEM_SCALES
from tests.support.plugins import forget_plugins
from tests.support.tiny_llama import random_llama

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    forget_plugins()
    for held in (ITEM_METRICS, ITEM_SCALES):
        held.pop("length_ratio", None)


def code_with(words: str) -> str:
    """The one block of Python on the page that has these words."""
    (found,) = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if words in block
    ]
    return found


@torch.no_grad()
def test_the_method_on_the_page_computes_its_formula(tmp_path: Path) -> None:
    file = tmp_path / "scaled.py"
    file.write_text(code_with("register("))
    load_plugins([str(file)])
    config = registry.method("scaledlora").config_class(r=2, alpha=4.0, init="random")
    layer = get_peft_model(random_llama(0), config).get_base_model().model.layers[0].mlp.up_proj.eval()
    a, b, scale = (getattr(layer, f"scaledlora_{part}")["default"] for part in ("down", "up", "scale"))
    scale.copy_(torch.linspace(0.5, 2, len(scale)))
    x = torch.randn(3, 32)
    wanted = layer.base_layer(x) + 2 * scale * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_metric_on_the_page_is_scored() -> None:
    exec(compile(code_with("@metric"), str(PAGE), "exec"), {})
    gold = GoldAnswer("summary", references=("the cat sat there",))
    assert score_text("the cat", gold).scores["length_ratio"] == 0.5


def test_the_engine_on_the_page_serves_an_inbox() -> None:
    names: dict[str, Any] = {}
    exec(compile(code_with("class UniformEngine"), str(PAGE), "exec"), names)
    engine = names["UniformEngine"](100, 32)
    answers = dict(engine.loglikelihood([LoglikelihoodRequest((((1, 2), (3, 4)), ((1,), ())))]))
    assert answers[0].logprobs == pytest.approx((-2 * math.log(100), 0.0))
    assert dict(engine.generate([GenerateRequest((1, 2), 4)]))[0].text == ""
