"""A base model that several adapters share: known by identity before any weights are loaded."""

from __future__ import annotations

import functools
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import UNSET
from msgspec.structs import replace

from cme_bench.models.adapter import Adapter, AdapterCheckpoint
from cme_bench.models.adapter_tokenizer import AdapterTokenizer, beside
from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.folder import adapter_note
from cme_bench.models.load import (
    check_base,
    count_parameters,
    eos_token_id,
    evaluation_dtype,
    load_config,
    load_model,
    load_tokenizer,
)
from cme_bench.models.placement import check_covers, read_device_map
from cme_bench.models.quantisation import DEQUANTISED, DEQUANTISED_NOTE, is_dequantised, label_of
from cme_bench.models.quantise import LABELS
from cme_bench.models.records import ModelRecord
from cme_bench.models.values import check_stored
from cme_bench.models.vision import Vision, vision_of
from cme_bench.util.notes import Note, unheard
from cme_bench.util.options import DType, Quantize
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class LoadedModel(ABC):
    """A causal language model and its tokenizer, from a folder or given in memory.

    Attributes:
        name: What a run and a table call it.
        place: Where it is, for messages.
        hash: Two models with one hash answer alike.
        config: Its transformers config.
        device: Where it computes.
        dtype: The type that it computes in; ``dtype_because`` says why.
        quantisation: How its weights are quantised, as records and tables call it; None if they are not.
        quantised_as: What counts of that in the identity of answers, beside the hash; None where the hash
            says it all.
        notes: What a user should know of it.
    """

    name: str
    place: str
    hash: str
    config: Any
    device: torch.device
    dtype: torch.dtype
    dtype_because: str
    quantisation: str | None = None
    quantised_as: str | None = None
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Return the tokenizer of the model itself."""

    @property
    def vision(self) -> Vision | None:
        """Return how it reads images; None for a model of text alone.

        Raises UsageError for a model that takes images, and whose processor cannot be loaded.
        """
        return None

    @property
    @abstractmethod
    def eos(self) -> Any:
        """Return the ids (one, several or None) that end its generations, beside its tokenizer's EOS."""

    @abstractmethod
    def tokenizer_of(self, adapter: Adapter | None) -> AdapterTokenizer:
        """Return what an adapter is asked with: the tokenizer and template beside it, or the base's."""

    @property
    @abstractmethod
    def model(self) -> PreTrainedModel:
        """Return the model with its weights."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Return the number of its parameters, tied ones once."""

    def describe(self) -> ModelRecord:
        """Return the model as ``run.json`` records it."""
        return ModelRecord(
            name=self.name,
            path=self.place,
            hash=self.hash,
            architecture=(self.config.architectures or ["unknown"])[0],
            parameters=self.parameters,
            dtype=self.dtype_name,
            dtype_because=self.dtype_because,
            quantisation=self.quantisation or UNSET,
        )

    def check_stored(self) -> None:  # noqa: B027 - not every model has files here
        """Raise UsageError, naming the tensor, if a weight in the model's files holds NaN or an infinity.

        Reads all of them: asked where logits are no numbers.
        """

    @property
    def dtype_name(self) -> DType:
        """Return the type as options name it, such as ``float32``."""
        return cast("DType", str(self.dtype).removeprefix("torch."))


class FolderModel(LoadedModel):
    """A model whose tokenizer lies in a folder, ``checkpoint``, and an adapter's beside the adapter."""

    checkpoint: Checkpoint

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.checkpoint)

    @functools.cached_property
    def eos(self) -> Any:
        return eos_token_id(self.checkpoint, self.config)

    @functools.cached_property
    def _tokenizers(self) -> dict[Path, AdapterTokenizer]:
        return {}

    def tokenizer_of(self, adapter: Adapter | None) -> AdapterTokenizer:
        if not isinstance(adapter, AdapterCheckpoint):
            return AdapterTokenizer(self.tokenizer)
        if adapter.path not in self._tokenizers:
            self._tokenizers[adapter.path] = beside(adapter.path, self.tokenizer)
        return self._tokenizers[adapter.path]


class SavedModel(FolderModel):
    """A model folder or a model of the hub. Weights are loaded on first use, and once.

    ``engine``: what will compute, "hf" or "vllm"; ``device`` is asked once the folder is found to be fit;
    ``quantize`` and ``device_map``: as the options of a run; ``note`` is told of what takes long.
    Raises UsageError as ``resolve_model`` and ``check_base`` do, before any weights are loaded.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: str,
        dtype: str,
        device: Callable[[], torch.device],
        offline: bool = False,
        quantize: Quantize | None = None,
        device_map: str | None = None,
        note: Note = unheard,
    ) -> None:
        self.checkpoint = resolve_model(name, offline=offline, note=note)
        with phase("libraries"):
            import cme_bench.adapters  # noqa: F401  # and with it torch, transformers and PEFT
        self.config = load_config(self.checkpoint)
        check_base(self.checkpoint, self.config, engine, quantize)
        check_covers(device_map, self.config)
        self._quantize, self._device_map = quantize, device_map
        self.quantisation = label_of(self.config) if quantize is None else LABELS[quantize]
        self.name = self.checkpoint.name
        self.place = str(self.checkpoint.path)
        beside_weights = adapter_note(self.checkpoint.path)
        self.notes = () if beside_weights is None else (beside_weights,)
        self.device = device()
        self.dtype, self.dtype_because = evaluation_dtype(
            dtype, self.config, self.device, lambda: self.parameters, quantize=quantize, engine=engine
        )
        self.quantised_as = self._quantised_as(engine)
        if self.quantised_as == DEQUANTISED:
            self.notes += (f"{self.place}: {self.quantisation} {DEQUANTISED_NOTE}",)

    @property
    def hash(self) -> str:  # type: ignore[override]  # it is only read
        """The hash of its files. Waits for it."""
        return self.checkpoint.hash

    @functools.cached_property
    def parameters(self) -> int:
        return count_parameters(self.config)

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        return self._load()

    @functools.cached_property
    def vision(self) -> Vision | None:
        return vision_of(self.checkpoint.path, self.config, self.tokenizer)

    def _load(self) -> PreTrainedModel:
        return load_model(
            self.checkpoint,
            self.dtype,
            self.device,
            quantize=self._quantize,
            device_map=read_device_map(self._device_map),
        )

    def _quantised_as(self, engine: str) -> str | None:
        if self._quantize is not None:
            return LABELS[self._quantize]
        return DEQUANTISED if engine == "hf" and is_dequantised(self.config) else None

    def check_stored(self) -> None:
        check_stored(self.checkpoint.path)

    def reload(self) -> None:
        """Free the weights; they are loaded again when they are next asked for."""
        self.__dict__.pop("model", None)
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def describe(self) -> ModelRecord:
        return replace(
            super().describe(), revision=self.checkpoint.revision, hub=self.checkpoint.hub or UNSET
        )
