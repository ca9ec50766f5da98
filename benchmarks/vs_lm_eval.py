"""Our transformers engine against stock lm-eval's ``hf``, on the same items: time, peak memory, same answers.

Both run lm-eval's own ``evaluate`` on the same task files (``cme-bench tasks export``, few-shot as the suite
defines it), the same items and the same weights, in two processes of which one works at a time. The time of a
task is that of ``evaluate``: prompts, tokens, scoring, metrics; loading the model and the data set is left
out. lm-eval gets the batch size that is fastest on a part of the task. Peak memory is the process's resident
set during the task (CUDA: the allocator's).

A task fails if an answer differs, or a log-likelihood by more than 1e-3 in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench"
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """``items`` of a suite's task with ``shots``; of one ``subject`` only, if given."""

    task: str
    shots: int
    items: int
    subject: str = ""

    @property
    def name(self) -> str:
        return f"{self.task}_{self.shots}shot"


FULL = [
    Case("mmlu", 5, 100, "miscellaneous"),
    Case("arc_challenge", 25, 20),
    Case("hellaswag", 0, 120),
    Case("hellaswag", 10, 20),
    Case("winogrande", 5, 100),
    Case("boolq", 0, 120),
    Case("rte", 5, 80),
]
QUICK = [Case("hellaswag", 0, 6), Case("winogrande", 5, 6)]


# ---- the worker: one engine, one model, tasks one after the other


def work(engine: str, model: str, folder: Path, dtype: str) -> None:
    """Load, say so, then answer every line of JSON on stdin with one on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints goes to stderr
    import torch
    from lm_eval.tasks import TaskManager

    if engine == "lm-eval":
        from lm_eval.models.huggingface import HFLM

        load: Any = HFLM
    else:
        from cme_bench.engines.lm_eval import CmeHF

        load = CmeHF
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = load(pretrained=model, dtype=dtype, device=device, batch_size=1)
    manager = TaskManager(include_path=str(folder))
    print(json.dumps({"ready": True, "device": device}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if engine == "lm-eval":
            lm.batch_size_per_gpu = asked["batch_size"]
        print(json.dumps(evaluate(lm, manager, asked)), file=answers, flush=True)


def evaluate(lm: Any, manager: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds, peak memory in bytes, and every item's log-likelihoods."""
    import torch
    from lm_eval import evaluator

    tasks = manager.load([asked["name"]])
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    found = evaluator.evaluate(lm, tasks, samples={asked["name"]: asked["items"]}, bootstrap_iters=0)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_cuda else resident_peak()
    samples = sorted(found["samples"][asked["name"]], key=lambda sample: sample["doc_id"])
    scores = [[pair[0] for pair in sample["filtered_resps"]] for sample in samples]
    return {"seconds": seconds, "peak": peak, "scores": scores, "tokens": tokens(lm)}


def resident_peak() -> int:
    """VmHWM, which is reset before every task; bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tokens(lm: Any) -> dict[str, int]:
    engine = getattr(lm, "engine", None)
    return {} if engine is None else {k: v for k, v in asdict(engine.stats).items() if k.startswith("tokens")}


class Worker:
    """One engine in a process of its own."""

    def __init__(self, engine: str, args: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", engine, "--model", args.model]
        command += ["--tasks", str(folder), "--dtype", args.dtype]
        log = sys.stderr if args.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        self.device = self._answer()["device"]

    def run(self, name: str, items: list[int], batch_size: int = 1) -> dict[str, Any]:
        assert self.process.stdin is not None
        asked = {"name": name, "items": items, "batch_size": batch_size}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker died; run again with --verbose")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---- the comparison


def export(cases: list[Case], data: Path, folder: Path) -> dict[str, int]:
    """One task file a case, as ``cme-bench tasks export`` writes it, with the case's shots; the number of
    rows each case may choose from."""
    from cme_bench.tasks.export import export_tasks
    from cme_bench.tasks.sources import open_source
    from cme_bench.tasks.suite import load_suite

    suite = load_suite(())
    source = open_source(str(data), offline=True)
    rows = {}
    for case in cases:
        name = f"cme_{case.task}_ll"
        [spec] = suite.select(name)
        rows[case.name] = len(source.rows(spec, spec.eval_split).table)
        [file] = export_tasks([spec], source, folder)
        text = file.read_text(encoding="utf-8")
        file.unlink()
        text = text.replace(f"task: {name}\n", f"task: {case.name}\n")
        text = text.replace("num_fewshot: 0\n", f"num_fewshot: {case.shots}\n")
        (folder / f"{case.name}.yaml").write_text(text, encoding="utf-8")
    return rows


def chosen_items(case: Case, data: Path, rows: int) -> list[int]:
    """Places of the case's items among the ``rows`` of its split."""
    if not case.subject:
        return list(range(min(case.items, rows)))
    lines = (data / case.task / "test.jsonl").read_text(encoding="utf-8").splitlines()
    places = [i for i, line in enumerate(lines) if json.loads(line)["subject"] == case.subject]
    return places[: case.items]


