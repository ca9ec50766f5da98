"""TeamLoRA on a vision-language model in vLLM against the bare model: image tasks, tokens and items a second.

smollava with a TeamLoRA of four experts of rank 32 on its language model's feed-forward linears, asked the
questions of an image task by ``cme-bench``'s own engine. The base is asked first, by an engine that knows of
no adapter. The first round of each is left out, and none finds the keys and values of the one before.
``teamlora_over_base`` is the base's time by the adapter's: 1 is as fast. Short runs compile nothing;
``--compile`` compiles, as long ones do. The adapter's weights are random and so small that answers hardly
change, since longer ones take longer: ``tokens_teamlora`` should be close to ``tokens_base``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import measurements
import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from cme_bench.adapters import TeamLoraConfig
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import evaluation_device
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineSource
from cme_bench.runs.folder import read_run
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.runner import ask


def random_adapter(model: Path, out: Path) -> None:
    """Write a TeamLoRA whose every weight is random and small."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    team = get_peft_model(base, TeamLoraConfig(r=32, num_experts=4, init="random"))
    with torch.no_grad():
        for parameter in team.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.1)
    team.save_pretrained(out)


def forget(engines: EngineSource) -> None:
    """What the running engine keeps of prompts is of no use to the next round."""
    host = getattr(engines, "_host", None)
    if host is not None:
        host._llm.reset_prefix_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollava")
    parser.add_argument("--task", default="cme_mm_easy_vqa", help="a task with images")
    parser.add_argument("--data", default="hub")
    parser.add_argument("--limit", type=int, default=2000, help="questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save", action="store_true", help="write a file in results/bench")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "team"
        random_adapter(resolve_model(args.model, offline=False).path, adapter)
        options = ModelOptions(
            model=args.model, engine="vllm", dtype=args.dtype, settings={"compile": int(args.compile)}
        )
        engines = open_engines(options, print)
        seconds: dict[str, list[float]] = {"base": [], "teamlora": []}
        tokens: dict[str, int] = {}
        try:
            for name, chosen in (("base", ()), ("teamlora", (str(adapter),))):
                for number in range(args.rounds + 1):
                    forget(engines)
                    out = Path(scratch) / f"{name}{number}"
                    asked = AskOptions(
                        tasks=args.task, adapters=chosen, data=args.data, limit=args.limit, out=out
                    )
                    (run,) = ask(engines, asked)
                    stats = read_run(run).stats
                    seconds[name].append(stats.model_seconds)
                    tokens[name] = stats.tokens_generated
        finally:
            engines.close()
    measured = {name: [round(s, 3) for s in found[1:]] for name, found in seconds.items()}
    middle = {name: statistics.median(found) for name, found in measured.items()}
    metrics = {
        "teamlora_over_base": round(middle["base"] / middle["teamlora"], 3),
        "seconds_base": measured["base"],
        "seconds_teamlora": measured["teamlora"],
        "tokens_base": tokens["base"],
        "tokens_teamlora": tokens["teamlora"],
        "questions": args.limit,
    }
    line = measurements.line("vllm_multimodal", metrics, cuda=evaluation_device().type == "cuda")
    print(json.dumps(line))
    if args.save:
        settings = {n: getattr(args, n) for n in ("model", "task", "dtype", "compile")}
        hardware = line["hardware"].lower().replace(" ", "-")
        file = measurements.RESULTS / f"vllm_multimodal-{hardware}-not-compiled.json"
        measurements.save(line, settings=settings, file=None if args.compile else file)


if __name__ == "__main__":
    main()
