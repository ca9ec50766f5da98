"""Step time and peak memory of training an adapter: LoRA, HydraLoRA, MoELoRA and TeamLoRA, in paired rounds.

One step is forward, backward and a fused AdamW update of the adapter. The model is a stack of real Llama
decoder layers (transformers, random weights, frozen) below a random frozen embedding; adapters sit on the
feed-forward linears (gate, up, down). The output head and its loss are left out, because they cost every
method the same: the loss is the mean square of the last hidden states.

On CUDA the layers have LLaMA-2-7B's shapes (hidden 4096, FFN 11008, 32 heads), the base is bfloat16, the
adapter float32 under autocast, sequences have 1024 tokens, and the batch fills the card with the hungriest
method. On a CPU everything is small and float32.

Methods: LoRA is PEFT's own, as users run it; "lora128_lean" is the same LoRA without PEFT's cast of the input
to float32, the fastest we know, for those who suspect the yardstick. "moelora32" is MoELoRA as published, a
loop over experts, written here; "moelora32_fused" is this package's. "_k2", "_k4", "_k8": number of experts,
each of rank 32; without a suffix there are 4.

In every round each method in turn is put on the same base, warmed up, and timed; a ratio is the median over
rounds of the ratio of the two methods' median step times within one round. Memory is the peak of allocated
bytes during a step, base included (CUDA: the allocator's; CPU: live tensors, counted).
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel

from cme_bench import provenance
from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
TARGETS = ("gate_proj", "up_proj", "down_proj")
FILL = 0.88  # share of the card's memory that the hungriest method may take
VOCABULARY = 1024


@dataclass(frozen=True)
class Shapes:
    """The model and the batch of one measurement; ``batch`` 0 fills the card."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    seq: int
    batch: int


LLAMA_7B = Shapes(hidden=4096, intermediate=11008, heads=32, layers=8, seq=1024, batch=0)
SMALL = Shapes(hidden=512, intermediate=1376, heads=8, layers=2, seq=256, batch=2)
TINY = Shapes(hidden=128, intermediate=344, heads=4, layers=1, seq=64, batch=2)


