"""``cme-bench train`` as a user runs it, from start to adapter folder, against PEFT in transformers' Trainer.

The peer trains PEFT's LoRA on the same batches of the same tokens in the same order, with what makes it fast:
bfloat16, fused AdamW, no gradient checkpointing, SDPA attention, two data workers, and logits of the target
tokens alone where the model takes ``logits_to_keep`` (here it does not: rows learn at different places, so it
takes the whole logits, as TRL does by default). ``peer_liger`` adds Liger's kernels, fused loss included.
Both are commands of their own; in every round each runs in turn.

``tokens_per_second`` is that of steps behind the first tenth, padding left out: the steady state.
``prepare_seconds``: what the command takes beside its steps. ``over_hf_trainer``: the ratio of the
two steady speeds, the median over rounds. Ours trains ``--method`` (TeamLoRA by default), the peer LoRA of
the same width of latent: ``rank`` times 4 experts.

``--variants`` measures forms of our step beside the default, as ``CME_BENCH_TRAIN`` names them:
``padded,packs,packs+varlen,packs+varlen+graph,packs+varlen+compile,trainer``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measurements
import torch

OURS, PEER, LIGER = "ours", "peer", "peer_liger"
EXPERTS = 4
Round = dict[str, dict[str, float]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps of a few short rows, one round")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--method", default="teamlora")
    parser.add_argument("--rank", type=int, help="default 32; 4 with --quick")
    parser.add_argument("--steps", type=int, help="default 300; 10 with --quick")
    parser.add_argument("--batch-size", type=int, help="default 32; 4 with --quick")
    parser.add_argument("--max-length", type=int, help="default 256; 64 with --quick")
    parser.add_argument("--rounds", type=int, help="default 3; 1 with --quick")
    parser.add_argument("--variants", default="", help="further forms of our step, comma-separated")
    parser.add_argument(
        "--peers", default="", help=f"comma-separated; default: {PEER}, and {LIGER} where it is"
    )
    parser.add_argument("--out", type=Path, default=measurements.RESULTS, help="folder of the result file")
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # the peer's own process: a file of its settings
    args = parser.parse_args()
    quick = args.quick
    args.rank = args.rank or (4 if quick else 32)
    args.steps = args.steps or (10 if quick else 300)
    args.batch_size = args.batch_size or (4 if quick else 32)
    args.max_length = args.max_length or (64 if quick else 256)
    args.rounds = args.rounds or (1 if quick else 3)
    return args


def command(args: argparse.Namespace, out: Path) -> list[str]:
    """The command of a user, with every step written to the curve."""
    data = "mini" if args.quick else args.data
    settings = {
        "--method": args.method,
        "--rank": args.rank,
        "--data": data,
        "--max-steps": args.steps,
        "--batch-size": args.batch_size,
        "--max-length": args.max_length,
        "--log-every": max(1, args.steps // 20),
        "--out": out,
    }
    flat = [str(part) for pair in settings.items() for part in pair]
    return [sys.executable, "-m", "cme_bench", "train", args.model, *flat]


def ours(args: argparse.Namespace, folder: Path, variant: str) -> dict[str, float]:
    """Run the command; what its curve and its record say."""
    environment = os.environ | ({"CME_BENCH_TRAIN": variant} if variant else {})
    started = time.perf_counter()
    done = subprocess.run(command(args, folder), env=environment, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{variant or OURS}: {done.stderr.strip() or done.stdout.strip()}")
    from cme_bench.training.curve import read_curve

    points = [(p.seconds, p.tokens) for p in read_curve(folder / "loss.csv")]
    return summary(points, whole) | {"loss": read_curve(folder / "loss.csv")[-1].loss}


def summary(points: list[tuple[float, int]], whole: float) -> dict[str, float]:
    """Steady speed, whole time and time up to the first step, from (seconds, tokens) after each step."""
    kept = [p for p in points if p[0] > points[len(points) // 10][0]] or points[-1:]
    begin = max((p for p in points if p[0] <= points[len(points) // 10][0]), key=lambda p: p[1])
    speed = (kept[-1][1] - begin[1]) / max(kept[-1][0] - begin[0], 1e-9)
    return {"tokens_per_second": speed, "seconds": whole, "prepare_seconds": whole - points[-1][0]}


def peer(args: argparse.Namespace, folder: Path, name: str) -> dict[str, float]:
    """Run the peer on the same batches in a process of its own."""
    folder.mkdir(parents=True)
    file = folder / "settings.json"
    wanted = {k: v for k, v in vars(args).items() if isinstance(v, str | int | bool | None)}
    file.write_text(json.dumps(wanted | {"folder": str(folder), "liger": name == LIGER}))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--peer", str(file)], capture_output=True, text=True, check=False
    )
    whole = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()}")
    points = [(float(s), int(t)) for s, t in json.loads((folder / "points.json").read_text())]
    return summary(points, whole)


def run_peer(file: Path) -> None:
    """Train PEFT's LoRA with transformers' Trainer, as its users do, on our planned batches."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from cme_bench.models.checkpoint import resolve_model
    from cme_bench.models.load import load_config, load_model, load_tokenizer
    from cme_bench.prompts.vocabulary import embeddings
    from cme_bench.training.batches import Layout, pad_token, width_multiple
    from cme_bench.training.options import TrainOptions
    from cme_bench.training.plan import make_plan
    from cme_bench.training.tokens import training_encoder

    told = json.loads(file.read_text())
    cuda = torch.cuda.is_available()
    options = TrainOptions(
        model=told["model"],
        method="lora",
        out=Path(told["folder"]) / "adapter",
        data="mini" if told["quick"] else told["data"],
        max_steps=told["steps"],
        batch_size=told["batch_size"],
        max_length=told["max_length"],
    )
    base = resolve_model(options.model)
    config, tokenizer = load_config(base), load_tokenizer(base)
    encoder = training_encoder(options, tokenizer, config)
    plan = make_plan(options, None, encoder, processes=1, note=lambda _: None)
    device = torch.device("cuda" if cuda else "cpu")
    model = load_model(base, torch.bfloat16 if cuda else torch.float32, device)
    rank = told["rank"] * EXPERTS
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.05, task_type="CAUSAL_LM",
        target_modules=["gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    adapted = get_peft_model(model, lora)
    tokens = [int(sum(plan.examples.lengths[i] for i in batch)) for batch in plan.batches]
    points: list[tuple[float, int]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % max(1, told["steps"] // 20) == 0:
                if cuda:
                    torch.cuda.synchronize()
                points.append((time.perf_counter() - self.started, sum(tokens[: state.global_step])))

    class Ordered(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                self.train_dataset,
                batch_sampler=plan.batches,
                collate_fn=Layout(
                    pad_token(tokenizer, embeddings(config)), width_multiple(device.type)
                ).collate,
                pin_memory=cuda,
                num_workers=2 if cuda else 0,
            )

    settings = TrainingArguments(
        output_dir=told["folder"],
        max_steps=plan.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        bf16=cuda,
        use_cpu=not cuda,
        optim="adamw_torch_fused",
        use_liger_kernel=told["liger"],
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Ordered(model=adapted, args=settings, train_dataset=plan.examples, callbacks=[Clock()])
    trainer.train()
    adapted.save_pretrained(options.out)
    (Path(told["folder"]) / "points.json").write_text(json.dumps(points))


def measure(args: argparse.Namespace, names: list[str], round_: int, root: Path) -> Round:
    """One round: each command once, every second round backwards."""
    found: Round = {}
    for name in names if round_ % 2 == 0 else names[::-1]:
        folder = root / f"{name}-{round_}".replace("+", "_")
        is_peer = name in (PEER, LIGER)
        found[name] = (
            peer(args, folder, name) if is_peer else ours(args, folder, "" if name == OURS else name)
        )
        shown = ", ".join(f"{key} {value:,.1f}" for key, value in found[name].items())
        print(f"round {round_ + 1}, {name}: {shown}", flush=True)
    return found


def metrics(rounds: list[Round], names: list[str]) -> dict[str, float]:
    """Medians over the rounds; ratios within a round."""

    def median(name: str, what: str) -> float:
        return statistics.median(r[name][what] for r in rounds)

    found = {
        "tokens_per_second": round(median(OURS, "tokens_per_second"), 1),
        "prepare_seconds": round(median(OURS, "prepare_seconds"), 2),
        "seconds": round(median(OURS, "seconds"), 2),
    }
    for name in names[1:]:
        label = {PEER: "hf_trainer", LIGER: "hf_trainer_liger"}.get(name, name)
        found[f"{label}_tokens_per_second"] = round(median(name, "tokens_per_second"), 1)
        found[f"{label}_seconds"] = round(median(name, "seconds"), 2)
        ratios = [r[OURS]["tokens_per_second"] / r[name]["tokens_per_second"] for r in rounds]
        found[f"over_{label}"] = round(statistics.median(ratios), 3)
    return found


def main() -> None:
    args = arguments()
    if args.peer:
        run_peer(Path(args.peer))
        return
    from importlib.util import find_spec

    cuda = torch.cuda.is_available()
    liger = [LIGER] if cuda and find_spec("liger_kernel") else []
    peers = args.peers.split(",") if args.peers else [PEER, *liger]
    names = [OURS, *peers, *filter(None, args.variants.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(args, names, number, Path(folder)) for number in range(args.rounds)]
    result = measurements.line("train_run", metrics(rounds, names), cuda=cuda)
    quick = "-quick" if args.quick else ""
    file = args.out / f"train_run-{result['hardware'].lower().replace(' ', '-')}{quick}.json"
    settings = {
        name: getattr(args, name)
        for name in ("model", "method", "rank", "steps", "batch_size", "max_length", "rounds")
    }
    settings["torch"], settings["threads"] = torch.__version__, torch.get_num_threads()
    measurements.save(result, file=file, settings=settings, rounds=rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
