"""The base under the next adapter: whatever an adapter did to it, the next one answers as it does alone."""

from __future__ import annotations

import functools
import shutil
import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines.base import LoglikelihoodRequest
from cme_bench.engines.hf import piece_products
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.sharing import why_rowwise
from cme_bench.engines.hf.wide_states import WideStates
from cme_bench.models.fingerprint import difference, fingerprint
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineJob, EngineSource
from cme_bench.runs.options import ModelOptions

LM = {"task_type": "CAUSAL_LM"}
REQUEST = LoglikelihoodRequest((((10, 11, 12, 13), (14, 15)), ((10, 11, 12, 13), (16,))))
JOB = EngineJob(64, 64, REQUEST.rows[0][0])


def lora(**changes: object) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **LM, **changes})  # type: ignore[arg-type]


ADAPTERS: dict[str, PeftConfig] = {
    "saved modules": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "norms": lora(modules_to_save=["norm", "input_layernorm"]),
    "embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
    "head": lora(target_modules=["lm_head", "q_proj"]),
    "tokens": lora(trainable_token_indices=[3, 5]),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "dora": lora(use_dora=True),
    "replicated": lora(layer_replication=[[0, 2], [1, 2]]),
    "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=10, **LM),
    "ia3": peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], **LM),
    "oft": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8, **LM),
    "norm tuning": peft.LNTuningConfig(target_modules=["norm"], **LM),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, **LM),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, **LM),
    "adaption": peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, **LM),
    "teamlora": TeamLoraConfig(r=2, num_experts=4, **LM),
}


def save_adapter(base: Path, out: Path, config: PeftConfig, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(tiny_checkpoint, folder / name, config) for name, config in ADAPTERS.items()}


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_checkpoint, tmp_path_factory.mktemp("plain") / "plain", lora(), seed=7)


def answer(engines: EngineSource, adapter: Path | None) -> tuple[float, ...]:
    found = engines.adapter(None if adapter is None else str(adapter))
    try:
        ((_, response),) = engines.open(found, JOB).loglikelihood([REQUEST])
    finally:
        engines.release()
    return response.logprobs


@pytest.mark.slow
def test_every_adapter_leaves_the_next_one_alone(
    tiny_checkpoint: Path, adapters: dict[str, Path], plain: Path
) -> None:
    options = ModelOptions(model=str(tiny_checkpoint), dtype="float32")
    alone, bare = answer(open_engines(options), plain), answer(open_engines(options), None)
    notes: list[str] = []
    base = open_engines(options, notes.append)
    answered = 0
    for name, adapter in adapters.items():
        try:
            answered += answer(base, adapter) != bare
        except Exception as err:  # refused, or failed when it was half put on: the next must not notice
            assert str(err), name
        assert answer(base, plain) == alone, name
        assert answer(base, None) == bare, name
    assert answered >= 5
    assert any("'pissa' left the base model changed (tensor " in note for note in notes), notes
    needless = ("'plain'", "'teamlora'", "'saved modules'", "'norms'")
    assert not any(name in note for note in notes for name in needless), notes


