"""vLLM's management of LoRAs, with gated adapters in their place: requests name one, slots hold some.

A request names its adapter by a ``LoRARequest``. vLLM's server gives it one by the model's name, its
scheduler lets no more adapters into a step than there are slots, its prefix cache keeps their blocks apart,
and its runner says before every step which token belongs to which. ``install`` puts this where vLLM's own
manager would be made, for models with slots only.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cme_bench.vllm_plugin.file import ADAPTER_FILE, AdapterFileError, file_digest
from cme_bench.vllm_plugin.loading import gated_layers, load_slot

_METHOD = "load_lora_model"
_MARK = "_cme_bench_slots"
_WARMING = "warm-up"


class SlotManager:
    """Stand in for vLLM's ``WorkerLoRAManager``: ids of ``LoRARequest`` become slots of the layers.

    An adapter is known by the digest of its file. Two names of one file share a slot. A name cannot change
    its file, nor an id its name: the prefix cache would go on giving out what the file before computed.
    ``digests``: those that names must have, where that is known.
    """

    def __init__(self, model: nn.Module, digests: Mapping[str, str]) -> None:
        self._layers = gated_layers(model)
        [self._index] = {layer.quant_method.index for layer in self._layers}
        self._slots: OrderedDict[str, int] = OrderedDict()
        """Digest -> slot, the one longest unused first."""
        self._files: dict[str, _File] = {}
        self._of_id: dict[int, tuple[str, str]] = {}
        """Id -> name and digest."""
        self._of_name = dict(digests)

    # What vLLM's runners call.

    @contextlib.contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Do nothing: what stands for adapters while vLLM warms up has no tensors."""
        yield

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        """Tell that a vision tower takes no adapter."""
        return False

    def add_dummy_lora(self, request: Any, rank: int) -> bool:
        """Give a slot, as it is, to something that stands for an adapter while vLLM warms up."""
        digest = f"{_WARMING} {request.lora_int_id}"
        self._of_id[request.lora_int_id] = request.lora_name, digest
        self._slots.setdefault(digest, request.lora_int_id)
        return True

    def add_adapter(self, request: Any) -> bool:
        """Have a request's adapter in a slot. AdapterFileError if its file is not what fits there."""
        self._hold([self._know(request)])
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Free the slot of an adapter; a request that is still at work brings it back."""
        known = self._of_id.get(adapter_id)
        return known is not None and self._slots.pop(known[1], None) is not None

    def remove_all_adapters(self) -> None:
        self._slots.clear()
        self._of_id = {k: v for k, v in self._of_id.items() if not v[1].startswith(_WARMING)}

    def pin_adapter(self, adapter_id: int) -> bool:
        raise ValueError("adapters in slots cannot be pinned: give --max-loras as many as there are")

    def list_adapters(self) -> set[int]:
        return {number for number, (_, digest) in self._of_id.items() if digest in self._slots}

    def set_active_adapters(self, requests: Iterable[Any], mapping: Any) -> None:
        """Begin a step: ``requests`` name its adapters, ``mapping`` the id of every token's, 0 for none."""
        for request in requests:
            self._know(request)
        ids = np.asarray(mapping.index_mapping, dtype=np.int64)
        starts = np.flatnonzero(np.diff(ids, prepend=-1))  # a request's tokens are one behind the other
        digests = [self._of_id[number][1] if number > 0 else None for number in ids[starts].tolist()]
        self._hold([digest for digest in digests if digest is not None])
        slots = np.array([0 if digest is None else self._slots[digest] for digest in digests], np.int32)
        self._index.set(np.repeat(slots, np.diff(starts, append=len(ids))))

    # How it is done.

    def _know(self, request: Any) -> str:
        """Return the digest of a request's adapter, and see that neither id nor name mean another."""
        number, name = request.lora_int_id, request.lora_name
        known = self._of_id.get(number)
        if known is not None and (known[1].startswith(_WARMING) or known[0] == name):
            if not request.load_inplace:
                return known[1]
        elif known is not None:
            raise AdapterFileError(f"the id {number} of adapter {name} is that of adapter {known[0]}")
        file = _File.of(request.lora_path)
        if self._of_name.setdefault(name, file.digest) != file.digest:
            raise AdapterFileError(
                f"{file.path} is not the file that adapter {name} had before, or was exported with, of which "
                "answers may be kept; give it another name"
            )
        self._files.setdefault(file.digest, file)
        self._of_id[number] = name, file.digest
        return file.digest

    def _hold(self, digests: Sequence[str]) -> None:
        """Have all of ``digests`` in slots at the same time."""
        wanted = dict.fromkeys(digests)
        if len(wanted) > self._index.n_slots:
            raise ValueError(f"{len(wanted)} adapters in a step, where {self._index.n_slots} have slots")
        for digest in wanted.keys() & self._slots.keys():
            self._slots.move_to_end(digest)
        for digest in wanted:
            if digest not in self._slots:
                slot = self._free(wanted)
                self._files[digest].load(self._layers, slot)
                self._slots[digest] = slot

    def _free(self, wanted: Iterable[str]) -> int:
        """Return a slot that nothing of this step is in; the one longest unused is given up."""
        free = set(range(1, self._index.n_slots + 1)) - set(self._slots.values())
        if free:
            return min(free)
        return self._slots.pop(next(digest for digest in self._slots if digest not in set(wanted)))


@dataclass(frozen=True, slots=True)
class _File:
    """An adapter's file, and its content when it was first read."""

    path: Path
    digest: str

    @classmethod
    def of(cls, given: str) -> _File:
        """Return the file that ``given`` is, or that lies in the folder that it is."""
        path = Path(given)
        if path.is_dir() and not (path / ADAPTER_FILE).is_file():
            raise AdapterFileError(
                f"{path} holds no {ADAPTER_FILE}; cme-bench adapters export-vllm --beside writes one"
            )
        path = path / ADAPTER_FILE if path.is_dir() else path
        return cls(path, file_digest(path))

    @torch.inference_mode()
    def load(self, layers: Sequence[Any], slot: int) -> None:
        """Put the adapter into a slot of the layers. AdapterFileError if the file has changed meanwhile."""
        load_slot(layers, self.path, slot)
        if file_digest(self.path) != self.digest:
            raise AdapterFileError(f"{self.path} has changed since it was first read; give it another name")


def install() -> None:
    """Have ``SlotManager`` manage models with slots. ImportError or AttributeError where vLLM lacks that."""
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    own = getattr(LoRAModelRunnerMixin, _METHOD)
    if hasattr(own, _MARK):
        return

    @functools.wraps(own)
    def load_lora_model(self: Any, model: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(vllm_config.quant_config, "slotted", False):
            return own(self, model, vllm_config, *args, **kwargs)
        self.lora_manager = SlotManager(model, vllm_config.quant_config.digests)
        return model

    setattr(load_lora_model, _MARK, True)
    setattr(LoRAModelRunnerMixin, _METHOD, load_lora_model)
