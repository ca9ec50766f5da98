"""Fields that low-rank methods on linear layers share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft.config import PeftConfig

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import type_of

INITS = ("zero", "random")


def rank_per_expert(total: int, experts: int) -> int:
    """Return the rank of one expert when ``total`` is divided evenly among ``experts``.

    Raises AdapterError when it does not divide; the error names the two numbers.
    """
    if total < 1 or total % experts:
        raise AdapterError(f"rank {total} does not divide into {experts} experts of equal rank")
    return total // experts


@dataclass
class AdapterConfig(PeftConfig):  # type: ignore[misc]  # peft carries no types
    """Configuration of a low-rank adapter on linear layers.

    Args:
        r: Rank; of ONE expert where the method has experts.
        alpha: Numerator of the scaling, ``alpha / r`` unless the method says otherwise.
        dropout: Probability of dropping an element of the adapter's input.
        target_modules: Names, or one regular expression, of the linear layers to adapt. Default: the
            feed-forward linears of the base model's architecture (``cme_bench.adapters.shared.targets``).
        target_attention: With the default targets, adapt the attention projections too.
        exclude_modules: Names, or one regular expression, of layers to leave alone.
        layers_to_transform: Indices of the decoder layers to adapt; default all.
        layers_pattern: Name of the list of decoder layers, if ``layers_to_transform`` needs it.
        modules_to_save: Other modules to train and save whole.
        init: "zero" starts the up-projections at zero, so that the adapted model equals the base; "random"
            starts them at random, which only tests and measurements want.
    """

    r: int = field(default=16, metadata={"help": "Rank (of one expert)."})
    alpha: float = field(default=32.0, metadata={"help": "Numerator of the scaling."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Linear layers to adapt; default: the feed-forward linears."}
    )
    target_attention: bool = field(
        default=False, metadata={"help": "With default targets, adapt the attention projections too."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the decoder layers to adapt; default all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of decoder layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save whole."}
    )
    init: Literal["zero", "random"] = field(
        default="zero", metadata={"help": "Start of the up-projections: zero (adapter = identity) or random."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = type_of(type(self))
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        self._check_layers()
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise AdapterError(f"{part.name} must be a finite number, got {value!r}")
        if not is_int(self.r) or self.r < 1:
            raise AdapterError(f"r must be a positive integer, got {self.r!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise AdapterError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.init not in INITS:
            raise AdapterError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")

    def _check_layers(self) -> None:
        """Check that layers are picked by index among named targets only, as in PEFT's own methods."""
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise AdapterError(
                    f"{name} cannot be used with target_modules {self.target_modules!r}; list layers' names"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise AdapterError("layers_pattern needs layers_to_transform")

    @property
    def scale(self) -> float:
        """The factor on the adapter's output, without unit."""
        return self.alpha / self.r

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; sets become sorted lists, so that a saved file is
        reproducible."""
        return {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in super().to_dict().items()
        }


def _as_set(names: list[str] | set[str] | str | None) -> set[str] | str | None:
    return set(names) if isinstance(names, list) else names


def is_int(value: object) -> bool:
    """Return whether ``value`` is a whole number, which a truth value is not."""
    return isinstance(value, int) and not isinstance(value, bool)