def best_batch_size(
    theirs: Worker, case: Case, items: list[int], sizes: list[int]
) -> tuple[int, dict[int, float]]:
    """The size with the least time on a part of the items."""
    if len(sizes) == 1:
        return sizes[0], {}
    part = items[: max(4, len(items) // 6)]
    seconds = {size: theirs.run(case.name, part, size)["seconds"] for size in sizes}
    return min(seconds, key=lambda size: seconds[size]), seconds


def compare(case: Case, rows: int, ours: Worker, theirs: Worker, args: argparse.Namespace) -> dict[str, Any]:
    items = chosen_items(case, args.data, rows)
    ours.run(case.name, items[:2])  # warm-up of both: threads, allocator
    size, tried = best_batch_size(theirs, case, items, args.batch_sizes)
    rounds = []
    for _ in range(args.rounds):
        one, other = ours.run(case.name, items), theirs.run(case.name, items, size)
        rounds.append(
            {
                "ours_s": one["seconds"],
                "lm_eval_s": other["seconds"],
                "ours_peak_gib": one["peak"] / 2**30,
                "lm_eval_peak_gib": other["peak"] / 2**30,
                "load": os.getloadavg()[0],
            }
        )
    difference = max(
        abs(a - b)
        for mine, their in zip(one["scores"], other["scores"], strict=True)
        for a, b in zip(mine, their, strict=True)
    )
    chosen = [[scores.index(max(scores)) for scores in found["scores"]] for found in (one, other)]
    return {
        "case": asdict(case) | {"items": len(items)},
        "batch_size": size,
        "batch_sizes_tried_s": tried,
        "rounds": rounds,
        "speedup": statistics.median(r["lm_eval_s"] / r["ours_s"] for r in rounds),
        "max_difference": difference,
        "labels_that_differ": sum(a != b for a, b in zip(*chosen, strict=True)),
    }


def hardware(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name().replace(" ", "-").lower()
    return f"cpu-{os.cpu_count()}x-{platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of DATASET/SPLIT.jsonl"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of every task")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="tried for lm-eval")
    parser.add_argument("--only", nargs="+", help="names of cases, e.g. hellaswag_0shot")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many items of every task")
    parser.add_argument("--quick", action="store_true", help="two tasks, six items each")
    parser.add_argument("--out", type=Path, help="the file to write, also with --only or --quick")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    parser.add_argument("--worker", choices=("ours", "lm-eval"), help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.model, args.tasks, args.dtype)
        return
    if not args.data.is_dir():
        parser.exit(2, f"--data {args.data}: no such folder\n")
    if args.model == "smollm2":
        from cme_bench.models import smollm2

        args.model = str(smollm2.ensure())
    cases = [
        Case(c.task, c.shots, max(2, round(c.items * args.scale)), c.subject)
        for c in (QUICK if args.quick else FULL)
        if not args.only or c.name in args.only
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = export(cases, args.data, folder)
        ours, theirs = Worker("ours", args, folder), Worker("lm-eval", args, folder)
        results = []
        for case in cases:
            results.append(compare(case, rows[case.name], ours, theirs, args))
            print_row(results[-1])
        ours.close()
        theirs.close()
    report(results, ours.device, args)


def print_row(result: dict[str, Any]) -> None:
    case, last = result["case"], result["rounds"][-1]
    print(
        f"{case['task']:14s} {case['shots']:2d}-shot {case['items']:4d} items   "
        f"lm-eval {last['lm_eval_s']:7.1f} s (batch {result['batch_size']})   ours {last['ours_s']:.1f} s   "
        f"{result['speedup']:.1f}x   peak {last['lm_eval_peak_gib']:.2f} / {last['ours_peak_gib']:.2f} GiB   "
        f"|d ll| {result['max_difference']:.1e}, {result['labels_that_differ']} labels differ   "
        f"load {last['load']:.1f}",
        flush=True,
    )


def report(results: list[dict[str, Any]], device: str, args: argparse.Namespace) -> None:
    """Write the file, print the line, fail if answers differ."""
    from cme_bench import provenance

    speedups = {f"speedup_{r['case']['task']}_{r['case']['shots']}shot": r["speedup"] for r in results}
    geomean = math.exp(statistics.fmean(math.log(s) for s in speedups.values()))
    line = {
        "bench": "vs_lm_eval",
        "hardware": hardware(device),
        "commit": provenance.commit() or "unknown",
        "metrics": {name: round(value, 3) for name, value in (speedups | {"geomean": geomean}).items()},
    }
    file = args.out or RESULTS / f"vs_lm_eval-{line['hardware']}.json"
    if args.out or not (args.quick or args.only):
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": Path(args.model).name, "dtype": args.dtype, "scale": args.scale}
        content = line | {"settings": settings, "results": results}
        file.write_text(json.dumps(content, indent=1) + "\n")
    wrong = [r for r in results if r["labels_that_differ"] or r["max_difference"] > TOLERANCE]
    if wrong and args.dtype == "float32":
        print(f"answers differ in {len(wrong)} tasks", file=sys.stderr)
    print(json.dumps(line))
    sys.exit(1 if wrong and args.dtype == "float32" else 0)


if __name__ == "__main__":
    main()
