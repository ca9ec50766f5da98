"""Checkpoints as the original repositories save them, and their forward pass from its equations.

Independent of the package: the names and settings are those of the repositories, and the reference replaces
the forward of the base model's modules with loops over experts and tokens' weights of full width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Forward = Callable[[nn.Module, "Foreign"], None]
PREFIX = "base_model.model."
FFN = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Foreign:
    """A checkpoint: its settings, its tensors, and ``install``, which makes a base compute what it does."""

    settings: dict[str, Any]
    tensors: Tensors
    install: Forward
    method: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, *, pickled: bool = True) -> Path:
        folder.mkdir(parents=True)
        if pickled:
            torch.save(self.tensors, folder / "adapter_model.bin")
        else:
            save_file(self.tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(self.settings))
        return folder

    def named(self, rename: Callable[[str], str]) -> Foreign:
        return replace(self, tensors={rename(key): tensor for key, tensor in self.tensors.items()})

    def set(self, **settings: Any) -> Foreign:
        return replace(self, settings={**self.settings, **settings})

    def applied_to(self, base: nn.Module) -> nn.Module:
        self.install(base, self)
        return base


def linears(base: nn.Module, names: Sequence[str], layers: Sequence[int] | None = None) -> list[str]:
    """The full names of the linears with these last names, of all decoder layers or some."""
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in names
        and (layers is None or int(name.split(".")[2]) in layers)
    ]


def _sizes(base: nn.Module, name: str) -> tuple[int, int]:
    linear = base.get_submodule(name)
    return linear.in_features, linear.out_features  # type: ignore[return-value]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape) / math.sqrt(shape[-1])


def _fork(**settings: Any) -> dict[str, Any]:
    """adapter_config.json of a fork of PEFT 0.2."""
    return {
        "base_model_name_or_path": "/models/llama2-7b",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": list(FFN),
        "task_type": "CAUSAL_LM",
        **settings,
    }


def _wrap(base: nn.Module, name: str, delta: Callable[[Tensor], Tensor]) -> None:
    linear: Any = base.get_submodule(name)
    weight, bias = linear.weight, linear.bias

    def forward(x: Tensor) -> Tensor:
        found: Tensor = x @ weight.T + (0 if bias is None else bias) + delta(x)
        return found

    linear.forward = forward


def hydralora(base: nn.Module, modules: Sequence[str], k: int = 3, r: int = 4) -> Foreign:
    """Clin0212/HydraLoRA: one A, k B, a router."""
    tensors = {}
    for name in modules:
        d_in, d_out = _sizes(base, name)
        tensors[f"{PREFIX}{name}.lora_route.weight"] = _random(k, d_in)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = _random(r, d_in)
        for i in range(k):
            tensors[f"{PREFIX}{name}.lora_B{i}.weight"] = _random(d_out, r)
    return Foreign(
        _fork(r=r, lora_nums=k), tensors, _install_dense, "hydralora", {"modules": modules, "k": k}
    )


def loramoe(base: nn.Module, modules: Sequence[str], k: int = 3, r: int = 4) -> Foreign:
    """Ablustrund/LoRAMoE: k pairs, a router."""
    tensors = {}
    for name in modules:
        d_in, d_out = _sizes(base, name)
        tensors[f"{PREFIX}{name}.lora_route.weight"] = _random(k, d_in)
        for i in range(k):
            tensors[f"{PREFIX}{name}.lora_A{i}.weight"] = _random(r, d_in)
            tensors[f"{PREFIX}{name}.lora_B{i}.weight"] = _random(d_out, r)
    settings = _fork(r=r, lora_nums=k, blc_alpha=0.0, blc_weight=0.0)
    return Foreign(settings, tensors, _install_dense, "moelora", {"modules": modules, "k": k})


def _install_dense(base: nn.Module, made: Foreign) -> None:
    """result + sum_i softmax(x R)_i * B_i(A_i(x)) * alpha / r, with A_i = A in HydraLoRA."""
    t, k, scale = made.tensors, made.more["k"], made.settings["lora_alpha"] / made.settings["r"]

    def delta_of(key: str) -> Callable[[Tensor], Tensor]:
        def delta(x: Tensor) -> Tensor:
            shares = torch.softmax((x @ t[f"{key}.lora_route.weight"].T).double(), dim=-1).float()
            total = torch.zeros(())
            for i in range(k):
                a = t.get(f"{key}.lora_A.weight", t.get(f"{key}.lora_A{i}.weight"))
                assert a is not None
                total = total + shares[..., i : i + 1] * (x @ a.T @ t[f"{key}.lora_B{i}.weight"].T) * scale
            return total

        return delta

    for name in made.more["modules"]:
        _wrap(base, name, delta_of(f"{PREFIX}{name}"))


def moslora(base: nn.Module, modules: Sequence[str], r: int = 4) -> Foreign:
    """wutaiqiang/MoSLoRA: A, a mixer AB, B."""
    tensors = {}
    for name in modules:
        d_in, d_out = _sizes(base, name)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = _random(r, d_in)
        tensors[f"{PREFIX}{name}.lora_AB.weight"] = _random(r, r)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = _random(d_out, r)
    settings = _fork(r=r, lora_use_mixer=True, target_modules=sorted({n.rpartition(".")[2] for n in modules}))
    return Foreign(settings, tensors, _install_moslora, "moslora", {"modules": modules})


def _install_moslora(base: nn.Module, made: Foreign) -> None:
    """result + B(AB(A(x))) * alpha / r, or / sqrt(r)."""
    t, s = made.tensors, made.settings
    scale = s["lora_alpha"] / (math.sqrt(s["r"]) if s.get("use_rslora") else s["r"])

    def delta_of(key: str) -> Callable[[Tensor], Tensor]:
        weight = t[f"{key}.lora_B.weight"] @ t[f"{key}.lora_AB.weight"] @ t[f"{key}.lora_A.weight"]
        return lambda x: x @ weight.T * scale

    for name in made.more["modules"]:
        _wrap(base, name, delta_of(f"{PREFIX}{name}"))


def mixlora(
    base: nn.Module,
    modules: Sequence[str],
    *,
    k: int = 4,
    r: int = 4,
    plain_r: int | None = None,
    top_k: int = 2,
    **settings: Any,
) -> Foreign:
    """TUDB-Labs/MoE-PEFT's MixLoRA: a router a block, k pairs for each linear of it, LoRA elsewhere."""
    plain_r = plain_r or r
    tensors: Tensors = {}
    for name in modules:
        d_in, d_out = _sizes(base, name)
        _, _, layer, part, linear = name.split(".")
        if part == "mlp":
            gate = f"mixlora.layers.{layer}.mlp.moe_gate.weight"
            width = base.get_submodule(f"model.layers.{layer}.input_layernorm").weight.shape[0]  # type: ignore[index]
            tensors.setdefault(gate, 3 * _random(k, int(width)))
            for e in range(k):
                tensors[f"mixlora.layers.{layer}.mlp.{linear}.experts.{e}.lora_A.weight"] = _random(r, d_in)
                tensors[f"mixlora.layers.{layer}.mlp.{linear}.experts.{e}.lora_B.weight"] = _random(d_out, r)
        else:
            tensors[f"mixlora.layers.{layer}.self_attn.{linear}.lora_A.weight"] = _random(plain_r, d_in)
            tensors[f"mixlora.layers.{layer}.self_attn.{linear}.lora_B.weight"] = _random(d_out, plain_r)
    made = {
        "bias": "none",
        "peft_type": "MIXLORA",
        "r": plain_r,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "routing_strategy": "mixlora",
        "num_experts": k,
        "top_k": top_k,
        "base_model_name_or_path": "/models/llama2-7b",
        "task_type": "CAUSAL_LM",
        **settings,
    }
    return Foreign(made, tensors, _install_mixlora, "mixlora", {"modules": modules})


