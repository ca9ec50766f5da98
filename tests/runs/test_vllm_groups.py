"""Which adapters vLLM asks at the same time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from transformers import LlamaForCausalLM

from cme_bench.models.adapter import resolve_adapter
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_config
from cme_bench.runs.options import ModelOptions
from cme_bench.runs.vllm_source import VLLMSource
from tests.support.vllm_fields import save_adapter


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Five LoRAs, of which the second has DoRA and is merged."""
    config = load_config(resolve_model(str(tiny_checkpoint)))
    model, out = LlamaForCausalLM.from_pretrained(tiny_checkpoint), tmp_path_factory.mktemp("groups")
    settings = [LoraConfig(r=2, target_modules=["up_proj"], use_dora=i == 1) for i in range(5)]
    folders = [save_adapter(model, out / str(i), each, seed=i) for i, each in enumerate(settings)]
    return [resolve_adapter(str(folder), config) for folder in folders]


@pytest.mark.parametrize(
    ("slots", "groups"),
    [
        (1, [[0], [1], [2], [3], [4], [5]]),
        (2, [[0, 1], [3, 4], [5], [2]]),
        (4, [[0, 1, 3, 4], [5], [2]]),
        (8, [[0, 1, 3, 4, 5], [2]]),
    ],
)
def test_as_many_as_there_are_slots_and_merged_ones_alone(
    adapters: list[Any], slots: int, groups: list[list[int]]
) -> None:
    options = ModelOptions("base", engine="vllm", settings={"slots": slots})
    model: Any = SimpleNamespace()
    assert VLLMSource(model, options).groups([None, *adapters]) == groups


def test_one_adapter_and_the_base_model_take_turns(adapters: list[Any]) -> None:
    options = ModelOptions("base", engine="vllm", settings={"slots": 4})
    model: Any = SimpleNamespace()
    assert VLLMSource(model, options).groups([None, *adapters[:2]]) == [[0], [1], [2]]
