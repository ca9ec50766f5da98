"""Bases that bitsandbytes quantises, on a CPU: what they compute, who they are, and adapters on them."""

from __future__ import annotations

import copy
import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.describe import describe
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import check_liveness
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.models import quantisation
from cme_bench.models.fingerprint import difference, fingerprint
from cme_bench.models.live_identity import base_hash
from cme_bench.models.loaded import SavedModel
from cme_bench.models.preserved import preserved
from cme_bench.util.errors import UsageError
from tests.support.quantised_bases import write_quantised
from tests.support.tiny_llama import random_llama, save_checkpoint

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
TARGETS = ["q_proj", "gate_proj", "up_proj", "down_proj"]
LM: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": TARGETS}
ADAPTERS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=4, **LM),
    "teamlora": lambda: TeamLoraConfig(r=2, num_experts=4, **LM),
    "moelora": lambda: MoeLoraConfig(r=2, num_experts=4, **LM),
    "hydralora": lambda: HydraLoraConfig(r=2, num_experts=4, **LM),
    "moslora": lambda: MosLoraConfig(r=4, **LM),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Sizes that bitsandbytes packs for its own CPU kernel: multiples of 32 and 64."""
    model = random_llama(1, hidden=64, heads=2, kv_heads=2, positions=512, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("quantise") / "base", model, toy_tokenizer)


def saved(folder: Path, **options: Any) -> SavedModel:
    options = {"engine": "hf", "dtype": "auto", "device": lambda: torch.device("cpu")} | options
    return SavedModel(str(folder), **options)


@pytest.fixture(scope="module")
def four(base: Path) -> Iterator[SavedModel]:
    yield saved(base, quantize="4bit")
    gc.collect()


def full_size(model: Any) -> Any:
    """The same numbers in ordinary linears: the slow, obvious form of a 4-bit model."""
    from bitsandbytes.functional import dequantize_4bit

    plain = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=torch.float32)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if type(layer).__name__ == "Linear4bit":
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                plain.get_submodule(name).weight.copy_(weight)
    return plain.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


def test_4_bit_products_are_float32_where_the_model_is(four: SavedModel) -> None:
    assert four.dtype == torch.float32
    torch.testing.assert_close(logits(four.model), logits(full_size(four.model)), rtol=0, atol=1e-4)
    unquantised = AutoModelForCausalLM.from_pretrained(four.place, dtype=torch.float32)
    assert (logits(unquantised) - logits(four.model)).abs().max() > 0.05


def test_its_record_and_its_size(four: SavedModel, base: Path) -> None:
    assert four.describe().quantisation == "bitsandbytes nf4"
    assert four.describe().parameters == saved(base).describe().parameters
    assert four.hash == saved(base).hash
    assert [saved(base, quantize=q).quantised_as for q in (None, "4bit", "8bit")] == [
        None,
        "bitsandbytes nf4",
        "bitsandbytes int8",
    ]


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapters_compose_with_a_4_bit_base(method: str, four: SavedModel, tmp_path: Path) -> None:
    plain = full_size(four.model)
    before, clean = logits(four.model), fingerprint(four.model)
    torch.manual_seed(2)
    made = get_peft_model(copy.deepcopy(plain), ADAPTERS[method]())
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "adapter")
    adapted = load_adapter(four.model, tmp_path / "adapter")
    try:
        torch.testing.assert_close(logits(adapted), logits(made.eval()), rtol=0, atol=1e-4)
        assert check_liveness(adapted, IDS) > 0.01
        assert describe(adapted) == describe(made) == describe(tmp_path / "adapter", four.config)
        adapted.save_pretrained(tmp_path / "again")
        again = load_adapter(plain, tmp_path / "again")
        torch.testing.assert_close(logits(again), logits(made), rtol=0, atol=0)
        if method != "lora":
            with pytest.raises(AdapterError, match="cannot be merged into"):
                adapted.merge_adapter()
    finally:
        take_off(adapted)
    assert difference(clean, fingerprint(four.model)) is None
    torch.testing.assert_close(logits(four.model), before, rtol=0, atol=0)


def test_merging_into_rounded_floats_is_refused_too(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    layer = torch.nn.Linear(8, 8)
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    model = get_peft_model(torch.nn.Sequential(layer), MosLoraConfig(r=2, target_modules=["0"]))
    assert next(p for n, p in model.named_parameters() if "moslora" in n).dtype == torch.float32
    with pytest.raises(AdapterError, match="moslora cannot be merged into a quantised weight"):
        model.merge_adapter()


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that bitsandbytes made."""
    folder = tmp_path_factory.mktemp("packed")
    for bits in ("4bit", "8bit"):
        more = {"bnb_4bit_quant_type": "nf4"} if bits == "4bit" else {}
        settings = BitsAndBytesConfig(**{f"load_in_{bits}": True}, **more)  # type: ignore[arg-type]
        AutoModelForCausalLM.from_pretrained(base, quantization_config=settings).save_pretrained(
            folder / bits
        )
    return {bits: folder / bits for bits in ("4bit", "8bit")}


