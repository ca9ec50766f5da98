"""Every fault of docs/reliability.md, injected into real runs, and what was lost.

Each experiment runs ``cme-bench run`` on a toy model, breaks something at a random moment, gives the same
command again where the run could not go on by itself, and compares with a run that nothing happened to:

* ``lost``: items without a record at the end; ``duplicated``: records stored twice; ``wrong``: scores that
  differ.
* ``recovered``: seconds from the fault to the next stored record, the restart of the program included (its
  imports are not: runs are forks of one process).

``--table docs/reliability.md`` writes the table of stored results into the page and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measurements
import toy
from forked import Process, Trouble, in_mounts, mount, preload

from cme_bench.runs.folder import read_results, read_run
from cme_bench.runs.records import Results
from cme_bench.runs.store import read_records, samples_file


@dataclass
class Bench:
    """The command under test, and what it gives when nothing happens to it."""

    scratch: Path
    items: int
    draw: random.Random

    @property
    def model(self) -> Path:
        return self.scratch / "model"

    @property
    def wide_model(self) -> Path:
        """For vLLM, whose heads have a least size."""
        return self.scratch / "wide-model"

    @property
    def mark(self) -> Path:
        """Where a run that breaks itself writes when it did."""
        return self.scratch / "mark"

    def command(self, out: Path, *more: str) -> list[str]:
        tasks = ["--tasks", ",".join(toy.TASKS), "--include", str(self.scratch / "tasks")]
        return ["run", str(self.model), *tasks, "--data", "mini", "--offline", "--out", str(out), *more]

    def start(self, out: Path, trouble: Trouble | None = None) -> Process:
        return Process(self.command(out), self.scratch / "stderr", trouble)

    def moment(self) -> int:
        """After how many stored records to strike."""
        return self.draw.randint(1, self.items * 3 // 4)


def stored(out: Path) -> int:
    """Complete lines of all samples files."""
    return sum(file.read_bytes().count(b"\n") for file in (out / "samples").glob("*.jsonl"))


def until(process: Process, out: Path, count: int) -> bool:
    """Wait for ``count`` stored records; False if the process ended before."""
    while stored(out) < count:
        if not process.running():
            return stored(out) >= count
        time.sleep(0.002)
    return True


def finish(bench: Bench, out: Path, since: float) -> float:
    """The same command until it is done; seconds from ``since`` to the first record it stores."""
    before = stored(out)
    process = bench.start(out)
    until(process, out, before + 1)
    seconds = time.monotonic() - since
    expect(process, 0)
    return seconds


def expect(process: Process, code: int, message: str = "") -> None:
    found = process.wait()
    if found != code or not re.search(message, process.message()):
        raise SystemExit(f"exit code {found} in place of {code}: {process.log.read_text()[-3000:]}")


# What can happen to a run: each takes the bench and the folder, breaks the run, has it finished, and gives
# the seconds to recovery.


def signalled(number: signal.Signals, code: int) -> Callable[[Bench, Path], float]:
    def inject(bench: Bench, out: Path) -> float:
        process = bench.start(out)
        if not until(process, out, bench.moment()):
            raise SystemExit(f"ended too early: {process.log.read_text()}")
        os.kill(process.pid, number)
        struck = time.monotonic()
        expect(process, code)
        return finish(bench, out, struck)

    return inject


def full_disk(bench: Bench, out: Path) -> float:
    return in_mounts(lambda: _full_disk(bench, out))


def _full_disk(bench: Bench, out: Path) -> float:
    """A tmpfs with room for a third to two thirds of the run, enlarged after the failure."""
    inside = bench.scratch / "disk"
    inside.mkdir(exist_ok=True)
    whole = sum(f.stat().st_size for f in (bench.scratch / "reference-hf").rglob("*") if f.is_file())
    size = bench.draw.randint(whole // 3072, whole // 1536)
    mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(inside))
    process = bench.start(inside / "run")
    expect(process, 1, "No space left on device.*run the same command again")
    struck = time.monotonic()
    mount("-o", "remount,size=64m", str(inside))
    seconds = finish(bench, inside / "run", struck)
    shutil.copytree(inside / "run", out)
    return seconds


def read_only(bench: Bench, out: Path) -> float:
    return in_mounts(lambda: _read_only(bench, out))


def _read_only(bench: Bench, out: Path) -> float:
    """The folder of an interrupted run becomes read-only, and writable again."""
    process = bench.start(out)
    until(process, out, bench.moment())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    mount("--bind", str(out), str(out))
    mount("-o", "remount,ro,bind", str(out))
    struck = time.monotonic()
    expect(bench.start(out), 2, "cannot be written .Read-only file system")
    mount("-o", "remount,rw,bind", str(out))
    return finish(bench, out, struck)


def recovers_alone(prepare: Callable[[Bench], Trouble]) -> Callable[[Bench, Path], float]:
    """A fault that the run itself gets over."""

    def inject(bench: Bench, out: Path) -> float:
        bench.mark.unlink(missing_ok=True)
        process = bench.start(out, prepare(bench))
        while not bench.mark.exists() or not bench.mark.stat().st_size:
            if not process.running():
                raise SystemExit(f"nothing happened: {process.log.read_text()}")
            time.sleep(0.002)
        until(process, out, stored(out) + 1)
        seconds = time.monotonic() - float(bench.mark.read_text())
        expect(process, 0)
        return seconds

    return inject


def stops(prepare: Callable[[Bench], Trouble], message: str) -> Callable[[Bench, Path], float]:
    """A fault that ends the run with one line; the same command goes on when it is over."""

    def inject(bench: Bench, out: Path) -> float:
        bench.mark.unlink(missing_ok=True)
        expect(bench.start(out, prepare(bench)), 1, message)
        return finish(bench, out, float(bench.mark.read_text()))

    return inject


def on_model(act: Callable[[Any], None]) -> None:
    """Have ``act`` called with the model when it is loaded."""
    from cme_bench.models import loaded

    load = vars(loaded)["load_model"]

    def acted_on(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        act(model)
        return model

    vars(loaded)["load_model"] = acted_on


def note(mark: Path) -> None:
    if not mark.exists():
        mark.write_text(repr(time.monotonic()))


def on_large_batches(bench: Bench, act: Callable[[], None]) -> Trouble:
    """``act`` before every forward of more than 200 tokens, from some forward on."""
    first = bench.draw.randint(1, 8)

    def trouble() -> None:
        count = 0

        def before(module: Any, arguments: Any, given: dict[str, Any]) -> None:
            nonlocal count
            count += 1
            if count >= first and given["input_ids"].numel() > 200:
                note(bench.mark)
                act()

        on_model(lambda model: model.register_forward_pre_hook(before, with_kwargs=True))

    return trouble


def gpu_memory(bench: Bench) -> Trouble:
    """What a GPU's allocator raises."""

    def refuse() -> None:
        import torch

        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return on_large_batches(bench, refuse)