def test_a_damaged_adapter_leaves_the_base_as_it_was(
    tiny_checkpoint: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_engines(ModelOptions(model=str(tiny_checkpoint), dtype="float32"))
    bare, alone = answer(base, None), answer(base, plain)
    with monkeypatch.context() as patch:
        patch.setattr("cme_bench.adapters.liveness.check_liveness", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer(base, plain)
    assert (answer(base, None), answer(base, plain)) == (bare, alone)


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        (lambda m: m.model.norm.weight.data.add_(1e-3), "tensor model.norm.weight"),
        (lambda m: m.lm_head.weight.data.copy_(m.lm_head.weight.flip(0)), "tensor lm_head.weight"),
        (lambda m: m.model.layers[1].mlp.down_proj.half(), "tensor model.layers.1.mlp.down_proj.weight"),
        (lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight), "tensor lm_head.weight"),
        (lambda m: m.model.layers.append(m.model.layers[0]), "tensor model.layers.2"),
        (lambda m: setattr(m.model.layers[0], "mlp", torch.nn.Identity()), "tensor model.layers.0.mlp"),
        (lambda m: m.model.register_forward_hook(print), "module model"),
        (lambda m: setattr(m.model.norm, "forward", print), "module model.norm"),
        (lambda m: setattr(m.config, "rms_norm_eps", 1.0), "config"),
        (lambda m: m.model.rotary_emb.inv_freq.mul_(2), "tensor model.rotary_emb.inv_freq"),
    ],
)
def test_a_fingerprint_sees_what_changes_answers(tiny_checkpoint: Path, harm: object, where: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    before = fingerprint(model)
    assert difference(before, fingerprint(model)) is None
    harm(model)  # type: ignore[operator]
    assert str(difference(before, fingerprint(model))).startswith(where)


def test_sharing_is_tried_once_for_the_base_and_adapters_of_single_tokens(
    tiny_checkpoint: Path, adapters: dict[str, Path], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def trial(*asked: Any) -> str | None:
        tried.append(threading.current_thread().name)
        return why_rowwise(*asked)

    for module in ("sharing", "engine"):
        monkeypatch.setattr(f"cme_bench.engines.hf.{module}.why_rowwise", trial)
    with open_engines(ModelOptions(model=str(tiny_checkpoint), engine="hf")) as engines:
        engines.begin()
        found = [answer(engines, adapter) for adapter in (adapters["teamlora"], plain, None)]
        assert tried == ["cme-bench-early"]
        answer(engines, adapters["replicated"])  # which has other layers
        assert tried.pop() == "MainThread"
        monkeypatch.setattr("cme_bench.engines.hf.alone._is_users", lambda _: True)
        engines._verdicts.clear()  # type: ignore[attr-defined]
        assert answer(engines, plain) == found[1]
    assert tried == ["cme-bench-early", "MainThread"]


def test_weights_in_another_form_are_made_once_for_all_adapters(
    tiny_checkpoint: Path,
    adapters: dict[str, Path],
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint).bfloat16().float().save_pretrained(folder)
    made: list[int] = []

    def counted(weight: torch.Tensor) -> torch.Tensor | None:
        made.append(weight.numel())
        return piece_products.thrice(weight)

    monkeypatch.setattr(piece_products._shelf, "_make", counted)
    options = ModelOptions(model=str(folder), dtype="float32", settings={"float32_pieces": 1})
    with open_engines(options) as engines:
        answer(engines, adapters["teamlora"])
        layers = len(made)
        assert layers
        answer(engines, plain)
        assert len(made) <= layers + 1  # tied weights may be tied anew when an adapter comes off


def test_engines_of_the_bare_model_know_its_layers_already(
    tiny_checkpoint: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[torch.nn.Module] = []
    own = WideStates.__init__

    def counted(states: WideStates, model: torch.nn.Module, *others: Any) -> None:
        looked.append(model)
        own(states, model, *others)

    monkeypatch.setattr(WideStates, "__init__", counted)
    with open_engines(ModelOptions(model=str(tiny_checkpoint), dtype="bfloat16", engine="hf")) as engines:
        bare = answer(engines, None)
        answer(engines, plain)
        assert answer(engines, None) == bare
    assert [isinstance(model, PeftModel) for model in looked] == [False, True]


def test_positions_are_tried_once_for_the_base_beside_the_planning(
    tiny_checkpoint: Path, adapters: dict[str, Path], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, tried = vars(CausalForward)["takes_positions"].func, []

    def trial(forward: CausalForward) -> bool:
        tried.append(threading.current_thread().name)
        return bool(own(forward))

    counted = functools.cached_property(trial)
    counted.__set_name__(CausalForward, "takes_positions")
    monkeypatch.setattr(CausalForward, "takes_positions", counted)
    with open_engines(ModelOptions(model=str(tiny_checkpoint), engine="hf")) as engines:
        engines.begin()
        for adapter in (adapters["teamlora"], plain, None):
            answer(engines, adapter)
    assert tried == ["cme-bench-early"]
