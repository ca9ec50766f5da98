"""Is it a causal language model? Asked of the configuration before weights load, and of the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.models.values import check_values
from cme_bench.util.auto_model import sees
from cme_bench.util.errors import CmeError, UsageError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ENDINGS = ("ForCausalLM", "LMHeadModel")
_PROBE_TOKENS = 12
_LEAKS = 1e-4, 0.1
"""Share of the logits' spread by which a later token may change earlier ones: in float32, in 16 bits."""


def check_causal(path: Path, config: Any) -> None:
    """Raise UsageError unless ``config`` describes a model that predicts each token from those before it.

    Encoders, encoder-decoders, classifiers, embedding models and architectures that only remote code
    computes are refused.
    """
    if reason := _misnamed(config) or _declared(config):
        raise UsageError(f"{path}: {reason}")


def _misnamed(config: Any) -> str | None:
    named = config.architectures or []
    if isinstance(named, list) and all(isinstance(name, str) for name in named):
        return None
    return f"config.json: architectures is {named!r}, which must be a list of class names"


def _declared(config: Any) -> str | None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = str(config.model_type)
    no = f"{kind} is no causal language model"
    named = config.architectures or []
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in classes and sees(config):
        classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        if names := [name for name in named if name != classes[kind]]:
            return f"{no} as config.json names it ({names[0]}); transformers' class is {classes[kind]}"
    if kind not in classes:
        return no + _why_unknown(config)
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        return f"{no} (an encoder and a decoder)"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not (
        getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    ):
        return f"{no} (an encoder: config.json does not say is_decoder)"
    both = getattr(text, "use_bidirectional_attention", None) is True
    if both or getattr(text, "is_causal", None) is False:
        return f"{no} (its attention looks in both directions)"
    return _other_head(named, classes.values())


def check_class(path: Path, config: Any) -> None:
    """Raise UsageError if config.json names the class of another model type than its own.

    vLLM computes the class that ``architectures`` names first, transformers that of ``model_type``.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named, own = (config.architectures or [""])[0], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if own is not None and named != own and named in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise UsageError(
            f"{path / 'config.json'}: architectures names {named}, which vLLM would compute, and model_type "
            f"{config.model_type!r} is {own}; make the two agree"
        )


def _why_unknown(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return " (it takes images and text in a way that is not supported)"
    return " that transformers computes without remote code" if getattr(config, "auto_map", None) else ""


def _other_head(architectures: list[str], known: Any) -> str | None:
    if not architectures or any(name in known or name.endswith(_ENDINGS) for name in architectures):
        return None
    name = architectures[0]
    if name.endswith("Model"):
        return (
            f"config.json names {name}, a body without output layer, which is no causal language model; if "
            "the weights have an output layer, name its class under architectures"
        )
    return f"config.json names {name}, which is no causal language model"


def check_model(model: PreTrainedModel, path: Path) -> None:
    """Raise UsageError unless the weights of a loaded model are numbers, and a token changes no logits of
    tokens before it."""
    check_values(model, path)
    check_order(model, path)


def check_order(model: PreTrainedModel, path: Path) -> None:
    """Raise UsageError if a token changes the logits of tokens before it, or if there are no logits, or if
    all are equal.

    One forward of two short rows. Logits that are not finite are left for an engine to report.
    """
    import torch

    from cme_bench.util.devices import computing_device

    embeddings = model.get_input_embeddings()
    ids = (torch.arange(_PROBE_TOKENS) * 7 + 3) % min(997, embeddings.weight.shape[0])
    rows = torch.stack((ids, torch.cat((ids[:-1], ids[:1])))).to(computing_device(embeddings))
    try:
        with torch.inference_mode():
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    except torch.OutOfMemoryError as error:
        raise CmeError(f"{path}: out of memory on a row of {_PROBE_TOKENS} tokens") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        reason = first_line(error)
        raise UsageError(f"{path}: the model cannot compute a row of tokens alone ({reason})") from error
    change, spread = (logits[0] - logits[1]).abs().max(), logits.std()
    if spread == 0:
        raise UsageError(f"{path}: every token has the same logit: the weights are empty (all zero?)")
    if change > _LEAKS[model.dtype.itemsize < 4] * spread:
        raise UsageError(
            f"{path}: {model.config.model_type} is no causal language model as it is configured: a token "
            "changes the logits of tokens before it"
        )
