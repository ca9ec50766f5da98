from __future__ import annotations

from cme_bench.adapters.hydralora.config import HydraLoraConfig
from cme_bench.adapters.shared.layer import RoutedLinear, Shapes


class HydraLoraLinear(RoutedLinear[HydraLoraConfig]):
    """A linear layer with HydraLoRA: ``g = softmax(x R)``, ``x W0 + (alpha / r) sum_i g_i (drop(x) A) B_i``.

    The latent ``drop(x) A`` is repeated k times and gated before one product with the B_i side by side.

    Parameters of one adapter, as saved:
        hydralora_down: (r, d_in), A transposed.
        hydralora_up: (d_out, k r), columns i r to (i + 1) r are B_i transposed.
        hydralora_router: (k, d_in), R transposed.
    """

    method = "hydralora"
    adapter_layer_names = ("hydralora_down", "hydralora_up", "hydralora_router")

    @staticmethod
    def shapes(config: HydraLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        return {
            "hydralora_down": (config.r, d_in),
            "hydralora_up": (d_out, config.num_experts * config.r),
            "hydralora_router": (config.num_experts, d_in),
        }
