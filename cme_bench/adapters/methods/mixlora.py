"""MixLoRA (arXiv 2404.15159): a sparse mixture of whole feed-forward blocks, which share the frozen one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import Measured, register
from cme_bench.adapters.routing.block import ExpertBlock
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.feed_forward import (
    ARCHITECTURES,
    FeedForward,
    activations,
    feed_forward,
)
from cme_bench.adapters.shared.config import is_int
from cme_bench.adapters.shared.layer import AdapterLinear, Shapes, why_no_merge
from cme_bench.adapters.shared.lowrank import project
from cme_bench.adapters.shared.model import AdapterModel
from cme_bench.adapters.shared.towers import language_type
from cme_bench.util.auto_model import sees
from cme_bench.util.errors import did_you_mean


@dataclass
class MixLoraConfig(RoutedConfig):
    """MixLoRA: k feed-forward blocks, each the frozen one with LoRAs of its own (arXiv 2404.15159).

    ``FFN(x) = sum_i omega_i E_i(x)``, omega the ``top_k`` largest of ``softmax(x R)`` divided by their sum.
    ``E_i`` is the frozen block with ``(alpha / r) x A B`` added to each targeted linear. Other targets, such
    as the attention projections, get one plain LoRA each. ``balance_coefficient`` weighs the loss of
    Mixtral, ``k sum_e f_e P_e``.

    Args:
        top_k: Number of experts for each token.
        attention_r: Rank of the plain LoRAs; None for ``r``.
        attention_alpha: Numerator of their scaling; None for ``alpha``.
        act_fn: Activation of the experts, as transformers names it; None for the frozen block's own.
        jitter_noise: In training the block's input is multiplied by U(1 - this, 1 + this).
        router_init_range: Standard deviation of the router's start.
    """

    balance = "switch"

    top_k: int = field(default=2, metadata={"help": "Experts for each token."})
    attention_r: int | None = field(default=None, metadata={"help": "Rank outside the blocks; None for r."})
    attention_alpha: float | None = field(
        default=None, metadata={"help": "alpha outside the blocks; None for alpha."}
    )
    act_fn: str | None = field(default=None, metadata={"help": "Activation; None for the base's own."})
    jitter_noise: float = field(default=0.0, metadata={"help": "Noise on the block's input in training."})
    router_init_range: float = field(default=0.02, metadata={"help": "Spread of the router's start."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_int(self.top_k) or not 1 <= self.top_k <= self.num_experts:
            raise AdapterError(f"top_k must lie in 1 to num_experts ({self.num_experts}), got {self.top_k!r}")
        if self.attention_r is not None and (not is_int(self.attention_r) or self.attention_r < 1):
            raise AdapterError(f"attention_r must be a positive integer, got {self.attention_r!r}")
        if not 0.0 <= self.jitter_noise < 1.0:
            raise AdapterError(f"jitter_noise must lie in [0, 1), got {self.jitter_noise!r}")
        if self.router_init_range < 0:
            raise AdapterError(f"router_init_range must not be negative, got {self.router_init_range!r}")
        if self.act_fn is not None and self.act_fn not in activations():
            hint = did_you_mean(str(self.act_fn), activations())
            raise AdapterError(f"unknown act_fn {self.act_fn!r}{hint}")

    @property
    def plain_r(self) -> int:
        """The rank of the plain LoRAs."""
        return self.r if self.attention_r is None else self.attention_r

    @property
    def plain_scale(self) -> float:
        """The factor on the plain LoRAs' output."""
        return (self.alpha if self.attention_alpha is None else self.attention_alpha) / self.plain_r


