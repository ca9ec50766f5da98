"""TeamLoRA (arXiv 2408.09856)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import Measured, register
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.gated import FUSED, routed_form
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.shared.layer import Shapes
from cme_bench.adapters.shared.model import AdapterModel
from cme_bench.util.errors import did_you_mean

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
        """Return the config of a published convention, "paper" or "authors-2024-08"; ``fields`` add to it and
        win over it.

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


class TeamLoraLinear(RoutedLinear[TeamLoraConfig]):
    """A linear layer with TeamLoRA (arXiv 2408.09856).

    ``z = x A``, ``phi = softmax(x S)``, ``omega = M phi``, ``h = x W0 + scale * sum_i omega_i z_i B_i``,
    computed as ``scale * (z * repeat_interleave(omega, r)) B``: a LoRA of rank k r whose latent is gated per
    token.

    Parameters of one adapter, as saved:
        teamlora_down: (k r, d_in), A transposed; rows i r to (i + 1) r give z_i.
        teamlora_up: (d_out, k r), columns i r to (i + 1) r are B_i transposed.
        teamlora_router: (k, d_in), S transposed.
        teamlora_interaction: (k, k), M itself: omega_i = sum_j M_ij phi_j. Absent without competition.
    """

    method = "teamlora"
    adapter_layer_names = ("teamlora_down", "teamlora_up", "teamlora_router", "teamlora_interaction")

    @staticmethod
    def shapes(config: TeamLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        k, width = config.num_experts, config.num_experts * config.r
        shapes: Shapes = {
            "teamlora_down": (width, d_in),
            "teamlora_up": (d_out, width),
            "teamlora_router": (k, d_in),
        }
        if config.competition:
            shapes["teamlora_interaction"] = (k, k)
        return shapes

    def reset(self, adapter_name: str) -> None:
        """Start as every routed adapter does; M has ones on its diagonal, and elsewhere U(-b, b), b =
        ``interaction_init``."""
        super().reset(adapter_name)
        config = self.settings[adapter_name]
        if config.competition:
            interaction = self.held("interaction", adapter_name)
            nn.init.uniform_(interaction, -config.interaction_init, config.interaction_init)
            with torch.no_grad():
                interaction.fill_diagonal_(1.0)

    def interaction(self, adapter_name: str) -> Tensor | None:
        """Return M, (k, k); None without competition."""
        return self.held("interaction", adapter_name) if self.settings[adapter_name].competition else None

    def normalizes(self, adapter_name: str) -> bool:
        """Return whether omega is divided by its sum."""
        divided: bool = self.settings[adapter_name].normalize_omega
        return divided

    def input_dropout(self, adapter_name: str) -> float:
        """Return the probability of dropping an element of x; 0 where dropout falls on the latent."""
        config = self.settings[adapter_name]
        return config.dropout if config.dropout_place == "input" else 0.0

    def latent_dropout(self, adapter_name: str) -> float:
        """Return the probability of dropping an element of the gated latent."""
        config = self.settings[adapter_name]
        return config.dropout if config.dropout_place == "latent" else 0.0


class TeamLoraModel(AdapterModel):
    """PEFT tuner that puts ``TeamLoraLinear`` on the targeted linear layers."""

    prefix: str = "teamlora_"
    tuner_layer_cls = TeamLoraLinear


def _config(r: int, k: int, names: list[str]) -> TeamLoraConfig:
    return TeamLoraConfig(r=r, alpha=2.0 * r, num_experts=k, target_modules=names)


_MEASURED = {"16": (16, 4), "32_k2": (32, 2), "32": (32, 4), "32_k8": (32, 8)}
"""Name of a measured form after the method's -> rank and number of experts."""

register(
    "teamlora",
    TeamLoraConfig,
    TeamLoraModel,
    routed=True,
    per_token=True,
    settings=(
        "alpha",
        "scaling",
        "normalize_omega",
        "omega_times_k",
        "collaboration",
        "competition",
        "dropout",
        "dropout_place",
        "balance_coefficient",
    ),
    no_decay=("teamlora_interaction",),
    measured=[
        Measured(f"teamlora{name}", partial(_config, r, k), FUSED, default=k == 4)
        for name, (r, k) in _MEASURED.items()
    ],
    vllm=routed_form("teamlora", TeamLoraLinear),
    paper="TeamLoRA (arXiv 2408.09856)",
)
