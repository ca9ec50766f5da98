"""What the engine and the number type do to a table: ties, flipped answers, and gaps of scores.

A base model and a TeamLoRA adapter on it answer the suites ``cme_ll`` (choices) and ``cme`` (texts) with both
engines in bfloat16 and float32. The reference of every case is transformers in float32 on the same items.

* ties: questions whose two best choices have equal log-likelihoods, so that the first one counts;
* flips: items whose choice differs from the reference's (for texts: whose score differs);
* gaps: of the average and of every domain, in points, against the reference;
* ``average_gap_likelihood`` and ``average_gap_generated``: what the average differs by between hf and vLLM in
  bfloat16, the larger of base and adapter.

``computed`` is the type that a run computed in: vLLM takes float16 for bfloat16 where that holds the model.

Every case is a ``cme-bench run`` in a process of its own; engines and types work side by side on a GPU.
Results are written after each case. With ``--work`` a command goes on where another was cut off, and cases
can be asked one at a time (``--engines vllm --dtypes bfloat16 --seconds 100``): the result is of all that the
folder holds.
``--head`` measures instead what a float32 output layer, and hidden states in float32, cost of a step of the
model at LLaMA-2-7B's shapes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measurements

FORMS = {"likelihood": "cme_ll", "generated": "cme"}
QUICK = {"likelihood": "cme_rte_ll,cme_arc_easy_ll", "generated": "cme_rte"}
DTYPES = ("float32", "bfloat16")
ENGINES = ("hf", "vllm")
TO_STOP = 30
"""Seconds that a run has to store what it knows once its time is up."""
TRAIN_STEPS = 100
SECONDS = "seconds.json"
"""File of the work folder: how long each finished case took."""


@dataclass(frozen=True)
class Case:
    """One run: ``model`` is base or teamlora."""

    model: str
    engine: str
    dtype: str
    form: str

    @property
    def reference(self) -> Case:
        return Case(self.model, "hf", "float32", self.form)

    @classmethod
    def named(cls, name: str) -> Case:
        """The case of a name as ``str`` gives it."""
        form, model, engine, dtype = name.split("-")
        return cls(model, engine, dtype, form)

    def __str__(self) -> str:
        return f"{self.form}-{self.model}-{self.engine}-{self.dtype}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smollm2's base, a few of our own items")
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument("--adapter", help=f"a TeamLoRA adapter's folder; default: train {TRAIN_STEPS} steps")
    parser.add_argument("--data", help="a folder of DATASET/SPLIT.jsonl; default: ../shared/data, or mini")
    parser.add_argument("--limit", type=int, default=200, help="items of each choice task (default 200)")
    parser.add_argument("--limit-generated", type=int, help="of each generated task; default: half of it")
    parser.add_argument("--engines", default="hf,vllm")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="float32, bfloat16, float16")
    parser.add_argument("--seconds", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--forms", default=",".join(FORMS), help="likelihood, generated, or both")
    parser.add_argument("--models", default="base,teamlora", help="base, teamlora, or both")
    parser.add_argument("--parallel", type=int, help="runs side by side; default: 4 on a GPU, 1 elsewhere")
    parser.add_argument("--work", type=Path, help="folder of the runs, kept; default: a temporary one")
    parser.add_argument(
        "--output", type=Path, help="the result's file; default: results/bench/NAME-HARDWARE.json"
    )
    parser.add_argument("--head", action="store_true", help="only what float32 logits and states cost")
    return parser.parse_args()


# ---- the runs


class Bench:
    """The cases of one command, and what is known of them so far."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        import torch

        self.args, self.work = args, work
        self.cuda = torch.cuda.is_available()
        self.engines = [e for e in args.engines.split(",") if e == "hf" or importlib.util.find_spec(e)]
        self.data = args.data or (
            "mini" if args.quick or not measurements.DATA.is_dir() else str(measurements.DATA)
        )
        self.adapter: str | None = args.adapter
        self.models = ["base"] if args.quick and not args.adapter else args.models.split(",")
        self.forms = args.forms.split(",")
        self.dtypes = args.dtypes.split(",")
        self.lock = threading.Lock()
        self.until = math.inf if args.seconds is None else time.monotonic() + args.seconds
        self.failed: dict[str, str] = {}
        self.seconds = self._earlier()

    def lanes(self) -> list[list[Case]]:
        """What runs side by side: an engine in one type, one case after the other."""
        return [
            [Case(model, engine, dtype, form) for form in self.forms for model in self.models]
            for dtype in self.dtypes
            for engine in self.engines
        ]

    def _earlier(self) -> dict[str, float]:
        """Seconds of the cases that earlier commands finished in the folder."""
        file = self.work / SECONDS
        return dict(json.loads(file.read_text())) if file.is_file() else {}

    def folder(self, case: Case) -> Path:
        return self.work / "runs" / str(case)

    def train(self) -> None:
        """A short training, where no adapter was named."""
        folder = self.work / "adapter"
        command = ["train", self.args.model, "--method", "teamlora", "--data", self.data, "--offline"]
        command += ["--max-steps", str(TRAIN_STEPS), "--batch-size", "32", "--out", str(folder)]
        if error := self._call("train", command):
            raise SystemExit(f"the training failed: {error}")
        self.adapter = str(folder)

    def run(self, case: Case) -> None:
        """One run, tried twice; then all that is known is written. One that is done is left alone."""
        if str(case) in self.seconds:
            return
        tasks = (QUICK if self.args.quick else FORMS)[case.form]
        limit = self.args.limit
        if case.form == "generated":
            limit = self.args.limit_generated or max(1, limit // 2)
        command = ["run", self.args.model, "--tasks", tasks, "--data", self.data, "--limit", str(limit)]
        command += [
            "--engine",
            case.engine,
            "--dtype",
            case.dtype,
            "--offline",
            "--out",
            str(self.folder(case)),
        ]
        if case.model == "teamlora":
            command += ["--adapter", str(self.adapter)]
        if case.engine == "vllm" and self.cuda:
            command += ["--set", "kv_gib=8"]  # others are at work on the same GPU
        error = self._call(str(case), command)
        if error and time.monotonic() < self.until:
            error = self._call(str(case), command)
        with self.lock:
            if error:
                self.failed[str(case)] = error
            self.save()
        print(f"{case}: {error or f'{self.seconds[str(case)]:.0f} s'}", flush=True)

    def _call(self, name: str, command: list[str]) -> str:
        """The last line of what went wrong; empty if nothing did."""
        paths = [str(measurements.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        log = self.work / f"{name}.log"
        started = time.perf_counter()
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "cme_bench", *command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
            code = self._wait(process)
        if code == 0:
            with self.lock:
                self.seconds[name] = time.perf_counter() - started
                (self.work / SECONDS).write_text(json.dumps(self.seconds))
            return ""
        lines = log.read_text().strip().splitlines()
        return "its time was up" if code is None else (lines[-1] if lines else f"exit code {code}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """The process's exit code; None if its time was up, and it was told to store what it knows."""
        try:
            return process.wait(None if math.isinf(self.until) else max(0.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None

    def save(self) -> dict[str, Any]:
        """The line so far, written with all cases to the result's file."""
        rounds = list(self.rounds())
        line = measurements.line("engine_noise", metrics(rounds), cuda=self.cuda)
        settings = {
            "model": Path(self.args.model).name,
            "adapter": Path(self.adapter).name if self.adapter else None,
            "limit": self.args.limit,
            "limit_generated": self.args.limit_generated or max(1, self.args.limit // 2),
            "failed": self.failed,
        }
        if self.args.output or not self.args.quick:
            measurements.save(line, file=self.args.output, settings=settings, rounds=rounds)
        return line

    def rounds(self) -> Iterator[dict[str, Any]]:
        """What is known of every case that is done, now or by an earlier command, and whose reference is."""
        done = [Case.named(name) for name in self.seconds if name.count("-") == 3]
        known = {case: Run(self.folder(case), case.form) for case in done}
        for case, run in known.items():
            if case.reference in known:
                yield {
                    "model": case.model,
                    "engine": case.engine,
                    "dtype": case.dtype,
                    "form": case.form,
                    "seconds": round(self.seconds[str(case)], 1),
                } | compared(run, known[case.reference])


# ---- what the runs say


class Run:
    """Scores and answers of a run folder."""

    def __init__(self, folder: Path, form: str) -> None:
        from cme_bench.runs.folder import current_records, read_both

        run, results = read_both(folder)
        self.form = form
        summary = results.forms[form]
        self.average = 100 * summary.average.value if summary.average and summary.average.value else math.nan
        self.domains = {
            name: math.nan if e.value is None else 100 * e.value for name, e in summary.domains.items()
        }
        self.records = {
            (task, record.id): (record.response, record.scores[result.primary])
            for task, result in results.tasks.items()
            for record in current_records(folder, task, run.tasks[task])
        }
        self.computed = run.engine.get("dtype")
        self.near = {t: r.quality.get("near_ties", 0.0) for t, r in results.tasks.items()}


def compared(run: Run, reference: Run) -> dict[str, Any]:
    """One case against its reference, on the items of both."""
    shared = run.records.keys() & reference.records.keys()
    pairs = [(run.records[key], reference.records[key]) for key in sorted(shared)]
    found: dict[str, Any] = {
        "computed": run.computed,
        "items": len(pairs),
        "average": run.average,
        "average_gap": run.average - reference.average,
        "domain_gaps": {d: run.domains[d] - reference.domains[d] for d in sorted(run.domains)},
    }
    if run.form == "generated":
        same = [one[0].text == other[0].text for one, other in pairs]
        flips = [one[1] != other[1] for one, other in pairs]
        return found | {
            "texts_differ_percent": _percent([not s for s in same]),
            "flips_percent": _percent(flips),
        }
    choices = [(one[0].logprobs or [], other[0].logprobs or []) for one, other in pairs]
    leads = [abs(_lead(one) - _lead(other)) for one, other in choices]
    gaps = [abs(a - b) for one, other in choices for a, b in zip(one, other, strict=True)]
    return found | {
        "ties_percent": _percent([_lead(one) == 0 for one, _ in choices]),
        "near_ties_percent": 100 * statistics.fmean(run.near.values()),
        "flips_percent": _percent([_best(one) != _best(other) for one, other in choices]),
        "logprob_difference": quantiles(gaps),
        "lead_difference": quantiles(leads),
    }


def _best(logprobs: list[float]) -> int:
    return max(range(len(logprobs)), key=logprobs.__getitem__)


def _lead(logprobs: list[float]) -> float:
    ordered = sorted(logprobs, reverse=True)
    return ordered[0] - ordered[1]


def _percent(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags) if flags else 0.0


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile and maximum."""
    import numpy as np

    points = {"median": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, point)), 5) for name, point in points.items()}


def metrics(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The figures that the line names, of bfloat16; what has not run yet is left out."""
    by_case = {(r["model"], r["engine"], r["dtype"], r["form"]): r for r in rounds}
    found = {}
    for engine in ENGINES:
        for kind in ("ties", "flips"):
            parts = [
                r
                for r in rounds
                if (r["engine"], r["dtype"], r["form"]) == (engine, "bfloat16", "likelihood")
            ]
            if items := sum(r["items"] for r in parts):
                share = sum(r["items"] * r[f"{kind}_percent"] for r in parts) / items
                found[f"{kind}_percent_{engine}"] = round(share, 3)
    for form in FORMS:
        gaps = [
            abs(r["average"] - by_case[other]["average"])
            for (model, engine, dtype, own), r in by_case.items()
            if (engine, dtype, own) == ("hf", "bfloat16", form)
            and (other := (model, "vllm", "bfloat16", form)) in by_case
        ]
        if gaps:
            found[f"average_gap_{form}"] = round(max(gaps), 3)
    return found


# ---- what float32 logits and hidden states cost

STEPS = (("decode_1", 1), ("decode_32", 32), ("decode_256", 256))
PROMPT, UNIT = 16, 128
"""Tokens of a prompt before the decoding, and of each row of a pack."""


def head_cost(quick: bool) -> dict[str, float]:
    """Percent of a step that float32 logits add, and float32 hidden states, decoding 1, 32 and 256 rows and
    scoring a full pack.

    The model has LLaMA-2-7B's shapes and random weights. Both kinds of states are computed as the engine
    does: steps of decoding in CUDA graphs, a pack of rows of 128 tokens in its own attention, both with
    float32 logits. The output layer is timed by itself, with all that reads its logits.
    """
    import torch
    from transformers import LlamaForCausalLM

    from cme_bench.engines.hf.forward import CausalForward
    from cme_bench.experiments.efficiency.shapes import preset

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = preset("tiny" if quick or device.type == "cpu" else "llama-2-7b")
    torch.manual_seed(0)
    with device:
        model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    seconds: dict[str, list[float]] = {}
    for wide in (False, True):
        forward = CausalForward(model, device, wide=wide)
        if wide and forward.narrow_because:
            raise SystemExit(f"hidden states are not float32: {forward.narrow_because}")
        for name, act in actions(forward, 8192 if device.type == "cuda" else 256):
            seconds.setdefault(name, []).append(timed(act, device))
    found = {}
    for name, (rounded, wider) in seconds.items():
        rows = dict(STEPS).get(name) or max(
            1, (1 << 28 if device.type == "cuda" else 1 << 16) // config.vocab_size
        )
        before, after = output_layer_seconds(model.lm_head.weight, rows, scored=name == "scoring")
        found[f"states_percent_{name}"] = round(100 * (wider / rounded - 1), 3)
        found[f"head_percent_{name}"] = round(100 * (after - before) / (rounded - after + before), 3)
        print(
            f"{name}: step {1e3 * rounded:.3f} ms, with float32 states {1e3 * wider:.3f} ms, "
            f"output layer {1e3 * before:.3f} -> {1e3 * after:.3f} ms"
        )
    return found


def actions(forward: Any, pack_tokens: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed of a model, one after the other: steps of decoding, and a pack."""
    import random

    import torch

    from cme_bench.engines.hf.pack_forward import PackForward
    from cme_bench.engines.hf.static_decoding import StaticSession, Stepper
    from cme_bench.engines.hf.tree_attention import KeptPrefix
    from cme_bench.engines.plan import PlanLimits, plan_packs

    vocabulary = forward.model.config.vocab_size
    for name, rows in STEPS:
        session = StaticSession(forward, KeptPrefix(), 0, Stepper(forward))
        ids, mask = (torch.ones(rows, PROMPT, dtype=torch.int64, device=forward.device) for _ in range(2))
        with torch.inference_mode():
            session.feed(ids, mask)

        @torch.inference_mode()
        def step(session: Any = session, ids: Any = ids[:, :1], mask: Any = mask) -> None:
            session.feed(ids, mask)

        yield name, step
    drawn = random.Random(0)
    units = [[drawn.randrange(vocabulary) for _ in range(UNIT + 1)] for _ in range(pack_tokens // UNIT)]
    limits = PlanLimits(pack_tokens, pack_tokens, 2 * UNIT, 1, 0)
    [pack] = plan_packs([((*unit[:1],), tuple(unit[1:])) for unit in units], limits)
    run = PackForward(forward)
    yield "scoring", lambda: run(pack)


def output_layer_seconds(weight: Any, rows: int, *, scored: bool) -> tuple[float, float]:
    """Seconds of the output layer, with rounded and with float32 logits of rounded states, all that reads
    them included."""
    import torch

    from cme_bench.engines.hf.generate import _argmax_or_nan
    from cme_bench.engines.hf.loglikelihood import read_logits
    from cme_bench.util.exact_logits import linear

    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    index, target = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64)

    def read(logits: torch.Tensor) -> None:
        if scored:
            read_logits(logits, index, target)
        else:
            _argmax_or_nan(logits).tolist()

    with torch.inference_mode():
        before = timed(lambda: read(torch.nn.functional.linear(x, weight)), weight.device)
        return before, timed(lambda: read(linear(x, weight)), weight.device)


def timed(act: Callable[[], Any], device: Any, rounds: int = 7, times: int = 5) -> float:
    """Median seconds of ``act``, of rounds of several that a device is given one after the other."""
    import torch

    for _ in range(4):  # kernels are built and chosen, a graph is captured
        act()
    seconds = []
    for _ in range(rounds):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            begin.record()
            for _ in range(times):
                act()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000 / times)
        else:
            started = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - started)
    return float(statistics.median(seconds))


def main() -> None:
    args = arguments()
    if args.quick:
        args.limit = min(args.limit, 6)
    if args.head:
        import torch

        line = measurements.line("engine_noise_head", head_cost(args.quick), cuda=torch.cuda.is_available())
        if args.output or not args.quick:
            measurements.save(line, file=args.output)
        print(json.dumps(line))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        (work / "runs").mkdir(parents=True, exist_ok=True)
        bench = Bench(args, work)
        if "teamlora" in bench.models and bench.adapter is None:
            bench.train()
        parallel = args.parallel or (4 if bench.cuda else 1)

        def work_off(lane: list[Case]) -> None:
            for case in lane:
                if time.monotonic() < bench.until:
                    bench.run(case)

        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(work_off, bench.lanes()))
        line = bench.save()
        for name, error in bench.failed.items():
            print(f"failed: {name}: {error}")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