class LeanLora(nn.Module):
    """``base(x) + (alpha / r) x A B`` with alpha = 2r and no cast of x: two products and an addition."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base = base
        self.down = _weight(r, base.in_features, base)
        self.up = _weight(base.out_features, r, base)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        base: Tensor = self.base(x)
        return base + nn.functional.linear(nn.functional.linear(x, self.down) * 2.0, self.up)


class PublishedMoeLora(nn.Module):
    """MoELoRA in its published form: 2k products and k tensors of full width, each gated by a softmax router.

    ``base(x) + (alpha / r) sum_i g_i x A_i B_i``, alpha = 2r. The gates are float32 and are rounded to the
    experts' dtype before they meet them, which is kinder to this form than the promotion to float32.
    """

    def __init__(self, base: nn.Linear, r: int, k: int) -> None:
        super().__init__()
        self.base = base
        self.router = _weight(k, base.in_features, base)
        self.down = nn.ParameterList([_weight(r, base.in_features, base) for _ in range(k)])
        self.up = nn.ParameterList([_weight(base.out_features, r, base) for _ in range(k)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        result: Tensor = self.base(x)
        gates = nn.functional.linear(x, self.router).softmax(dim=-1, dtype=torch.float32)
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            expert = nn.functional.linear(nn.functional.linear(x, down), up)
            result = result + (2.0 * gates[..., i : i + 1]).to(expert.dtype) * expert
        return result


def _weight(rows: int, columns: int, base: nn.Linear) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns, device=base.weight.device, dtype=torch.float32))


Wrap = Callable[[nn.Linear], nn.Module]


def methods() -> dict[str, PeftConfig | Wrap]:
    """What is compared: PEFT configs, and modules that wrap a linear layer."""

    def lora(r: int) -> PeftConfig:
        return LoraConfig(r=r, lora_alpha=2 * r, target_modules=list(TARGETS), bias="none")

    def moe(k: int) -> PeftConfig:
        return MoeLoraConfig(r=32, alpha=64.0, num_experts=k)

    def team(r: int, k: int) -> PeftConfig:
        return TeamLoraConfig(r=r, alpha=2.0 * r, num_experts=k)

    return {
        "lora32": lora(32),
        "lora64": lora(64),
        "lora128": lora(128),
        "lora128_lean": lambda linear: LeanLora(linear, 128),
        "hydralora32": HydraLoraConfig(r=32, alpha=64.0, num_experts=4),
        "moelora32_k2": lambda linear: PublishedMoeLora(linear, 32, 2),
        "moelora32": lambda linear: PublishedMoeLora(linear, 32, 4),
        "moelora32_k8": lambda linear: PublishedMoeLora(linear, 32, 8),
        "moelora32_fused_k2": moe(2),
        "moelora32_fused": moe(4),
        "moelora32_fused_k8": moe(8),
        "teamlora16": team(16, 4),
        "teamlora32_k2": team(32, 2),
        "teamlora32": team(32, 4),
        "teamlora32_k8": team(32, 8),
    }


HUNGRIEST = "moelora32_k8"
RATIOS = {
    "teamlora32_over_lora128": ("teamlora32", "lora128"),
    "teamlora32_over_lora128_lean": ("teamlora32", "lora128_lean"),
    "teamlora16_over_lora64": ("teamlora16", "lora64"),
    "teamlora32_over_hydralora32": ("teamlora32", "hydralora32"),
    "teamlora32_over_moelora32": ("teamlora32", "moelora32"),
    "teamlora32_over_moelora32_fused": ("teamlora32", "moelora32_fused"),
    "teamlora32_over_lora32": ("teamlora32", "lora32"),
    "moelora32_over_lora32": ("moelora32", "lora32"),
}
PER_EXPERTS = ("moelora32", "moelora32_fused")
"""TeamLoRA-32 is compared with these at 2, 4 and 8 experts."""


def ratios() -> dict[str, tuple[str, str]]:
    """Metric name, without its ending, to the two methods."""
    found = dict(RATIOS)
    for other in PER_EXPERTS:
        for k, suffix in ((2, "_k2"), (4, ""), (8, "_k8")):
            found[f"teamlora32_over_{other}_k{k}"] = (f"teamlora32{suffix}", f"{other}{suffix}")
    return found


@contextmanager
def attached(model: LlamaModel, how: PeftConfig | Wrap) -> Iterator[list[nn.Parameter]]:
    """The adapter's parameters, random, while it is on the model."""
    torch.manual_seed(1)
    if isinstance(how, PeftConfig):
        tuned = get_peft_model(model, how)
        undo: Callable[[], Any] = tuned.unload
    else:
        replaced = _wrap_all(model, how)
        undo = functools.partial(_put_back, replaced)
    try:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        for name, parameter in named:
            if ".teamlora_interaction." not in name:  # M keeps its start, ones on the diagonal
                nn.init.normal_(parameter, std=0.02)
        yield [parameter for _, parameter in named]
    finally:
        undo()


def _wrap_all(model: nn.Module, wrap: Wrap) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if name in TARGETS and isinstance(child, nn.Linear)
    ]
    for parent, name, linear in found:
        setattr(parent, name, wrap(linear))
    return found


def _put_back(replaced: list[tuple[nn.Module, str, nn.Linear]]) -> None:
    for parent, name, linear in replaced:
        setattr(parent, name, linear)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that exist, and their peak: the allocator statistics that a CPU lacks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out

    def add(self, tensor: Tensor) -> None:
        """Counts the storage of ``tensor`` until it dies; a second tensor on it counts nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Bench:
    """One base model and one batch, on which every method is measured."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shapes.hidden,
            intermediate_size=shapes.intermediate,
            num_hidden_layers=shapes.layers,
            num_attention_heads=shapes.heads,
            max_position_embeddings=shapes.seq,
            attn_implementation="sdpa",
        )
        torch.manual_seed(0)
        with device:
            self.model = LlamaModel(config).to(self.dtype).requires_grad_(False)
        self.model.train()
        self.shapes = shapes

    def tokens(self, batch: int) -> Tensor:
        """(batch, seq) random token ids."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, VOCABULARY, (batch, self.shapes.seq), generator=generator)
        return ids.to(self.device)

    def step(self, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Forward, backward, update."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if self.cuda else nullcontext():
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
            loss = hidden.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def measure(self, how: PeftConfig | Wrap, ids: Tensor, *, warmup: int, steps: int) -> dict[str, Any]:
        """Seconds of each timed step, and peak bytes of a step."""
        self._clean()
        with attached(self.model, how) as parameters:
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

    def filling_batch(self, how: PeftConfig | Wrap) -> int:
        """The largest batch whose step takes at most ``FILL`` of the card, from two small ones (memory is
        linear in the batch)."""
        one, two = (
            self.measure(how, self.tokens(batch), warmup=1, steps=1)["peak_bytes"] for batch in (2, 4)
        )
        room = FILL * torch.cuda.get_device_properties(self.device).total_memory
        return max(1, int(2 + (room - one) / ((two - one) / 2)))

    def profile(self, how: PeftConfig | Wrap, ids: Tensor) -> str:
        """The operations of one step that take the most time."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with attached(self.model, how) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            self.step(ids, optimizer)
            with torch.profiler.profile(activities=activities) as profiler:
                self.step(ids, optimizer)
                if self.cuda:
                    torch.cuda.synchronize()
        sort = "self_cuda_time_total" if self.cuda else "self_cpu_time_total"
        return str(profiler.key_averages().table(sort_by=sort, row_limit=30, max_name_column_width=90))


