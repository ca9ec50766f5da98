"""Loading what a checkpoint holds: tokenizer, config facts, weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.models.adapter_tokenizer import template_alone
from cme_bench.models.causal import check_causal, check_class, check_model
from cme_bench.models.checkpoint import Checkpoint
from cme_bench.models.complete import check_loaded, check_weights
from cme_bench.models.exported import check_exported
from cme_bench.models.folder import adapter_note, check_model_folder, only_the_model, only_the_model_kept
from cme_bench.models.placement import DeviceMap, check_complete
from cme_bench.models.quantisation import check_quantisation, label_of, method_of, quantisation, stated_dtype
from cme_bench.models.quantise import check_quantize, loading_config, quiet, settle
from cme_bench.util.auto_model import model_class
from cme_bench.util.building import BUILDING
from cme_bench.util.errors import CmeError, UsageError, first_line
from cme_bench.util.options import DType, Quantize, check_choice

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's own tokenizer. UsageError if the folder has none."""
    tokenizer = load_named_tokenizer(str(checkpoint.path))
    if not tokenizer.chat_template:
        tokenizer.chat_template = template_alone(checkpoint.path)
    return tokenizer


def load_named_tokenizer(name: str, **settings: Any) -> Any:
    """Load a folder's or hub id's tokenizer, with transformers' ``settings``. UsageError if none loads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **settings)
    except Exception as error:  # broken files of a tokenizer raise anything
        raise UsageError(f"{name}: the tokenizer cannot be loaded ({first_line(error)})") from error


def eos_token_id(checkpoint: Checkpoint, config: Any) -> Any:
    """Return ``eos_token_id`` (one, several or None) of the generation config, or of the model's config."""
    from transformers import GenerationConfig

    file = checkpoint.path / "generation_config.json"
    if not file.is_file():
        return getattr(config, "eos_token_id", None)
    try:
        return GenerationConfig.from_pretrained(checkpoint.path).eos_token_id
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: {first_line(error)}") from error


def load_config(checkpoint: Checkpoint) -> Any:
    """Return the transformers config of a causal language model. UsageError if it is none, or needs remote
    code."""
    return _read_config(checkpoint.path, checkpoint.path)


def _read_config(path: Path, source: str | Path, **settings: Any) -> Any:
    """Return the config in ``source``, checked; messages name ``path``. ``settings``: transformers' own."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path / 'config.json'}: {reason[:300]}") from error
    check_causal(path, config)
    return config


def check_base(
    checkpoint: Checkpoint, config: Any, engine: str = "hf", quantize: Quantize | None = None
) -> None:
    """Raise UsageError unless ``engine`` ("hf" or "vllm") can load the model, quantised as asked, and every
    weight of it is in the files. Reads headers only."""
    if engine == "vllm":
        check_class(checkpoint.path, config)
    check_quantisation(checkpoint.path, config, engine)
    if engine == "vllm":
        check_exported(checkpoint.path, quantisation(config))
    check_quantize(quantize, checkpoint.path, config, engine)
    check_weights(checkpoint.path, config)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantize: Quantize | None = None,
    device_map: DeviceMap | None = None,
) -> PreTrainedModel:
    """Return the causal LM in ``dtype``, from safetensors only, in eval mode.

    It lies on ``device``, or where ``device_map`` says. Only the folder's own weights count: an adapter that
    lies beside them is not applied. Raises UsageError if a token of the loaded model changes the logits of
    tokens before it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    quiet()
    path = checkpoint.path
    settings, config = _placing(checkpoint, device, device_map, quantize), load_config(checkpoint)
    if quantize is not None:
        settings["quantization_config"] = loading_config(quantize, dtype)
    with ExitStack() as stack:
        kept = device_map is not None
        folder = only_the_model_kept(path) if kept else stack.enter_context(only_the_model(path))
        stack.enter_context(_named(path, device))
        with BUILDING:
            model, info = model_class(config).from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **_attention(config),
                **settings,
            )
        model = model if settings else model.to(device)
    if quantize is None and quantisation(model.config) is not None:  # others were compared by their headers
        check_loaded(path, model, info)
    model.name_or_path = model.config.name_or_path = str(path)  # PEFT records it, and it may be a link's
    if "quantization_config" not in settings and quantisation(model.config) is None:
        _check_dtype(model, dtype, path)
    settle(model, dtype)
    check_model(model.eval(), path)
    return model


