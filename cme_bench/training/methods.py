"""From options to a PEFT config that is known to fit the base model, before any weight is loaded."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from cme_bench.adapters import registry
from cme_bench.adapters.field_types import misfit
from cme_bench.adapters.meta_model import adapted, bare_model
from cme_bench.adapters.registry import Method, TrainingSettings
from cme_bench.adapters.shared.targets import ATTENTION, candidates, default_targets
from cme_bench.adapters.shared.towers import language_type, outside_language
from cme_bench.training.options import DEFAULT_EXPERTS, TrainOptions
from cme_bench.util.auto_model import sees
from cme_bench.util.errors import UsageError, did_you_mean, first_line

_FIELDS = {
    "rank": (),  # the one that the method registers
    "alpha": ("alpha", "lora_alpha"),
    "dropout": ("dropout", "lora_dropout"),
    "targets": ("target_modules",),
    "experts": ("num_experts",),
    "balance_loss": ("balance_coefficient",),
    "scaling": ("scaling",),
    "collaboration": ("collaboration",),
    "competition": ("competition",),
}
"""Option -> the fields of a config, one at most, that it sets. It belongs to the methods that have one."""
_DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}


def adapter_config(options: TrainOptions, base: PretrainedConfig, *, steps: int) -> PeftConfig:
    """Return the PEFT config that the options describe. ``alpha`` defaults to twice the rank.

    Raises UsageError for unknown fields, options of another method, and impossible values.
    """
    method = registry.method(options.method)
    known = method.fields
    for key in options.settings:
        if key not in known:
            raise UsageError(f"--set {key}: {options.method} has no such field{did_you_mean(key, known)}")
    if problem := misfit(options.settings, method.config_class):
        raise UsageError(f"--set: {problem}")
    asked = TrainingSettings(
        rank=options.rank,
        alpha=2.0 * options.rank if options.alpha is None else options.alpha,
        dropout=options.dropout,
        experts=DEFAULT_EXPERTS if options.experts is None else options.experts,
        balance_loss=options.balance_loss,
        steps=steps,
    )
    given: dict[str, Any] = {"task_type": "CAUSAL_LM", **_from_options(options, method, asked, base)}
    if method.train is not None:
        given |= method.train(asked)
    given |= options.settings
    try:
        if options.preset is not None:
            config: PeftConfig = method.config_class.preset(options.preset, **given)
            return config
        return method.config_class(**given)
    except UsageError:
        raise
    except (TypeError, ValueError) as err:
        raise UsageError(f"{options.method}: {err}") from err


def _from_options(
    options: TrainOptions, method: Method, asked: TrainingSettings, base: PretrainedConfig
) -> dict[str, Any]:
    """Return the fields of the method's config that options name."""
    values: dict[str, Any] = {
        **{name: getattr(asked, name) for name in ("rank", "alpha", "dropout", "experts", "balance_loss")},
        "collaboration": options.collaboration,
        "competition": options.competition,
    }
    if _field_of("targets", method) is not None:
        values["targets"] = _targets(options.targets, base)
    fields = {}
    if "exclude_modules" in method.fields and sees(base):
        fields["exclude_modules"] = outside_language(bare_model(base))
    if options.scaling is not None:
        values["scaling"] = _number_or_text(options.scaling)
    named = ((_field_of(name, method), value) for name, value in values.items())
    return fields | {field: value for field, value in named if field is not None}


def check_switches(options: TrainOptions) -> None:
    """Raise UsageError for an option that was given and that the method has no field for: ignored without a
    word, it would mislead."""
    method = registry.method(options.method)
    for option in (*_FIELDS, "preset"):
        value = getattr(options, option)
        if value == _DEFAULTS[option] or _takes(option, method):
            continue
        flag = f"--{'no-' if value is False else ''}{option.replace('_', '-')}"
        if option in ("experts", "balance_loss"):
            why = f"{method.name} has no experts (methods that do: {', '.join(registry.routed_names())})"
            raise UsageError(f"{flag}: {why}")
        owners = " and ".join(other.name for other in registry.methods() if _takes(option, other))
        raise UsageError(f"{flag} belongs to {owners}, not to {method.name}")
    if options.experts is not None and options.experts < 2:
        raise UsageError(f"--experts must be at least 2, got {options.experts}; for one expert use lora")


def _takes(option: str, method: Method) -> bool:
    if option == "preset":
        return hasattr(method.config_class, "preset")
    by_itself = method.train is not None and (option == "rank" or (option == "experts" and method.routed))
    return by_itself or _field_of(option, method) is not None


def _field_of(option: str, method: Method) -> str | None:
    names = (method.rank_field,) if option == "rank" else _FIELDS[option]
    return next((name for name in names if name in method.fields), None)


def check_fit(config: PeftConfig, base: PretrainedConfig) -> int:
    """Put the adapter on a model without memory; return how many numbers are trained. UsageError, listing the
    linear layers, if none fits."""
    model = bare_model(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = adapted(model, config)
    except UsageError:
        raise
    except ValueError as err:
        raise UsageError(_no_fit(config, model, err)) from err
    return sum(parameter.numel() for parameter in fitted.parameters() if parameter.requires_grad)


def _no_fit(config: PeftConfig, model: nn.Module, err: ValueError) -> str:
    reason = first_line(err)
    if "not found" not in reason:
        return reason
    targets = config.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    return f"no layer is called {shown}; linear layers of this model: {', '.join(candidates(model))}"


def _targets(targets: str, base: PretrainedConfig) -> list[str] | str:
    """Return the targets that ``ffn``, ``attention``, ``ffn+attention``, ``all-linear`` or a list of layer
    names stand for."""
    if targets == "all-linear":
        return targets
    if targets in ("ffn", "attention", "ffn+attention"):
        architecture = language_type(base)
        known = default_targets(architecture, attention=targets != "ffn")
        if known is None:
            names = ", ".join(candidates(bare_model(base)))
            raise UsageError(
                f"--targets {targets}: unknown for architecture {architecture!r}; name layers of: {names}"
            )
        return list(ATTENTION[architecture] if targets == "attention" else known)
    names_given = [name.strip() for name in targets.split(",") if name.strip()]
    if not names_given:
        raise UsageError("--targets names no layer")
    return names_given


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