def summarise(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Step time (ms), peak memory (GiB) of each method, and the ratios, all medians over rounds."""
    metrics: dict[str, float] = {}
    for name in rounds[0]:
        metrics[f"{name}_ms"] = 1e3 * statistics.median(_step(r, name) for r in rounds)
        metrics[f"{name}_peak_gib"] = statistics.median(r[name]["peak_bytes"] for r in rounds) / 2**30
    for metric, (mine, other) in ratios().items():
        if mine in rounds[0] and other in rounds[0]:
            metrics[f"{metric}_time"] = statistics.median(_step(r, mine) / _step(r, other) for r in rounds)
            metrics[f"{metric}_memory"] = statistics.median(
                r[mine]["peak_bytes"] / r[other]["peak_bytes"] for r in rounds
            )
    return {name: round(value, 4) for name, value in metrics.items()}


def _step(round_: dict[str, dict[str, Any]], name: str) -> float:
    return float(statistics.median(round_[name]["seconds"]))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a CPU, fewer rounds on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", help=f"comma-separated; default all: {', '.join(methods())}")
    parser.add_argument("--rounds", type=int, help="default 5; 2 with --quick")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a method in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, not timed")
    parser.add_argument("--layers", type=int, help="decoder layers")
    parser.add_argument("--batch", type=int, help="sequences of a step; default on CUDA: fill the card")
    parser.add_argument("--seq", type=int, help="tokens of a sequence")
    parser.add_argument("--profile", metavar="METHOD", help="only print what a step of METHOD spends")
    parser.add_argument("--commit", help="recorded commit, where there is no git")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    shapes = LLAMA_7B if device.type == "cuda" else TINY if args.quick else SMALL
    given = {name: getattr(args, name) for name in ("layers", "batch", "seq") if getattr(args, name)}
    shapes = Shapes(**(asdict(shapes) | given))
    known = methods()
    chosen = args.methods.split(",") if args.methods else list(known)
    if unknown := [name for name in (*chosen, *filter(None, [args.profile])) if name not in known]:
        raise SystemExit(f"unknown method {', '.join(unknown)}; known: {', '.join(known)}")
    bench = Bench(shapes, device)
    batch = shapes.batch or bench.filling_batch(known[HUNGRIEST])
    ids = bench.tokens(batch)
    if args.profile:
        print(bench.profile(known[args.profile], ids))
        return
    setup = asdict(shapes) | {"batch": batch, "base_dtype": str(bench.dtype).removeprefix("torch.")}
    setup |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    setup |= {"steps": args.steps, "warmup": args.warmup}
    print(json.dumps(setup), flush=True)
    rounds = []
    for number in range(args.rounds or (2 if args.quick else 5)):
        order = chosen if number % 2 == 0 else chosen[::-1]
        measured = {
            name: bench.measure(known[name], ids, warmup=args.warmup, steps=args.steps) for name in order
        }
        rounds.append({name: measured[name] for name in chosen})
        slowest = max(_step(rounds[-1], name) for name in chosen)
        print(f"round {number + 1}: slowest step {slowest:.3f} s", flush=True)
    result: dict[str, Any] = {
        "bench": "train_step",
        "hardware": provenance.hardware(cuda=device.type == "cuda"),
        "commit": args.commit or provenance.commit() or "unknown",
        "metrics": summarise(rounds),
    }
    for name in chosen:
        ms, gib = result["metrics"][f"{name}_ms"], result["metrics"][f"{name}_peak_gib"]
        print(f"{name:<22} {ms:>10.2f} ms {gib:>9.3f} GiB")
    args.out.mkdir(parents=True, exist_ok=True)
    quick = "-quick" if args.quick else ""
    file = args.out / f"train_step-{result['hardware']}{quick}.json"
    file.write_text(json.dumps(result | {"setup": setup, "rounds": rounds}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
