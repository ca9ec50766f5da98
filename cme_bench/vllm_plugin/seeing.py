"""Vision-language models in vLLM: without torchvision, with Pillow's pixels, and with the names of today.

* vLLM's LLaVA imports one function from a module of transformers that needs torchvision; the module's twin
  for Pillow has the same function.
* vLLM 0.26 imports names of Pixtral that transformers 5.17 no longer has; without them it loads no LLaVA.
* Where torchvision is installed transformers would resize by it, and pixels would differ from engine hf's.
* transformers 5 names a tower's weights without ``vision_model``, vLLM 0.32 still with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Any

_PIXTRAL = "transformers.models.pixtral.image_processing_pixtral"
_FOR_PILLOW = "transformers.models.pixtral.image_processing_pil_pixtral"
_PIXTRAL_MODEL = "transformers.models.pixtral.modeling_pixtral"
_RENAMED = ("PixtralRotaryEmbedding", "position_ids_in_meshgrid")
_TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
_MARK = "_cme_bench_sees"


def install() -> None:
    """Make this process's vLLM read images as engine hf does. Raises ImportError or AttributeError where it
    lacks what that needs."""
    if importlib.util.find_spec("torchvision") is None and _PIXTRAL not in sys.modules:
        sys.modules[_PIXTRAL] = importlib.import_module(_FOR_PILLOW)
    _stand_in_for_renamed()
    _resize_by_pillow()
    _name_towers()


def _stand_in_for_renamed() -> None:
    """Give transformers' module of Pixtral the names that it had, so that models which import Pixtral but are
    none can be loaded. Pixtral itself fails where it uses one."""
    modeling = importlib.import_module(_PIXTRAL_MODEL)
    for name in _RENAMED:
        if not hasattr(modeling, name):
            setattr(modeling, name, functools.partial(_renamed, name))


def _renamed(name: str, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"transformers has no {name} any more; a newer vLLM runs Pixtral with it")


def _resize_by_pillow() -> None:
    from transformers import AutoImageProcessor

    given = AutoImageProcessor.from_pretrained
    if hasattr(given, _MARK):
        return

    @functools.wraps(given)
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        return given(*args, **{"backend": "pil", **kwargs})

    setattr(from_pretrained, _MARK, True)
    AutoImageProcessor.from_pretrained = staticmethod(from_pretrained)


def _name_towers() -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    given = DefaultModelLoader.get_all_weights
    if hasattr(given, _MARK):
        return

    @functools.wraps(given)
    def get_all_weights(self: Any, config: Any, model: Any, *args: Any) -> Iterator[tuple[str, Any]]:
        wraps = hasattr(getattr(model, "vision_tower", None), "vision_model")
        for name, tensor in given(self, config, model, *args):
            yield (_TOWER.sub(r"\1vision_model.", name) if wraps else name), tensor

    setattr(get_all_weights, _MARK, True)
    DefaultModelLoader.get_all_weights = get_all_weights
