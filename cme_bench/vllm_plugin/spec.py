"""The update of an adapter on every layer it is on, in the one form that the plugin runs.

TeamLoRA, MoELoRA, HydraLoRA and LoRA are one function (TeamLoRA: arXiv 2408.09856; x a row vector)::

    z = x A      phi = softmax(x S)      omega = M phi      y = x W0 + scale * sum_i omega_i z_i B_i

MoELoRA and HydraLoRA have no M; HydraLoRA's experts share one latent (z_i = z for all i); LoRA is one expert
with omega = 1 and no router.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

QUANT_METHOD = "teamlora"
"""Name under which vLLM knows the plugin: ``quantization_config.quant_method`` of a config.json."""
BASE = "base"
"""Key of that block: the base's own ``quantization_config``, where it has one."""
BASES = ("awq", "compressed-tensors", "fp8", "gptq")
"""Methods of quantisation that a base may have."""
EMBEDDED = "embedded"
"""Key of that block: the adapter lies in the checkpoint's folder."""
DIGEST = "adapter_sha256"
"""Key of that block: sha256 of the adapter's file. A folder with another adapter is another model."""
SLOTS = "slots"
"""Key of that block: the engine holds several adapters in the form of this spec, and a request names its own.
The sha256 of each file by name, or true for adapters that come later."""
SUBFOLDER = "adapter"
"""Where in the folder; vLLM reads every safetensors file of the folder itself as base weights."""


@dataclass(frozen=True, slots=True)
class GatedSpec:
    """Settings that all adapted layers share.

    method: the adapter's own name, for people. rank: r of one expert. experts: k; 1 has no router.
    scale: the factor on the sum. shared_latent: A has r columns, not k r. interaction: there is an M.
    normalizer_floor: omega is divided by its sum, clamped to at least this; None for no division.
    modules: full names of the adapted linears, as transformers names them, sorted.
    """

    method: str
    rank: int
    experts: int
    scale: float
    shared_latent: bool
    interaction: bool
    normalizer_floor: float | None
    modules: tuple[str, ...]

    @property
    def latent(self) -> int:
        """Columns of A."""
        return self.rank if self.shared_latent else self.gated

    @property
    def gated(self) -> int:
        """Rows of B: k r."""
        return self.rank * self.experts

    @property
    def routed(self) -> bool:
        return self.experts > 1

    @classmethod
    def room_for(cls, specs: Sequence[GatedSpec]) -> GatedSpec:
        """Return a spec with which an engine that is not compiled takes any of ``specs``, one after the
        other: the shape that needs most memory, on all modules of any."""
        largest = max(specs, key=lambda spec: spec.latent + spec.gated + spec.routed * spec.experts)
        modules = {module for spec in specs for module in spec.modules}
        return replace(largest, modules=tuple(sorted(modules)))

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of one module, by name: ``down`` (A transposed), ``up`` (B transposed),
        ``router`` (S transposed), ``interaction`` (M)."""
        shapes: dict[str, tuple[int, ...]] = {"down": (self.latent, d_in), "up": (d_out, self.gated)}
        if self.routed:
            shapes["router"] = (self.experts, d_in)
        if self.interaction:
            shapes["interaction"] = (self.experts, self.experts)
        return shapes

    def to_block(self, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the ``quantization_config`` that makes vLLM use the plugin, on a base that has ``base``."""
        block = {"quant_method": QUANT_METHOD, **asdict(self), "modules": list(self.modules)}
        return block if base is None else block | {BASE: dict(base)}

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> GatedSpec:
        """Read the spec in a ``quantization_config``. Raises ValueError that names a key at fault."""
        names = [field.name for field in fields(cls)]
        for name in names:
            if name not in block:
                raise ValueError(f"quantization_config {QUANT_METHOD!r}: key {name!r} is missing")
        spec = cls(**{**{name: block[name] for name in names}, "modules": tuple(block["modules"])})
        for name in ("rank", "experts"):
            if not isinstance(block[name], int) or block[name] < 1:
                raise ValueError(f"quantization_config {QUANT_METHOD!r}: {name} is {block[name]!r}")
        if not spec.modules:
            raise ValueError(f"quantization_config {QUANT_METHOD!r}: modules is empty")
        return spec