UP = "model.layers.0.mlp.up_proj."
Tensors = dict[str, torch.Tensor]
PLAIN = "and none in the files is; if they are plain, take quantization_config out"


@pytest.mark.parametrize(
    ("bits", "change", "said"),
    [
        ("4bit", {}, None),
        ("8bit", {}, None),
        ("4bit", {"weight.absmax": None}, rf"{UP}weight\.absmax is missing from the weights"),
        ("4bit", {"weight.quant_map": None}, rf"{UP}weight\.quant_map is missing"),
        ("4bit", {"weight.quant_state.bitsandbytes__nf4": None}, rf"{UP}weight\.quant_state is missing"),
        ("8bit", {"SCB": None}, rf"{UP}SCB is missing"),
        ("8bit", {"weight": None}, rf"{UP}weight is missing"),
        ("8bit", {"SCB": torch.ones(3)}, rf"{UP}SCB has shape \[3\], but {UP}weight asks for \[128\]"),
        ("8bit", {"weight": torch.ones(128, 64)}, rf"{UP}weight is F32 in the weights, but has the scales"),
        ("4bit", {"bnb_4bit_quant_type": "fp4"}, r"config\.json says fp4, but \S+weight is nf4"),
        ("4bit", {"load_in_4bit": False, "load_in_8bit": True}, f"bitsandbytes in 8 bits, {PLAIN}"),
        ("8bit", {"load_in_8bit": False, "load_in_4bit": True}, f"bitsandbytes in 4 bits, {PLAIN}"),
    ],
)
def test_files_are_what_config_json_says(
    bits: str, change: dict[str, Any], said: str | None, packed: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(packed[bits], tmp_path / bits)
    file = folder / "model.safetensors"
    tensors: Tensors = load_file(file)
    content = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        if isinstance(value, bool | str):
            content["quantization_config"][key] = content["quantization_config"][f"_{key}"] = value
        elif value is None:
            del tensors[UP + key]
        else:
            tensors[UP + key] = value
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content))
    if said is None:
        saved(folder)
        return
    with pytest.raises(UsageError, match=said):
        saved(folder)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"quant_method": "fp8"}, f"quantised with fp8, {PLAIN}"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, f"bitsandbytes in 4 bits, {PLAIN}"),
        ({}, "quantization_config names no method"),
    ],
)
def test_plain_weights_are_not_called_quantised(
    block: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    content = json.loads((folder / "config.json").read_text()) | {"quantization_config": block}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        saved(folder)


def test_what_reads_8_bit_weights_on_a_cpu_is_refused_and_leaves_them(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, use_dora=True, **LM)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    model = saved(base, quantize="8bit").model
    before = logits(model)
    with pytest.raises(
        AdapterError, match="PEFT reads the base's weights for it, and cannot read 8-bit ones"
    ):
        load_adapter(model, tmp_path)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_scales_count_in_the_fingerprint(bits: str, base: Path) -> None:
    model = saved(base, quantize=bits).model
    before = fingerprint(model)
    logits(model)
    assert difference(before, fingerprint(model)) is None
    layer: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    scales = layer.weight.quant_state.absmax if bits == "4bit" else layer.state.SCB
    scales[0] += 1
    assert "layers.1.mlp.up_proj" in str(difference(before, fingerprint(model)))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_model_in_memory_is_who_it_is_before_and_after_a_forward(bits: str, base: Path) -> None:
    settings = BitsAndBytesConfig(**{f"load_in_{bits}": True})  # type: ignore[arg-type]
    load = AutoModelForCausalLM.from_pretrained
    model = load(base, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}).eval()
    first = base_hash(model, [1])
    bytes_before = [p.detach().clone() for p in model.parameters()]
    with preserved(model):
        logits(model)
    assert base_hash(model, [1]) == first
    assert all(map(torch.equal, bytes_before, model.parameters())), "the weights were repacked"
    other = load(base, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}).eval()
    assert base_hash(other, [1]) == first
    layer: Any = other.get_submodule("model.layers.0.mlp.up_proj")
    (layer.weight.quant_state.absmax if bits == "4bit" else layer.weight.SCB)[0] += 1
    assert base_hash(other, [1]) != first


