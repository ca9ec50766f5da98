"""Every model argument of lm-eval's own transformers model is taken by ours, or refused in one line."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cme_bench.harness.hflm_arguments import FIXED
from cme_bench.harness.lm_eval_model import CmeHF, _hub_name
from cme_bench.models.quantise import settle
from cme_bench.util.devices import devices_of
from cme_bench.util.errors import UsageError

THEIRS = {
    name: parameter
    for name, parameter in inspect.signature(HFLM.__init__).parameters.items()
    if name not in {"self", "pretrained", "kwargs"}
}
OURS = inspect.signature(CmeHF.__init__).parameters
OTHER_VALUES: dict[str, Any] = {
    "backend": "seq2seq",
    "softmax_dtype": "float64",
    "mixed_precision_dtype": "bfloat16",
    "trust_remote_code": True,
    "tp_plan": "auto",
    "autogptq": "model.safetensors",
    "gptqmodel": True,
    "quantization_config": {},
    "gguf_file": "model.gguf",
    "low_cpu_mem_usage": False,
    "use_safetensors": False,
}


@pytest.fixture(scope="module")
def folder(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model folder whose tokenizer knows a length of its own."""
    place = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(place)
    toy_tokenizer.save_pretrained(place)
    settings = place / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 12}))
    return place


def pair(folder: Path, **arguments: Any) -> tuple[CmeHF, HFLM]:
    fixed = {"device": "cpu", "dtype": "float32", "max_length": 60}
    return CmeHF(str(folder), **fixed, **arguments), HFLM(str(folder), **fixed, **arguments)


def generated(lm: Any, contexts: list[str], **settings: Any) -> list[str]:
    kwargs = {"until": [], "max_gen_toks": 24, **settings}
    requests = [Instance("generate_until", {}, (c, dict(kwargs)), i) for i, c in enumerate(contexts)]
    return [lm.generate_until([request], disable_tqdm=True)[0] for request in requests]


