"""The model of ``cme-hf``: loaded as ``HFLM``'s arguments say, quantised or spread over devices."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.harness.hflm_arguments import attention, check_flag, device_of
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.packaged import locate_adapter
from cme_bench.util.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("cme_bench.harness.lm_eval_model")

WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Of accelerate's, to fill devices."""
_OF_SPLIT = ("max_memory_per_gpu", "max_cpu_memory")
_OF_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
_FOLDER = "./offload"
"""The default of ``offload_folder``, in place of which weights on disk lie in a temporary folder here."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Those of ``HFLM``'s arguments that say how weights are loaded, with its meaning and defaults.

    ``load_in_4bit`` and the ``bnb_4bit`` settings are those of ``BitsAndBytesConfig``: FP4, products in
    float32. Raises UsageError for a value that is none, and for arguments that contradict each other.
    """

    attn_implementation: str | None = None
    delta: str | None = None
    parallelize: bool | None = False
    device_map: str | Mapping[str, Any] | None = None
    max_memory_per_gpu: int | str | None = None
    max_cpu_memory: int | str | None = None
    offload_folder: str | None = _FOLDER
    load_in_4bit: bool | None = False
    load_in_8bit: bool | None = False
    bnb_4bit_quant_type: str | None = None
    bnb_4bit_use_double_quant: bool | None = None
    bnb_4bit_compute_dtype: str | torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("parallelize", "load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"):
            check_flag(name, getattr(self, name))
        attention(self.attn_implementation)
        _check_map(self.device_map)
        self._check_together()
        if self.bnb_4bit_quant_type not in (None, "fp4", "nf4"):
            raise UsageError(f"bnb_4bit_quant_type={self.bnb_4bit_quant_type}: it must be fp4 or nf4")
        for name in _OF_SPLIT:
            _check_memory(name, getattr(self, name))
        self._products()

    def _check_together(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise UsageError("load_in_4bit and load_in_8bit are two quantisations: give one of them")
        for need, names in (("parallelize", _OF_SPLIT), ("load_in_4bit", _OF_4BIT)):
            for name in names:
                if getattr(self, name) is not None and not getattr(self, need):
                    raise UsageError(f"{name} has no effect without {need}=True: give both, or leave it out")
        if not self.parallelize and self.offload_folder not in (None, _FOLDER):
            raise UsageError(
                "offload_folder has no effect without parallelize=True: give both, or leave it out"
            )
        if self.delta is not None and (self.quantised or self.spread):
            raise UsageError(
                "delta is added to whole weights in one place: leave it out, or quantise and spread none"
            )

    @property
    def quantised(self) -> bool:
        """Whether the weights are quantised as they are loaded."""
        return bool(self.load_in_4bit or self.load_in_8bit)

    @property
    def spread(self) -> bool:
        """Whether it is said where the weights lie."""
        return bool(self.parallelize or self.device_map is not None)

    def settings(self, device: torch.device) -> dict[str, Any]:
        """Return transformers' own arguments for weights on ``device``, or where these arguments say."""
        found = attention(self.attn_implementation)
        if self.quantised:
            found |= {"quantization_config": self._bitsandbytes(), "device_map": {"": device}}
        if self.spread:
            places = self.device_map or "auto"
            found |= {"device_map": places if isinstance(places, str) else dict(places)}
            found |= {"offload_folder": self._folder()}
        if self.parallelize:
            found |= {"max_memory": self._memory()}
        return found

    def _bitsandbytes(self) -> Any:
        from transformers import BitsAndBytesConfig

        from cme_bench.models.quantisation import check_installed

        check_installed("load_in_4bit" if self.load_in_4bit else "load_in_8bit", "bitsandbytes")
        if self.load_in_8bit:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type or "fp4",
            bnb_4bit_use_double_quant=bool(self.bnb_4bit_use_double_quant),
            bnb_4bit_compute_dtype=self._products(),
        )

    def _products(self) -> torch.dtype | None:
        import torch

        value = self.bnb_4bit_compute_dtype
        found = getattr(torch, value, None) if isinstance(value, str) else value
        if value is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
            raise UsageError(f"bnb_4bit_compute_dtype={value}: it must be float32, bfloat16 or float16")
        return found

    def _memory(self) -> dict[int | str, Any]:
        """Return what ``parallelize`` may fill: the GPUs, and of the host what ``max_cpu_memory`` says."""
        import torch

        count = torch.cuda.device_count()
        if self.max_memory_per_gpu is not None:
            gpus: dict[int | str, Any] = dict.fromkeys(range(count), self.max_memory_per_gpu)
        else:
            from accelerate.utils import get_max_memory

            gpus = {place: free for place, free in get_max_memory().items() if place != "cpu"}
        return gpus | ({} if self.max_cpu_memory is None else {"cpu": self.max_cpu_memory})

    def _folder(self) -> str:
        if self.offload_folder not in (None, _FOLDER):
            return str(self.offload_folder)
        kept = tempfile.TemporaryDirectory(prefix="cme-bench-offload-")
        _KEPT.append(kept)
        return kept.name


