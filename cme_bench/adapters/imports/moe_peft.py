"""Checkpoints of MoE-PEFT (and of the package mixlora, and mLoRA before them): MixLoRA and LoRAMoE."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.imports.layers import Layer, one_of
from cme_bench.adapters.imports.layout import Converted, Given, Layout
from cme_bench.adapters.imports.settings import (
    RECORDED,
    anything,
    check_count,
    check_settings,
    dropout,
    number,
    off,
    scaled,
)
from cme_bench.adapters.imports.source import Source
from cme_bench.adapters.methods.mixlora import MixLoraConfig
from cme_bench.adapters.methods.moelora import MoeLoraConfig

_FACTORS = r"(?P<factor>lora_[AB])\.weight"
_EXPERT = re.compile(rf"layers\.(?P<i>\d+)\.mlp\.(?P<name>\w+)\.experts\.(?P<e>\d+)\.{_FACTORS}")
_OLD_EXPERT = re.compile(rf"layers\.(?P<i>\d+)\.experts\.(?P<e>\d+)\.(?P<name>\w+)\.{_FACTORS}")
_PLAIN = re.compile(rf"layers\.(?P<i>\d+)\.self_attn\.(?P<name>\w+)\.{_FACTORS}")
_BLOCK_GATE = re.compile(r"layers\.(?P<i>\d+)\.(?:mlp\.moe_gate|gate)\.weight")
_LINEAR_GATE = re.compile(r"layers\.(?P<i>\d+)\.mlp\.(?P<name>\w+)\.moe_gate\.weight")
_OLD_NAMES = {"w1_proj": "gate_proj", "w2_proj": "down_proj", "w3_proj": "up_proj"}
"""Names of the linears before August 2024, when ``routing_strategy`` was "mixtral"."""
_OUTPUTS = ("down_proj", "fc2", "dense_4h_to_h")
"""Linears that read the inside of a block, not what its router reads."""
_LORA: dict[str, Any] = {
    **RECORDED,
    **dict.fromkeys("r lora_alpha lora_dropout target_modules num_experts bias name".split(), anything),
    # The start of a training, and its loss.
    **dict.fromkeys("lora_init router_init_range router_aux_loss_coef router_loss".split(), anything),
    "use_rslora": anything,
    # The magnitudes are not in their file: what was trained cannot be computed from it.
    "use_dora": off,
}
_MIXLORA = {
    **_LORA,
    **dict.fromkeys("top_k jitter_noise act_fn expert_lora".split(), anything),
    "peft_type": lambda value: value in (None, "MIXLORA"),
    # Top-p and switch routing are functions of another kind.
    "routing_strategy": lambda value: value in ("mixlora", "mixtral"),
}
_LORAMOE = {
    **_LORA,
    "peft_type": lambda value: value in (None, "LORAMOE"),
    "routing_strategy": lambda value: value in (None, "loramoe"),
}


def starts(keys: Sequence[str], prefix: str) -> bool:
    """Return whether any name begins with ``<prefix>.layers.``"""
    return any(key.startswith(f"{prefix}.layers.") for key in keys)


def _mixlora(source: Source, given: Given) -> Converted:
    """Return ``sum_i omega_i E_i(x)`` over the top k of ``softmax(x R)`` in float32, divided by their sum.

    Experts scale by ``expert_lora``'s alpha / r where there is one, as MoE-PEFT trains them; attention by the
    main alpha / r. (The package mixlora takes the main ones for both.)
    """
    experts, plain, gates = _sort(source, "mixlora", _BLOCK_GATE)
    check_settings(source, _MIXLORA, "mixlora")
    expert_settings = {**source.settings, **_expert_settings(source)}
    tensors: dict[str, Tensor] = {}
    k = _count(source, gates)
    ranks: dict[str, tuple[int, ...]] = {}
    for module, pairs in experts.items():
        rank, down, up = _stacked(source, module, pairs, k)
        ranks[module] = (rank,)
        block, _, linear = module.rpartition(".")
        _check_gate(source, gates, block, None if linear in _OUTPUTS else down.shape[1])
        tensors |= {f"{block}.mixlora_{linear}_down": down, f"{block}.mixlora_{linear}_up": up}
    for block, gate in gates.items():
        if not any(module.startswith(f"{block}.") for module in experts):
            raise AdapterError(f"{source.file}: {_gate_name(source, block)} has no experts")
        tensors[f"{block}.mixlora_router"] = gate.float()
    (rank,) = one_of(source.file, ranks, "the experts' rank")
    own = scaled(source, expert_settings, rank, alpha=given.alpha)
    fields = {
        "r": rank,
        "alpha": own.alpha,
        "num_experts": k,
        "top_k": source.settings.get("top_k", 2),
        "act_fn": source.settings.get("act_fn"),
        "jitter_noise": number(source, "jitter_noise"),
        "balance_coefficient": number(source, "router_aux_loss_coef"),
        "dropout": dropout(expert_settings),
    }
    scale = f"{own.alpha / rank:g} for experts"
    if plain:
        attention, more = _attention(source, plain, given)
        tensors |= more
        fields |= {"attention_r": attention.rank, "attention_alpha": attention.alpha}
        scale += f", {attention.alpha / attention.rank:g} for attention"
    rule = "lora_alpha / sqrt(r)" if source.settings.get("use_rslora") else "lora_alpha / r"
    return Converted(MixLoraConfig, fields, (*experts, *plain), tensors, f"{scale}, {rule}", _notes(source))


def _loramoe(source: Source, given: Given) -> Converted:
    """Return ``(alpha / r) sum_i g_i x A_i B_i`` on each feed-forward linear, ``g = softmax(x R)``.

    A plain LoRA, which MoE-PEFT puts on attention, is a mixture of k experts that are that LoRA: shares sum
    to 1.
    """
    experts, plain, gates = _sort(source, "loramoe", _LINEAR_GATE)
    check_settings(source, _LORAMOE, "loramoe")
    k = _count(source, gates)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, ...]] = {}
    for module, pairs in experts.items():
        rank, down, up = _stacked(source, module, pairs, k)
        ranks[module] = (rank,)
        _check_gate(source, gates, module, down.shape[1])
        own = {"down": down, "up": up, "router": gates[module].float()}
        tensors |= {f"{module}.moelora_{part}": tensor for part, tensor in own.items()}
    if alone := [module for module in gates if module not in experts]:
        raise AdapterError(f"{source.file}: {_gate_name(source, alone[0])} has no experts")
    for module, layer in plain.items():
        pair = _pair(layer)
        ranks[module] = (len(pair["lora_A"]),)
        tensors |= {
            f"{module}.moelora_down": pair["lora_A"].repeat(k, 1),
            f"{module}.moelora_up": pair["lora_B"].repeat(1, k),
            f"{module}.moelora_router": torch.zeros(k, pair["lora_A"].shape[1]),
        }
    (rank,) = one_of(source.file, ranks, "rank")
    found = scaled(source, source.settings, rank, alpha=given.alpha)
    fields = {"r": rank, "num_experts": k, "alpha": found.alpha, "dropout": dropout(source.settings)}
    rule = "lora_alpha / sqrt(r)" if source.settings.get("use_rslora") else "lora_alpha / r"
    notes = (
        f"{source.file}: the plain LoRAs of {len(plain)} linears become {k} equal experts each, which "
        "compute the same",
    )
    return Converted(
        MoeLoraConfig,
        fields,
        (*experts, *plain),
        tensors,
        f"{found.alpha / rank:g}, {rule}",
        notes if plain else (),
    )


def _expert_settings(source: Source) -> Mapping[str, Any]:
    """Return the settings of the experts that differ from the adapter's own."""
    own = source.settings.get("expert_lora") or {}
    if not isinstance(own, dict):
        raise AdapterError(f"{source.config}: field 'expert_lora' is no table of settings")
    check_settings(Source(source.file, source.config, own, {}), _LORA, "mixlora (expert_lora)")
    return own


