"""Adapter folders that are damaged in any way: an adapter or one line, never a traceback."""

from __future__ import annotations

import copy
import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from cme_bench.adapters import TeamLoraConfig
from cme_bench.adapters.describe import describe
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.load import load_adapter
from tests.support.mutations import VALUES, damaged, mutated

FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


CONFIGS = {
    "teamlora": TeamLoraConfig(r=2, num_experts=2, init="random", task_type="CAUSAL_LM"),
    "lora": LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
}


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tiny_model: LlamaForCausalLM, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    get_peft_model(copy.deepcopy(tiny_model), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(folder: Path, model: LlamaForCausalLM) -> None:
    """The adapter is described and loaded, or refused in one line that names its folder."""
    for act in (lambda: describe(folder, model.config), lambda: load_adapter(model, folder).unload()):
        try:
            act()
        except AdapterError as err:
            assert str(folder) in str(err)
            assert "\n" not in str(err)


def kept(file: Path) -> bytes:
    """What was in ``file`` before the first example changed it."""
    original = file.with_suffix(".kept")
    if not original.exists():
        original.write_bytes(file.read_bytes())
    return original.read_bytes()


@FUZZ
@given(data=st.data())
def test_any_config(folder: Path, tiny_model: LlamaForCausalLM, data: st.DataObject) -> None:
    file = folder / "adapter_config.json"
    content = kept(file)
    if data.draw(st.integers(0, 3)):
        file.write_text(json.dumps(data.draw(mutated(json.loads(content)) | VALUES)))
    else:
        file.write_bytes(data.draw(damaged(content)))
    load(folder, copy.deepcopy(tiny_model))


@FUZZ
@given(data=st.data())
def test_any_safetensors_header(folder: Path, tiny_model: LlamaForCausalLM, data: st.DataObject) -> None:
    file = folder / "adapter_model.safetensors"
    content = kept(file)
    length = struct.unpack("<Q", content[:8])[0]
    if data.draw(st.integers(0, 3)):
        header: Any = data.draw(mutated(json.loads(content[8 : 8 + length])))
        text = json.dumps(header).encode()
        size = data.draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
        file.write_bytes(struct.pack("<Q", size) + text + content[8 + length :])
    else:
        file.write_bytes(data.draw(damaged(content)))
    load(folder, copy.deepcopy(tiny_model))
