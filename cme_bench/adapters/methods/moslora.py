"""MoSLoRA (arXiv 2406.11909)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.gated import Gate, GatedForm, Read
from cme_bench.adapters.registry import Measured, register
from cme_bench.adapters.shared.config import AdapterConfig
from cme_bench.adapters.shared.layer import AdapterLinear, Shapes
from cme_bench.adapters.shared.linears import as_stored
from cme_bench.adapters.shared.lowrank import project
from cme_bench.adapters.shared.model import AdapterModel
from cme_bench.adapters.shared.quantised import is_quantised, why_no_quantised_merge

MIXER_INITS = ("kaiming", "orthogonal")


@dataclass
class MosLoraConfig(AdapterConfig):
    """MoSLoRA: a LoRA with a learnable mixer between its two factors (arXiv 2406.11909).

    ``h = x W0 + (alpha / r) drop(x) A W B``, W of r x r.

    Args:
        mixer_init: Start of W: "kaiming" (uniform, a = sqrt 5) or "orthogonal".
    """

    mixer_init: Literal["kaiming", "orthogonal"] = field(
        default="kaiming", metadata={"help": "Start of the mixer: kaiming or orthogonal."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixer_init not in MIXER_INITS:
            raise AdapterError(f"mixer_init must be one of {', '.join(MIXER_INITS)}, got {self.mixer_init!r}")


class MosLoraLinear(AdapterLinear[MosLoraConfig]):
    """A linear layer with MoSLoRA: ``x W0 + (alpha / r) drop(x) A W B``.

    Parameters of one adapter, as saved:
        moslora_down: (r, d_in), A transposed.
        moslora_mixer: (r, r), W transposed.
        moslora_up: (d_out, r), B transposed.
    """

    method = "moslora"
    adapter_layer_names = ("moslora_down", "moslora_mixer", "moslora_up")

    @staticmethod
    def shapes(config: MosLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        return {
            "moslora_down": (config.r, d_in),
            "moslora_mixer": (config.r, config.r),
            "moslora_up": (d_out, config.r),
        }

    def reset(self, adapter_name: str) -> None:
        """Start as every adapter does; the mixer starts as ``mixer_init`` says."""
        super().reset(adapter_name)
        mixer = self.held("mixer", adapter_name)
        if self.settings[adapter_name].mixer_init == "orthogonal":
            nn.init.orthogonal_(mixer)
        else:
            nn.init.kaiming_uniform_(mixer, a=math.sqrt(5))

    def delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return ``(alpha / r) drop(x) A W B``: (..., d_in) to (..., d_out)."""
        down, cast = self.held("down", adapter_name), self.cast_input_dtype_enabled
        z = project(self.dropped(x, adapter_name), down, cast_input=cast)
        z = project(z, self.held("mixer", adapter_name)) * self.settings[adapter_name].scale
        return project(z, self.held("up", adapter_name))

    def low_rank(self, parameters: Mapping[str, Tensor], adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return A and ``(alpha / r) W B``, transposed, of parameters stacked by adapter: [n, r, d_in] and
        [n, d_out, r]."""
        down, mixer, up = (
            parameters[f"{self.method}_{part}.{adapter_name}"] for part in ("down", "mixer", "up")
        )
        return down, torch.bmm(up, mixer) * self.settings[adapter_name].scale

    @torch.no_grad()
    def delta_weight(self, adapter_name: str) -> Tensor:
        """Return the update as a weight, ``(alpha / r) (A W B)`` transposed: (d_out, d_in)."""
        down, mixer, up = (self.held(part, adapter_name) for part in ("down", "mixer", "up"))
        return self.settings[adapter_name].scale * (up @ (mixer @ down))

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' updates to the base weight.

        Args:
            safe_merge: Check that the merged weight is finite before it replaces the base weight.
            adapter_names: Adapters to merge; None for the active ones.

        Raises AdapterError if the base weight is quantised, or not finite after a safe merge.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.settings:
                weight = self._base_weight()
                merged = weight + self._stored_delta(name).to(weight.device)
                if safe_merge and not merged.isfinite().all():
                    raise AdapterError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                    )
                weight.copy_(merged)
                self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged updates off the base weight again, up to rounding in its dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)  # as PEFT's own layers say
        while self.merged_adapters:
            weight = self._base_weight()
            weight.copy_(weight - self._stored_delta(self.merged_adapters.pop()).to(weight.device))

    def _stored_delta(self, adapter_name: str) -> Tensor:
        return as_stored(self.get_base_layer(), self.delta_weight(adapter_name))

    def _base_weight(self) -> Tensor:
        base = self.get_base_layer()
        if is_quantised(base):
            raise AdapterError(why_no_quantised_merge(self.method))
        weight: Tensor = base.weight.data
        return weight


class MosLoraModel(AdapterModel):
    """PEFT tuner that puts ``MosLoraLinear`` on the targeted linear layers."""

    prefix: str = "moslora_"
    tuner_layer_cls = MosLoraLinear
    mergeable = True


def _plain(config: MosLoraConfig, layer: Any, read: Read) -> dict[str, Tensor]:
    """Return the mixer and the scale are multiplied into A."""
    return {
        "down": read("moslora_mixer").float() @ read("moslora_down").float() * config.scale,
        "up": read("moslora_up").float(),
    }


def _measured(names: list[str]) -> MosLoraConfig:
    return MosLoraConfig(r=128, alpha=256.0, target_modules=names)


register(
    "moslora",
    MosLoraConfig,
    MosLoraModel,
    per_token=True,
    settings=("alpha", "dropout", "mixer_init"),
    measured=[Measured("moslora128", _measured, "ours")],
    vllm=GatedForm(
        layer=MosLoraLinear,
        stored=("moslora_down", "moslora_mixer", "moslora_up"),
        gate=lambda config: Gate(rank=config.r, scale=config.scale),
        tensors=_plain,
    ),
    paper="MoSLoRA (arXiv 2406.11909)",
)
