"""Do fast trainings learn what slow ones do? Every method and seed, on the same batches of real rows.

* padded: transformers' Trainer, a row for each example, nothing compiled or replayed.
* packed: the default of a GPU: rows of a fixed number of tokens, and steps that are replayed there.
* swept: all adapters on one base (``cme-bench sweep``), packed too.

``loss``: on held-out items, in nats, means over seeds. ``spread``: the standard deviation between the seeds
of the padded trainings. ``packed`` and ``swept``: the largest difference of any seed's loss from its padded
training's. ``curve_``: the same of the training losses, root mean square over the steps; there seeds differ
by their batches too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measurements
import torch
from sweep import ROWS

from cme_bench.tasks.open_source import open_source
from cme_bench.training.choose import MANNER
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import ItemSet, load_sets
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import train
from cme_bench.training.validation import validations

SLOW, FAST = "padded", ("packed", "swept")
HOUR: dict[str, Any] = {
    "batch_size": 48,
    "max_length": 256,
    "max_steps": 60,
    "pack_tokens": None,
    "holdout": 16,
}
"""Scale ``hour`` of experiments/smollm2.yaml, a fifth of its steps."""
SMALL: dict[str, Any] = {"batch_size": 4, "max_length": 64, "max_steps": 8, "pack_tokens": 128, "holdout": 1}


def trained(way: str, asked: Sequence[TrainOptions], sets: Sequence[ItemSet]) -> list[Path]:
    """The adapters of one way."""
    if way == SLOW or not torch.cuda.is_available():
        os.environ[MANNER] = "trainer" if way == SLOW else "packs+varlen"
    try:
        if way == "swept":
            return sweep(asked, sets=lambda: sets)
        return [train(one, sets=sets) for one in asked]
    finally:
        os.environ.pop(MANNER, None)


def rms(one: Path, other: Path) -> float:
    """The difference of two trainings' losses."""
    first, second = (read_curve(folder / "loss.csv") for folder in (one, other))
    return math.sqrt(statistics.fmean((a.loss - b.loss) ** 2 for a, b in zip(first, second, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(measurements.DATA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every adapter; default 60 on a GPU, 8 on a CPU")
    parser.add_argument("--quick", action="store_true", help="one method, two steps, our own rows, no file")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    size = dict(HOUR if cuda else SMALL)
    if args.steps or args.quick:
        size["max_steps"] = args.steps or 2
    rows = dict(list(ROWS.items())[-1:]) if args.quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        common = TrainOptions(
            model="smollm2",
            method="lora",
            out=Path(),
            data="mini" if args.quick else args.data,
            weighting="temperature",
            warmup=0.05,
            batches="even",
            learning_rate=1e-3,
            dropout=0.0,
            dtype="bfloat16" if cuda else "float32",
            log_every=1,
            offline=True,
            **size,
        )
        sets = load_sets(common, open_source(str(common.data), offline=True), note=lambda _: None)
        losses: dict[str, dict[str, list[float]]] = {}
        folders: dict[str, dict[str, list[Path]]] = {}
        for way in (SLOW, *FAST):
            asked = [
                replace(
                    common,
                    out=Path(folder) / way / f"{name}-{seed}",
                    seed=seed,
                    pack_tokens=0 if way == SLOW else common.pack_tokens,
                    **chosen,
                )
                for name, chosen in rows.items()
                for seed in range(args.seeds)
            ]
            made = trained(way, asked, sets)
            held = [found.loss for found in validations(zip(made, asked, strict=True), sets)]
            for i, name in enumerate(rows):
                own = slice(i * args.seeds, (i + 1) * args.seeds)
                losses.setdefault(name, {})[way] = held[own]
                folders.setdefault(name, {})[way] = made[own]
            print(f"{way}: done", flush=True)
        metrics = {}
        for name, found in losses.items():
            slow, made_slow = found[SLOW], folders[name][SLOW]
            pairs = [(a, b) for i, a in enumerate(made_slow) for b in made_slow[i + 1 :]]
            metrics[name] = {
                "loss": statistics.fmean(slow),
                "spread": statistics.stdev(slow) if len(slow) > 1 else 0.0,
                **{way: max(abs(a - b) for a, b in zip(found[way], slow, strict=True)) for way in FAST},
                "curve_seeds": statistics.fmean([rms(*pair) for pair in pairs]) if pairs else 0.0,
                **{
                    f"curve_{way}": max(rms(a, b) for a, b in zip(folders[name][way], made_slow, strict=True))
                    for way in FAST
                },
            }
            print(name, {key: float(f"{value:.3g}") for key, value in metrics[name].items()}, flush=True)
    line = measurements.line("loss_curves", metrics, cuda=cuda)
    if not args.quick:
        settings = size | {"seeds": args.seeds, "dtype": common.dtype}
        measurements.save(line, settings=settings, losses=losses)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
