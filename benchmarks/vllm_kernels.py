"""One linear layer with a TeamLoRA adapter on a GPU: ways to compute it, for few and for many tokens.

LLaMA-2-7B's two feed-forward layers as vLLM holds them (gate and up projection merged), bfloat16, four
experts of rank 32. Variants: ``base`` (no adapter), ``separate`` (torch operations: product, softmax, gate,
products), the four ways of ``cme_bench.vllm_plugin.kernels`` and ``auto``, which is what the plugin does.
Of gate and up projection also with silu(gate) * up behind it: ``silu_base`` (a kernel of vLLM's), and
``silu_gated``, ``silu_auto`` and ``silu_slots``, which compute it with the update.
All variants of a size are timed in turn, round by round, as replays of CUDA graphs; each is checked against
float64 on the same bfloat16 weights first. ``--slots N`` adds ``slots``: N adapters, every token by one at
random, in runs of 256 tokens from 2048 tokens on, as in a prefill; ``beside`` is the same with
CME_BENCH_VLLM_BESIDE=1. ``--tune --slots N`` compares the plans of ``slot_plans.py``, ``--tune loops`` the
tiles of ``loop_tiles.py``. ``--host`` prints what a call takes of Python where no graph is replayed, and with
every launch left to Triton. ``--shape smollm2`` takes SmolLM2-135M's layers, ``--tokens`` other numbers of
tokens. Needs a CUDA GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measurements
import torch
from torch import Tensor

from cme_bench.vllm_plugin.reference import add_up, gated_latent, shares
from cme_bench.vllm_plugin.spec import GatedSpec

SHAPES = {
    "llama-2-7b": {"gate_up": (4096, (11008, 11008)), "down": (11008, (4096,))},
    "smollm2": {"gate_up": (576, (1536, 1536)), "down": (1536, (576,))},
}
LAYERS = dict(SHAPES["llama-2-7b"])
BASES = ("base", "silu_base")
"""Variants without an adapter; one that begins with silu_ is compared to the second."""
TOKENS = (1, 8, 32, 128, 256, 512, 1024, 2048, 8192)
TOLERANCE = 1e-2
"""Relative error of a bfloat16 variant, by norm: rounding of z and y."""


def base_of(kind: str) -> str:
    """The variant that ``kind`` is compared to."""
    return BASES[kind.startswith("silu_")]


def team_spec() -> GatedSpec:
    return GatedSpec("teamlora", 32, 4, 2.0, False, True, None, ("x",))


def spans_of(outs: tuple[int, ...]) -> list[tuple[int, int, int]]:
    spans, done = [], 0
    for part, size in enumerate(outs):
        spans.append((part, done, done + size))
        done += size
    return spans


def make_layer(d_in: int, outs: tuple[int, ...], spec: GatedSpec) -> Any:
    from cme_bench.vllm_plugin.kernels import Store

    parts, d_out = len(outs), sum(outs)
    weight = torch.randn(d_out, d_in, device="cuda", dtype=torch.bfloat16) * d_in**-0.5
    store = Store.build(weight, spans_of(outs), spec)
    store.place(
        torch.randn(parts * spec.latent, d_in, device="cuda") * d_in**-0.5,
        torch.randn(d_out, spec.gated, device="cuda") * 0.1,
        torch.randn(parts * spec.experts, d_in, device="cuda") * d_in**-0.5,
        torch.eye(spec.experts) + 0.1 * torch.randn(parts, spec.experts, spec.experts),
    )
    return store


def separate(store: Any, spec: GatedSpec, narrow: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
    """The simplest form: plain torch operations, A and S as one matrix."""
    parts = store.interaction.shape[0]
    weight = store.weight.contiguous()

    def run(x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, weight)
        ext = torch.nn.functional.linear(x, narrow)
        z, logits = ext[:, : parts * spec.latent], ext[:, parts * spec.latent :]
        gate = shares(logits.reshape(len(x), parts, -1), store.interaction, spec)
        return add_up(y, gated_latent(z, gate, spec), up, store.spans)

    return run


def exact(store: Any, spec: GatedSpec, up: Tensor, x: Tensor) -> Tensor:
    """float64, from the layer's equations."""
    x = x.double()
    y: Tensor = x @ store.weight.double().T
    z, logits = x @ store.down.double().T, x @ store.router.double().T
    parts, k, r = store.interaction.shape[0], spec.experts, spec.rank
    phi = logits.reshape(len(x), parts, k).softmax(-1)
    omega = torch.einsum("pij,tpj->tpi", store.interaction.double(), phi) * spec.scale
    for part, start, stop in store.spans:
        for i in range(k):
            first = (part * k + i) * r
            b = up[start:stop, i * r : (i + 1) * r].double()
            y[:, start:stop] += omega[:, part, i, None] * (z[:, first : first + r] @ b.T)
    return y


