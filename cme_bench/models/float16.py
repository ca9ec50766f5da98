"""Whether float16 can hold what bfloat16 holds: its numbers have three bits more, and a smaller range.

vLLM rounds hidden states to the type of the weights. A bfloat16 model is computed in float16 there, unless
its family, its quantisation or its weights say that it would leave float16's range.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cme_bench.models.checkpoint import hash_file
from cme_bench.models.quantisation import method_of, quantisation
from cme_bench.models.weights import weight_files
from cme_bench.util.errors import first_line
from cme_bench.util.paths import cache_folder
from cme_bench.util.remembered import remember, remembered
from cme_bench.vllm_plugin.spec import BASE, QUANT_METHOD, SUBFOLDER

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 65504.0
"""The largest number of float16."""
MOST_LOST = 2.0**-11
"""Share of a tensor, by norm, that float16 may lose: a third of what rounding to bfloat16 takes. Numbers of
float32 lose 2^-12.3."""
SAFE = 2.0**-14
"""Root mean square from which a tensor loses less: below 2^-14 float16's numbers are 2^-24 apart."""
TINY = 1e-12
"""The squares of smaller numbers may be no numbers of float32."""
_MEMORY = "float16-weights-1.json"
"""File of the user's cache, by the sha256 of weight files; another name for another rule."""
_GEMMA = ("gemma2", "gemma3", "gemma4", "t5gemma", "vaultgemma", "embedding_gemma", "diffusion_gemma")
_CLIPS = ("qwen2_5_vl", "qwen2_5_omni", "qwen3_omni", "minicpmo", "whisper", "exaone4_5", "opencua")
_SCALES = ("deepseek_v", "kimi", "axk", "glm4_moe_lite", "mistral_large_3", "openpangu")
STAYS: Mapping[str, str] = {
    **dict.fromkeys((*_GEMMA, "glm4", "glm4v", "glm4v_text"), "its hidden states are too large for float16"),
    **dict.fromkeys((*_CLIPS, "mimo_v2_omni", "hyperclovax"), "vLLM clips its hidden states in float16"),
    **dict.fromkeys(_SCALES, "vLLM scales its hidden states in float16"),
}
"""Families, by the beginning of ``model_type`` (GLM's by the whole of it), that stay in bfloat16, and why."""
_WHOLE = frozenset({"glm4", "glm4v", "glm4v_text"})
"""Names that are also the beginning of other families'."""


ASKED, MORE = "asked for", "three bits more than bfloat16"
"""The reasons for bfloat16 where a user wants it, and for float16."""


class Computed(NamedTuple):
    """The type that vLLM computes a bfloat16 model in, and why."""

    dtype: str
    because: str

    @property
    def told(self) -> str:
        """Return what a record says of hidden states."""
        return self.dtype if self.dtype == "float16" else f"{self.dtype}: {self.because}"


def why_not_float16(folder: Path, config: Any) -> str | None:
    """Return why the model in ``folder`` cannot be computed in float16 in place of bfloat16; None if it can.

    Reads all weights, once per state of a file.
    """
    kinds = (str(getattr(part, "model_type", "")) for part in (config, config.get_text_config()))
    for kind in kinds:
        if reason := _why_not_family(kind):
            return f"{kind}: {reason}"
    if (block := quantisation(config)) is not None and (reason := _why_not_quantised(block)):
        return reason
    files = [*weight_files(folder), *sorted((folder / SUBFOLDER).rglob("*.safetensors"))]
    return next(filter(None, map(_why_not_file, files)), None)


def _why_not_family(kind: str) -> str | None:
    named = (name for name in STAYS if kind == name or (name not in _WHOLE and kind.startswith(name)))
    return STAYS.get(next(named, ""))


def _why_not_quantised(block: Mapping[str, Any]) -> str | None:
    """Return why vLLM multiplies by these weights in no float16; None if it does."""
    method = method_of(block)
    if method == QUANT_METHOD:
        base = block.get(BASE)
        return _why_not_quantised(base) if isinstance(base, Mapping) else None
    import torch
    from vllm.model_executor.layers.quantization import get_quantization_config

    try:
        config: Any = get_quantization_config(method)
        taken = object.__new__(config).get_supported_act_dtypes()  # a method of the class, or of one object
    except Exception as error:  # vLLM's class of a method may want anything
        return f"vLLM does not say whether {method} takes float16 ({first_line(error)})"
    return None if torch.float16 in taken else f"vLLM computes {method} in no float16"


def _why_not_file(file: Path) -> str | None:
    from safetensors import safe_open

    memory, key = cache_folder() / _MEMORY, hash_file(file)
    known = remembered(memory)
    if key not in known:
        with safe_open(file, framework="pt") as stored:
            each = (what_is_lost(name, stored.get_tensor(name)) for name in stored.keys())  # noqa: SIM118
            known[key] = next(filter(None, each), "")
        remember(memory, key, known[key])
    return known[key] or None


def what_is_lost(name: str, weight: Tensor) -> str | None:
    """Return what float16 cannot hold of ``weight``, called ``name``; None if nothing that matters."""
    return _verdict(name, [weight])


def why_not_adapter(tensors: Mapping[str, Tensor]) -> str | None:
    """Return what float16 cannot hold of an adapter's ``tensors``, by ``<module>.<part>``; None if nothing
    that matters. Those of one part are weighed together: a layer that is hardly trained decides nothing."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        parts[name.rpartition(".")[2]].append(tensor)
    rounded = ((part, parts[part]) for part in ("down", "up") if part in parts)  # the rest stays float32
    return next(filter(None, (_verdict(f"the adapter's {part}", own) for part, own in rounded)), None)


def _verdict(name: str, weights: Iterable[Tensor]) -> str | None:
    norm = lost = count = 0.0
    for weight in _floating(weights):
        low, high = (float(edge) for edge in weight.aminmax())
        most = max(-low, high)
        if not math.isfinite(most):
            return f"{name} holds NaN or infinite values"
        if most > LARGEST:
            return f"{name} holds {most:.6g}, beyond float16's {LARGEST:.0f}"
        square = _square(weight, most)
        if square < SAFE**2 * weight.numel():
            lost += _square(weight.float() - weight.half().float(), most)
        norm += square
        count += weight.numel()
    if norm and math.sqrt(lost / norm) > MOST_LOST:
        share = 100 * math.sqrt(lost / norm)
        return f"{name} loses {share:.2g} % in float16: its numbers are about {math.sqrt(norm / count):.1g}"
    return None


def _floating(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    for weight in weights:
        if weight.is_floating_point() and weight.itemsize > 1 and weight.numel():
            yield weight


def _square(weight: Tensor, most: float) -> float:
    """Return the square of the norm of ``weight``, whose numbers are at most ``most``."""
    import torch

    dtype = torch.float32 if most > TINY else torch.float64
    return float(torch.linalg.vector_norm(weight, dtype=dtype).double() ** 2)
