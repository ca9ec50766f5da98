from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import peft_type
from cme_bench.adapters.shared.config import RoutedConfig
from cme_bench.errors import did_you_mean

SCALINGS = ("alpha/r", "alpha/(k*r)")
DROPOUT_PLACES = ("input", "latent")

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "scaling": "alpha/r",
        "normalize_omega": False,
        "omega_times_k": False,
        "dropout_place": "input",
        "balance_coefficient": 0.0,
    },
    # Their r is the rank of all experts together, so their alpha / r is alpha / (k r) in our terms.
    "authors-2024-08": {
        "scaling": "alpha/(k*r)",
        "normalize_omega": True,
        "omega_times_k": True,
        "dropout_place": "latent",
    },
}
"""The two published conventions, as field values: the paper's formula, and the layer published on
2024-08-19."""

_LARGEST_INIT = 1e6  # far beyond any use, and far below where float32 ends


@dataclass
class TeamLoraConfig(RoutedConfig):
    """TeamLoRA (arXiv 2408.09856): one shared down-projection, k plug-in up-projections, experts in
    competition.

    ``z = x A``, ``omega = M softmax(x S)``, ``h = x W0 + scale * sum_i omega_i z_i B_i`` with z_i the i-th
    slice of z. The sources disagree on the scale by up to k^2, so every convention is a field and is saved
    with the adapter.

    Args:
        scaling: "alpha/r", "alpha/(k*r)" (r = rank of one expert) or a number that takes alpha's place
            altogether.
        normalize_omega: Divide omega by its sum over the experts, clamped from below.
        omega_times_k: Multiply omega by k (after the renormalisation, if any).
        dropout_place: "input" drops elements of x before A; "latent" drops elements of the gated z.
        interaction_init: The off-diagonals of M start uniform in +- this; its diagonal starts at 1.
        collaboration: One shared A whose output is sliced. False for k independent A_i, which side by side
            are the same parameters and the same function: the switch names an ablation and changes no number.
        competition: omega = M phi with a learnable M. False for a plain softmax router (M = I, not stored).
    """

    scaling: str | float = field(default="alpha/r", metadata={"help": "alpha/r, alpha/(k*r) or a number."})
    normalize_omega: bool = field(default=False, metadata={"help": "Divide omega by its sum."})
    omega_times_k: bool = field(default=False, metadata={"help": "Multiply omega by the number of experts."})
    dropout_place: Literal["input", "latent"] = field(
        default="input", metadata={"help": "Drop elements of the input or of the gated latent."}
    )
    interaction_init: float = field(
        default=0.1, metadata={"help": "Bound of M's off-diagonals at the start."}
    )
    collaboration: bool = field(default=True, metadata={"help": "One shared, sliced down-projection."})
    competition: bool = field(default=True, metadata={"help": "Learnable interaction matrix M."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("teamlora")
        if isinstance(self.scaling, str) and self.scaling not in SCALINGS:
            raise AdapterError(f"scaling must be {' or '.join(SCALINGS)} or a number, got {self.scaling!r}")
        if self.dropout_place not in DROPOUT_PLACES:
            raise AdapterError(
                f"dropout_place must be one of {', '.join(DROPOUT_PLACES)}, got {self.dropout_place!r}"
            )
        if self.interaction_init < 0:
            raise AdapterError(f"interaction_init must not be negative, got {self.interaction_init!r}")
        if not self.interaction_init <= _LARGEST_INIT:
            raise AdapterError(f"interaction_init is too large, got {self.interaction_init!r}")

    @classmethod
    def preset(cls, name: str, **fields: Any) -> TeamLoraConfig:
        """The config of a published convention, "paper" or "authors-2024-08"; ``fields`` add to it and win
        over it.

        Raises AdapterError for another name.
        """
        if name not in PRESETS:
            raise AdapterError(f"unknown TeamLoRA preset {name!r}{did_you_mean(name, PRESETS)}")
        return cls(**{**PRESETS[name], **fields})

    @property
    def scale(self) -> float:
        """The factor on ``sum_i omega_i z_i B_i``, the factor k of ``omega_times_k`` included."""
        if isinstance(self.scaling, str):
            scale = self.alpha / self.r
            if self.scaling == "alpha/(k*r)":
                scale /= self.num_experts
        else:
            scale = self.scaling
        return scale * self.num_experts if self.omega_times_k else scale