def slotted(store: Any, spec: GatedSpec, up: Tensor, slots: int, tokens: int) -> tuple[Any, Tensor, Tensor]:
    """A layer with many adapters in a batch, its weight, and the tokens of the first slot, which has the
    store's own."""
    import numpy as np

    from cme_bench.vllm_plugin.slot_form import common_room, fitted
    from cme_bench.vllm_plugin.slot_index import SlotIndex
    from cme_bench.vllm_plugin.slot_kernels import Slotted
    from cme_bench.vllm_plugin.slot_reference import Stack

    d_out, d_in = store.weight.shape
    room, device = common_room([spec]), torch.device("cuda")
    kind = torch.bfloat16
    stack = Stack.empty(slots, d_in, d_out, store.spans, room, kind, kind, device)
    for name in ("down", "up", "router", "interaction", "settings"):
        torch.nn.init.normal_(getattr(stack, name), std=0.02)
    stack.settings.copy_(torch.tensor([spec.scale, 0.0, float(spec.experts)], device="cuda").expand(slots, 3))
    own = {"down": store.down, "up": up, "router": store.router, "interaction": store.interaction}
    for name, tensor in fitted({k: v.cpu() for k, v in own.items()}, spec, room).items():
        place = getattr(stack, name)[0]
        place.copy_(tensor.reshape(place.shape))
    index = SlotIndex(tokens, slots, device)
    source = np.random.default_rng(0)
    runs = 256 if tokens >= 2048 else 1
    of_token = np.repeat(source.integers(1, slots + 1, -(-tokens // runs)), runs)[:tokens].astype(np.int32)
    of_token[:runs] = 1  # at least one is checked
    index.set(of_token)
    checked = torch.from_numpy(np.flatnonzero(of_token == 1)).cuda()
    return Slotted(stack, index, partial=False), store.weight.contiguous(), checked


def beside(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same with few tokens' shrinking on a stream of its own."""
    from cme_bench.vllm_plugin.slot_kernels import BESIDE_SWITCH

    def on_two_streams(x: Tensor) -> Tensor:
        os.environ[BESIDE_SWITCH] = "1"
        try:
            return run(x)
        finally:
            del os.environ[BESIDE_SWITCH]

    return on_two_streams


def by_triton(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same with no launch kept."""
    from cme_bench.vllm_plugin import launches

    def left_to_triton(x: Tensor) -> Tensor:
        launches.keep(False)
        try:
            return run(x)
        finally:
            launches.keep(True)

    return left_to_triton


def activated(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same with silu(gate) * up behind it, by vLLM's kernel."""
    import vllm._custom_ops  # noqa: F401 - registers it

    def both(x: Tensor) -> Tensor:
        y = run(x)
        out = y.new_empty(len(y), y.shape[1] // 2)
        torch.ops._C.silu_and_mul(out, y)
        return out

    return both


def graph_of(run: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run(x)
    return graph


def measure(name: str, tokens: int, rounds: int, slots: int = 0) -> dict[str, Any]:
    d_in, outs = LAYERS[name]
    spec = team_spec()
    torch.manual_seed(0)
    store = make_layer(d_in, outs, spec)
    up = torch.cat(
        [store.matrix[a:b, d_in + p * spec.gated : d_in + (p + 1) * spec.gated] for p, a, b in store.spans]
    )
    narrow = store.matrix[store.weight.shape[0] :, :d_in][: len(store.down) + len(store.router)].contiguous()
    plain = store.weight.contiguous()
    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "base": lambda x: torch.nn.functional.linear(x, plain),
        "separate": separate(store, spec, narrow, up),
        "rows": lambda x: store.apply(x, "rows"),
        "columns": lambda x: store.apply(x, "columns"),
        "split": lambda x: store.apply(x, "split"),
        "gated": lambda x: store.apply(x, "gated"),
        "auto": store.apply,
    }
    if store.has_halves:
        variants |= {
            "silu_base": activated(variants["base"]),
            "silu_gated": lambda x: store.apply(x, "gated", silu=True),
            "silu_auto": lambda x: store.apply(x, silu=True),
        }
    checked = torch.arange(tokens, device="cuda")
    if slots:
        layer, weight, checked = slotted(store, spec, up, slots, tokens)
        variants["slots"] = lambda x: layer.linear(x, weight)
        if tokens <= 512:
            variants["beside"] = beside(variants["slots"])
        if store.has_halves:
            variants["silu_slots"] = lambda x: layer.linear(x, weight, silu=True)
    x = torch.randn(tokens, d_in, device="cuda", dtype=torch.bfloat16)
    checked = checked[:64]
    wanted = exact(store, spec, up, x[checked])
    errors = {}
    for kind, run in variants.items():
        if kind not in BASES:
            found, right = run(x)[checked].double(), wanted
            if kind.startswith("silu_"):
                gate, other = wanted.chunk(2, dim=1)
                right = torch.nn.functional.silu(gate) * other
            errors[kind] = float((found - right).norm() / right.norm())
    calls = 20 if tokens <= 512 else 4
    graphs = {kind: graph_of(run, x, calls) for kind, run in variants.items()}
    times: dict[str, list[float]] = {kind: [] for kind in variants}
    for _ in range(rounds):
        for kind, graph in graphs.items():
            times[kind].append(timed(graph, calls, rounds=1))
    return {
        "layer": name,
        "tokens": tokens,
        "microseconds": {kind: statistics.median(found) for kind, found in times.items()},
        "rounds": times,
        "errors": errors,
    }


def host_times(name: str, rounds: int, calls: int = 100) -> dict[str, float]:
    """Return microseconds that a call takes of its thread: of 16 tokens, launched and not waited for.

    ``_by_triton``: with every launch left to Triton.
    """
    d_in, outs = LAYERS[name]
    torch.manual_seed(0)
    store = make_layer(d_in, outs, team_spec())
    plain = store.weight.contiguous()
    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "base": lambda x: torch.nn.functional.linear(x, plain),
        "rows": lambda x: store.apply(x, "rows"),
        "gated": lambda x: store.apply(x, "gated"),
    }
    if store.has_halves:
        variants["silu_base"] = activated(variants["base"])
        variants["silu_rows"] = lambda x: store.apply(x, "rows", silu=True)
        variants["silu_gated"] = lambda x: store.apply(x, "gated", silu=True)
    variants |= {f"{kind}_by_triton": by_triton(run) for kind, run in variants.items() if kind not in BASES}
    x = torch.randn(16, d_in, device="cuda", dtype=torch.bfloat16)
    times: dict[str, list[float]] = {kind: [] for kind in variants}
    for _ in range(1 + rounds):
        for kind, run in variants.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                run(x)
            times[kind].append(1e6 * (time.perf_counter() - started) / calls)
    return {kind: statistics.median(found[1:]) for kind, found in times.items()}


def tune(name: str, tokens: int) -> None:
    """Print what the pieces of ``rows`` and ``columns`` take, and the tiles of the expanding kernel."""
    from cme_bench.vllm_plugin import expansion

    d_in, outs = LAYERS[name]
    spec, d_out = team_spec(), sum(outs)
    store = make_layer(d_in, outs, spec)
    settings = expansion.Settings(len(outs), spec.rank, spec.experts, False, spec.scale, 0.0)
    x = torch.randn(tokens, d_in, device="cuda", dtype=torch.bfloat16)
    linear = torch.nn.functional.linear
    ext = linear(x, store.matrix[:, :d_in])
    narrow = linear(x, store.matrix[d_out:, :d_in])
    wide = expansion.gated_beside(x, narrow, 0, store.interaction, settings)
    plain = store.weight.contiguous()
    widened = expansion.Widened(ext, store.matrix, store.interaction, d_in, d_out, settings)
    pieces: dict[str, Callable[[Tensor], Tensor]] = {
        "base": lambda x: linear(x, plain),
        "base, strided": lambda x: linear(x, store.weight),
        "x [W0; A; S]": lambda x: linear(x, store.matrix[:, :d_in]),
        "x [A; S]": lambda x: linear(x, store.matrix[d_out:, :d_in]),
        "[x | gz]": lambda x: expansion.gated_beside(x, narrow, 0, store.interaction, settings),
        "gz": lambda x: expansion.gated_beside(None, narrow, 0, store.interaction, settings),
        "[x | gz] [W0 | B]": lambda x: linear(wide, store.matrix[:d_out]),
    }
    for blocks in tiles_of(tokens):
        shown = f"{blocks.tokens}x{blocks.columns}x{blocks.warps}"
        for kind, held in {"expand": widened, "expand gated": widened.with_gates()}.items():

            def expand(x: Tensor, held: Any = held, blocks: Any = blocks) -> Tensor:
                return held.expand_add(store.part_of_grain, blocks)  # type: ignore[no-any-return]

            def silu(x: Tensor, held: Any = held, blocks: Any = blocks) -> Tensor:
                return held.expand_add_silu(blocks)  # type: ignore[no-any-return]

            pieces[f"{kind} {shown}"] = expand
            if store.has_halves and blocks.columns <= 64:
                pieces[f"silu {kind} {shown}"] = silu
    times = {kind: timed(graph_of(run, x, 10), 10) for kind, run in pieces.items()}
    print(name, tokens, {k: round(us, 1) for k, us in times.items() if "expand" not in k})
    for first in ("expand ", "silu "):
        fastest = sorted((round(us, 1), kind) for kind, us in times.items() if kind.startswith(first))
        print("   ", fastest[:5], flush=True)


def tune_loops(sizes: list[int]) -> bool:
    """Print the tiles of the expanding kernels for many tokens; return whether all are right."""
    import loop_tiles

    from cme_bench.vllm_plugin.expansion import Settings

    right, spec = True, team_spec()
    for name, (d_in, outs) in LAYERS.items():
        store = make_layer(d_in, outs, spec)
        for tokens in sizes:
            settings = Settings(len(outs), spec.rank, spec.experts, False, spec.scale, 0.0)
            x = torch.randn(tokens, d_in, device="cuda", dtype=torch.bfloat16)
            right &= loop_tiles.tune(name, store, settings, x, graph_of)
    return right


def tiles_of(tokens: int) -> list[Any]:
    """Tiles of the expanding kernels that are worth a try."""
    from cme_bench.vllm_plugin.expansion import Blocks

    sizes = (16, 32, 64, 128) if tokens > 16 else (16,)
    tiles = [Blocks(size, n, warps) for size in sizes for n in (32, 64, 128) for warps in (2, 4, 8)]
    return [tile for tile in tiles if 256 <= tile.tokens * tile.columns // tile.warps <= 2048]


def timed(graph: torch.cuda.CUDAGraph, calls: int, rounds: int = 7) -> float:
    """Microseconds of a call: the median of ``rounds`` replays."""
    found = []
    graph.replay()
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        found.append(1000 * start.elapsed_time(stop) / calls)
    return float(statistics.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slots", type=int, default=0, help="adapters mixed in a batch; 0: leave that out")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="sizes of a step")
    parser.add_argument("--quick", action="store_true", help="three sizes, three rounds")
    parser.add_argument("--host", action="store_true", help="only print what calls take of Python")
    parser.add_argument(
        "--tune",
        nargs="?",
        const="all",
        choices=("all", "loops"),
        help="only print the time of pieces and tiles; loops: of kernels for many tokens",
    )
    parser.add_argument("--out", type=Path, help="file to write")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "vllm_kernels: needs a CUDA GPU\n")
    LAYERS.update(SHAPES[args.shape])
    if args.host:
        for name in LAYERS:
            print(
                name, {kind: round(us, 1) for kind, us in host_times(name, args.rounds).items()}, flush=True
            )
        return
    if args.tune and args.slots:
        import slot_plans

        sys.exit(not slot_plans.tune(LAYERS, team_spec(), args.slots, graph_of))
    if args.tune == "loops":
        sys.exit(not tune_loops(args.tokens))
    if args.tune:
        for name in LAYERS:
            for tokens in args.tokens:
                tune(name, tokens)
        return
    sizes, rounds = ((1, 256, 2048), 3) if args.quick else (args.tokens, args.rounds)
    results = []
    for name in LAYERS:
        for tokens in sizes:
            found = measure(name, tokens, rounds, args.slots)
            results.append(found)
            us = found["microseconds"]
            shown = "  ".join(
                f"{kind} {us[kind]:8.1f} us ({us[kind] / us[base_of(kind)]:.3f})" for kind in us
            )
            worst = max(found["errors"].values())
            print(f"{name:8s} {tokens:5d} tokens   {shown}   error {worst:.1e}", flush=True)
    report(results, args.out, {"shape": args.shape, "slots": args.slots}, save=not args.quick)


def report(results: list[dict[str, Any]], out: Path | None, settings: dict[str, Any], *, save: bool) -> None:
    metrics = {
        f"{found['layer']}_{found['tokens']}_{kind}_over_base": round(
            us / found["microseconds"][base_of(kind)], 4
        )
        for found in results
        for kind, us in found["microseconds"].items()
        if kind not in BASES
    }
    line = measurements.line("vllm_kernels", metrics, cuda=True)
    if out or save:
        measurements.save(
            line,
            file=out,
            settings={"torch": torch.__version__, **settings},
            results=results,
        )
    wrong = [r for r in results if max(r["errors"].values()) > TOLERANCE]
    for found in wrong:
        print(f"{found['layer']} {found['tokens']}: errors {found['errors']}", file=sys.stderr)
    print(json.dumps(line))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
