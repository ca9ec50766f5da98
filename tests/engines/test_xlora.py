"""PEFT's X-LoRA from a folder: as PEFT computes it in memory, and refused where it would be random."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import check_liveness
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.engines.vllm.adapter import read_gated
from cme_bench.models.adapter import resolve_adapter
from tests.engines.test_peft_methods import check_equal
from tests.support.tiny_llama import random_llama

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("0", "1", "2")


def expert(folder: Path, seed: int, **fields: Any) -> str:
    model = get_peft_model(
        random_llama(0),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **fields),
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return str(folder)


def in_memory(tmp_path: Path, **fields: Any) -> Any:
    """An X-LoRA of PEFT's with a random classifier; its experts lie in folders, too."""
    paths = {name: expert(tmp_path / f"expert{name}", int(name)) for name in NAMES}
    base = random_llama(0)
    base.config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=paths, **fields)
        model: Any = get_peft_model(base, config)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.base_model.internal_xlora_classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """As PEFT saves it, with the classifier and the layers that it leaves out."""
    model.save_pretrained(folder)
    for name in NAMES:
        shutil.copytree(folder.parent / f"expert{name}", folder / name, dirs_exist_ok=True)
    state = model.base_model.internal_xlora_classifier.state_dict()
    prefix = "base_model.internal_xlora_classifier."
    save_file({f"{prefix}{key}": value for key, value in state.items()}, folder / "adapter_model.safetensors")
    return folder


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "by layer, deep": {
        "layerwise_scalings": True,
        "xlora_depth": 2,
        "xlora_size": 8,
        "softmax_temperature": 0.5,
    },
    "the best two": {"top_k_lora": 2, "enable_softmax": False, "enable_softmax_topk": True},
    "weighed": {"global_scaling_weight": 0.7, "scaling_pass_value": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
def test_as_peft_computes_it(form: str, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    reference = in_memory(tmp_path, **FORMS[form])
    folder = saved(reference, tmp_path / "x")
    shutil.rmtree(tmp_path / "expert0")  # the folder is whole
    base: LlamaForCausalLM = random_llama(0)
    model = load_adapter(base, folder)
    assert check_liveness(model, torch.tensor([[5, 6, 7]])) > 1e-3
    engine = check_equal(model, reference, toy_tokenizer)
    assert engine.alone_because is not None
    after: Any = take_off(model)
    assert after is base and after.config.use_cache
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(after(ids).logits, random_llama(0)(ids).logits)


def test_experts_of_other_names_need_their_subfolders(tmp_path: Path) -> None:
    folder = saved(in_memory(tmp_path), tmp_path / "x")
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    named = {f"task-{9 - int(key)}": value for key, value in content["adapters"].items()}
    file.write_text(json.dumps({**content, "adapters": named}, sort_keys=True))
    wanted = in_memory(tmp_path)(torch.tensor([[5, 6, 7]])).logits
    found = load_adapter(random_llama(0), folder)(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    shutil.rmtree(folder / "1")
    with pytest.raises(AdapterError, match="order of the experts task-7, task-8, task-9 is not known"):
        load_adapter(random_llama(0), folder)


def test_what_is_refused(tmp_path: Path) -> None:
    model = in_memory(tmp_path)
    folder = saved(model, tmp_path / "empty")
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"internal_xlora_classifier\.layers\.0\.weight is missing"):
        load_adapter(random_llama(0), folder)
    tensors = load_file(saved(model, tmp_path / "more") / "adapter_model.safetensors")
    save_file(tensors | {"foo": torch.ones(2)}, tmp_path / "more" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="tensor foo is not part of this adapter"):
        load_adapter(random_llama(0), tmp_path / "more")
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(
        AdapterError, match=r"theirs/0/adapter_model\.safetensors: tensor .*layers\.1.* is missing"
    ):
        load_adapter(random_llama(0), tmp_path / "theirs")
    folder = saved(model, tmp_path / "x")
    with pytest.raises(AdapterError, match=r"peft_type XLORA: .*--engine hf"):
        read_gated(folder, random_llama(0).config)
    expert(folder / "2", 2, use_dora=True)
    with pytest.raises(AdapterError, match="field 'use_dora' is not computed in an X-LoRA"):
        load_adapter(random_llama(0), folder)
    shutil.rmtree(folder / "2")
    shutil.rmtree(tmp_path / "expert2")
    with pytest.raises(AdapterError, match="expert 2 is in no folder"):
        load_adapter(random_llama(0), folder)


def test_another_expert_is_another_adapter(tmp_path: Path) -> None:
    folder = saved(in_memory(tmp_path), tmp_path / "x")
    config = random_llama(0).config
    before = resolve_adapter(str(folder), config).hash
    file = folder / "1" / "adapter_model.safetensors"
    save_file({key: 2 * tensor for key, tensor in load_file(file).items()}, file)
    assert resolve_adapter(str(folder), config).hash != before


def test_what_its_code_cannot_compute_is_one_line(tmp_path: Path) -> None:
    folder = saved(in_memory(tmp_path), tmp_path / "x")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"top_k_lora": 9}))
    model = load_adapter(random_llama(0), folder)
    with pytest.raises(AdapterError, match=r"^adapter 'x' cannot be computed on this base \(RuntimeError: "):
        check_liveness(model, torch.tensor([[5, 6, 7]]), name="x")
