"""Loading what a checkpoint holds: tokenizer, config facts, weights."""

from __future__ import annotations

from collections.abc import Callable
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


FLOAT32_PARAMETERS = 200_000_000
"""Up to here ``auto`` evaluates in float32 on an accelerator. Measured on one H200 at 135 M parameters: the
choices of 4,000 questions took 30 s in float32 and 34 s in bfloat16. Larger models were not measured."""


def evaluation_dtype(
    name: str, config: Any, device: torch.device, parameters: Callable[[], int]
) -> tuple[torch.dtype, str]:
    """Return the type in which a model is evaluated, and why; ``auto`` is float32 where that costs nothing.

    That is on a CPU, and on an accelerator for a model of at most 200 M ``parameters`` (asked for only if
    they decide). A larger or quantised one keeps the checkpoint's own type.
    """
    import torch

    if name != "auto":
        return choose_dtype(name, config, device), "as asked for"
    if device.type == "cpu":
        return torch.float32, "auto: a CPU"
    quantised = getattr(config, "quantization_config", None) is not None
    if not quantised and (count := parameters()) <= FLOAT32_PARAMETERS:
        return torch.float32, f"auto: float32 costs no time at {count / 1e6:.0f} M parameters"
    because = "a quantised checkpoint's own" if quantised else "the checkpoint's own, above 200 M parameters"
    return choose_dtype(name, config, device), f"auto: {because}"


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """Return the type named; ``auto`` is float32 on a CPU, else the checkpoint's own, else bfloat16."""
    import torch

    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16
