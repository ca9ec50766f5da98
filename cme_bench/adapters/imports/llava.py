"""LoRAs as the LLaVA repository saves them: named after the language model alone, the projector beside them.

There the language model is the whole model and a tower one of its parts, so names begin with
``model.layers``. transformers' LLaVA has ``model.language_model.layers``. Whatever LLaVA trains beside the
LoRA, which is its projector, lies in ``non_lora_trainables``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, WEIGHTS_FILE, tensor_shapes
from cme_bench.adapters.imports.layers import PREFIX, bare_name
from cme_bench.adapters.imports.source import Source
from cme_bench.adapters.shared.towers import language_path, outside_language

NAME = "llava"
_LAYERS = "model.layers."
_BESIDE = "non_lora_trainables"
_PROJECTOR = "multi_modal_projector"
_OTHERS = re.compile(r"(?:.*\.)?mm_projector\.(?P<place>[02])\.(?P<kind>weight|bias)")
_NO_PROJECTOR = (
    f"LLaVA trains its projector beside a LoRA, and {_BESIDE} is not there: the base's own projector is used"
)


def is_llava(source: Source, base: nn.Module | None) -> bool:
    """Return whether a LoRA is named after the language model of ``base``, which is more than that."""
    if base is None or language_path(base) is None or source.settings.get("peft_type") != "LORA":
        return False
    return all(bare_name(key).startswith(_LAYERS) for key in source.tensors)


def convert(source: Source, base: nn.Module, folder: Path, base_model: str) -> tuple[str, ...]:
    """Write the adapter for ``base`` into ``folder``; return what a user should see.

    Raises AdapterError for a projector in a pickle, and for a tensor beside the LoRA that is no projector's.
    """
    path = language_path(base)
    tensors = {
        f"{PREFIX}{path}.{bare_name(key).removeprefix('model.')}": tensor.contiguous().clone()
        for key, tensor in source.tensors.items()
    }
    projector = _projector(source.file.parent)
    tensors |= projector
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    saved = dict(source.settings) | {
        "base_model_name_or_path": base_model,
        "exclude_modules": outside_language(base),
        "modules_to_save": [_PROJECTOR] if projector else None,
        "task_type": "CAUSAL_LM",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    return () if projector else (_NO_PROJECTOR,)


def _projector(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the projector by transformers' names; none if none lie beside the LoRA."""
    file = folder / f"{_BESIDE}.safetensors"
    if not file.is_file():
        if (pickle := folder / f"{_BESIDE}.bin").is_file():
            raise AdapterError(
                f"{pickle} is a pickle, which may run code: save its tensors by safetensors, as {file.name}"
            )
        return {}
    tensor_shapes(file)  # a damaged file gets a clear message
    found = {}
    for key, tensor in load_file(file).items():
        if (match := _OTHERS.fullmatch(key)) is None:
            raise AdapterError(f"{file}: tensor {key} is none of LLaVA's two-layer projector (mm_projector)")
        layer = "linear_1" if match["place"] == "0" else "linear_2"
        found[f"{PREFIX}model.{_PROJECTOR}.{layer}.{match['kind']}"] = tensor
    return found