@pytest.mark.parametrize("name", THEIRS)
def test_every_argument_of_theirs_is_known_and_its_default_taken(name: str, folder: Path) -> None:
    assert name in OURS or name in FIXED
    value = "cpu" if name == "device" else THEIRS[name].default
    CmeHF(str(folder), **{"device": "cpu", name: value})


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_be_honoured_is_refused_in_one_line(name: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{name}=.*: \S.*(leave it out|give )[^\n]*$"):
        CmeHF(str(folder), **{name: OTHER_VALUES[name]})
    for value in FIXED[name].allowed:
        CmeHF(str(folder), **{"device": "cpu", name: value})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attn_implementaton", "did you mean 'attn_implementation'"),
        ("torch_dtype", "did you mean 'dtype'"),
        ("paralelize", "did you mean 'parallelize'"),
        ("think_end_tok", "did you mean 'think_end_token'"),
        ("zzz", "^cme-hf has no argument 'zzz'$"),
    ],
)
def test_an_unknown_argument_gets_the_nearest_name(name: str, message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        CmeHF.create_from_arg_string(f"pretrained={folder},{name}=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"truncation": "yes"}, "^truncation=yes: it must be True or False$"),
        ({"use_fast_tokenizer": 1}, "use_fast_tokenizer=1"),
        ({"max_length": 0}, "max_length=0: it must be a whole number of at least 1"),
        ({"max_length": "long"}, "max_length=long"),
        ({"prefix_token_id": -1}, "prefix_token_id=-1"),
        ({"attn_implementation": "flash_attention_2"}, "computes with eager or sdpa"),
        ({"dtype": "floaty"}, "dtype=floaty: it must be auto, float32"),
        ({"dtype": "int8"}, "dtype=int8"),
        ({"device": "teapot"}, "device=teapot: there is no such device here"),
        ({"device": "cuda:77"}, "device=cuda:77: there is no such device here"),
        ({"chat_template_args": "a=1"}, "chat_template_args=a=1: it must be a mapping"),
        ({"enable_thinking": True}, "enable_thinking=True needs think_end_token"),
        ({"think_end_token": ""}, "think_end_token=: it must be a text"),
        ({"think_end_token": 100_000}, "think_end_token=100000"),
        ({"think_end_token": "</s>"}, "special token"),
        ({"think_end_token": 271}, "special token"),
        ({"delta": "x", "peft": "y"}, "delta and adapter both change the model"),
        ({"subfolder": "nowhere"}, "nowhere"),
        ({"device": "meta"}, "device=meta: nothing is computed there"),
        ({"prefix_token_id": 999_999}, "^prefix_token_id=999999: the tokenizer has 273 tokens$"),
        ({"tokenizer": 5}, "^tokenizer=5: it must be a folder, a hub id or a tokenizer$"),
        ({"pretrained": ""}, "^pretrained is empty"),
        ({"revision": "v2"}, "^revision=v2: .* is a folder, which has no revisions$"),
        ({"tokenizer": "no/such/place"}, "no such folder, and not a hub id"),
        ({"peft": "no/such/place"}, "no such folder, and not a hub id"),
        ({"delta": "no/such/place"}, "no such folder, and not a hub id"),
        ({"parallelize": 1}, "^parallelize=1: it must be True or False"),
        ({"device_map": "atuo"}, "^device_map=atuo: .* did you mean 'auto'"),
        ({"device_map": "cuda:77"}, "^device_map=cuda:77: "),
        ({"device_map": {}}, "^device_map: names no module"),
        ({"device_map": {"": 7}}, "^device_map: '' is to lie on 7; devices here: .*cpu, disk"),
        ({"device_map": {"model": "cpu"}}, "^device_map: gives no device for lm_head.weight"),
        ({"device_map": {"modell": "cpu"}}, "^device_map: the model has no module 'modell'"),
        ({"max_cpu_memory": "1GiB"}, "^max_cpu_memory has no effect without parallelize=True"),
        ({"max_memory_per_gpu": 10**9}, "^max_memory_per_gpu has no effect without parallelize=True"),
        (
            {"max_cpu_memory": "much", "parallelize": True},
            "^max_cpu_memory=much: it must be a number of bytes",
        ),
        ({"offload_folder": "elsewhere"}, "^offload_folder has no effect without parallelize=True"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "are two quantisations: give one of them"),
        ({"load_in_4bit": "yes"}, "^load_in_4bit=yes: it must be True or False"),
        ({"bnb_4bit_quant_type": "nf4"}, "^bnb_4bit_quant_type has no effect without load_in_4bit=True"),
        (
            {"bnb_4bit_quant_type": "nf8", "load_in_4bit": True},
            "^bnb_4bit_quant_type=nf8: it must be fp4 or nf4",
        ),
        (
            {"bnb_4bit_compute_dtype": "int8", "load_in_4bit": True},
            "^bnb_4bit_compute_dtype=int8: it must be",
        ),
        ({"delta": "x", "load_in_8bit": True}, "^delta is added to whole weights"),
        ({"delta": "x", "parallelize": True}, "^delta is added to whole weights"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(arguments: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        CmeHF(**{"pretrained": str(folder), "device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"revision": "v2"}, {"subfolder": "b"}, {"revision": "v2", "subfolder": "b"}]
)
def test_a_hub_name_says_one_thing(arguments: dict[str, Any]) -> None:
    name = next(iter(arguments))
    with pytest.raises(UsageError, match=f"^{name}=.*: pretrained=owner/name/a@v1 names another$"):
        CmeHF("owner/name/a@v1", device="cpu", **arguments)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("owner/name", None, None), "owner/name"),
        (("owner/name", "v1", None), "owner/name@v1"),
        (("owner/name@v1", "v1", None), "owner/name@v1"),
        (("owner/name", None, "a/b"), "owner/name/a/b@main"),
        (("owner/name", "v1", "a"), "owner/name/a@v1"),
        (("owner/name/a@v1", None, "a"), "owner/name/a@v1"),
        (("smollm2", None, None), "smollm2"),
    ],
)
def test_revision_and_subfolder_complete_a_hub_name(
    given: tuple[str, str | None, str | None], wanted: str
) -> None:
    assert _hub_name(*given) == wanted


def test_a_model_in_memory_is_named_its_way(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UsageError, match=r"EngineLM\(HFEngine\(model, tokenizer\), tokenizer\)"):
        CmeHF(tiny_model)  # type: ignore[arg-type]


def test_empty_is_not_given(folder: Path) -> None:
    CmeHF(str(folder), device="cpu", tokenizer="", subfolder=None, revision=None, dtype=None)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_implementation_of_attention(implementation: str, folder: Path) -> None:
    lm = CmeHF(str(folder), device="cpu", attn_implementation=implementation)
    assert lm.engine.model.config._attn_implementation == implementation  # type: ignore[attr-defined]


def test_the_dtype_is_a_name_or_torch_s_own(folder: Path) -> None:
    for value in ("bfloat16", torch.bfloat16):
        lm = CmeHF(str(folder), device="cpu", dtype=value, softmax_dtype=torch.float32)
        assert lm.engine.dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_a_subfolder_and_a_tokenizer_in_memory(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "inner")
    lm = CmeHF(str(tmp_path), subfolder="inner", tokenizer=toy_tokenizer, device="cpu")
    assert lm.tokenizer is toy_tokenizer
    assert torch.equal(
        lm.engine.model.lm_head.weight,  # type: ignore[attr-defined]
        tiny_model.lm_head.weight,
    )


@pytest.mark.parametrize("use_fast", [True, False])
def test_the_kind_of_tokenizer_is_theirs(use_fast: bool, folder: Path) -> None:
    ours, theirs = pair(folder, use_fast_tokenizer=use_fast)
    assert type(ours.tokenizer) is type(theirs.tokenizer)
    assert ours.tok_encode("the cat") == theirs.tok_encode("the cat")


def test_truncation_cuts_a_prompt_as_theirs_does(folder: Path) -> None:
    contexts = ["short", "a prompt that is longer than twelve tokens of a toy tokenizer"]
    ours, theirs = pair(folder, truncation=True)
    found = generated(ours, contexts)
    assert found == generated(theirs, contexts)
    assert found[0] == generated(pair(folder)[0], contexts)[0]
    assert found[1] != generated(pair(folder)[0], contexts)[1]


def test_what_stands_after_the_thought_is_the_answer(folder: Path) -> None:
    contexts = ["The cat", "In the beginning there"]
    whole = generated(pair(folder)[0], contexts)
    marks = [text[3:5] for text in whole]
    for mark in marks:
        ours, theirs = pair(folder, think_end_token=mark)
        assert generated(ours, contexts) == generated(theirs, contexts)
    ids = pair(folder)[0].tok_encode(whole[0])
    number = next(n for n in ids[2:] if ours.tokenizer.decode(n) in set(string.ascii_letters))
    ours, theirs = pair(folder, think_end_token=number)
    assert generated(ours, contexts) == generated(theirs, contexts)
    assert generated(ours, contexts) != whole
    part = next(n for n in range(256) if "\ufffd" in ours.tokenizer.decode(n))
    with pytest.raises(UsageError, match=f"^think_end_token={part}: it must be a text"):
        CmeHF(str(folder), device="cpu", think_end_token=part)
    assert generated(CmeHF(str(folder), device="cpu", think_end_token=str(number)), contexts) == generated(
        ours, contexts
    )


def test_a_stop_string_in_the_thought_does_not_end_the_answer(folder: Path) -> None:
    [whole] = generated(pair(folder)[0], ["The cat"])
    mark, stop, last = whole[4:6], whole[1:3], whole[9:11]
    lm = CmeHF(str(folder), device="cpu", think_end_token=mark)
    answer = whole.split(mark)[-1].lstrip()
    for until in ([stop], [stop, last]):
        wanted = answer
        for one in until:
            wanted = wanted.split(one)[0]
        assert generated(lm, ["The cat"], until=until) == [wanted]


def test_thinking_reaches_the_template_and_refuses_likelihoods(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    toy_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ enable_thinking }} {{ other }} {{ messages[0].content }}"
    )
    chat = [{"role": "user", "content": "Hello"}]
    given = {"think_end_token": "x", "chat_template_args": {"other": 7, "enable_thinking": "both"}}
    for thinking in (None, True, False):
        ours, theirs = pair(tmp_path, enable_thinking=thinking, **given)
        assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert ours.apply_chat_template(chat) == "False 7 Hello"
    request = Instance("loglikelihood", {}, ("a", " b"), 0)
    ours.loglikelihood([request])
    with pytest.raises(UsageError, match="enable_thinking=True gives likelihoods"):
        CmeHF(str(tmp_path), device="cpu", think_end_token="x", enable_thinking=True).loglikelihood([request])


