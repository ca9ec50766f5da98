"""Step time and peak memory of training an adapter: LoRA, HydraLoRA, MoELoRA and TeamLoRA, in paired rounds.

What is measured, and how, stands in ``cme_bench.experiments.efficiency`` (train_step, methods); ``cme-bench
efficiency`` is the same for any model. Here the shapes are fixed: on CUDA LLaMA-2-7B's with 8 layers,
sequences of 1024 tokens, and a batch that fills the card with the hungriest method; on a CPU everything is
small.

``base_floor`` is the least that any adapter on these linears pays: the base is frozen, and gradients of its
inputs alone are computed. ``moelora32`` is MoELoRA as published, a loop over experts; ``moelora32_fused`` is
this package's. ``mfu_teamlora32`` (CUDA): operations of the model in a step, over what the card's bfloat16
units could do in its time. Counted are 4 a token for each weight of the frozen linears (forward, gradient of
inputs), 6 for each of the adapter, and causal attention.

``--base`` names what the frozen base runs on: ``eager`` is transformers as it is; ``liger`` has Liger's
norms, gated activation and positions (``cme-bench train --liger``); ``compile`` compiles each decoder layer.
A method's rows on another base than the first of the list end in ``@`` and its name. About a minute::

    python benchmarks/train_step.py --short --base eager,liger

In every round each method in turn is put on the same base, warmed up, and timed; a ratio is the median over
rounds of the ratio of the two methods' median step times within one round.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measurements
import torch
from torch import Tensor, nn

from cme_bench.experiments.efficiency.measure import HUNGRIEST, ratios
from cme_bench.experiments.efficiency.methods import Measurable, all_methods, attached
from cme_bench.experiments.efficiency.shapes import preset, targets, with_layers
from cme_bench.experiments.efficiency.train_step import TrainBench, train_metrics, train_rounds

LLAMA_LAYERS, SEQ = 8, 1024
SMALL_SEQ, TINY_SEQ, SMALL_BATCH = 256, 64, 2
NAMES = [name for name in all_methods([]) if name not in ("adalora128", "moslora128")]
"""Methods that are measured unless others are named."""
SHORT = "base_floor,lora128,lora128_lean,moelora32,moelora32_fused,teamlora32"
"""Methods of ``--short``."""
BASES = ("eager", "liger", "compile")
FLOOR = "base_floor"
PEAK = {"h100": 989e12, "h200": 989e12, "a100": 312e12}
"""bfloat16 operations a second, dense, as the vendor states them."""


class _Through(torch.autograd.Function):
    """Hands on ``y``, which then has a gradient whatever it came from."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, mark: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_zeros((), dtype=torch.float32)


class Floor(nn.Module):
    """The frozen linear, and one number that is trained in name only."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.mark = nn.Parameter(torch.zeros((), device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        y: Tensor = _Through.apply(self.base(x), self.mark)  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True)
class OnBase:
    """A method, and what the base runs on."""

    how: Any
    base: str


class Bench(TrainBench):
    """The bench with its base on Liger's kernels or compiled where a method asks for it."""

    def measure(self, how: Any, ids: Tensor, *, warmup: int, steps: int) -> dict[str, Any]:
        """Measure a method as ``TrainBench`` does."""
        asked = how if isinstance(how, OnBase) else OnBase(how, "eager")
        with {"eager": _eager, "liger": _liger, "compile": _compiled}[asked.base](self):
            return super().measure(asked.how, ids, warmup=warmup, steps=steps)


@contextmanager
def _eager(bench: Bench) -> Iterator[None]:
    yield


@contextmanager
def _liger(bench: Bench) -> Iterator[None]:
    """Put a copy of the base, of the same weights, in its place, with the kernels of ``--liger``."""
    from cme_bench.training.liger import fuse_base, models_restored

    plain: Any = bench.model
    shared = {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())}
    bench.model = copy.deepcopy(plain, shared)
    first = next(plain.parameters())
    with models_restored():
        fuse_base(bench.model, first.dtype, first.device, liger=True)
        try:
            yield
        finally:
            bench.model = plain


@contextmanager
def _compiled(bench: Bench) -> Iterator[None]:
    layers: Any = bench.model.layers
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch.compiler.reset()


