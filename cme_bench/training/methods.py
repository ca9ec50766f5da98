"""From options to a PEFT config that is known to fit the base model, before any weight is loaded."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig
from torch import nn
from transformers import PretrainedConfig

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.meta_model import adapted, bare_model
from cme_bench.adapters.shared.targets import ATTENTION, candidates, default_targets
from cme_bench.errors import UsageError, did_you_mean, first_line
from cme_bench.training.options import DEFAULT_EXPERTS, ROUTED, TrainOptions

_CLASSES: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "adalora": AdaLoraConfig,
    "moslora": MosLoraConfig,
    "moelora": MoeLoraConfig,
    "hydralora": HydraLoraConfig,
    "teamlora": TeamLoraConfig,
}


def adapter_config(options: TrainOptions, base: PretrainedConfig, *, steps: int) -> PeftConfig:
    """The PEFT config that the options describe. ``alpha`` defaults to twice the rank.

    AdaLoRA: ``rank`` is the target rank, training starts at 1.5 times it; the budget shrinks between 10 % and
    70 % of ``steps`` (change it with ``--set``). Raises UsageError for unknown fields and impossible values.
    """
    cls = _CLASSES[options.method]
    known = {f.name for f in fields(cls)}
    for key in options.settings:
        if key not in known:
            raise UsageError(f"--set {key}: {options.method} has no such field{did_you_mean(key, known)}")
    alpha = 2.0 * options.rank if options.alpha is None else options.alpha
    given: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": _targets(options.targets, base)}
    if options.method in ("lora", "adalora"):
        given |= {"lora_alpha": alpha, "lora_dropout": options.dropout}
        given |= {"r": options.rank} if options.method == "lora" else _budget(options.rank, steps)
    else:
        given |= {"r": options.rank, "alpha": alpha, "dropout": options.dropout}
    if options.method in ROUTED:
        experts = DEFAULT_EXPERTS if options.experts is None else options.experts
        given |= {"num_experts": experts, "balance_coefficient": options.balance_loss}
    if options.method == "teamlora":
        given |= {"collaboration": options.collaboration, "competition": options.competition}
        if options.scaling is not None:
            given["scaling"] = _number_or_text(options.scaling)
    given |= options.settings
    try:
        if options.preset is not None:
            return TeamLoraConfig.preset(options.preset, **given)
        return cls(**given)
    except UsageError:
        raise
    except (TypeError, ValueError) as err:
        raise UsageError(f"{options.method}: {err}") from err


def check_fit(config: PeftConfig, base: PretrainedConfig) -> None:
    """Puts the adapter on a model without memory. UsageError, listing the linear layers, if none fits."""
    model = bare_model(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted(model, config)
    except UsageError:
        raise
    except ValueError as err:
        raise UsageError(_no_fit(config, model, err)) from err


def _no_fit(config: PeftConfig, model: nn.Module, err: ValueError) -> str:
    reason = first_line(err)
    if "not found" not in reason:
        return reason
    targets = config.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    return f"no layer is called {shown}; linear layers of this model: {', '.join(candidates(model))}"


def _targets(targets: str, base: PretrainedConfig) -> list[str] | str:
    """``ffn``, ``attention``, ``ffn+attention``, ``all-linear`` or a comma-separated list of layer names."""
    if targets == "all-linear":
        return targets
    if targets in ("ffn", "attention", "ffn+attention"):
        known = default_targets(base.model_type, attention=targets != "ffn")
        if known is None:
            names = ", ".join(candidates(bare_model(base)))
            raise UsageError(
                f"--targets {targets}: unknown for architecture {base.model_type!r}; name layers of: {names}"
            )
        return list(ATTENTION[base.model_type] if targets == "attention" else known)
    names_given = [name.strip() for name in targets.split(",") if name.strip()]
    if not names_given:
        raise UsageError("--targets names no layer")
    return names_given


def _budget(rank: int, steps: int) -> dict[str, int]:
    final = min(max(1, 3 * steps // 10), steps - 1)
    return {
        "target_r": rank,
        "init_r": -(-3 * rank // 2),
        "tinit": steps // 10,
        "tfinal": final,
        "deltaT": max(1, steps // 100),
        "total_step": steps,
    }


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
