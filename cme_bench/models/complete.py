"""Does every weight come from the files? The headers against the model that config.json describes.

transformers fills what is missing with random numbers. Its own loading is asked here, with tensors that have
a shape and no memory: renamed, merged and split weights of older checkpoints count as they do when loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cme_bench.models.packed_files import check_packed
from cme_bench.models.quantisation import method_of, quantisation
from cme_bench.models.silence import transformers_silent
from cme_bench.models.weights import StoredTensor, stored_tensors, weight_files
from cme_bench.util.auto_model import model_class
from cme_bench.util.building import BUILDING
from cme_bench.util.errors import UsageError, first_line
from cme_bench.vllm_plugin.spec import QUANT_METHOD

_BUFFERS = re.compile(
    r"(^|\.)(attn|attention|self_attn|self_attention|attn\.attention)\.(bias|masked_bias)$"  # causal masks
    r"|(^|\.)inv_freq$|(^|\.)(cos|sin)_cached$|(^|\.)position_ids$|(^|\.)num_batches_tracked$"
)
"""Tables that older versions saved and that are computed today; no weights."""
_HEADS = re.compile(r"^v_head\.|(^|\.)(k_scale|v_scale)$")
"""A value head of reinforcement learning, scales of a quantised cache: no logit depends on them."""

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_")
"""Beginnings of safetensors' names of types whose values are the weights themselves."""

_BUILD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    AssertionError,
    ArithmeticError,
)
"""Errors of a model's code: a configuration that it cannot build, or weights that it cannot merge."""


@dataclass(frozen=True, slots=True)
class Misfits:
    """The differences between files and model, by tensor name. mismatched: (shape in the files, shape of the
    model). of: the number of tensors of the model, and in the files. tied: a weight's name by that of the
    weight that the model takes from it, where the files hold both."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    of: tuple[int, int]
    tied: Mapping[str, str] = field(default_factory=dict)

    def first(self) -> str | None:
        """Return one line that names the first tensor at fault; None if there is none."""
        if self.missing:
            name, hint = _renamed(self.missing, self.unexpected) or (self.missing[0], "")
            return f"{name} is missing from the weights ({len(self.missing)} of {self.of[0]} are{hint})"
        if self.mismatched:
            name, (theirs, ours) = next(iter(sorted(self.mismatched.items())))
            return (
                f"{name} has shape {list(theirs)} in the weights, but config.json asks for {list(ours)} "
                f"({len(self.mismatched)} of {self.of[0]} differ)"
            )
        if self.unexpected:
            return (
                f"{self.unexpected[0]} is in the weights, but not in the model that config.json describes "
                f"({len(self.unexpected)} of {self.of[1]} are not)"
            )
        return None


def check_weights(folder: Path, config: Any) -> None:
    """Raise UsageError, naming the folder and a tensor, unless the files give every weight of the model.

    Reads headers only; the model is built without memory. Refused as well: tensors that the model has no
    place for, weights of integers where nothing says how they are quantised, and a tied output layer stored
    with other values than the embedding it is tied to.
    """
    stored = stored_tensors(weight_files(folder))
    block = quantisation(config)
    quantised = block is not None and method_of(block) != QUANT_METHOD
    if block is not None and quantised:
        check_packed(folder, block, stored)
    elif line := _no_floats(stored):
        raise UsageError(f"{folder}: {line}")
    misfits = compare(folder, config, stored, quantised=quantised)
    if misfits.mismatched and (hole := _hole(stored)):  # too few of what is merged into one tensor
        raise UsageError(f"{folder}: {hole}")
    if line := misfits.first():
        raise UsageError(f"{folder}: {line}")
    for name, source in misfits.tied.items():
        if not quantised and not _equal(name, stored[name], source, stored[source]):
            raise UsageError(
                f"{folder}: config.json ties {name} to {source}, but the weights hold both and they differ; "
                "set tie_word_embeddings to false, or remove the one that does not count"
            )


def _no_floats(stored: Mapping[str, StoredTensor]) -> str | None:
    """Return one line on a weight of integers, which transformers would take for its values; None if all are
    floating-point numbers."""
    for name, tensor in sorted(stored.items()):
        if name.endswith("weight") and not tensor.dtype.startswith(_FLOATS):
            return (
                f"{name} is stored as {tensor.dtype}, as quantised weights are, and config.json has no "
                "quantization_config that says what it stands for"
            )
    return None


def check_loaded(folder: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Raise UsageError as ``check_weights`` does, from what transformers says of a model it has loaded."""
    quantised = getattr(model, "hf_quantizer", None) is not None
    misfits = _misfits(info, model.state_dict().keys(), len(model.state_dict()), quantised=quantised)
    if line := misfits.first():
        raise UsageError(f"{folder}: {line}")


