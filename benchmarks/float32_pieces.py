"""Float32's products by bfloat16 pieces on a GPU: how exact, and in what time.

First single products of SmolLM2's and LLaMA-2-7B's shapes, by rows: each line has the microseconds of
float32's and of the pieces' product, and the errors of both against float64. Then SmolLM2's shapes score rows
of random tokens, as a pack, without and with pieces in turn. ``pieces_speedup`` is the ratio of the medians,
and ``pieces_largest_error`` the largest of the pieces' errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import measurements
from hf_adapters import _NoTokenizer, random_model, rows, seconds, with_teamlora

from cme_bench.experiments.efficiency.shapes import preset

WEIGHTS = [(576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096), (11008, 4096), (4096, 11008)]
"""[n, d] of SmolLM2-135M's and LLaMA-2-7B's linear layers."""
ROWS = [1, 16, 32, 64, 128, 256, 512, 2048, 8192, 65536]
MOST = 1 << 31  # numbers of an output


def microseconds(compute: Callable[[], Any], times: int) -> float:
    import torch

    compute()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        compute()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - started) / times


def products(times: int) -> list[dict[str, Any]]:
    import torch

    from cme_bench.util.float32_pieces import thrice

    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    found = []
    for n, d in WEIGHTS:
        weight = torch.randn(n, d, device="cuda").mul_(0.02).bfloat16().float()
        repeated = thrice(weight)
        for count in (count for count in ROWS if count * n <= MOST):
            x = torch.randn(count, d, device="cuda")
            x *= torch.randn_like(x).exp()
            found.append({"n": n, "d": d, "rows": count} | product(x, weight, repeated, times))
            print(json.dumps(found[-1]), flush=True)
    return found


def product(x: Any, weight: Any, repeated: Any, times: int) -> dict[str, float]:
    from cme_bench.util.float32_pieces import multiply, split

    ways: dict[str, Callable[[], Any]] = {
        "float32": lambda: x @ weight.T,
        "pieces": lambda: multiply(split(x), repeated),
    }
    wanted = x[:512].double() @ weight[:512].double().T
    one = {"split_us": round(microseconds(lambda: split(x), times), 1)}
    for name, compute in ways.items():
        gap = compute()[:512, :512].double() - wanted
        one[f"{name}_error"] = float(gap.square().mean().sqrt() / wanted.square().mean().sqrt())
        one[f"{name}_us"] = round(microseconds(compute, times), 1)
    return one


def engine_seconds(args: argparse.Namespace) -> dict[str, list[float]]:
    import torch

    from cme_bench.engines.hf import HFEngine

    config = preset("smollm2-135m")
    model = random_model(config, "cuda", torch.bfloat16).float()
    if args.teamlora:
        model = with_teamlora(model, 32)
    asked = rows(args.rows, args.length, config.vocab_size)
    tokenizer: Any = _NoTokenizer()
    taken: dict[str, list[float]] = {"float32": [], "pieces": []}
    verdicts: dict[str, Any] = {}
    for number in range(args.rounds + 1):
        for name, times in taken.items():
            engine = HFEngine(model, tokenizer, pieces=name == "pieces", verdicts=verdicts, note=print)
            once = seconds(engine, asked)
            times.extend([once] if number else [])
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--teamlora", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round, no file")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("float32_pieces: needs a GPU")
        return
    found = products(args.times)
    args.rounds = 1 if args.quick else args.rounds
    taken = engine_seconds(args)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    metrics = {
        "pieces_speedup": round(medians["float32"] / medians["pieces"], 3),
        "pieces_largest_error": max(one["pieces_error"] for one in found),
    }
    line = measurements.line("float32_pieces", metrics, cuda=True)
    if not args.quick:
        measurements.save(line, rounds=taken, products=found, settings=vars(args))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
