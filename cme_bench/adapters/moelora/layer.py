from __future__ import annotations

from cme_bench.adapters.moelora.config import MoeLoraConfig
from cme_bench.adapters.shared.layer import RoutedLinear, Shapes


class MoeLoraLinear(RoutedLinear[MoeLoraConfig]):
    """A linear layer with MoELoRA: ``g = softmax(x R)``, ``x W0 + (alpha / r) sum_i g_i drop(x) A_i B_i``.

    The k pairs are kept side by side, so two products serve all experts where the published form needs 2k.

    Parameters of one adapter, as saved:
        moelora_down: (k r, d_in), rows i r to (i + 1) r are A_i transposed.
        moelora_up: (d_out, k r), columns i r to (i + 1) r are B_i transposed.
        moelora_router: (k, d_in), R transposed.
    """

    method = "moelora"
    adapter_layer_names = ("moelora_down", "moelora_up", "moelora_router")

    @staticmethod
    def shapes(config: MoeLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        width = config.num_experts * config.r
        return {
            "moelora_down": (width, d_in),
            "moelora_up": (d_out, width),
            "moelora_router": (config.num_experts, d_in),
        }
