"""Which class of transformers computes a configuration: a causal language model, or one that sees images."""

from __future__ import annotations

from typing import Any


def model_class(config: Any) -> Any:
    """Return transformers' automatic class for ``config``.

    It is that of causal language models where they have the model type, else that of models that take images
    and text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = str(config.model_type) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if not known and sees(config) else AutoModelForCausalLM


def sees(config: Any) -> bool:
    """Return whether the model that is loaded for ``config`` takes images beside text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = str(getattr(config, "model_type", None))
    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if seeing is None or getattr(config, "vision_config", None) is None:
        return False
    return bool(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, seeing) == seeing)
