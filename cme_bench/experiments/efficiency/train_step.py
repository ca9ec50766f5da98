"""Step time and peak memory of training an adapter.

One step is forward, backward and a fused AdamW update of the adapter. The model is the configuration's
decoder (transformers, random weights, frozen) below a random frozen embedding of few rows. The output head
and its loss are left out, because they cost every method the same: the loss is the mean square of the last
hidden states. On a GPU the base is bfloat16 and the adapter float32 under autocast; on a CPU all is float32.

Memory is the peak of allocated bytes during a step, base included (CUDA: the allocator's; CPU: live tensors,
counted).
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig

from cme_bench.adapters.registry import How
from cme_bench.experiments.efficiency.live_bytes import LiveBytes
from cme_bench.experiments.efficiency.methods import attached
from cme_bench.experiments.efficiency.shapes import targets
from cme_bench.experiments.efficiency.workloads import in_turn

FILL = 0.88
"""Share of the card's memory that the hungriest method may take."""
VOCABULARY = 1024

Round = dict[str, dict[str, Any]]
"""By method: ``seconds`` of each timed step, and ``peak_bytes``."""


class TrainBench:
    """One base model and one batch, on which every method is measured."""

    def __init__(self, config: PretrainedConfig, seq: int, device: torch.device) -> None:
        self.device, self.seq = device, seq
        self.cuda = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.targets = targets(config)
        small = copy.deepcopy(config)
        small.vocab_size = VOCABULARY
        small.max_position_embeddings = max(seq, small.max_position_embeddings)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(small, name, None)
        torch.manual_seed(0)
        with device:
            model = AutoModel.from_config(small, attn_implementation="sdpa")
        self.model = model.to(self.dtype).requires_grad_(False)
        self.model.train()

    def tokens(self, batch: int) -> Tensor:
        """Return (batch, seq) random token ids."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, VOCABULARY, (batch, self.seq), generator=generator)
        return ids.to(self.device)

    def step(self, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Run forward, backward and update."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if self.cuda else nullcontext():
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
            loss = hidden.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def measure(self, how: How, ids: Tensor, *, warmup: int, steps: int) -> dict[str, Any]:
        """Measure the seconds of each timed step, and the peak bytes of a step."""
        self._clean()
        with attached(self.model, how, self.targets) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            for _ in range(warmup):
                self.step(ids, optimizer)
            self._clean()
            seconds = [self._timed(ids, optimizer) for _ in range(steps)]
            peak = torch.cuda.max_memory_allocated() if self.cuda else self._live_peak(ids, optimizer)
        return {"seconds": seconds, "peak_bytes": peak}

    def _timed(self, ids: Tensor, optimizer: torch.optim.Optimizer) -> float:
        started = time.perf_counter()
        self.step(ids, optimizer)
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _live_peak(self, ids: Tensor, optimizer: torch.optim.Optimizer) -> int:
        counter = LiveBytes()
        for tensor in (ids, *self.model.parameters(), *self.model.buffers()):
            counter.add(tensor)
        for state in optimizer.state.values():
            for value in state.values():
                counter.add(value)
        with counter:
            self.step(ids, optimizer)
        return counter.peak

    def _clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def filling_batch(self, how: How) -> int:
        """Return the largest batch whose step takes at most ``FILL`` of the card, from two small ones (memory
        is linear in the batch)."""
        one, two = (
            self.measure(how, self.tokens(batch), warmup=1, steps=1)["peak_bytes"] for batch in (2, 4)
        )
        room = FILL * torch.cuda.get_device_properties(self.device).total_memory
        return max(1, int(2 + (room - one) / ((two - one) / 2)))

    def profile(self, how: How, ids: Tensor) -> str:
        """Return the operations of one step that take the most time."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with attached(self.model, how, self.targets) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            self.step(ids, optimizer)
            with torch.profiler.profile(activities=activities) as profiler:
                self.step(ids, optimizer)
                if self.cuda:
                    torch.cuda.synchronize()
        sort = "self_cuda_time_total" if self.cuda else "self_cpu_time_total"
        return str(profiler.key_averages().table(sort_by=sort, row_limit=30, max_name_column_width=90))


def train_rounds(
    bench: TrainBench,
    hows: Mapping[str, How],
    ids: Tensor,
    *,
    rounds: int,
    warmup: int,
    steps: int,
    note: Callable[[str], None],
) -> list[Round]:
    """Return ``rounds`` rounds in which each method in turn is put on the same base, warmed up and timed.
    Every second round goes backwards."""
    rounds_done = []
    for number in range(rounds):
        order = in_turn(hows, number)
        measured = {name: bench.measure(hows[name], ids, warmup=warmup, steps=steps) for name in order}
        rounds_done.append({name: measured[name] for name in hows})
        slowest = max(step_seconds(rounds_done[-1], name) for name in hows)
        note(f"training, round {number + 1} of {rounds}: slowest step {slowest:.3f} s")
    return rounds_done


def step_seconds(round_: Round, name: str) -> float:
    """Return a method's median step in one round."""
    return float(statistics.median(round_[name]["seconds"]))


def train_metrics(rounds: Sequence[Round], ratios: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Step time (ms) and peak memory (GiB) of each method; and of each of ``ratios`` (name: mine, other) the
    ratio. A ratio is the median over rounds of the ratio of two medians within one round."""
    metrics: dict[str, float] = {}
    for name in rounds[0]:
        metrics[f"{name}_ms"] = 1e3 * statistics.median(step_seconds(r, name) for r in rounds)
        metrics[f"{name}_peak_gib"] = statistics.median(r[name]["peak_bytes"] for r in rounds) / 2**30
    for metric, (mine, other) in ratios.items():
        if mine in rounds[0] and other in rounds[0]:
            times = [step_seconds(r, mine) / step_seconds(r, other) for r in rounds]
            peaks = [r[mine]["peak_bytes"] / r[other]["peak_bytes"] for r in rounds]
            metrics[f"{metric}_time"], metrics[f"{metric}_memory"] = map(statistics.median, (times, peaks))
    return {name: round(value, 4) for name, value in metrics.items()}
