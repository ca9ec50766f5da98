"""The description of an adapter: method, rank, experts, targets, and its size relative to the base model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from transformers import AutoConfig, PretrainedConfig

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import read_config, tensor_shapes, weights_file
from cme_bench.adapters.meta_model import adapted, bare_model, base_parameters, kept_model, saved_shapes
from cme_bench.adapters.registry import method_of
from cme_bench.adapters.shared.towers import language_parameters
from cme_bench.adapters.vocabulary import PREFIX, base_name
from cme_bench.util.auto_model import sees
from cme_bench.util.found_fields import FOUND


@dataclass(frozen=True)
class AdapterDescription:
    """An adapter in numbers.

    Attributes:
        method: Name of the method in lower case, as "teamlora".
        rank: Rank; of one expert where there are experts. None if the method has none.
        experts: Number of experts, or None.
        targets: Names of the adapted layers, or one regular expression.
        trainable_parameters: Numbers in the adapter, router included.
        base_parameters: Numbers in the base model; None if the base model is unknown.
        percent_of_base: 100 trainable / base; None if the base model is unknown.
        percent_of_language_model: 100 trainable / language model of a vision-language base; None for others.
        settings: The fields of the method that decide what it computes.
        config: Every public field of its PEFT config but paths, seeds, what a training finds and what
            decides nothing; it holds what two trainings may differ in, and no part in equality.
    """

    method: str
    rank: int | None
    experts: int | None
    targets: tuple[str, ...]
    trainable_parameters: int
    base_parameters: int | None
    percent_of_base: float | None
    settings: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict, compare=False)
    percent_of_language_model: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


def describe(
    source: PeftModel | PeftConfig | str | Path, base: PretrainedConfig | str | Path | None = None
) -> AdapterDescription:
    """Describe an adapted model, an adapter folder, or an adapter's config; no weight is ever loaded.

    Args:
        source: A ``PeftModel`` (its active adapter), a folder, or a config.
        base: Config of the base model, or a local folder that has one. Needed with a config; with a folder it
            defaults to the recorded base model, if that is a local folder; without it the percentage is
            unknown.

    Raises AdapterError if the folder is no adapter, or the config does not fit the base model.
    """
    if isinstance(source, PeftModel):
        return _describe_model(source)
    if isinstance(source, PeftConfig):
        if base is None:
            raise AdapterError("describing an adapter config needs the base model's config")
        try:
            return _describe_model(adapted(bare_model(_base_config(base)), source))
        except AdapterError:
            raise
        except ValueError as error:
            raise AdapterError(str(error)) from None
    folder = Path(source)
    config = read_config(folder)
    trainable = sum(prod(shape) for shape in trained_shapes(folder, config).values())
    if base is None and config.base_model_name_or_path:
        recorded = Path(config.base_model_name_or_path)
        base = recorded if (recorded / "config.json").is_file() else None
    if base is None:
        return _describe(config, trainable, None)
    whole = kept_model(_base_config(base))
    total = sum(p.numel() for p in whole.parameters())
    return _describe(config, trainable, total, language_parameters(whole))


def trained_shapes(folder: Path, config: PeftConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in an adapter's file but the base's own, such as the embeddings that
    PEFT saves beside a LoRA on them.

    A base weight is one that carries neither the method's prefix nor the name of a module that was saved
    whole.
    """
    found = tensor_shapes(weights_file(folder))
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type)
    if not prefix:
        return found
    whole = {name.rpartition(".")[2] for name in getattr(config, "modules_to_save", None) or ()}

    def of_base(key: str) -> bool:
        parts = base_name(key).removesuffix(".weight").split(".")
        inside = base_name(key) != key.removeprefix(
            PREFIX
        )  # of a wrapper: what is trained has a name of its own
        return (
            key.endswith(".weight")
            and prefix not in key
            and parts[-1] in EMBEDDING_LAYER_NAMES
            and (inside or not whole.intersection(parts))
        )

    return {key: shape for key, shape in found.items() if not of_base(key)}


def _describe_model(model: PeftModel) -> AdapterDescription:
    name = model.active_adapter
    if not isinstance(name, str):
        raise AdapterError(f"{len(name)} adapters are active; activate one with set_adapter to describe it")
    return describe_adapter(model, name)


def describe_adapter(model: PeftModel, name: str) -> AdapterDescription:
    """Describe one adapter of a model, active or not."""
    # Counted by what is saved: an adapter that was loaded for inference is frozen, and counts the same.
    trainable = sum(map(prod, saved_shapes(model, name).values()))
    config = getattr(model.get_base_model(), "config", None)
    language = language_parameters(bare_model(config)) if config is not None and sees(config) else None
    return _describe(model.peft_config[name], trainable, base_parameters(model), language)


def _describe(
    config: PeftConfig, trainable: int, base: int | None, language: int | None = None
) -> AdapterDescription:
    # The value as saved is a plain string, whereas str() of an enum member is not.
    fields = {key: getattr(value, "value", value) for key, value in config.to_dict().items()}
    method = method_of(config)
    settings = _SETTINGS if method is None else method.settings
    found = FOUND.get(str(fields["peft_type"]).lower(), frozenset())
    targets = fields.get("target_modules")
    named = (targets,) if isinstance(targets, str) else tuple(sorted(targets or ()))
    return AdapterDescription(
        method=str(fields["peft_type"]).lower(),
        rank=fields.get("r" if method is None else method.rank_field),
        experts=fields.get("num_experts"),
        targets=named,
        trainable_parameters=trainable,
        base_parameters=base,
        percent_of_base=None if base is None else 100 * trainable / base,
        settings={key: _plain(fields[key]) for key in settings if key in fields},
        config={
            key: _plain(value)
            for key, value in sorted(fields.items())
            if key not in _DECIDES_NOTHING and key not in found and not key.startswith("_")
        },
        percent_of_language_model=None if language is None else 100 * trainable / language,
    )


def _plain(value: Any) -> Any:
    """Return ``value`` of a config's field as JSON has it; sets in order."""
    value = getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in sorted(value.items(), key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _base_config(base: PretrainedConfig | str | Path) -> PretrainedConfig:
    if isinstance(base, PretrainedConfig):
        return base
    if not (Path(base) / "config.json").is_file():
        raise AdapterError(f"{base} is not a local model folder: it has no config.json")
    return AutoConfig.from_pretrained(base)


_DECIDES_NOTHING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",  # the method
        "peft_version",
        "projection_prng_key",  # VeRA's seed
        "revision",
        "runtime_config",
        "seed",
        "task_type",
        "tokenizer_name_or_path",
    }
)
_SETTINGS = ("alpha", "lora_alpha", "scaling", "dropout", "lora_dropout", "use_rslora", "use_dora")
"""Settings of methods of PEFT that are not registered here."""
