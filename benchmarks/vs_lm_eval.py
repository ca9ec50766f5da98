"""``cme-bench run`` against stock lm-eval (``--model hf``) on the same items: time, memory, same answers.

What is timed is a user's evaluation of one task, without loading the model: prompts, tokens, scoring,
metrics.

* lm-eval: its own ``evaluate`` with its own task class on a task file and rows that it has loaded before
  the clock starts, at the batch size that is fastest on a part of the items.
* ours: ``cme_bench.runs.runner.run``, reading the rows and storing every record included, at its defaults.
* cme-hf: our engine as lm-eval's model, under lm-eval's ``evaluate`` (``lm_eval --model cme-hf``).

All see the same texts: the suite's prompts, few-shot exemplars from the head of the same split, the same
rows (those and no others, so that nobody filters). Each works in a process of its own, one at a time. Peak
memory is the process's resident set during the task (CUDA: the allocator's). A task fails if a predicted
choice differs, or, in float32, a log-likelihood by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measurements

from cme_bench.util import memory as resident_memory
from cme_bench.util.options import DType

TOLERANCE = 1e-3
ENGINES = ("ours", "lm-eval", "cme-hf")


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


# ---- the workers: one engine, one model, tasks one after the other


class LmEval:
    """A model of lm-eval's registry under its ``evaluate``."""

    def __init__(self, model: Any, folder: Path) -> None:
        from lm_eval.tasks import TaskManager

        self.model = model
        self.manager = TaskManager(include_path=str(folder))

    def answer(self, name: str, case: Case, batch_size: int) -> dict[str, Any]:
        from lm_eval import evaluator

        if hasattr(self.model, "batch_size_per_gpu"):
            self.model.batch_size_per_gpu = batch_size
        tasks = self.manager.load([name])
        found, used = measured(lambda: evaluator.evaluate(self.model, tasks, bootstrap_iters=0))
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        return used | {"scores": [[pair[0] for pair in s["filtered_resps"]] for s in samples]}


class Ours:
    """``cme-bench run`` with its model loaded."""

    def __init__(self, model: str, dtype: DType, folder: Path) -> None:
        from cme_bench.runs.engine_factory import open_engines
        from cme_bench.runs.options import RunOptions

        self.folder = folder
        self.options = RunOptions(model=model, dtype=dtype, offline=True)
        self.engines = open_engines(self.options)
        _ = self.engines.model.model, self.engines.model.tokenizer

    def answer(self, name: str, case: Case, batch_size: int) -> dict[str, Any]:
        from dataclasses import replace

        from cme_bench.runs.folder import read_run
        from cme_bench.runs.runner import ask
        from cme_bench.runs.store import read_records, samples_file

        task, out = f"cme_{case.task}_ll", self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        options = replace(self.options, tasks=task, shots=case.shots, data=str(self.folder / name), out=out)
        _, used = measured(lambda: ask(self.engines, options))
        records = sorted(read_records(samples_file(out, task)), key=lambda record: record.id)
        stats = read_run(out).sessions[-1].engine
        kept = {k: getattr(stats, k) for k in ("tokens_computed", "tokens_rowwise", "model_seconds")}
        return used | kept | {"scores": [record.response.logprobs for record in records]}


def work(engine: str, model: str, folder: Path, dtype: DType) -> None:
    """Load, say so, then answer every line of JSON on stdin with one on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints goes to stderr
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    worker: LmEval | Ours
    if engine == "ours":
        worker = Ours(model, dtype, folder)
    elif engine == "lm-eval":
        from lm_eval.models.huggingface import HFLM

        worker = LmEval(HFLM(pretrained=model, dtype=dtype, device=device, batch_size=1), folder)
    else:
        from cme_bench.harness.lm_eval_model import CmeHF

        worker = LmEval(CmeHF(pretrained=model, dtype=dtype, device=device), folder)
    print(json.dumps({"device": device}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = worker.answer(asked["name"], Case(**asked["case"]), asked["batch_size"])
        print(json.dumps(found), file=answers, flush=True)


def measured(act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What ``act`` returns, its seconds, and the peak memory meanwhile in bytes."""
    import torch

    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        resident_memory.reset_peak()
    started = time.perf_counter()
    found = act()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_cuda else resident_memory.peak()
    return found, {"seconds": seconds, "peak": peak}


