"""Who a model in memory is: hashes over everything that decides its answers, the base and its adapters apart.

Counted are the bits, shape, type and name of every parameter and buffer, the numbers and words that its
modules keep, their classes (with their code, where it is no installed library's), its configuration, and
where its answers end. What training alone reads does not
count: modes, gradients, hooks of gradient checkpointing. A base has one hash with and without adapters on it.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cme_bench.adapters.code import code_of
from cme_bench.models.packed import companions, inner_tensors
from cme_bench.util.errors import UsageError

CHUNK_BYTES = 64 << 20
"""Bytes of a tensor that are on the host at one time, for each thread."""
_MOST_THREADS = 8
_OF_MODULES = frozenset(vars(nn.Module())) | {"forward"}
_OF_TRAINING = frozenset(
    "_is_accelerate_prepared _is_hf_initialized model_tags name_or_path warnings_issued "
    "hf_device_map generation_config config is_parallelizable model_parallel _original_forward "
    "_old_forward _hf_hook _compiled_call_impl _active_adapter _disable_adapters "
    "active_adapter _adapters_disabled peft_config merged_adapters "
    "quant_state state support_avx512bf16_for_cpu".split()
)
"""Attributes that decide no answer, or that are counted otherwise: by :func:`adapter_hash`, as companions of
quantised weights."""
_PASSING = "cache", "require_grads", "gradient_checkpointing"
"""Parts of the names of attributes that decide no answer either."""
_OF_CONFIG = frozenset({"_name_or_path", "transformers_version", "use_cache"})
_LIBRARIES = frozenset({"torch", "transformers", "peft", "cme_bench", "bitsandbytes", "accelerate"})
"""Packages whose classes are known by their names: a run records their versions."""
_HARMLESS_HOOKS = ("make_inputs_require_grad",)
"""Of transformers and PEFT, for gradient checkpointing: their outputs are their inputs."""
_INSIDE: tuple[tuple[type, str], ...] = (
    (BaseTunerLayer, "base_layer"),
    (AuxiliaryTrainingWrapper, "original_module"),
)
"""PEFT's wrappers, and where they keep the base's own module."""


@dataclass(frozen=True, slots=True)
class IdentityPart:
    """A module: its name without PEFT's wrappers, whether an adapter brought it, and what it is."""

    name: str
    adapted: bool
    module: nn.Module


def base_hash(model: nn.Module, ends: Sequence[int]) -> str:
    """Return the hash of a transformers model without the adapters on it; ``ends``: ids that end an answer.

    Raises UsageError if values are not at hand: on disk, or shared out over processes.
    """
    digest = _Digest()
    digest.add("ends", sorted(ends))
    digest.add("config", _config(model))
    own = [part for part in _parts(model) if not part.adapted]
    digest.read({**p.module._parameters, **p.module._buffers} for p in own)
    for part in own:
        digest.module(part.name, part.module, frozenset())
    return digest.value()


def adapter_hash(model: Any, names: Sequence[str], code: str = "") -> str:
    """Return the hash of those adapters of a ``PeftModel`` that ``names`` tell; others do not count.

    ``code``: the hash of a user's code that computes them.
    """
    others = frozenset(model.peft_config) - set(names)
    digest = _Digest()
    digest.add("names", list(names))
    digest.add("code", code)
    for name in names:
        digest.add(
            "settings", {k: v for k, v in model.peft_config[name].to_dict().items() if k not in _PLACES}
        )
    inner = model.get_base_model()
    for part in _parts(inner):
        if part.adapted and not others & set(part.name.split(".")):
            digest.module(part.name, part.module, others)
    for part in _parts(model, stop=inner):
        if not others & set(part.name.split(".")):
            digest.module(part.name, part.module, others)
    return digest.value()


_PLACES = frozenset({"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"})


def _parts(
    module: nn.Module, name: str = "", adapted: bool = False, stop: nn.Module | None = None
) -> Iterator[IdentityPart]:
    """Yield every module below ``module``, without ``stop``."""
    inside = next((child for kind, child in _INSIDE if isinstance(module, kind)), None)
    yield IdentityPart(name, adapted or inside is not None, module)
    for key, child in module.named_children():
        if child is stop:
            continue
        own = inside is not None and key == inside
        below = name if own else f"{name}.{key}".lstrip(".")
        yield from _parts(child, below, adapted if own else adapted or inside is not None, stop)


def _config(model: Any) -> dict[str, Any]:
    found = {k: v for k, v in model.config.to_dict().items() if k not in _OF_CONFIG}
    return found | {"attention": str(getattr(model.config, "_attn_implementation", None))}