_KEPT: list[Any] = []
"""Folders of weights on disk, removed when the process ends."""


def load(folder: Path, dtype: str, loading: Loading, device: torch.device) -> Any:
    """Return the model in ``folder``. UsageError if it is quantised already and is to be quantised."""
    from cme_bench.models.load import load_named

    model = load_named(str(folder), dtype, note=logger.warning, device=device, **loading.settings(device))
    if loading.delta is not None:
        difference = resolve_model(loading.delta, note=logger.warning).path
        _add(model, load_named(str(difference), dtype, note=logger.warning), loading.delta)
    return model


def put_adapter(model: Any, name: str) -> Any:
    """Put an adapter on ``model``, found and checked as in a run: a folder, one of ours, or of the hub."""
    from cme_bench.adapters.load import load_adapter  # and TeamLoRA and its kin are known to PEFT

    place = locate_adapter(name, note=logger.warning)
    return load_adapter(model, place.path, task=place.task, note=logger.warning)


def check_tokenizer(name: str, base: Path) -> None:
    """Raise UsageError if another tokenizer than that in ``base`` lies beside an adapter: ``hf`` takes the
    base's, a run the adapter's. Another chat template alone is a warning."""
    from cme_bench.models.adapter_tokenizer import beside, holds_tokenizer
    from cme_bench.models.load import load_named_tokenizer

    folder = locate_adapter(name, note=logger.warning).path
    if not holds_tokenizer(folder):
        return
    found = beside(folder, load_named_tokenizer(str(base)))
    if found.identity:
        raise UsageError(
            f"{folder}: another tokenizer than the base model's lies beside the adapter: "
            f"tokenizer={folder} or tokenizer={base} decides"
        )
    if found.note is not None:
        logger.warning("%s: the chat template beside the adapter is not used, tokenizer= names one", folder)


def _add(model: Any, difference: Any, name: str) -> None:
    """Add the weights of ``difference`` to those of ``model``; weights that are tied are added once.

    Raises UsageError if the two do not have the same weights.
    """
    ours, theirs = dict(model.named_parameters()), dict(difference.named_parameters())
    if wrong := sorted(ours.keys() ^ theirs.keys()):
        raise UsageError(f"delta {name}: only one of the two models has {wrong[0]}")
    for key, parameter in ours.items():
        if parameter.shape != theirs[key].shape:
            sizes = [tuple(one.shape) for one in (theirs[key], parameter)]
            raise UsageError(f"delta {name}: {key} is {sizes[0]}, and {sizes[1]} in the model")
        parameter.data += theirs[key].data


def _check_map(value: Any) -> None:
    if value is None or value in WAYS:
        return
    if isinstance(value, Mapping):
        from cme_bench.models.placement import check_places

        check_places("device_map", value)
        return
    try:
        device_of(value)
    except UsageError:
        near = did_you_mean(str(value), WAYS)
        raise UsageError(
            f"device_map={value}: it must be {', '.join(WAYS)}, a device that is here, or a mapping{near}"
        ) from None


def _check_memory(name: str, value: Any) -> None:
    """Raise UsageError unless ``value`` is bytes, or a size such as "10GiB"."""
    if value is None:
        return
    from accelerate.utils.modeling import convert_file_size_to_int

    try:
        if isinstance(value, bool) or convert_file_size_to_int(value) < 0:
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f'{name}={value}: it must be a number of bytes, or a size such as "10GiB"') from None