def compare(
    folder: Path, config: Any, stored: Mapping[str, StoredTensor], *, quantised: bool = False
) -> Misfits:
    """Return how ``stored`` differs from the model of ``config``; of quantised weights only whole modules."""
    import torch

    config = copy.deepcopy(config)
    for owner in (config, config.get_text_config(decoder=True)):
        owner.__dict__.pop("quantization_config", None)
    tensors = {name: torch.empty(t.shape, dtype=_dtype(t), device="meta") for name, t in stored.items()}
    cls = model_class(config)._model_mapping[type(config)]
    with BUILDING, _quiet():
        try:
            model, info = cls.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except _BUILD_ERRORS as error:
            if quantised:
                return Misfits((), (), {}, (0, len(stored)))
            raise UsageError(f"{folder}: {_why_unreadable(stored, error)}") from error
    ties = getattr(model, "all_tied_weights_keys", {})
    both = {name: source for name, source in ties.items() if name in stored and source in stored}
    return replace(_misfits(info, model.state_dict().keys(), len(stored), quantised=quantised), tied=both)


def _misfits(info: Mapping[str, Any], own: Collection[str], stored: int, *, quantised: bool) -> Misfits:
    unexpected = {n for n in info["unexpected_keys"] if not (_BUFFERS.search(n) or _HEADS.search(n))}
    missing = set(info["missing_keys"])
    mismatched = {name: (tuple(a), tuple(b)) for name, a, b in info["mismatched_keys"]}
    if quantised:  # other tensors stand for a weight: its packed values, scales, zero points
        mismatched = {}
        modules = {name.rpartition(".")[0] for name in own}
        spoken_for = {n for n in unexpected if any(parent in modules for parent in _parents(n))}
        missing = {
            n for n in missing if not any(u.startswith(f"{n.rpartition('.')[0]}.") for u in spoken_for)
        }
        unexpected -= spoken_for
    return Misfits(tuple(sorted(missing)), tuple(sorted(unexpected)), mismatched, (len(own), stored))


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _renamed(missing: Collection[str], unexpected: Collection[str]) -> tuple[str, str] | None:
    """Find a missing name that is in the files but for a prefix such as ``_orig_mod.`` or ``module.``."""
    ends = {name[place + 1 :]: name for name in unexpected for place in _dots(name)}
    return next(((n, f"; the files call it {ends[n]}") for n in missing if n in ends), None)


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


def _equal(one: str, first: StoredTensor, other: str, second: StoredTensor) -> bool:
    """Return whether two tied weights are equal. Engines differ here: one ties such weights, another does
    not."""
    import torch
    from safetensors import safe_open

    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    rows = max(1, (1 << 24) // max(1, first.shape[-1]))
    with safe_open(first.file, "pt") as a, safe_open(second.file, "pt") as b:
        left, right = a.get_slice(one), b.get_slice(other)
        return all(
            torch.equal(left[start : start + rows], right[start : start + rows])
            for start in range(0, first.shape[0], rows)
        )


def _why_unreadable(stored: Mapping[str, StoredTensor], error: Exception) -> str:
    """Explain a failed merge: transformers merges tensors, such as a layer's experts, and fails where one is
    missing."""
    return (
        _hole(stored) or f"the weights do not fit the model that config.json describes ({first_line(error)})"
    )


def _hole(stored: Collection[str]) -> str | None:
    """Return one line on names that are absent though their numbered siblings are there."""
    places: dict[str, set[tuple[str, ...]]] = {}
    for name in stored:
        places.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), set()).add(
            tuple(re.findall(r"(?<=\.)\d+(?=\.)", name))
        )
    holes = []
    for form, seen in places.items():
        parent = form.rpartition("{}")[0]
        siblings = [s for other, s in places.items() if parent and other.rpartition("{}")[0] == parent]
        holes += [form.format(*place) for place in sorted(set().union(*siblings) - seen)]
    if not holes:
        return None
    return f"{min(holes)} is missing from the weights ({len(holes)} of {len(stored) + len(holes)} are)"


def _dtype(tensor: StoredTensor) -> Any:
    import torch

    floats = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return floats.get(tensor.dtype, torch.float32 if tensor.dtype.startswith("F") else torch.int8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own report of the same from the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with transformers_silent():
        yield
