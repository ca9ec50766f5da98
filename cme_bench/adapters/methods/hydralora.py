"""HydraLoRA (arXiv 2404.19245)."""

from __future__ import annotations

from dataclasses import dataclass

from cme_bench.adapters.registry import Measured, register
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.gated import FUSED, routed_form
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.shared.layer import Shapes
from cme_bench.adapters.shared.model import AdapterModel


@dataclass
class HydraLoraConfig(RoutedConfig):
    """HydraLoRA: one down-projection, k up-projections behind a dense softmax router (arXiv 2404.19245).

    ``h = x W0 + (alpha / r) sum_i g_i (drop(x) A) B_i``, ``g = softmax(x R)`` per token.
    """


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


class HydraLoraModel(AdapterModel):
    """PEFT tuner that puts ``HydraLoraLinear`` on the targeted linear layers."""

    prefix: str = "hydralora_"
    tuner_layer_cls = HydraLoraLinear


def _measured(names: list[str]) -> HydraLoraConfig:
    return HydraLoraConfig(r=32, alpha=64.0, num_experts=4, target_modules=names)


register(
    "hydralora",
    HydraLoraConfig,
    HydraLoraModel,
    routed=True,
    per_token=True,
    settings=("alpha", "dropout", "balance_coefficient"),
    measured=[Measured("hydralora32", _measured, FUSED, default=True)],
    vllm=routed_form("hydralora", HydraLoraLinear, shared_latent=True),
    paper="HydraLoRA (arXiv 2404.19245)",
)
