"""Models that are no causal language models, bases that are quantised, and adapters given as models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cme_bench.models import quantisation
from cme_bench.models.causal import check_order
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.folder import adapter_note, only_the_model
from cme_bench.models.load import check_base, load_config, load_model
from cme_bench.util.errors import CmeError, UsageError

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
BART = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "max_position_embeddings": 64,
}


def config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    content = orjson.loads(file.read_bytes()) | changes
    file.write_bytes(orjson.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def llama(tiny_checkpoint: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(tiny_checkpoint, folder)
    return config(folder, **changes)


def ready(folder: Path) -> Any:
    checkpoint = resolve_model(str(folder))
    found = load_config(checkpoint)
    check_base(checkpoint, found)
    return load_model(checkpoint, torch.float32, CPU)


@pytest.mark.parametrize(
    ("kind", "sizes", "maker"),
    [
        ("t5", T5, AutoModelForSeq2SeqLM),
        ("bart", BART, AutoModelForSeq2SeqLM),
        ("bert", SMALL, AutoModel),
        ("roberta", SMALL, AutoModel),
        ("electra", SMALL | {"embedding_size": 32}, AutoModelForCausalLM),
        ("deberta-v2", SMALL, AutoModel),
    ],
)
def test_encoders_are_refused_before_weights_load(kind: str, sizes: Any, maker: Any, tmp_path: Path) -> None:
    folder = tmp_path / kind
    maker.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=f"{kind}: {kind} is no causal language model"):
        load_config(resolve_model(str(folder)))


def test_a_decoder_of_bert_is_a_causal_model(tmp_path: Path) -> None:
    settings = AutoConfig.for_model("bert", **SMALL, is_decoder=True)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "m")
    ready(tmp_path / "m")


@pytest.mark.parametrize(
    "name",
    ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaModel", "LlamaForRewardModel"],
)
def test_other_heads_are_refused(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = llama(tiny_checkpoint, tmp_path / "m", architectures=[name])
    with pytest.raises(UsageError, match=f"m: config.json names {name}.* no causal language model"):
        load_config(resolve_model(str(folder)))


@pytest.mark.parametrize("names", [None, [], ["LLaMAForCausalLM"], ["LlamaForCausalLM", "LlamaModel"]])
def test_old_and_absent_names_are_accepted(names: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ready(llama(tiny_checkpoint, tmp_path / "m", architectures=names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_causal": False}, "looks in both directions"),
        ({"model_type": "llava"}, "llava is no causal language model"),
        ({"model_type": "whoknows"}, "config.json: .*whoknows"),
        ({"model_type": "whoknows", "auto_map": {"AutoConfig": "a.B"}}, "config.json: "),
        ({"model_type": None, "architectures": None}, "config.json: "),
        ({"num_hidden_layers": "two"}, "config.json: "),
        ({"num_attention_heads": 0}, "config.json: "),
    ],
)
def test_configurations_that_say_something_else(
    changes: Any, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = llama(tiny_checkpoint, tmp_path / "m", **changes)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(resolve_model(str(folder)))
    assert "\n" not in str(caught.value)


def test_attention_in_both_directions_is_found_in_the_loaded_model(tmp_path: Path) -> None:
    settings = AutoConfig.for_model(
        "cpmant",
        vocab_size=99,
        hidden_size=32,
        num_attention_heads=2,
        dim_head=16,
        dim_ff=48,
        init_std=0.5,
        num_hidden_layers=1,
    )
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="changes the logits of tokens before it"):
        ready(tmp_path / "m")


def stored(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_no_numbers_are_named(value: float, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = stored(llama(tiny_checkpoint, tmp_path / "m"), lambda t: t[UP][1].fill_(value))
    with pytest.raises(UsageError, match=f"m: {UP} holds NaN or infinite values"):
        ready(folder)


def test_a_model_whose_logits_are_all_equal_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = stored(llama(tiny_checkpoint, tmp_path / "m"), lambda t: t["lm_head.weight"].zero_())
    with pytest.raises(UsageError, match="m: every token has the same logit"):
        ready(folder)


@pytest.mark.parametrize(
    ("kind", "name"), [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.complex64, "C64")]
)
def test_weights_of_integers_are_refused(
    kind: torch.dtype, name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = stored(llama(tiny_checkpoint, tmp_path / "m"), lambda t: t.update({UP: t[UP].to(kind)}))
    with pytest.raises(UsageError, match=f"m: {UP} is stored as {name}, as quantised weights are"):
        ready(folder)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float16, torch.float64])
def test_weights_of_other_floats_are_their_values(
    kind: torch.dtype, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = stored(llama(tiny_checkpoint, tmp_path / "m"), lambda t: t.update({UP: t[UP].to(kind)}))
    given = load_file(folder / "model.safetensors")[UP]
    assert torch.equal(dict(ready(folder).named_parameters())[UP], given.float())


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [5], {"a": 1}])
def test_malformed_names_of_classes(names: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"architectures is .*a list of class names|config.json: "):
        load_config(resolve_model(str(llama(tiny_checkpoint, tmp_path / "m", architectures=names))))


@pytest.mark.parametrize("names", [["GemmaForCausalLM"], ["Qwen2ForCausalLM", "LlamaForCausalLM"]])
def test_a_class_of_another_type_is_refused_for_vllm(
    names: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = llama(tiny_checkpoint, tmp_path / "m", architectures=names)
    checkpoint = resolve_model(str(folder))
    found = load_config(checkpoint)
    check_base(checkpoint, found)
    with pytest.raises(UsageError, match=f"architectures names {names[0]}, which vLLM would compute"):
        check_base(checkpoint, found, "vllm")


@pytest.mark.parametrize("names", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"]])
def test_usual_names_pass_for_vllm(names: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = resolve_model(str(llama(tiny_checkpoint, tmp_path / "m", architectures=names)))
    check_base(checkpoint, load_config(checkpoint), "vllm")


def test_what_fails_while_weights_load_is_bad_input(tiny_checkpoint: Path, tmp_path: Path) -> None:
    block = {"quant_method": "bitnet", "linear_class": "bitlinear"}  # its scales are in no file
    folder = llama(tiny_checkpoint, tmp_path / "m", quantization_config=block)
    with pytest.raises(UsageError, match=r"m: .*(weight_scale is missing|cannot be loaded)"):
        load_model(resolve_model(str(folder)), torch.float32, CPU)


def test_a_model_that_needs_images_is_bad_input(tiny_checkpoint: Path, tmp_path: Path) -> None:
    class Blind(torch.nn.Module):
        def forward(self, input_ids: Any, pixel_values: Any, **more: Any) -> Any:
            raise AssertionError

    model: Any = ready(llama(tiny_checkpoint, tmp_path / "m"))
    model.forward = Blind().forward
    with pytest.raises(UsageError, match="cannot compute a row of tokens alone"):
        check_order(model, tmp_path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "with bitsandbytes, which is not installed; in",
        ),
        ({"load_in_8bit": True}, "with bitsandbytes, which is not installed; install it"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, for which .*optimum.* not installed"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq, for which gptqmodel is not installed"),
        ({"quant_method": "hqq"}, "with hqq, wh"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto, for which optimum-quanto is not installed"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "with torchao, wh"),
        ({"quant_method": "aqlm"}, "with aqlm, which is not installed"),
        ({"quant_method": "fbgemm_fp8"}, "with fbgemm_fp8, which cannot be used here"),
        ({"quant_method": "unheard-of"}, "with unheard-of, which transformers does not know"),
        ({"bits": 4}, "quantization_config names no method"),
        ({}, "quantization_config names no method"),
        ({"quant_method": "teamlora", "modules": []}, "exported for vLLM with an adapter"),
    ],
)
def test_a_quantised_base_without_its_package(
    block: Any, message: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "_installed", lambda package: False)
    folder = llama(tiny_checkpoint, tmp_path / "m", quantization_config=block)
    checkpoint = resolve_model(str(folder))
    with pytest.raises(UsageError, match=message) as caught:
        check_base(checkpoint, load_config(checkpoint))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vllm_needs_a_package_for_bitsandbytes_only(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "_installed", lambda package: False)
    for method, refused in (("bitsandbytes", True), ("gptq", False)):
        block = {"quant_method": method, "bits": 4}
        checkpoint = resolve_model(str(llama(tiny_checkpoint, tmp_path / method, quantization_config=block)))
        found = load_config(checkpoint)
        if refused:
            with pytest.raises(UsageError, match="not installed"):
                check_base(checkpoint, found, "vllm")
        else:  # its plain weights are at fault
            with pytest.raises(UsageError, match="and none in the files is"):
                check_base(checkpoint, found, "vllm")


def adapter_into(folder: Path, *, weights: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    shape = (4, 16)
    content = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 64,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
    }
    (folder / "adapter_config.json").write_bytes(orjson.dumps(content))
    if weights:
        side = {"A": torch.ones(shape), "B": torch.ones(shape[::-1])}
        names = {s: f"base_model.model.model.layers.0.self_attn.q_proj.lora_{s}.weight" for s in side}
        save_file({names[s]: t for s, t in side.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_beside_a_model_is_not_applied(
    weights: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    clean = ready(tiny_checkpoint)
    folder = adapter_into(llama(tiny_checkpoint, tmp_path / "m"), weights=weights)
    checkpoint = folder / "checkpoint-20"
    shutil.copytree(tiny_checkpoint, checkpoint)
    found = ready(folder)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(found(ids).logits, clean(ids).logits, rtol=0, atol=0)
    assert type(found) is type(clean)
    assert found.name_or_path == found.config.name_or_path == str(folder)
    assert f"--adapter {folder}" in str(adapter_note(folder))
    assert adapter_note(tiny_checkpoint) is None


def test_engines_see_the_models_own_files_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with only_the_model(tiny_checkpoint) as same:
        assert same == tiny_checkpoint
    folder = adapter_into(llama(tiny_checkpoint, tmp_path / "m"))
    save_file({"x": torch.ones(1)}, folder / "consolidated.safetensors")
    with only_the_model(folder) as links:
        assert {f.name for f in links.iterdir()} == {f.name for f in tiny_checkpoint.iterdir()}
    assert not links.exists()


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_given_as_the_model(with_config: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = adapter_into(tmp_path / "team")
    if with_config:
        shutil.copy(tiny_checkpoint / "config.json", folder)
    with pytest.raises(UsageError, match=f"not a model; .*: some/base --adapter {folder}"):
        resolve_model(str(folder))


def test_a_training_folder_names_its_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "out" / "checkpoint-20")
    with pytest.raises(UsageError, match=r"no config.json.* did you mean .*out/checkpoint-20\?"):
        resolve_model(str(tmp_path / "out"))


def test_a_model_that_cannot_compute_says_so_in_a_line(tmp_path: Path) -> None:
    kind = "xmod"
    settings = AutoConfig.for_model(
        kind, **SMALL, is_decoder=True, languages=["en_XX"], default_language=None
    )
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "m")
    with pytest.raises(CmeError, match="cannot compute a row of tokens"):
        ready(tmp_path / "m")
