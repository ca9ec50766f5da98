"""How near a whole run comes to the time of its products alone: HellaSwag at LLaMA-2-7B's shape.

Random weights with SmolLM2's tokenizer, saved and loaded as any checkpoint, then ``cme-bench run`` by
engine hf with its defaults, on every row. ``share``: the time that the products would take, without
attention, at the speed of a large product here, over the time of serving (``run --engine-stats``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import measurements
import torch
from hf_adapters import write_base

from cme_bench.experiments.efficiency.shapes import preset
from cme_bench.reports.engine_stats import products_per_second, stats_lines
from cme_bench.runs.folder import read_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=measurements.DATA, help="folder of DATASET/SPLIT.jsonl")
    parser.add_argument("--task", default="cme_hellaswag_ll")
    parser.add_argument("--quick", action="store_true", help="tiny shape, 20 rows, no file")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    dtype = "bfloat16" if cuda else "float32"
    shape = "tiny" if args.quick or not cuda else "llama-2-7b"
    with tempfile.TemporaryDirectory() as folder:
        base, out = Path(folder) / "base", Path(folder) / "out"
        write_base(base, preset(shape), "cuda" if cuda else "cpu", getattr(torch, dtype), "smollm2")
        if cuda:
            torch.cuda.empty_cache()
        asked = ["--tasks", args.task, "--data", str(args.data), "--dtype", dtype, "--engine", "hf"]
        asked += ["--limit", "20"] if args.quick else []
        command = [sys.executable, "-m", "cme_bench", "run", str(base), *asked, "--out", str(out)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        run = read_run(out)
        print(*stats_lines(out), sep="\n", file=sys.stderr)
    counted = run.stats.extra
    least = counted["flops"] / products_per_second(dtype)
    metrics = {
        "share": round(least / counted["serving_seconds"], 4),
        "products_seconds": round(least, 2),
        "serving_seconds": round(counted["serving_seconds"], 2),
        "waited_share": round(1 - counted["device_seconds"] / counted["serving_seconds"], 4),
    }
    line = measurements.line("flop_floor", metrics, cuda=cuda)
    if not args.quick:
        items = sum(task.n for task in run.tasks.values())
        settings = {"shape": shape, "task": args.task, "items": items, "dtype": dtype}
        tokens = {"computed": run.stats.tokens_computed, "row_by_row": run.stats.tokens_rowwise}
        measurements.save(line, settings=settings, tokens=tokens)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
