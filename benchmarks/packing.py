"""Packed against padded batches in training: tokens/s, padding and peak memory, in paired rounds.

The batches are those of ``PLANNED`` examples of the CME mixture, grouped by length as in any training.
Padding is counted over all of them (``--padding`` does no more than that); the first few, that of the longest
example among them, are timed. In every round each layout in turn takes the same batches: collation, forward,
loss of the targets, backward and a fused AdamW update, as ``cme-bench train`` does them without gradient
checkpointing (on CUDA a bfloat16 base and widths of a multiple of 8; on a CPU float32). ``packed_N`` lays
about N examples in a row (``--pack N``).
Tokens are those of source and target, padding left out; a ratio is the median over rounds of the ratio of the
two layouts' times within one round. Memory is the peak of a whole round (CUDA: the allocator's) or of a step
on the batch of most places (CPU: live tensors, counted).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import measurements
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from cme_bench.experiments.efficiency.live_bytes import LiveBytes
from cme_bench.experiments.efficiency.workloads import in_turn
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_config, load_model, load_tokenizer
from cme_bench.training.batches import collate, width_multiple
from cme_bench.training.loss import target_loss
from cme_bench.training.methods import adapter_config
from cme_bench.training.options import DEFAULT_FORMAT, TrainOptions
from cme_bench.training.packing import check_packing
from cme_bench.training.plan import make_plan
from cme_bench.training.tokens import TrainingEncoder

PADDED = "padded"
PLANNED = 16_000
"""Examples of the training whose batches are measured; 40 with ``--quick``."""
Layouts = dict[str, int | None]
"""Name to examples a row; None: padded."""


def planned(options: TrainOptions) -> tuple[list[list[Any]], int]:
    """The batches of a training, and the token that pads them."""
    tokenizer = load_tokenizer(resolve_model(options.model))
    encoder = TrainingEncoder(tokenizer, DEFAULT_FORMAT, options.max_length)
    plan = make_plan(options, None, encoder, processes=1, note=lambda _: None)
    return [[plan.examples[i] for i in batch] for batch in plan.batches], int(tokenizer.eos_token_id)


def padding(batches: list[list[Any]], pad: int, multiple: int, per_row: int | None) -> float:
    """Percentage of the places of all batches that hold no token."""
    places = tokens = 0
    for batch in batches:
        mask = collate(batch, pad, multiple=multiple, per_row=per_row)["attention_mask"]
        places += mask.numel()
        tokens += int(mask.sum())
    return round(100 * (1 - tokens / places), 2)


class Bench:
    """One adapted model, and the same batches for every layout; the first ``timed`` are trained on."""

    def __init__(self, options: TrainOptions, timed: int, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.multiple = width_multiple(device.type)
        base = resolve_model(options.model)
        self.batches, self.pad = planned(options)
        self.timed = self.batches[:timed]
        self.tokens = sum(len(example["ids"]) for batch in self.timed for example in batch)
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        model = load_model(base, self.dtype, device)
        check_packing(model)
        torch.manual_seed(0)
        config = adapter_config(options, load_config(base), steps=len(self.batches))
        self.model: PeftModel = get_peft_model(model, config).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def collated(self, per_row: int | None) -> Iterator[dict[str, Tensor]]:
        """The timed batches in one layout, as they are trained on."""
        for batch in self.timed:
            yield collate(batch, self.pad, multiple=self.multiple, per_row=per_row)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Forward, backward, update."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if self.cuda else nullcontext():
            loss = self.model(**{k: v.to(self.device) for k, v in batch.items()}, weight=1e-3).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, per_row: int | None) -> float:
        """Wall time of a step on every timed batch."""
        started = time.perf_counter()
        for batch in self.collated(per_row):
            self.step(batch)
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def peak_bytes(self, per_row: int | None) -> int:
        """The most memory that training in a layout holds, model and optimizer included."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.seconds(per_row)
            return torch.cuda.max_memory_allocated()
        largest = max(self.collated(per_row), key=lambda batch: batch["input_ids"].numel())
        counter = LiveBytes()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            counter.add(tensor)
        with counter:
            self.step(largest)
        return counter.peak


def measure(bench: Bench, layouts: Layouts, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics, and the seconds of every round by layout."""
    with target_loss(bench.model.get_base_model()):
        peaks = {name: bench.peak_bytes(per_row) for name, per_row in layouts.items()}  # warms up, too
        seconds: dict[str, list[float]] = {name: [] for name in layouts}
        for number in range(rounds):
            for name in in_turn(layouts, number):
                seconds[name].append(bench.seconds(layouts[name]))
            print(
                f"round {number + 1}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()),
                flush=True,
            )
    metrics: dict[str, float] = {}
    for name, per_row in layouts.items():
        metrics[f"{name}_tokens_per_s"] = round(bench.tokens / statistics.median(seconds[name]), 1)
        metrics[f"{name}_padding_percent"] = padding(bench.batches, bench.pad, bench.multiple, per_row)
        metrics[f"{name}_peak_gib"] = round(peaks[name] / 2**30, 3)
        if name != PADDED:
            pairs = zip(seconds[name], seconds[PADDED], strict=True)
            metrics[f"{name}_over_padded_time"] = round(statistics.median(a / b for a, b in pairs), 4)
    return metrics, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two batches of our own items, two rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--method", default="teamlora")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--pack", type=int, nargs="+", default=[2, 4], help="examples a row")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batches", type=int, default=50, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--padding", action="store_true", help="only count it: widths free, multiples of 8")
    parser.add_argument("--out", type=Path, default=measurements.RESULTS, help="folder of the result file")
    args = parser.parse_args()
    if args.quick:
        args.data, args.batch_size, args.max_length, args.batches, args.rounds = "mini", 4, 128, 2, 2
    options = TrainOptions(
        model=args.model,
        method=args.method,
        out=args.out,
        data=args.data,
        weighting="temperature",
        rank=args.rank,
        max_length=args.max_length,
        batch_size=args.batch_size,
        max_steps=10 if args.quick else PLANNED // args.batch_size,
    )
    layouts: Layouts = {PADDED: None} | {f"packed_{n}": n for n in args.pack}
    if args.padding:
        batches, pad = planned(options)
        for name, per_row in layouts.items():
            free, wide = (padding(batches, pad, width_multiple(d), per_row) for d in ("cpu", "cuda"))
            print(f"{name}: {free} % / {wide} %", flush=True)
        return
    bench = Bench(options, args.batches, torch.device(args.device))
    metrics, seconds = measure(bench, layouts, args.rounds)
    result = measurements.line("packing", metrics, cuda=bench.cuda)
    kept = ("model", "method", "rank", "batch_size", "max_length", "batches", "rounds")
    settings = {name: getattr(args, name) for name in kept} | {"tokens": bench.tokens}
    settings |= {"dtype": str(bench.dtype)[6:], "torch": torch.__version__}
    if not args.quick:
        file = args.out / f"packing-{result['hardware']}.json"
        measurements.save(result, file=file, settings=settings, seconds=seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