def test_delta_weights_are_added_once(tiny_model: LlamaForCausalLM, folder: Path, tmp_path: Path) -> None:
    difference = LlamaForCausalLM(tiny_model.config)
    difference.save_pretrained(tmp_path / "delta")
    ours, theirs = pair(folder, delta=str(tmp_path / "delta"))
    wanted = theirs.model.state_dict()
    found = ours.engine.model.state_dict()  # type: ignore[attr-defined]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not torch.equal(found["lm_head.weight"], tiny_model.lm_head.weight)
    config = type(tiny_model.config)(**{**tiny_model.config.to_dict(), "intermediate_size": 4})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"delta .*gate_proj.weight is \(4, 64\), and"):
        CmeHF(str(folder), device="cpu", delta=str(tmp_path / "other"))


def scores(lm: Any) -> list[float]:
    pairs = [("The cat", " sat on"), ("In the", " beginning there"), ("The cat", " ate")]
    return [score for score, _ in lm.loglikelihood([Instance("loglikelihood", {}, p, 0) for p in pairs])]


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_8bit": True},
    ],
    ids=["fp4", "nf4", "compute", "int8"],
)
def test_a_model_is_quantised_as_theirs(arguments: dict[str, Any], folder: Path) -> None:
    """transformers 5 takes no ``load_in_4bit``: theirs gets the model that transformers 4 made of it."""
    ours = CmeHF(str(folder), device="cpu", dtype="float32", max_length=60, **arguments)
    config = BitsAndBytesConfig(**arguments)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    settle(model, torch.float32)
    theirs = HFLM(model, tokenizer=str(folder), max_length=60)
    assert scores(ours) == pytest.approx(scores(theirs), abs=1e-4)
    assert scores(ours) != pytest.approx(scores(pair(folder)[0]), abs=1e-3)
    assert generated(ours, ["The cat"]) == generated(theirs, ["The cat"])