def _sort(
    source: Source, prefix: str, gate: re.Pattern[str]
) -> tuple[dict[str, dict[tuple[int, str], Tensor]], dict[str, Layer], dict[str, Tensor]]:
    """Return the factors of the experts by linear, the plain LoRAs, and the routers by what they route."""
    experts: dict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    plain: dict[str, Layer] = defaultdict(lambda: Layer(""))
    gates: dict[str, Tensor] = {}
    for key, tensor in source.tensors.items():
        name = key.removeprefix(f"{prefix}.")
        place = f"model.layers.{name.split('.')[1]}" if name.startswith("layers.") else ""
        if name == key:
            found = None
        elif (
            found := _EXPERT.fullmatch(name) or (prefix == "mixlora" and _OLD_EXPERT.fullmatch(name)) or None
        ):
            linear = _OLD_NAMES.get(found["name"], found["name"])
            experts[f"{place}.mlp.{linear}"][int(found["e"]), found["factor"]] = tensor
        elif found := _PLAIN.fullmatch(name):
            layer = plain[f"{place}.self_attn.{found['name']}"]
            layer.where = f"{source.file}: {prefix}.layers.{found['i']}.self_attn.{found['name']}"
            layer.tensors[found["factor"]] = tensor
        elif found := gate.fullmatch(name):
            gates[".".join((place, "mlp", *list(found.groupdict().values())[1:]))] = tensor
        if found is None:
            raise AdapterError(f"{source.file}: tensor {key} is not in the layout {prefix}")
    if not experts:
        raise AdapterError(f"{source.file} holds no expert")
    return dict(experts), dict(plain), gates


