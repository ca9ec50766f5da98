"""Ways to attend over a shared prefix, on one plan: what decides how packs are computed (docs/engines.md).

* merged: the product with the kept prefix and the product within each unit, merged by log-sum-exp (ours);
* dense: one row, one mask [n, kept + n] that holds the whole tree, grouped keys repeated;
* expanded: one row a unit, the kept prefix copied to every row, grouped keys repeated.

All three leave the linear layers without padding; "rows" is the plain engine, each row alone. The model is a
random Llama of about a billion parameters in bfloat16 on CUDA, and of SmolLM2's shapes in float32 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

import measurements
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cme_bench.engines import LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine, pack_forward
from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.tree_attention import PackAttention
from cme_bench.engines.hf.unit_attention import UnitAttention

WORKLOADS = {  # header, questions, question, choices, choice
    "mmlu_5shot": (600, 256, 90, 4, 1),
    "hellaswag_10shot": (900, 128, 45, 4, 25),
    "hellaswag_0shot": (0, 256, 60, 4, 25),
}


class Dense(PackAttention):
    """One mask over the kept prefix and the whole pack."""

    def __call__(self, call: AttentionCall) -> Tensor:
        n, cached = self.pack.n_tokens, self.pack.cached
        if "dense" not in self.__dict__:
            starts, place = self.pack.starts, torch.arange(n, device=call.query.device)
            ends = torch.cat(
                [torch.from_numpy(u.end) + int(s) for u, s in zip(self.pack.units, starts[:-1], strict=True)]
            ).to(call.query.device)
            self.dense = (place <= place[:, None]) & (place[:, None] < ends)
            self.dense = torch.cat((self.dense.new_ones(n, cached), self.dense), 1)
        keys, values = call.key, call.value
        if cached:
            kept = self.kept.head(call.module, cached)
            keys, values = torch.cat((kept[0], keys), 2), torch.cat((kept[1], values), 2)
        if self.pack.keep:
            self.kept.extend(call.module, cached, call.key, call.value)
        keys, values = (states.repeat_interleave(call.groups, 1) for states in (keys, values))
        out = nn.functional.scaled_dot_product_attention(
            call.query, keys, values, self.dense, scale=call.scaling
        )
        return out.transpose(1, 2)


class SideBySide(UnitAttention):
    """A row a unit, each with its own copy of the kept prefix."""

    def expanded(self, call: AttentionCall, kept: tuple[Tensor, Tensor] | None) -> Tensor:
        query, keys, values = map(self._batch, (call.query, call.key, call.value))
        units, _, longest, _ = query.shape
        mask = self._mask(None, 1, query, 0, longest)
        if kept is not None:
            before = [states.expand(units, -1, -1, -1) for states in kept]
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
            mask = torch.cat((mask.new_zeros(units, 1, longest, before[0].shape[2]), mask), 3)
        keys, values = (states.repeat_interleave(call.groups, 1) for states in (keys, values))
        out = nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=call.scaling)
        return self._unbatch(out).transpose(1, 2)


class Expanded(PackAttention):
    """All units side by side, as rows of the longest's length."""

    def __call__(self, call: AttentionCall) -> Tensor:
        if len(self.pack.units) == 1:
            return super().__call__(call)
        if "rows" not in self.__dict__:
            self.rows = SideBySide(self.pack.units, call.query.device)
        kept = self.kept.head(call.module, self.pack.cached) if self.pack.cached else None
        return self.rows.expanded(call, kept)


def requests(shape: tuple[int, int, int, int, int], scale: float) -> list[LoglikelihoodRequest]:
    header, questions, question, choices, choice = shape
    source = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(source.randrange(30000) for _ in range(n))

    head, asked = ids(header), []
    for _ in range(max(4, round(questions * scale))):
        context = head + ids(max(1, round(question * source.uniform(0.6, 1.4))))
        rows = [(context, ids(max(1, round(choice * source.uniform(0.6, 1.4))))) for _ in range(choices)]
        asked.append(LoglikelihoodRequest(tuple(rows)))
    return asked


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    on_cuda = torch.cuda.is_available()
    sizes = (2048, 8192, 16, 32, 8, 64000) if on_cuda else (576, 1536, 30, 9, 3, 49152)
    hidden, inner, layers, heads, key_heads, vocabulary = sizes
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
    )
    with torch.device("cuda" if on_cuda else "cpu"):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16 if on_cuda else torch.float32).eval()


class NoTokenizer:
    eos_token_id = 0


def measure(model: Any, asked: list[LoglikelihoodRequest], way: str, pack: int | None) -> dict[str, Any]:
    """Seconds and peak memory above the weights, of a second run."""
    vars(pack_forward)["PackAttention"] = {"dense": Dense, "expanded": Expanded}.get(way, PackAttention)
    engine = HFEngine(model, NoTokenizer(), tokens_per_batch=pack, plain=way == "rows")
    if way != "rows":
        engine.__dict__["rowwise_because"] = None
    on_cuda = torch.cuda.is_available()
    list(engine.loglikelihood(asked[:8]))
    before = 0
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    computed = engine.stats.tokens_computed
    started = time.perf_counter()
    found = dict(engine.loglikelihood(asked))
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30 if on_cuda else None,
        "tokens": engine.stats.tokens_computed - computed,
        "mean": statistics.fmean(lp for r in found.values() for lp in r.logprobs),
        "model_seconds": engine.stats.model_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", default=["merged", "dense", "expanded", "rows"])
    parser.add_argument("--packs", type=int, nargs="+", default=[None], help="most tokens of a pack")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="times as many questions")
    parser.add_argument("--quick", action="store_true", help="four questions")
    args = parser.parse_args()
    model = make_model()
    metrics = {}
    for workload in args.workloads:
        asked = requests(WORKLOADS[workload], 0.0 if args.quick else args.scale)
        for way in args.ways:
            for pack in args.packs if way != "rows" else [None]:
                try:
                    found = measure(model, asked, way, pack)
                except Exception as err:  # a way that does not fit in memory is a result too
                    print(f"{workload:18s} {way:9s} pack {pack}  failed: {err}", flush=True)
                    continue
                metrics[f"{workload}_{way}" + (f"_{pack}" if pack else "")] = round(found["seconds"], 3)
                print(
                    f"{workload:18s} {way:9s} pack {pack}  {found['seconds']:8.2f} s  "
                    f"{found['tokens']:8d} tokens  peak {found['peak_gib'] or 0:.2f} GiB  "
                    f"mean ll {found['mean']:.4f}",
                    flush=True,
                )
    print(json.dumps(measurements.line("sharing", metrics, cuda=torch.cuda.is_available())))


if __name__ == "__main__":
    main()