def cpu_memory(bench: Bench) -> Trouble:
    """The process may not grow, and asks for 4 GiB."""

    def ask() -> None:
        import torch

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        torch.empty(1 << 30)

    return on_large_batches(bench, ask)


def nan_logits(bench: Bench) -> Trouble:
    """One forward computes NaN for one place: a large one, since small ones only try the model out."""
    first = bench.draw.randint(1, 8)

    def trouble() -> None:
        count, done = 0, False

        def after(module: Any, arguments: Any, given: dict[str, Any], output: Any) -> None:
            nonlocal count, done
            count += 1
            answers = output.logits.shape[1] and given["input_ids"].numel() > 200
            if answers and count >= first and not done:
                done = True
                note(bench.mark)
                output.logits[0, -1] = float("nan")

        on_model(lambda model: model.register_forward_hook(after, with_kwargs=True))

    return trouble


def clock(bench: Bench) -> Trouble:
    """The wall clock falls back by an hour every time it is read."""

    def trouble() -> None:
        from datetime import UTC, datetime, timedelta

        from cme_bench.runs import manifest

        now = time.time()
        reads = 0

        def earlier() -> float:
            nonlocal reads
            reads += 1
            return now - 3600.0 * reads

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.fromtimestamp(now, UTC) - timedelta(seconds=now - earlier())

        time.time = earlier
        vars(manifest)["datetime"] = Clock
        on_model(lambda model: note(bench.mark))

    return trouble


def torn_file(bench: Bench, out: Path) -> float:
    """After kill -9, a samples file is cut at some byte of its last records, as by a loss of power."""
    killed_at(bench, out)
    file = bench.draw.choice([f for f in sorted((out / "samples").glob("*.jsonl")) if f.stat().st_size])
    content = file.read_bytes()
    file.write_bytes(content[: -bench.draw.randint(1, min(2000, len(content)))])
    return finish(bench, out, time.monotonic())


def flipped_line(bench: Bench, out: Path) -> float:
    """A byte of a record turns into another: the run names file and line; without the line it goes on."""
    killed_at(bench, out)
    file = bench.draw.choice(
        [f for f in (out / "samples").glob("*.jsonl") if f.read_bytes().count(b"\n") > 1]
    )
    content = bytearray(file.read_bytes())
    content[bench.draw.randrange(content.rindex(b"\n", 0, -1))] = 0xFF
    file.write_bytes(content)
    struck = time.monotonic()
    process = bench.start(out)
    expect(process, 2, r"\.jsonl:\d+: broken record")
    line = int(re.findall(r"\.jsonl:(\d+): ", process.message())[0])
    lines = content.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: line - 1] + lines[line:]))
    return finish(bench, out, struck)


