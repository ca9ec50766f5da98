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

In every round each method in turn is put on the same base, warmed up, and timed; a ratio is the median over
rounds of the ratio of the two methods' median step times within one round.
"""

from __future__ import annotations

import argparse
import json
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
    chosen = args.methods.split(",") if args.methods else [FLOOR, *NAMES]
    if unknown := [name for name in (*chosen, *filter(None, [args.profile])) if name not in known]:
        raise SystemExit(f"unknown method {', '.join(unknown)}; known: {', '.join(known)}")
    seq = args.seq or (SEQ if cuda else TINY_SEQ if args.quick else SMALL_SEQ)
    bench = TrainBench(config, seq, device)
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
        "base_dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": args.steps,
        "warmup": args.warmup,
    }
    print(json.dumps(setup), flush=True)
    rounds = train_rounds(
        bench,
        {name: known[name].how for name in chosen},
        ids,
        rounds=args.rounds or (2 if args.quick else 5),
        warmup=args.warmup,
        steps=args.steps,
        note=lambda line: print(line, flush=True),
    )
    over_floor = {f"{name}_over_{FLOOR}": (name, FLOOR) for name in ("teamlora32", "lora128")}
    result = measurements.line("train_step", train_metrics(rounds, ratios() | over_floor), cuda=cuda)
    if "teamlora32" in chosen:
        seconds = result["metrics"]["teamlora32_ms"] / 1e3
        share = mfu(bench, known["teamlora32"].how, batch, seconds, result["hardware"])
        result["metrics"] |= {} if share is None else {"mfu_teamlora32": round(share, 4)}
    for name in chosen:
        ms, gib = result["metrics"][f"{name}_ms"], result["metrics"][f"{name}_peak_gib"]
        print(f"{name:<22} {ms:>10.2f} ms {gib:>9.3f} GiB")
    quick = "-quick" if args.quick else ""
    file = args.out / f"train_step-{result['hardware']}{quick}.json"
    forms = {name: known[name].form for name in chosen}
    measurements.save(result, file=file, settings=setup, forms=forms, rounds=rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
