"""Trainings and a base over several GPUs, each against one GPU: speed, and whether the results are equal.

* train: one adapter by ``accelerate launch -m cme_bench train`` on every GPU against one process, by the loop
  of this package, which is the default, and by transformers' Trainer. A step has the same batches: several
  processes compute them at once, one process one after the other.
* sweep: adapters dealt to the processes of ``accelerate launch -m cme_bench sweep`` against one process.
* device_map: a base of LLaMA-2-7B's shape with random weights on one GPU and by ``--device-map auto``; the
  answers of likelihood and generation tasks.
* tensor_parallel: the same with a TeamLoRA of random numbers by vLLM, on one rank and on all, in float32.

``train_ratio``, ``trainer_ratio`` and ``sweep_ratio``: tokens a second on all GPUs over one GPU, behind the
steps that are logged first. ``train_over_trainer``: of the loop over the Trainer, on all GPUs.
``*_difference``: the largest between the losses that are logged, step by step; of answers, between
log-likelihoods. ``*_differ``: of ``*_records`` answers, those with another choice or text. Trainings drop
nothing out: draws hang on the process, and on a GPU on the adapters that are trained together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import measurements
import torch
from hf_adapters import write_base

from cme_bench.runs.store import read_records
from cme_bench.training.curve import Point, read_curve

PARTS = ("train", "sweep", "device_map", "tensor_parallel")
TASKS = ("cme_arc_easy_ll", "cme_hellaswag_ll", "cme_boolq")
ROWS = {"lora": 128, "moslora": 128, "moelora": 32, "teamlora": 32}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128, help="of a step of train, over all processes")
    parser.add_argument("--layers", type=int, default=32, help="of the base of device_map")
    parser.add_argument("--ranked-layers", type=int, default=4, help="of the base of tensor_parallel")
    parser.add_argument("--limit", type=int, default=40, help="items of a task of a random base")
    parser.add_argument("--quick", action="store_true", help="a few steps on CPUs, without device_map")
    args = parser.parse_args()
    if args.quick:
        args.data, args.steps, args.batch_size, args.only = "mini", 4, 4, "train,sweep"
    return args


def run(command: Sequence[str], log: Path, *, gpus: int, processes: int = 1, manner: str = "") -> None:
    """Run a command of cme-bench that sees so many GPUs; several ``processes`` by a launcher. ``manner``: of
    training."""
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    if not torch.cuda.is_available():  # accelerate launches several CPU processes by MPI alone
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start = [*launcher, "-m", "cme_bench"] if processes > 1 else ["cme_bench"]
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", *start, *command],
            cwd=measurements.ROOT,
            env=os.environ
            | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))), "CME_BENCH_TRAIN": manner},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"a command failed: {' '.join(command)}\n{log.read_text()[-3000:]}")


def speed(curves: Iterable[list[Point]]) -> float:
    """Tokens a second of trainings together, behind the steps of each that were logged first."""
    held = list(curves)
    first = [[point for point in curve if point.seconds == curve[0].seconds][-1] for curve in held]
    made = sum(curve[-1].tokens - start.tokens for curve, start in zip(held, first, strict=True))
    return float(made) / (max(c[-1].seconds for c in held) - min(start.seconds for start in first))


def difference(one: Iterable[list[Point]], other: Iterable[list[Point]]) -> float:
    """The largest difference between the losses of two lists of curves."""
    pairs = [pair for curves in zip(one, other, strict=True) for pair in zip(*curves, strict=True)]
    return max(float(abs(a.loss - b.loss)) for a, b in pairs)


def measure_train(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One adapter by the loop and by transformers' Trainer, on one and on all."""
    metrics: dict[str, Any] = {}
    for name, manner in (("train", ""), ("trainer", "trainer")):
        curves = []
        for processes in (1, args.gpus):
            out = folder / f"{name}{processes}"
            command = ["train", args.model, "--method", "teamlora", "--rank", "32", "--data", args.data]
            command += ["--batch-size", str(args.batch_size // args.gpus), "--dropout", "0"]
            command += ["--accumulate", str(args.gpus // processes), "--max-steps", str(args.steps)]
            command += ["--max-length", "256", "--log-every", str(max(1, args.steps // 10))]
            command += ["--out", str(out)]
            run(command, folder / "log", gpus=processes, processes=processes, manner=manner)
            curves.append(read_curve(out / "loss.csv"))
        one, all_ = (speed([curve]) for curve in curves)
        metrics |= {
            f"{name}_one": round(one, 1),
            f"{name}_all": round(all_, 1),
            f"{name}_ratio": round(all_ / one, 3),
            f"{name}_difference": difference([curves[0]], [curves[1]]),
        }
    return metrics | {"train_over_trainer": round(metrics["train_all"] / metrics["trainer_all"], 2)}


def measure_sweep(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Adapters dealt to processes, against one process."""
    common = {"max_steps": args.steps, "batch_size": 4 if args.quick else 48, "max_length": 256}
    common |= {"log_every": max(1, args.steps // 10), "dropout": 0.0}
    adapters = {
        f"{method}-{seed}": {"method": method, "rank": 4 if args.quick else rank, "seed": seed}
        for method, rank in ROWS.items()
        for seed in (0, 1)
    }
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({"model": args.model, "settings": common, "adapters": adapters}))
    found = []
    for processes in (1, args.gpus):
        out = folder / f"sweep{processes}"
        command = ["sweep", str(file), "--data", args.data, "--out", str(out)]
        run(command, folder / "log", gpus=processes, processes=processes)
        found.append([read_curve(out / name / "loss.csv") for name in adapters])
    own = [[c for i, c in enumerate(found[1]) if (i // 2) % args.gpus == n] for n in range(args.gpus)]
    one, all_ = speed(found[0]), sum(speed(curves) for curves in own if curves)
    return {
        "sweep_one": round(one, 1),
        "sweep_all": round(all_, 1),
        "sweep_ratio": round(all_ / one, 3),
        "sweep_difference": difference(*found),
    }


def random_base(args: argparse.Namespace, folder: Path, *, layers: int, adapter: bool = False) -> None:
    """Write a base of LLaMA-2-7B's shape, with the model's tokenizer, and an adapter on it."""
    from cme_bench.adapters.methods.teamlora import TeamLoraConfig
    from cme_bench.experiments.efficiency.shapes import preset, targets, with_layers
    from cme_bench.training.fresh import put_fresh

    config = with_layers(preset("llama-2-7b"), layers)
    base = write_base(folder / "base", config, "cuda", torch.bfloat16, args.model)
    if adapter:
        settings = TeamLoraConfig(
            r=32, alpha=64.0, num_experts=4, init="random", target_modules=list(targets(config))
        )
        put_fresh(base, settings).save_pretrained(folder / "team")
    del base
    torch.cuda.empty_cache()


def answers(args: argparse.Namespace, folder: Path, name: str, *more: str, gpus: int) -> list[Any]:
    """The records of a run on the random base, in order."""
    out = folder / name
    command = ["run", str(folder / "base"), "--tasks", ",".join(TASKS), "--limit", str(args.limit)]
    command += ["--data", args.data, "--bos", "never", "--out", str(out), *more]
    run(command, folder / "log", gpus=gpus)
    where = next(out.rglob("run.json")).parent
    return [
        record
        for task in TASKS
        for record in sorted(read_records(where / f"samples/{task}.jsonl"), key=lambda record: record.id)
    ]


def measure_device_map(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A base that is spread over the GPUs answers as on one."""
    random_base(args, folder, layers=args.layers)
    one = answers(args, folder, "one", "--engine", "hf", gpus=1)
    spread = answers(args, folder, "spread", "--engine", "hf", "--device-map", "auto", gpus=args.gpus)
    return compared("device_map", one, spread)


def measure_tensor_parallel(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A TeamLoRA of random numbers, on one rank of vLLM and on all."""
    random_base(args, folder, layers=args.ranked_layers, adapter=True)
    given = ["--adapter", str(folder / "team"), "--engine", "vllm", "--dtype", "float32"]
    given += ["--set", "kv_gib=4"]
    one = answers(args, folder, "rank", *given, gpus=1)
    ranks = answers(args, folder, "ranks", *given, "--set", f"tensor_parallel={args.gpus}", gpus=args.gpus)
    return compared("tensor_parallel", one, ranks)


def compared(part: str, one: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """How far the answers of two runs are apart: choices and texts, and log-likelihoods."""
    pairs = [(a.response, b.response) for a, b in zip(one, other, strict=True)]
    chosen = [(a.logprobs, b.logprobs) for a, b in pairs if a.logprobs]
    differ = sum(a.text != b.text for a, b in pairs if not a.logprobs)
    differ += sum(a.index(max(a)) != b.index(max(b)) for a, b in chosen)
    return {
        f"{part}_records": len(pairs),
        f"{part}_differ": differ,
        f"{part}_difference": max(abs(x - y) for a, b in chosen for x, y in zip(a, b, strict=True)),
    }


def main() -> None:
    args = arguments()
    metrics: dict[str, Any] = {"gpus": args.gpus}
    parts = {"train": measure_train, "sweep": measure_sweep, "device_map": measure_device_map}
    parts["tensor_parallel"] = measure_tensor_parallel
    cuda = torch.cuda.is_available()
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            metrics |= parts[name](args, Path(folder))
        print(json.dumps(metrics), flush=True)
    line = measurements.line("several_gpus", metrics, cuda=cuda)
    if not args.quick:
        measurements.save(line, settings=vars(args))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