def broken_results(bench: Bench, out: Path) -> float:
    """results.json is cut short, run.json holds rubbish: the run names it; without it, it goes on."""
    killed_at(bench, out)
    (out / "results.json").write_bytes(b'{"results": {"toy')
    (out / "run.json").write_bytes(bytes(bench.draw.randrange(256) for _ in range(200)))
    struck = time.monotonic()
    expect(bench.start(out), 2, r"run\.json: broken JSON")
    (out / "run.json").unlink()
    return finish(bench, out, struck)


def broken_weights(bench: Bench, out: Path) -> float:
    """Another model file under the same path, cut short: nothing of it is mixed into the run."""
    killed_at(bench, out)
    file = bench.model / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: bench.draw.randrange(len(content))])
    struck = time.monotonic()
    process = bench.start(out)
    if process.wait() not in (1, 2) or not re.search(
        "holds a run with model|cannot be loaded", process.message()
    ):
        raise SystemExit(process.log.read_text())
    file.write_bytes(content)
    return finish(bench, out, struck)


def killed_at(bench: Bench, out: Path) -> None:
    process = bench.start(out)
    until(process, out, bench.moment())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


class Apart:
    """The command as a program of its own: engines that have processes cannot be forked from ours."""

    def __init__(self, bench: Bench, out: Path, engine: str) -> None:
        self.out, self.log = out, bench.scratch / "stderr"
        self.command = [sys.executable, "-m", "cme_bench", *bench.command(out, "--engine", engine)]
        if engine == "vllm":
            self.command[self.command.index(str(bench.model))] = str(bench.wide_model)
            self.command += ["--set", "in_process=0"]
        else:
            self.command += ["--workers", "1"]

    def start(self) -> None:
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=stream)

    def until(self, count: int) -> None:
        while stored(self.out) < count and self.process.poll() is None:
            time.sleep(0.01)

    def kill(self, name: str) -> None:
        """The one process below it whose command says ``name``, with SIGKILL."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        [found] = [child for child in children if name in " ".join(child.cmdline())]
        found.kill()

    def expect(self, code: int, message: str) -> None:
        if self.process.wait() != code or message not in self.log.read_text():
            raise SystemExit(self.log.read_text())


def engine_killed(bench: Bench, out: Path) -> float:
    """kill -9 of vLLM's engine process, beside the driver."""
    run = Apart(bench, out, "vllm")
    run.start()
    run.until(bench.moment())
    run.kill("EngineCore")
    struck = time.monotonic()
    run.expect(1, "the same command goes on from there")
    before = stored(out)
    run.start()
    run.until(before + 1)
    seconds = time.monotonic() - struck
    run.expect(0, "")
    return seconds


def worker_killed(bench: Bench, out: Path) -> float:
    """kill -9 of the only worker of engine ray: another is started in its place."""
    run = Apart(bench, out, "ray")
    run.start()
    run.until(bench.moment())
    run.kill("ray::Worker")
    struck, before = time.monotonic(), stored(out)
    run.until(before + 1)
    seconds = time.monotonic() - struck
    run.expect(0, "died")
    return seconds


@dataclass(frozen=True)
class Fault:
    """``slow``: minutes, so it is injected twice and not in the quick form."""

    name: str
    inject: Callable[[Bench, Path], float]
    outcome: str
    slow: bool = False


FAULTS = (
    Fault("kill -9 of the driver", signalled(signal.SIGKILL, -9), "the same command goes on"),
    Fault("SIGTERM", signalled(signal.SIGTERM, 3), "exit 3 after the window, the same command goes on"),
    Fault("SIGINT", signalled(signal.SIGINT, 3), "exit 3 after the window, the same command goes on"),
    Fault("kill -9 of vLLM's engine process", engine_killed, "one line, the same command goes on", slow=True),
    Fault("kill -9 of a ray worker", worker_killed, "its questions are asked again", slow=True),
    Fault("full disk", full_disk, "one line that says what to do, the same command goes on"),
    Fault("read-only folder", read_only, "one line before anything is computed"),
    Fault("out of memory on a GPU", recovers_alone(gpu_memory), "the batch is halved, the run goes on"),
    Fault("out of memory on a CPU", recovers_alone(cpu_memory), "the batch is halved, the run goes on"),
    Fault("NaN logits", stops(nan_logits, r"task toy_\w+, item \d+.*NaN"), "one line with task and item"),
    Fault("a wall clock that goes backwards", recovers_alone(clock), "nothing happens"),
    Fault("samples file cut at any byte", torn_file, "the torn record is computed again"),
    Fault("a flipped byte in a samples file", flipped_line, "one line with file and line"),
    Fault("broken run.json and results.json", broken_results, "one line with the file"),
    Fault("model weights cut short", broken_weights, "one line, the run stays that of the old weights"),
)


