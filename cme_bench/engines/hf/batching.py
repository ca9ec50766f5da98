"""Batches under a token budget that shrinks when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from cme_bench.engines.hf.kept_weights import adapters_own
from cme_bench.engines.plan import PlanLimits
from cme_bench.util.errors import CmeError

CPU_TOKENS_PER_BATCH = 4096
_CUDA_TOKENS_PER_BATCH = (4096, 262144)  # least and most that the default takes
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")


class BatchRow(Protocol):
    """Be one row of a batch."""

    @property
    def n_input(self) -> int:
        """Return how many tokens the prefill feeds."""

    @property
    def n_new(self) -> int:
        """Return how many tokens may follow, one forward each; 0 when rows are only scored."""


PACK_PARAMETERS = 1_100_000_000
"""Size of the model with which 8,192 tokens of a pack were measured to be enough on CUDA."""
_MOST_PACK_TOKENS = 1 << 16
_PACK_LOGITS, _MORE_PACK_LOGITS = 1 << 28, 1 << 29
"""Logits of a pack on CUDA: 1 GiB in float32, or 2 where much memory is free."""
_MUCH_MEMORY = 1 << 35
RowT = TypeVar("RowT", bound=BatchRow)
ResultT = TypeVar("ResultT")
WorkT = TypeVar("WorkT")


@dataclass(slots=True)
class TokenBudget:
    """Bound the positions (rows x padded length, new tokens included) of a batch; only shrinks."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a batch must hold at least one token, not {self.tokens}")


def width(rows: Sequence[BatchRow]) -> int:
    """Return the padded length of a batch of ``rows``, room for new tokens included."""
    return max(row.n_input for row in rows) + max(row.n_new for row in rows)


class NoRoomError(CmeError):
    """Memory runs out on the smallest part of the work."""


def by_length(rows: Sequence[BatchRow]) -> list[list[int]]:
    """Return the indices of rows that are equally long, one list a length."""
    indices: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        indices.setdefault(row.n_input, []).append(i)
    return list(indices.values())


def take_batch(rows: Sequence[RowT], start: int, tokens: int) -> Sequence[RowT]:
    """Return the longest run of rows from ``start`` whose padded size fits in ``tokens``; at least one."""
    n_input = n_new = 0
    stop = start
    while stop < len(rows):
        n_input = max(n_input, rows[stop].n_input)
        n_new = max(n_new, rows[stop].n_new)
        if stop > start and (stop + 1 - start) * (n_input + n_new) > tokens:
            break
        stop += 1
    return rows[start:stop]


def run_batches(
    rows: Sequence[RowT],
    budget: TokenBudget,
    compute: Callable[[Sequence[RowT]], Sequence[ResultT]],
) -> Iterator[tuple[RowT, ResultT]]:
    """Yield ``(row, result)`` of every row in the order given, one batch in memory at a time.

    A batch that runs out of memory is halved, and ``budget`` keeps the smaller size for all that follows.
    """
    start = 0
    while start < len(rows):
        batch = take_batch(rows, start, budget.tokens)
        results = try_compute(compute, batch)
        if results is None:
            if len(batch) == 1:
                raise NoRoomError(
                    f"out of memory on a single row of {width(batch)} tokens: use fewer shots or a smaller "
                    "max_length, a smaller dtype or model, or free memory on the device"
                )
            budget.tokens = (len(batch) // 2) * width(batch[: len(batch) // 2])
            continue
        yield from zip(batch, results, strict=True)
        start += len(batch)


def try_compute(compute: Callable[[WorkT], ResultT], work: WorkT) -> ResultT | None:
    """Return the result; None when memory ran out.

    The traceback, which holds the work's tensors, is gone by then.
    """
    try:
        return compute(work)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether ``error`` is an allocator's, on CUDA or CPU (which has no class of its own)."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def default_tokens_per_batch(config: Any, device: torch.device, bytes_per_value: int) -> int:
    """Return the token budget for a model of ``config``: fixed on CPU, half of the free memory on CUDA.

    A token is taken to need its keys and values in every layer, one layer's activations, and its logits
    in float32 (one position in eight is scored).
    """
    if device.type != "cuda":
        return CPU_TOKENS_PER_BATCH
    text = config.get_text_config(decoder=True)
    hidden = int(text.hidden_size)
    layers = int(text.num_hidden_layers)
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    cache = 2 * layers * kv_heads * head_dim * bytes_per_value
    activations = (12 * hidden + 4 * inner) * bytes_per_value
    logits = int(text.vocab_size) * (bytes_per_value + 4) // 8
    least, most = _CUDA_TOKENS_PER_BATCH
    return max(least, min(most, free_memory(device) // 2 // (cache + activations + logits)))


def base_size(model: nn.Module) -> int:
    """Return how many parameters are the base's, and none of an adapter's; tied ones count once."""
    added = adapters_own(model)
    modules = (module for module in model.modules() if module not in added)
    base = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in base)


def free_memory(device: torch.device) -> int:
    """Return how many bytes of a GPU are free; 0 for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def plan_limits(
    config: Any,
    device: torch.device,
    tokens_per_batch: int,
    parameters: int = PACK_PARAMETERS,
    free: int = 0,
) -> PlanLimits:
    """Return the sizes of packs for a model of ``config``, ``tokens_per_batch`` at most.

    The numbers are measured (docs/engines.md). Beyond a thousand tokens a CPU gains nothing; logits of a
    pack stay below 128 MiB there and 1 GiB on CUDA, 2 GiB with ``free`` bytes beyond 32 GiB. A GPU takes as
    long to be told of a pack of a small model as of a large one, so a pack holds as much work: more tokens,
    the fewer ``parameters`` the base has. A forward of its own then costs as much as more tokens, too.
    """
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    on_cuda = device.type == "cuda"
    pack, block, forward, logits = (8192, 1024, 1024, _PACK_LOGITS) if on_cuda else (1024, 256, 64, 1 << 25)
    if on_cuda:
        logits = _MORE_PACK_LOGITS if free > _MUCH_MEMORY else logits
        larger = max(1, min(_MOST_PACK_TOKENS / pack, PACK_PARAMETERS / max(1, parameters)))
        pack, forward = int(pack * larger), int(forward * larger)
    return PlanLimits(
        pack_tokens=min(pack, tokens_per_batch),
        pack_scored=max(1, logits // vocabulary),
        block_tokens=block,
        forward_tokens=forward,
        kept_tokens=0,
    )