class MixLoraLinear(AdapterLinear[MixLoraConfig]):
    """A linear layer outside the feed-forward block, with one plain LoRA.

    Parameters of one adapter, as saved:
        mixlora_down: (r, d_in), A transposed; r is ``attention_r``.
        mixlora_up: (d_out, r), B transposed.
    """

    method = "mixlora"
    adapter_layer_names = ("mixlora_down", "mixlora_up")

    @staticmethod
    def shapes(config: MixLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        return {"mixlora_down": (config.plain_r, d_in), "mixlora_up": (d_out, config.plain_r)}

    def delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return ``(alpha / r) drop(x) A B``: (..., d_in) to (..., d_out)."""
        down, cast = self.held("down", adapter_name), self.cast_input_dtype_enabled
        z = project(self.dropped(x, adapter_name), down, cast_input=cast)
        return project(z * self.settings[adapter_name].plain_scale, self.held("up", adapter_name))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise AdapterError, always: the adapter as a whole depends on the input."""
        raise AdapterError(why_no_merge(self.method))

    def unmerge(self) -> None:
        """Raise AdapterError, always: nothing can have been merged."""
        raise AdapterError(why_no_merge(self.method))


class MixLoraBlock(ExpertBlock, MixLoraLinear):
    """A feed-forward block as a mixture of experts; the parameters are those of ``ExpertBlock``."""


class MixLoraModel(AdapterModel):
    """PEFT tuner that makes feed-forward blocks mixtures, and puts plain LoRAs on other targeted linears."""

    prefix: str = "mixlora_"
    tuner_layer_cls = MixLoraLinear

    def _prepare_adapter_config(self, peft_config: MixLoraConfig, model_config: dict[str, Any]) -> Any:
        """Fill in the default targets. Raises AdapterError for an architecture whose feed-forward block is
        not known, or if no linear of one is targeted."""
        config = super()._prepare_adapter_config(peft_config, model_config)
        own = getattr(self.model, "config", None)
        architecture = language_type(own) if sees(own) else model_config.get("model_type")
        if architecture not in ARCHITECTURES:
            raise AdapterError(
                f"mixlora does not know the feed-forward block of the architecture {architecture!r} "
                f"(known: {', '.join(sorted(ARCHITECTURES))})"
            )
        bare = copy.copy(config)
        bare.exclude_modules = bare.modules_to_save = bare.layers_to_transform = None
        if config.target_modules != "all-linear" and not any(
            self._targeted(bare, name) for name, _ in self.model.named_modules()
        ):
            raise AdapterError("mixlora: target_modules names no linear of a feed-forward block")
        return config

    def _check_target_module_exists(self, config: MixLoraConfig, key: str) -> Any:
        """Return whether PEFT shall adapt a module: a feed-forward block in place of its linears."""
        if self._structure(key.rpartition(".")[0]) is not None:
            return False  # inside a block, which may be replaced by now
        check = BaseTuner._check_target_module_exists
        structure = self._structure(key)
        if structure is None:
            return check(config, key)
        # Where none is targeted this is PEFT's own answer, which may be that all are excluded.
        return bool(self._targeted(config, key)) or check(config, f"{key}.{structure.output}")

    def _structure(self, key: str) -> FeedForward | None:
        module = self.model.get_submodule(key)
        return feed_forward(module.get_base_layer() if isinstance(module, MixLoraBlock) else module)

    def _targeted(self, config: MixLoraConfig, key: str) -> list[str]:
        """Return the names of the targeted linears of a feed-forward block; none for another module."""
        structure = self._structure(key)
        if structure is None:
            return []
        check = BaseTuner._check_target_module_exists
        return [name for name in structure.names if check(config, f"{key}.{name}")]

    def _create_and_replace(  # noqa: PLR0917  # PEFT's signature
        self,
        peft_config: MixLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        structure = self._structure(current_key)
        if structure is None:
            super()._create_and_replace(
                peft_config, adapter_name, target, target_name, parent, current_key, parameter_name
            )
            return
        linears = self._targeted(peft_config, current_key)
        if isinstance(target, MixLoraBlock):
            target.add(adapter_name, peft_config, linears)
            return
        for name in structure.names:
            if not isinstance(getattr(target, name), nn.Linear):
                kind = type(getattr(target, name)).__name__
                raise AdapterError(f"{current_key}.{name} is {kind}; mixlora takes torch.nn.Linear alone")
        block = MixLoraBlock(target, structure, linears, adapter_name, peft_config)
        self._replace_module(parent, target_name, block, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(new_module, MixLoraBlock) or isinstance(child, MixLoraBlock):
            setattr(parent, child_name, new_module)  # PEFT's own would look for a weight
        else:
            super()._replace_module(parent, child_name, new_module, child)


def _measured(names: list[str]) -> MixLoraConfig:
    return MixLoraConfig(r=16, alpha=32.0, num_experts=8, target_modules=names)


register(
    "mixlora",
    MixLoraConfig,
    MixLoraModel,
    routed=True,
    per_token=True,
    settings=(
        "alpha",
        "top_k",
        "attention_r",
        "attention_alpha",
        "act_fn",
        "dropout",
        "jitter_noise",
        "balance_coefficient",
    ),
    measured=[Measured("mixlora16_k8", _measured, "2 of 8 experts a token, frozen inputs shared")],
    vllm="its experts are whole feed-forward blocks, chosen token by token",
    paper="MixLoRA (arXiv 2404.15159)",
)
