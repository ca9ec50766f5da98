"""Vision-language models of vLLM on a host without torchvision, and images resized by Pillow on every host.

vLLM's LLaVA imports one function from a module of transformers that needs torchvision; the module's twin for
Pillow has the same function. Where torchvision is installed transformers would resize by it, and the pixels
would be others than those of engine hf.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

_PIXTRAL = "transformers.models.pixtral.image_processing_pixtral"
_FOR_PILLOW = "transformers.models.pixtral.image_processing_pil_pixtral"


def install() -> None:
    """Make this process read images by Pillow; what this transformers does not have is left as it is."""
    if importlib.util.find_spec("torchvision") is None and _PIXTRAL not in sys.modules:
        try:
            sys.modules[_PIXTRAL] = importlib.import_module(_FOR_PILLOW)
        except ImportError:
            return
    _resize_by_pillow()


def _resize_by_pillow() -> None:
    from transformers import AutoImageProcessor

    given = AutoImageProcessor.from_pretrained
    if getattr(given, "_by_pillow", False):
        return

    @functools.wraps(given)
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        return given(*args, **{"backend": "pil", **kwargs})

    from_pretrained._by_pillow = True  # type: ignore[attr-defined]
    AutoImageProcessor.from_pretrained = staticmethod(from_pretrained)