def _count(source: Source, gates: Mapping[str, Tensor]) -> int:
    """Return the number of experts, which every router must have."""
    if not gates:
        raise AdapterError(f"{source.file} holds no router (moe_gate)")
    for place, gate in gates.items():
        if gate.ndim != 2:
            raise AdapterError(
                f"{source.file}: {_gate_name(source, place)} has shape {list(gate.shape)}, not two dimensions"
            )
    (k,) = one_of(source.file, {place: (len(gate),) for place, gate in gates.items()}, "number of experts")
    check_count(source, "num_experts", k, "rows in a router")
    if k < 2:
        raise AdapterError(f"{source.file} has {k} expert; a mixture has at least 2")
    return k


def _check_gate(source: Source, gates: Mapping[str, Tensor], place: str, d_in: int | None) -> None:
    """Raise AdapterError if a router is missing, or reads an input of another width."""
    name = _gate_name(source, place)
    if place not in gates:
        raise AdapterError(f"{source.file}: {name} is missing")
    if d_in is not None and gates[place].shape[1] != d_in:
        raise AdapterError(
            f"{source.file}: {name} has shape {list(gates[place].shape)}, the other tensors ask for "
            f"{[len(gates[place]), d_in]}"
        )


def _gate_name(source: Source, place: str) -> str:
    """Return the name of a router in the file, or the one that it should have."""
    inner = place.removeprefix("model.")
    old = inner.replace(".mlp", ".gate") + ".weight"
    found = next((key for key in source.tensors if key.endswith(old)), None)
    return found or f"{inner}.moe_gate.weight"


def _stacked(
    source: Source, module: str, pairs: Mapping[tuple[int, str], Tensor], k: int
) -> tuple[int, Tensor, Tensor]:
    """Return the rank of an expert, the A_i one under the other and the B_i side by side."""
    layer = Layer(
        f"{source.file}: {module}", {f"experts.{e}.{factor}": tensor for (e, factor), tensor in pairs.items()}
    )
    if over := [e for e, _ in pairs if e >= k]:
        raise AdapterError(f"{layer.where}.experts.{over[0]} is there, but the router has {k} experts")
    downs = [f"experts.{e}.lora_A" for e in range(k)]
    ups = [f"experts.{e}.lora_B" for e in range(k)]
    rank, d_in = layer.get(downs[0]).shape
    d_out = layer.get(ups[0]).shape[0]
    parts = layer.take({**dict.fromkeys(downs, (rank, d_in)), **dict.fromkeys(ups, (d_out, rank))})
    return rank, torch.cat([parts[name] for name in downs]), torch.cat([parts[name] for name in ups], dim=1)


def _attention(source: Source, plain: Mapping[str, Layer], given: Given) -> tuple[Any, dict[str, Tensor]]:
    """Return rank and alpha of the plain LoRAs, and their tensors."""
    tensors: dict[str, Tensor] = {}
    ranks = {}
    for module, layer in plain.items():
        parts = _pair(layer)
        ranks[module] = (len(parts["lora_A"]),)
        tensors |= {f"{module}.mixlora_down": parts["lora_A"], f"{module}.mixlora_up": parts["lora_B"]}
    (rank,) = one_of(source.file, ranks, "the attention's rank")
    return scaled(source, source.settings, rank, alpha=given.alpha), tensors


def _pair(layer: Layer) -> dict[str, Tensor]:
    """Return A and B of a plain LoRA."""
    rank, d_in = layer.get("lora_A").shape
    return layer.take({"lora_A": (rank, d_in), "lora_B": (layer.get("lora_B").shape[0], rank)})


def _notes(source: Source) -> tuple[str, ...]:
    own = source.settings.get("expert_lora") or {}
    alpha = source.settings.get("lora_alpha")
    if own.get("lora_alpha", alpha) == alpha:
        return ()
    return (
        f"{source.config}: experts take expert_lora's lora_alpha {own['lora_alpha']}, as MoE-PEFT trains "
        f"them; the package mixlora would take {alpha}",
    )


MIXLORA = Layout(
    "mixlora",
    "TUDB-Labs/MoE-PEFT, moe_peft/adapters/mixlora/model.py, and TUDB-Labs/MixLoRA, mixlora/model.py",
    lambda keys, settings: starts(keys, "mixlora"),
    _mixlora,
)
LORAMOE = Layout(
    "loramoe",
    "TUDB-Labs/MoE-PEFT, moe_peft/adapters/loramoe/model.py",
    lambda keys, settings: starts(keys, "loramoe"),
    _loramoe,
)