def mfu(bench: TrainBench, how: Any, batch: int, seconds: float, card: str) -> float | None:
    """Share of the card's peak; None for a card whose peak is not known."""
    peak = next((value for name, value in PEAK.items() if name in card.lower()), None)
    if peak is None:
        return None
    config: Any = bench.model.config
    base = sum(m.weight.numel() for m in bench.model.modules() if isinstance(m, nn.Linear))
    with attached(bench.model, how, bench.targets) as parameters:
        adapter = sum(p.numel() for p in parameters)
    attention = (
        3 * 2 * bench.seq * config.hidden_size * config.num_hidden_layers
    )  # half of each product is seen
    share: float = batch * bench.seq * (4 * base + 6 * adapter + attention) / seconds / peak
    return share


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a CPU, fewer rounds on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", help=f"comma-separated; default: {', '.join(NAMES)}")
    parser.add_argument("--short", action="store_true", help=f"2 rounds of {SHORT}, if none are named")
    parser.add_argument(
        "--base", default="eager", help=f"comma-separated, of {', '.join(BASES)}; default eager"
    )
    parser.add_argument("--rounds", type=int, help="default 5; 2 with --quick")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a method in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, not timed")
    parser.add_argument("--layers", type=int, help="decoder layers")
    parser.add_argument("--batch", type=int, help="sequences of a step; default on CUDA: fill the card")
    parser.add_argument("--seq", type=int, help="tokens of a sequence")
    parser.add_argument("--profile", metavar="METHOD", help="only print what a step of METHOD spends")
    parser.add_argument("--out", type=Path, default=measurements.RESULTS, help="folder of the result file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    config = preset("llama-2-7b" if cuda else "tiny" if args.quick else "small")
    config = with_layers(config, args.layers or (LLAMA_LAYERS if cuda else None))
    known = all_methods(targets(config))
    floor = Measurable(FLOOR, Floor, "frozen base, gradients of its inputs alone", known[HUNGRIEST].method)
    known[FLOOR] = floor
    bases = args.base.split(",")
    if strange := set(bases) - set(BASES):
        raise SystemExit(f"unknown base {', '.join(sorted(strange))}; known: {', '.join(BASES)}")
    default = SHORT.split(",") if args.short else [FLOOR, *NAMES]
    chosen = args.methods.split(",") if args.methods else default
    if unknown := [name for name in (*chosen, *filter(None, [args.profile])) if name not in known]:
        raise SystemExit(f"unknown method {', '.join(unknown)}; known: {', '.join(known)}")
    seq = args.seq or (SEQ if cuda else TINY_SEQ if args.quick else SMALL_SEQ)
    bench = Bench(config, seq, device)
    batch = args.batch or (bench.filling_batch(known[HUNGRIEST].how) if cuda else SMALL_BATCH)
    ids = bench.tokens(batch)
    if args.profile:
        print(bench.profile(known[args.profile].how, ids))
        return
    setup = {
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "seq": seq,
        "batch": batch,
        "base": bases,
        "base_dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": args.steps,
        "warmup": args.warmup,
    }
    print(json.dumps(setup), flush=True)
    rows = {
        name if base == bases[0] else f"{name}@{base}": OnBase(known[name].how, base)
        for base in bases
        for name in chosen
    }
    rounds = train_rounds(
        bench,
        rows,
        ids,
        rounds=args.rounds or (2 if args.quick or args.short else 5),
        warmup=args.warmup,
        steps=args.steps,
        note=lambda line: print(line, flush=True),
    )
    compared = {f"{name}_over_{FLOOR}": (name, FLOOR) for name in ("teamlora32", "lora128")}
    for base in bases[1:]:
        mine, theirs = f"teamlora32@{base}", f"lora128@{base}"
        compared |= {f"{mine}_over_lora128": (mine, "lora128"), f"{mine}_over_{theirs}": (mine, theirs)}
    metrics = train_metrics(rounds, ratios() | compared)
    result = measurements.line("train_step", metrics, cuda=cuda)
    for name in rows:
        if name.split("@")[0] == "teamlora32":
            seconds = metrics[f"{name}_ms"] / 1e3
            share = mfu(bench, known["teamlora32"].how, batch, seconds, result["hardware"])
            result["metrics"] |= {} if share is None else {f"mfu_{name}": round(share, 4)}
        ms, gib = metrics[f"{name}_ms"], metrics[f"{name}_peak_gib"]
        print(f"{name:<22} {ms:>10.2f} ms {gib:>9.3f} GiB")
    quick = "-quick" if args.quick else ""
    file = args.out / f"train_step-{result['hardware']}{quick}.json"
    forms = {name: known[name.split("@")[0]].form for name in rows}
    measurements.save(result, file=file, settings=setup, forms=forms, rounds=rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