class _Digest:
    """A hash that grows; a tensor that has several names is read once."""

    def __init__(self) -> None:
        self._lines = hashlib.sha256()
        self._seen: dict[tuple[Any, ...], str] = {}

    def value(self) -> str:
        return self._lines.hexdigest()

    def add(self, name: str, value: Any) -> None:
        line = json.dumps([name, self._plain(value, frozenset())], sort_keys=True)
        self._lines.update(line.encode() + b"\n")

    def read(self, groups: Iterable[Mapping[str, Tensor | None]]) -> None:
        """Hash tensors that are added later, several at a time: a hash keeps one core busy.

        One that cannot be hashed is left to be named when it is added.
        """
        found = {self._key(t): t for tensors in groups for t in tensors.values() if t is not None}
        with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as several:
            hashes = several.map(_hash_or_none, found.values())
            self._seen |= {key: value for key, value in zip(found, hashes, strict=True) if value and key[1]}

    def module(self, name: str, module: nn.Module, others: Set[str]) -> None:
        """Add a module's own tensors and attributes, without its children and without adapters ``others``."""
        self.add(name, class_code(type(module)))
        if _unknown_code(module):
            self.add(name, uuid.uuid4().hex)
        tensors = {**module._parameters, **module._buffers}
        for key in sorted(tensors):
            tensor = tensors[key]
            if tensor is not None and key not in others:
                self.add(f"{name}.{key}", self._tensor(tensor, f"{name}.{key}"))
        for key, value in companions(module).items():
            self.add(f"{name}.{key}", value)
        for key, value in sorted(vars(module).items()):
            if key not in _OF_MODULES and key not in _OF_TRAINING and not any(p in key for p in _PASSING):
                line = json.dumps([f"{name}:{key}", self._plain(value, others)], sort_keys=True)
                self._lines.update(line.encode() + b"\n")

    def _plain(self, value: Any, others: Set[str]) -> Any:
        """``value`` as JSON: numbers, words and tensors by what they are, code by its name."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, "a tensor")
        found = getattr(value, "as_dict", None)  # of bitsandbytes
        if isinstance(value, Mapping) or callable(found):
            pairs = (found() if callable(found) else value).items()
            return {str(key): self._plain(inner, others) for key, inner in pairs if key not in others}
        if isinstance(value, list | tuple):
            return [self._plain(inner, others) for inner in value]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self._plain(inner, others), sort_keys=True) for inner in value)
        return _word(value)

    def _tensor(self, tensor: Tensor, name: str) -> list[Any]:
        key = self._key(tensor)
        if key not in self._seen or not key[1]:
            self._seen[key] = tensor_hash(tensor, name)
        return [list(tensor.shape), str(tensor.dtype), self._seen[key]]

    @staticmethod
    def _key(tensor: Tensor) -> tuple[Any, ...]:
        """Return where the bits of a tensor are; its second part is 0 where that is unknown."""
        where = tensor.data_ptr() if tensor.device.type != "meta" else 0
        return tensor.device, where, tensor.shape, tensor.stride(), tensor.dtype, type(tensor)


def class_code(kind: type) -> str:
    """Return the name of a class and of its forward, with a hash of files that are of no known library."""
    names = [f"{part.__module__}.{part.__qualname__}" for part in _code_parts(kind)]
    return " ".join([*names, *(filter(None, map(_file_hash, _foreign(kind))))])


def _code_parts(kind: type) -> tuple[Any, ...]:
    """Return a class and what its forward is now: libraries of kernels put their own there."""
    return kind, inspect.unwrap(kind.forward) if hasattr(kind, "forward") else kind


def _foreign(kind: type) -> list[Any]:
    return [part for part in _code_parts(kind) if part.__module__.partition(".")[0] not in _LIBRARIES]


@functools.cache
def _file_hash(part: Any) -> str | None:
    """Return the hash of the file and package of a class or function; None if it was typed into a session."""
    code = code_of(part)
    return None if code is None or code.file == "unknown" else code.hash


def _word(value: Any) -> str:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, torch.dtype):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _hash_or_none(tensor: Tensor) -> str | None:
    try:
        return tensor_hash(tensor, "")
    except UsageError:
        return None


@torch.no_grad()
def tensor_hash(tensor: Tensor, name: str) -> str:
    """Return the sha256 of a tensor's bits, a part of it at a time.

    Raises UsageError, naming the tensor, if its values are not in this process.
    """
    if tensor.device.type == "meta" or hasattr(tensor, "ds_id") or type(tensor).__name__ == "DTensor":
        raise UsageError(
            f"the values of {name} are not in this process (offloaded, or shared out over several): a model "
            "in memory is evaluated only where all of it is"
        )
    digest = hashlib.sha256()
    if parts := inner_tensors(tensor):
        inside: Any = tensor
        digest.update(repr(inside.__tensor_flatten__()[1]).encode())
        for _, part in parts:
            digest.update(tensor_hash(part, name).encode())
        return digest.hexdigest()
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = values.detach().contiguous().reshape(-1)
    step = max(1, CHUNK_BYTES // max(1, flat.element_size()))
    for start in range(0, flat.numel(), step):
        bits: Any = flat[start : start + step].view(torch.uint8).cpu().numpy()
        digest.update(bits)
    return digest.hexdigest()


def _unknown_code(module: nn.Module) -> bool:
    """Whether a module's answers go through code that no hash can know."""
    if any(_file_hash(part) is None for part in _foreign(type(module))):
        return True
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    foreign = [hook for hook in hooks if not _harmless(hook)]
    own = vars(module).get("forward")
    put = own is not None and getattr(own, "__func__", None) is not type(module).forward
    return bool(foreign) or (put and not hasattr(module, "_hf_hook"))


def _harmless(hook: Any) -> bool:
    name = str(getattr(hook, "__qualname__", ""))
    return any(known in name for known in _HARMLESS_HOOKS)


def has_unknown_code(model: nn.Module) -> bool:
    """Return whether a model has forward hooks or forwards of its own, so that its answers have no key."""
    return any(map(_unknown_code, model.modules()))