def outcome(bench: Bench, out: Path, reference: Results) -> dict[str, int]:
    """What is missing, there twice, or scored otherwise at the end; also whether times are sane."""
    lost = duplicated = 0
    for task in toy.TASKS:
        ids = Counter(record.id for record in read_records(samples_file(out, task)))
        lost += sum(number not in ids for number in range(bench.items // 2))
        duplicated += sum(count - 1 for count in ids.values())
    wrong = sum(
        result.metrics != reference.tasks[task].metrics for task, result in read_results(out).tasks.items()
    )
    if any(session.seconds < 0 for session in read_run(out).sessions):
        raise SystemExit("a negative duration")
    return {"lost": lost, "duplicated": duplicated, "wrong": wrong}


def measure(bench: Bench, faults: Iterable[Fault], times: int) -> Iterator[dict[str, Any]]:
    references = {}
    for fault in faults:
        engine = "vllm" if fault.inject is engine_killed else "hf"
        if engine not in references:
            references[engine] = _reference(bench, engine)
        counts: Counter[str] = Counter()
        seconds: list[float] = []
        try:
            for number in range(2 if fault.slow else times):
                out = bench.scratch / f"{fault.name}-{number}"
                seconds.append(fault.inject(bench, out))
                counts.update(outcome(bench, out, references[engine]))
                shutil.rmtree(out)
        except OSError as err:
            print(f"{fault.name}: not injected ({err})", file=sys.stderr)
            continue
        yield {
            "fault": fault.name,
            "outcome": fault.outcome,
            "injected": len(seconds),
            **{name: counts[name] for name in ("lost", "duplicated", "wrong")},
            "recovered_s": round(statistics.median(seconds), 2),
            "recovered_most_s": round(max(seconds), 2),
        }


def _reference(bench: Bench, engine: str) -> Results:
    out = bench.scratch / f"reference-{engine}"
    if engine == "hf":
        expect(bench.start(out), 0)
    else:
        command = bench.command(out, "--engine", "vllm")
        command[command.index(str(bench.model))] = str(bench.wide_model)
        subprocess.run([sys.executable, "-m", "cme_bench", *command], check=True, stdout=subprocess.DEVNULL)
    return read_results(out)


def table(stored_results: dict[str, Any]) -> str:
    """The Markdown table of stored results."""
    lines = [
        "| fault | injected | lost | duplicated | wrong | recovered in, s (most) | what happens |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in stored_results["metrics"]:
        counts = " | ".join(str(row[name]) for name in ("injected", "lost", "duplicated", "wrong"))
        times = f"{row['recovered_s']:.2f} ({row['recovered_most_s']:.2f})"
        lines.append(f"| {row['fault']} | {counts} | {times} | {row['outcome']} |")
    settings = stored_results["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"{measurements.source(stored_results)}: runs of {settings['items']} items by a toy model, seed "
            f"{settings['seed']}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only faults whose name contains this")
    parser.add_argument("--quick", action="store_true", help="each once, not those that take minutes")
    parser.add_argument("--table", type=Path, help="write the stored results into this page")
    args = parser.parse_args()
    results = measurements.RESULTS / "faults.json"
    if args.table:
        measurements.show(results, args.table, table)
        return
    chosen = [
        fault for fault in FAULTS if (args.only or "") in fault.name and not (args.quick and fault.slow)
    ]
    with tempfile.TemporaryDirectory(prefix="cme-bench-faults-") as scratch:
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CME_BENCH_CACHE": f"{scratch}/cache"}
        bench = Bench(Path(scratch), 200 if args.quick else args.items, random.Random(args.seed))
        preload()
        toy.make_tasks(bench.scratch / "tasks", bench.items)
        for folder, hidden in ((bench.model, 16), (bench.wide_model, 64)):
            made = multiprocessing.get_context("fork").Process(target=toy.make_model, args=(folder, hidden))
            made.start()  # this process must not compute: it is forked
            made.join()

        rows = []
        for row in measure(bench, chosen, 1 if args.quick else args.times):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if not args.quick and not args.only:
        settings = {"items": args.items, "seed": args.seed}
        measurements.save(measurements.line("faults", rows), file=results, settings=settings)
    if any(row[name] for row in rows for name in ("lost", "duplicated", "wrong")):
        raise SystemExit("something was lost, duplicated or wrong")


if __name__ == "__main__":
    main()