class Worker:
    """One engine in a process of its own."""

    def __init__(self, engine: str, args: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", engine, "--model", args.model]
        command += ["--tasks", str(folder), "--dtype", args.dtype]
        log = sys.stderr if args.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=measurements.ROOT,
        )
        self.device = self._answer()["device"]

    def run(self, name: str, case: Case, batch_size: int = 1) -> dict[str, Any]:
        assert self.process.stdin is not None
        asked = {"name": name, "case": asdict(case), "batch_size": batch_size}
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


# ---- the rows and the task files


def part_of(case: Case) -> str:
    """The name of the case's first items, on which engines warm up and batch sizes are tried."""
    return f"{case.name}_part"


def prepare(case: Case, data: Path, folder: Path) -> int:
    """Write the case's rows (``folder/NAME/DATASET/SPLIT.jsonl``) and lm-eval's task file (``NAME.yaml``), of
    all its items and of a part; the number of items."""
    from cme_bench.authoring.export import export_tasks
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

    [spec] = load_suite(()).select(f"cme_{case.task}_ll")
    rows = chosen_rows(case, data / spec.folder / f"{spec.eval_split}.jsonl")
    for name, kept in ((case.name, rows), (part_of(case), rows[: max(4, len(rows) // 6)])):
        dataset = folder / name / spec.folder
        dataset.mkdir(parents=True)
        (dataset / f"{spec.eval_split}.jsonl").write_text("".join(kept), encoding="utf-8")
        if case.shots:
            assert spec.fewshot_split is not None
            shots = chosen_rows(case, data / spec.folder / f"{spec.fewshot_split}.jsonl", case.shots)
            (dataset / f"{spec.fewshot_split}.jsonl").write_text("".join(shots), encoding="utf-8")
        source = open_source(str(folder / name), offline=True)
        [file] = export_tasks([spec], source, folder)
        text = file.read_text(encoding="utf-8")
        file.unlink()
        text = text.replace(f"task: {spec.name}\n", f"task: {name}\n")
        text = text.replace("num_fewshot: 0\n", f"num_fewshot: {case.shots}\n")
        text = re.sub(r"^class: .*\n", "", text, flags=re.MULTILINE)  # lm-eval's own class
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return len(rows)


def chosen_rows(case: Case, file: Path, count: int | None = None) -> list[str]:
    """The first rows of a file, of the case's subject if it names one."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if case.subject:
        lines = [line for line in lines if json.loads(line)["subject"] == case.subject]
    return lines[: count or case.items]


# ---- the comparison


def compare(case: Case, items: int, workers: dict[str, Worker], args: argparse.Namespace) -> dict[str, Any]:
    for name in ("ours", "cme-hf"):
        workers[name].run(part_of(case), case)  # threads, allocator, kernels
    tried = {size: workers["lm-eval"].run(part_of(case), case, size)["seconds"] for size in args.batch_sizes}
    size = min(tried, key=lambda size: tried[size])
    rounds = []
    for _ in range(args.rounds):
        found = {name: workers[name].run(case.name, case, size) for name in ENGINES}
        rounds.append(
            {name: {k: v for k, v in answer.items() if k != "scores"} for name, answer in found.items()}
            | {"load": os.getloadavg()[0]}
        )
    theirs = found["lm-eval"]["scores"]
    return {
        "case": asdict(case) | {"items": items},
        "batch_size": size,
        "batch_sizes_tried_s": tried,
        "rounds": rounds,
        "speedup": ratio(rounds, "ours", "seconds"),
        "cme_hf_speedup": ratio(rounds, "cme-hf", "seconds"),
        "memory": ratio(rounds, "ours", "peak"),
        "max_difference": max(difference(found[name]["scores"], theirs) for name in ("ours", "cme-hf")),
        "labels_that_differ": max(differing(found[name]["scores"], theirs) for name in ("ours", "cme-hf")),
    }


def ratio(rounds: list[dict[str, Any]], engine: str, what: str) -> float:
    """lm-eval's over ``engine``'s, median of the rounds."""
    return float(statistics.median(r["lm-eval"][what] / r[engine][what] for r in rounds))


def difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return max(
        abs(a - b) for mine, their in zip(ours, theirs, strict=True) for a, b in zip(mine, their, strict=True)
    )


def differing(ours: list[list[float]], theirs: list[list[float]]) -> int:
    """Items whose best choice is another."""
    chosen = [[scores.index(max(scores)) for scores in found] for found in (ours, theirs)]
    return sum(a != b for a, b in zip(*chosen, strict=True))


def print_row(result: dict[str, Any]) -> None:
    case, last = result["case"], result["rounds"][-1]
    print(
        f"{case['task']:13s} {case['shots']:2d}-shot {case['items']:4d} items  "
        f"lm-eval {last['lm-eval']['seconds']:7.2f} s (batch {result['batch_size']})  "
        f"ours {last['ours']['seconds']:6.2f} s ({last['ours']['model_seconds']:.2f} model) "
        f"{result['speedup']:5.1f}x  "
        f"cme-hf {last['cme-hf']['seconds']:6.2f} s {result['cme_hf_speedup']:5.1f}x  "
        f"peak {last['lm-eval']['peak'] / 2**30:.2f} / {last['ours']['peak'] / 2**30:.2f} GiB  "
        f"|d ll| {result['max_difference']:.1e}, {result['labels_that_differ']} labels differ  "
        f"load {last['load']:.1f}",
        flush=True,
    )


def report(results: list[dict[str, Any]], device: str, args: argparse.Namespace) -> None:
    """Write the file, print the line, fail if answers differ."""
    metrics = {f"speedup_{r['case']['task']}_{r['case']['shots']}shot": r["speedup"] for r in results}
    metrics["geomean"] = geomean([r["speedup"] for r in results])
    metrics["geomean_cme_hf"] = geomean([r["cme_hf_speedup"] for r in results])
    metrics["least_memory_ratio"] = min(r["memory"] for r in results)
    rounded = {name: round(value, 3) for name, value in metrics.items()}
    line = measurements.line("vs_lm_eval", rounded, cuda=device == "cuda")
    if args.out or not (args.quick or args.only):
        settings = {"model": Path(args.model).name, "dtype": args.dtype, "items": args.items}
        measurements.save(line, file=args.out, settings=settings, results=results)
    wrong = [r for r in results if r["labels_that_differ"] or r["max_difference"] > TOLERANCE]
    if wrong and args.dtype == "float32":
        print(f"answers differ in {len(wrong)} tasks", file=sys.stderr)
    print(json.dumps(line))
    sys.exit(1 if wrong and args.dtype == "float32" else 0)


def geomean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument("--data", type=Path, default=measurements.DATA, help="folder of DATASET/SPLIT.jsonl")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of every task")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="tried for lm-eval")
    parser.add_argument("--only", nargs="+", help="names of cases, e.g. hellaswag_0shot")
    parser.add_argument("--items", type=int, help="items of every task in place of its own number")
    parser.add_argument("--quick", action="store_true", help="two tasks, six items each")
    parser.add_argument("--out", type=Path, help="the file to write, also with --only or --quick")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
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
        Case(c.task, c.shots, args.items or c.items, c.subject)
        for c in (QUICK if args.quick else FULL)
        if not args.only or c.name in args.only
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counts = {case: prepare(case, args.data, folder) for case in cases}
        workers = {engine: Worker(engine, args, folder) for engine in ENGINES}
        results = []
        for case, items in counts.items():
            results.append(compare(case, items, workers, args))
            print_row(results[-1])
        for worker in workers.values():
            worker.close()
    report(results, workers["ours"].device, args)


if __name__ == "__main__":
    main()