def test_rows_of_an_8_bit_model_are_computed_by_themselves(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = saved(base, quantize="8bit").model
    with torch.no_grad():
        model.model.norm.weight *= 1  # a weight that stays: only its layers are quantised
        model.model.embed_tokens.weight[20] *= 40  # a token with outliers in every channel
    engine = HFEngine(model, toy_tokenizer)
    rows = (((5, 6, 7), (8,)), ((5, 6, 7), (20, 9)), ((30, 31), (32,)))
    alone = [next(engine.loglikelihood([LoglikelihoodRequest((row,))]))[1].logprobs[0] for row in rows]
    ((_, together),) = HFEngine(model, toy_tokenizer).loglikelihood([LoglikelihoodRequest(rows)])
    assert together.logprobs == tuple(alone)
    assert "outliers" in str(engine.alone_because)
    ((_, answer),) = engine.generate([GenerateRequest((5, 6, 7), 4, ())])
    assert answer.n_tokens > 0


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_checkpoint_of_bitsandbytes_loads_as_it_says(stored: str, base: Path, tmp_path: Path) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, stored)
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path)
    found = saved(tmp_path)
    assert found.dtype_name == stored
    assert (found.describe().quantisation, found.quantised_as) == ("bitsandbytes nf4", None)
    asked = saved(tmp_path, dtype="float32")
    torch.testing.assert_close(logits(asked.model), logits(full_size_of(asked, base)), rtol=0, atol=1e-4)


def full_size_of(found: SavedModel, base: Path) -> Any:
    found.model.name_or_path = str(base)
    return full_size(found.model)


def test_fp8_on_a_cpu_is_dequantised_and_says_so(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = random_llama(3, hidden=128, heads=2, kv_heads=2, tokenizer=toy_tokenizer)
    meant = write_quantised(tmp_path, model, toy_tokenizer, "fp8 blocks")
    found = saved(tmp_path)
    torch.testing.assert_close(logits(found.model), logits(meant), rtol=0, atol=1e-4)
    assert found.quantised_as == "dequantised"
    assert any("full-size weights" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["compressed int8", "compressed 4 bit"])
def test_compressed_tensors_load_as_they_say(
    kind: str, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = random_llama(3, hidden=128, heads=2, kv_heads=2, spread=0.08, tokenizer=toy_tokenizer)
    meant = write_quantised(tmp_path, model, toy_tokenizer, kind)
    found = saved(tmp_path)
    exact = kind == "compressed 4 bit"  # the other rounds what its layers are given
    torch.testing.assert_close(logits(found.model), logits(meant), rtol=0, atol=1e-4 if exact else 0.1)
    assert str(found.describe().quantisation).startswith("compressed-tensors")


def test_what_cannot_be_quantised_is_refused(
    base: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--quantize 4bit is for --engine hf"):
        saved(base, quantize="4bit", engine="vllm")
    model = random_llama(3, hidden=128, heads=2, kv_heads=2, tokenizer=toy_tokenizer)
    write_quantised(tmp_path, model, toy_tokenizer, "fp8 blocks")
    with pytest.raises(UsageError, match="is quantised already, with fp8; leave the option out"):
        saved(tmp_path, quantize="8bit")
    monkeypatch.setattr(quantisation, "_installed", lambda package: False)
    with pytest.raises(UsageError, match="--quantize 8bit: bitsandbytes is not installed; install the extra"):
        saved(base, quantize="8bit")