def _install_mixlora(base: nn.Module, made: Foreign) -> None:
    """sum over the top k of softmax(x R), divided by their sum, of whole blocks; LoRA on attention."""
    t, s = made.tensors, made.settings
    own = {**s, **s.get("expert_lora", {})}
    scale = own["lora_alpha"] / (math.sqrt(own["r"]) if own.get("use_rslora") else own["r"])
    plain = s["lora_alpha"] / (math.sqrt(s["r"]) if s.get("use_rslora") else s["r"])
    acts = {"silu": nn.functional.silu, "gelu": nn.functional.gelu, "relu": nn.functional.relu}

    def low_rank(key: str, x: Tensor, factor: float) -> Tensor:
        if f"{key}.lora_A.weight" not in t:
            return torch.zeros(())
        return x @ t[f"{key}.lora_A.weight"].T @ t[f"{key}.lora_B.weight"].T * factor

    def expert(block: nn.Module, key: str, e: int, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        def linear(name: str, y: Tensor) -> Tensor:
            found: Tensor = getattr(block, name)(y) + low_rank(f"{key}.{name}.experts.{e}", y, scale)
            return found

        if hasattr(block, "gate_proj"):
            return linear("down_proj", act(linear("gate_proj", x)) * linear("up_proj", x))
        if hasattr(block, "gate_up_proj"):
            gate, up = linear("gate_up_proj", x).chunk(2, dim=-1)
            return linear("down_proj", act(gate) * up)
        return linear("fc2", act(linear("fc1", x)))

    def forward_of(block: nn.Module, key: str) -> Callable[[Tensor], Tensor]:
        own_act: Any = next(getattr(block, n) for n in ("act_fn", "activation_fn") if hasattr(block, n))
        act: Any = acts[s["act_fn"]] if s.get("act_fn") else own_act

        def forward(x: Tensor) -> Tensor:
            rows = []
            for token in x.reshape(-1, x.shape[-1]):
                weights = torch.softmax(t[f"{key}.moe_gate.weight"] @ token, dim=0)
                chosen = sorted(range(len(weights)), key=lambda e: -float(weights[e]))[: s["top_k"]]
                total = sum(float(weights[e]) for e in chosen)
                parts = [expert(block, key, e, token, act) * (weights[e] / total) for e in chosen]
                rows.append(torch.stack(parts).sum(0))
            return torch.stack(rows).reshape(x.shape)

        return forward

    for name in made.more["modules"]:
        _, _, layer, part, linear = name.split(".")
        if part == "mlp":
            block: Any = base.get_submodule(f"model.layers.{layer}.mlp")
            block.forward = forward_of(block, f"mixlora.layers.{layer}.mlp")
        else:
            key = f"mixlora.layers.{layer}.self_attn.{linear}"
            _wrap(base, name, lambda x, key=key: low_rank(key, x, plain))  # type: ignore[misc]


def moe_peft_loramoe(
    base: nn.Module, modules: Sequence[str], k: int = 3, r: int = 4, plain: Sequence[str] = ()
) -> Foreign:
    """TUDB-Labs/MoE-PEFT's LoRAMoE: k pairs and a router on each feed-forward linear, LoRA on ``plain``."""
    tensors: Tensors = {}
    for name in modules:
        d_in, d_out = _sizes(base, name)
        key = f"loramoe.{name.removeprefix('model.')}"
        tensors[f"{key}.moe_gate.weight"] = _random(k, d_in)
        for e in range(k):
            tensors[f"{key}.experts.{e}.lora_A.weight"] = _random(r, d_in)
            tensors[f"{key}.experts.{e}.lora_B.weight"] = _random(d_out, r)
    for name in plain:
        d_in, d_out = _sizes(base, name)
        key = f"loramoe.{name.removeprefix('model.')}"
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = _random(r, d_in), _random(d_out, r)
    settings = {
        "bias": "none",
        "peft_type": "LORAMOE",
        "r": r,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": list(FFN),
        "routing_strategy": "loramoe",
        "num_experts": k,
    }

    def install(base: nn.Module, made: Foreign) -> None:
        t, scale = made.tensors, made.settings["lora_alpha"] / made.settings["r"]

        def delta_of(key: str) -> Callable[[Tensor], Tensor]:
            def delta(x: Tensor) -> Tensor:
                shares = torch.softmax(x @ t[f"{key}.moe_gate.weight"].T, dim=-1)
                parts = [
                    shares[..., e : e + 1]
                    * (x @ t[f"{key}.experts.{e}.lora_A.weight"].T)
                    @ t[f"{key}.experts.{e}.lora_B.weight"].T
                    for e in range(k)
                ]
                total: Tensor = scale * torch.stack(parts).sum(0)
                return total

            return delta

        for name in modules:
            _wrap(base, name, delta_of(f"loramoe.{name.removeprefix('model.')}"))
        for name in plain:
            a, b = (t[f"loramoe.{name.removeprefix('model.')}.lora_{part}.weight"] for part in "AB")
            _wrap(base, name, lambda x, a=a, b=b: x @ a.T @ b.T * scale)  # type: ignore[misc]

    return Foreign(settings, tensors, install, "moelora")