def _attention(config: Any) -> dict[str, str]:
    """Return transformers' argument for attention that computes all that ``config`` asks for: torch's own
    kernel leaves out the soft-capping of scores (Gemma 2), without a word."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {} if capped is None else {"attn_implementation": "eager"}


@contextmanager
def _named(path: Path, device: torch.device | None = None) -> Iterator[None]:
    """Let what transformers raises while it loads name the folder. UsageError, but for a fault of
    ``device``."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        raise UsageError(f"{path}: what loads the weights is not installed ({first_line(error)})") from error
    except torch.OutOfMemoryError as error:
        where = device or "this device"
        raise CmeError(f"{path}: the weights do not fit on {where} ({first_line(error)})") from error
    except torch.AcceleratorError as error:
        raise CmeError(f"{path}: the weights cannot be loaded ({first_line(error)})") from error
    except (SafetensorError, *_LOAD_ERRORS) as error:
        raise UsageError(f"{path}: the weights cannot be loaded ({first_line(error)})") from error


def _check_dtype(model: PreTrainedModel, dtype: torch.dtype, path: Path) -> None:
    """Raise CmeError for a weight that is narrower than asked for."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < dtype.itemsize:
            raise CmeError(f"{path}: {name} was loaded as {parameter.dtype}, and not as {dtype}")


def _placing(
    checkpoint: Checkpoint, device: torch.device, device_map: DeviceMap | None, quantize: Quantize | None
) -> dict[str, Any]:
    """Return transformers' arguments for a model on several devices and on disk, and for one that is
    quantised, which cannot be moved; none for any other."""
    if device_map is None:
        quantised = quantize is not None or quantisation(load_config(checkpoint)) is not None
        return {"device_map": {"": device}} if quantised else {}
    import tempfile

    folder = tempfile.TemporaryDirectory(prefix="cme-bench-offload-")  # removed when the process ends
    _OFFLOADED.append(folder)
    given = device_map if isinstance(device_map, str) else dict(device_map)
    return {"device_map": given, "offload_folder": folder.name}


_LOAD_ERRORS = (OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, AssertionError)
"""Errors of transformers and of packages that quantise: weights or settings that they cannot use."""
_OFFLOADED: list[Any] = []
"""Folders of the weights that lie on disk."""


def load_named(
    name: str,
    dtype: str,
    *,
    note: Callable[[str], None],
    revision: str = "main",
    device: torch.device | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """Return the causal LM of a folder or a hub id, as lm-eval names one, with the checks of a run.

    ``settings``: transformers' own, of the model; ``device``: where a quantised one lies unless they say it.
    ``note`` is told of an adapter that lies beside a folder's weights. Raises UsageError as ``load_model``
    and ``check_base`` do.
    """
    import torch

    folder = Path(name)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with ExitStack() as stack:
        if folder.is_dir():
            check_model_folder(folder)
            if beside := adapter_note(folder):
                note(beside)
            kept = "device_map" in settings
            name = str(only_the_model_kept(folder) if kept else stack.enter_context(only_the_model(folder)))
        config = _read_config(folder, name, revision=revision)
        check_quantisation(folder, config, "hf")
        _check_settings(folder, config, settings)
        if device is not None and quantisation(config) is not None:
            settings.setdefault("device_map", {"": device})
        if folder.is_dir():
            check_weights(folder, config)
        stack.enter_context(_named(folder, device))
        stack.enter_context(BUILDING)
        settings = _attention(config) | settings
        model, info = model_class(config).from_pretrained(
            name, dtype=dtype, output_loading_info=True, use_safetensors=True, **source, **settings
        )
    check_loaded(folder, model, info)
    model.name_or_path = model.config.name_or_path = str(folder)
    narrow = stated_dtype(model.config) if model.dtype == torch.float16 else None  # as bitsandbytes does it
    settle(model, narrow or model.dtype)
    check_model(model, folder)
    return model


def _check_settings(folder: Path, config: Any, settings: Mapping[str, Any]) -> None:
    """Raise UsageError for a quantisation of what is quantised, and for a device map that does not fit."""
    block = quantisation(config)
    if block is not None and "quantization_config" in settings:
        bits = 8 if settings["quantization_config"].load_in_8bit else 4
        raise UsageError(
            f"load_in_{bits}bit: {folder} is quantised already, with {method_of(block)}; leave it out"
        )
    check_complete("device_map", settings.get("device_map"), config)


def choose_device() -> torch.device:
    """Return CUDA if there is any, else the CPU: where a training computes."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluation_device() -> torch.device:
    """Return where engine hf computes: CUDA, else Apple's MPS, else the CPU.

    The variable ``CME_BENCH_DEVICE``, where it is set, decides. UsageError if there is no such device.
    """
    import torch

    asked = os.environ.get("CME_BENCH_DEVICE") or None
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is not None and not here.get(asked):
        known = ", ".join(name for name, there in here.items() if there)
        raise UsageError(f"CME_BENCH_DEVICE={asked}: there is no such device here (known: {known})")
    return torch.device(asked or next(name for name, there in here.items() if there))