def test_what_is_quantised_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    model.save_pretrained(tmp_path)
    theirs = HFLM(str(tmp_path), tokenizer=str(folder), device="cpu", dtype="float32", max_length=60)
    settle(theirs.model, torch.float32)
    settings = {"tokenizer": str(folder), "device": "cpu", "dtype": "float32", "max_length": 60}
    assert scores(CmeHF(str(tmp_path), **settings)) == pytest.approx(scores(theirs), abs=1e-4)
    with pytest.raises(UsageError, match=r"^load_in_8bit: .* is quantised already, with bitsandbytes"):
        CmeHF(str(tmp_path), load_in_8bit=True, **settings)


ON_DISK = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "lm_head"), "cpu")
ON_DISK |= {"model.rotary_emb": "cpu", "model.layers.1": "disk"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"device_map": ON_DISK},
        {"device_map": ON_DISK, "parallelize": True},
        {"parallelize": True},
        {"parallelize": True, "max_cpu_memory": "1GiB"},
    ],
    ids=["auto", "device", "mapping", "split mapping", "parallelize", "memory"],
)
def test_a_model_is_spread_as_theirs(
    arguments: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # theirs makes ./offload
    fixed = {"device": "cpu", "dtype": "float32", "max_length": 60}
    ours, theirs = CmeHF(str(folder), **fixed, **arguments), HFLM(str(folder), **fixed, **arguments)
    found, wanted = devices_of(ours.engine.model), devices_of(theirs.model)  # type: ignore[attr-defined]
    if arguments.get("parallelize"):  # else theirs does not follow its device_map
        assert found == wanted
    elif arguments["device_map"] is ON_DISK:
        assert "disk" in found
    assert scores(ours) == pytest.approx(scores(theirs), abs=1e-5)
    assert generated(ours, ["The cat"]) == generated(pair(folder)[1], ["The cat"])


def with_config(folder: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(folder, out)
    file = out / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "whoknows"}, "config.json: .*whoknows"),
        ({"architectures": [5]}, "architectures is"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
            "weights cannot be loaded|not installed",
        ),
    ],
)
def test_a_broken_model_is_bad_input(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        CmeHF(str(with_config(folder, tmp_path / "m", **changes)))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.fixture
def adapter(tiny_model: LlamaForCausalLM, tmp_path: Path) -> Path:
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(tiny_model), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_another_tokenizer_beside_an_adapter_is_asked_about(
    adapter: Path, folder: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    toy_tokenizer.save_pretrained(adapter)
    CmeHF(str(folder), adapter=str(adapter))
    own = copy.deepcopy(toy_tokenizer)
    own.add_tokens([*(f"<{number}>" for number in range(60)), "Answer:"])
    own.save_pretrained(adapter)
    for name in ("adapter", "peft"):
        with pytest.raises(UsageError, match=f"tokenizer={adapter} or tokenizer={folder} decides"):
            CmeHF(str(folder), **{name: str(adapter)})
    asked = [Instance("loglikelihood", {}, ("Answer:", " yes"), 0)]
    CmeHF(str(folder), adapter=str(adapter), tokenizer=str(folder)).loglikelihood(asked)
    theirs = CmeHF(str(folder), adapter=str(adapter), tokenizer=str(adapter), max_gen_toks=4)
    with pytest.raises(UsageError, match=r"the tokenizer has token ids up to .*'Answer:'"):
        theirs.loglikelihood(asked)
    with pytest.raises(UsageError, match=r"the tokenizer has token ids up to .*'Answer:'"):
        theirs.generate_until([Instance("generate_until", {}, ("Answer:", {"until": ["."]}), 0)])


def test_a_template_beside_an_adapter_is_named(
    adapter: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    CmeHF(str(folder), adapter=str(adapter))
    assert f"{adapter}: the chat template beside the adapter is not used" in caplog.text


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{% for %}"])
def test_a_template_that_fails_is_bad_input(
    template: str, folder: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = copy.deepcopy(toy_tokenizer)
    own.chat_template = template
    lm = CmeHF(str(folder), tokenizer=own)
    with pytest.raises(UsageError, match="its chat template fails"):
        lm.apply_chat_template([{"role": "user", "content": "Is it?"}])


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "{", "5", '{"tokenizer_class": 5}'])
def test_a_broken_tokenizer_is_bad_input(file: str, content: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / file).write_text(content)
    with pytest.raises(UsageError, match="the tokenizer cannot be loaded"):
        CmeHF(str(tmp_path / "m"))
