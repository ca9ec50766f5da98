"""Loading what a checkpoint holds: tokenizer, config facts, weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cme_bench.errors import CmeError, UsageError, did_you_mean, first_line
from cme_bench.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer. UsageError if the folder has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{checkpoint.path}: the tokenizer cannot be loaded ({first_line(err)})") from err


def end_token_ids(checkpoint: Checkpoint, config: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids of the checkpoint's generation config (or of its config) and of the tokenizer."""
    from transformers import GenerationConfig

    if (checkpoint.path / "generation_config.json").is_file():
        ids = GenerationConfig.from_pretrained(checkpoint.path).eos_token_id
    else:
        ids = getattr(config, "eos_token_id", None)
    several = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)


def load_config(checkpoint: Checkpoint) -> Any:
    """The transformers config. UsageError if its architecture is unknown or needs remote code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{checkpoint.path / 'config.json'}: {first_line(err)}") from err


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal LM in ``dtype`` on ``device``, from safetensors only, in eval mode."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        raise CmeError(f"{checkpoint.path}: the weights cannot be loaded ({first_line(err)})") from err
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as err:
        raise CmeError(f"{checkpoint.path}: the weights do not fit on {device} ({first_line(err)})") from err


def choose_device() -> torch.device:
    """CUDA if there is any, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """``auto``: float32 on a CPU, the checkpoint's own type (bfloat16 if it names none) on an accelerator."""
    import torch

    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16