FLOAT32_PARAMETERS = 200_000_000
"""Up to here ``auto`` evaluates in float32 on an accelerator. Measured on one H200 at 135 M parameters: the
choices of 4,000 questions took 30 s in float32 and 34 s in bfloat16. Larger models were not measured."""


def evaluation_dtype(
    name: str,
    config: Any,
    device: torch.device,
    parameters: Callable[[], int],
    *,
    quantize: Quantize | None = None,
    engine: str = "hf",
) -> tuple[torch.dtype, str]:
    """Return the type in which a model is evaluated, and why; ``auto`` is float32 where that costs nothing.

    That is on a CPU, and on an accelerator for a model of at most 200 M ``parameters`` (asked for only if
    they decide). A larger or quantised one keeps the checkpoint's own type. Where a checkpoint of
    bitsandbytes says in which type its weights are multiplied, ``auto`` is that type. vLLM multiplies a
    quantised one in 16 bits.
    """
    import torch

    if name != "auto":
        return choose_dtype(name, config, device), "as asked for"
    if (stated := stated_dtype(config)) is not None:
        return stated, "auto: the type of products that the quantised checkpoint names"
    packed = label_of(config) is not None  # an exported folder's adapter is called so, and is none
    if engine == "vllm" and packed:
        stored = getattr(config, "dtype", None)
        own = stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16
        return own, "auto: vLLM multiplies quantised weights in 16 bits"
    if device.type == "cpu":
        return torch.float32, "auto: a CPU"
    quantised = quantize is not None or packed
    if not quantised and (count := parameters()) <= FLOAT32_PARAMETERS:
        return torch.float32, f"auto: float32 costs no time at {count / 1e6:.0f} M parameters"
    because = "a quantised checkpoint's own" if quantised else "the checkpoint's own, above 200 M parameters"
    return choose_dtype(name, config, device), f"auto: {because}"


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """Return the type named; ``auto`` is that of a quantised checkpoint's products where it names one, else
    float32 on a CPU, else the checkpoint's own, else bfloat16."""
    import torch

    check_choice(name, DType, "dtype")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if (stated := stated_dtype(config)) is not None:
        return stated
    if device.type == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16


def count_parameters(config: Any) -> int:
    """Return the parameters of the model that ``config`` describes, tied ones once. No memory is used."""
    from cme_bench.adapters.meta_model import kept_model

    model: Any = kept_model(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())
