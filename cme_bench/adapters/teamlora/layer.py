from __future__ import annotations

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.router import Routing, weigh
from cme_bench.adapters.shared.layer import RoutedLinear, Shapes
from cme_bench.adapters.teamlora.config import TeamLoraConfig


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
        """As for every routed adapter; M has ones on its diagonal, and elsewhere U(-b, b), b =
        ``interaction_init``.
        """
        super().reset(adapter_name)
        config = self.settings[adapter_name]
        if config.competition:
            interaction = self.held("interaction", adapter_name)
            nn.init.uniform_(interaction, -config.interaction_init, config.interaction_init)
            with torch.no_grad():
                interaction.fill_diagonal_(1.0)

    def weigh(self, logits: Tensor, adapter_name: str) -> Routing:
        """phi = softmax(logits) and omega = M phi, (..., k) each."""
        config = self.settings[adapter_name]
        interaction = self.held("interaction", adapter_name) if config.competition else None
        return weigh(logits, interaction, config.normalize_omega)

    def dropped(self, x: Tensor, adapter_name: str) -> Tensor:
        """``x`` after dropout, unless it falls on the latent."""
        return super().dropped(x, adapter_name) if self.settings[adapter_name].dropout_place == "input" else x

    def latent_dropout(self, adapter_name: str) -> float:
        """Probability of dropping an element of the gated latent."""
        config = self.settings[adapter_name]
        return config.dropout if config.dropout_place == "latent" else 0.0
