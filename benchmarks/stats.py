"""How long the statistics of a full suite take: 22 tasks x 6 models x 10,000 items x 10,000 resamples.

For every task, sign flips and a paired bootstrap of all models; for every domain and the average, the
permutation p values of all 15 pairs, Holm-adjusted, and each model's share of first places. Three mixes of
metrics: ``suite_s``, as in CME (18 tasks of 0/1 scores, whose resamples are counts of distinct rows; 4 of
ROUGE and F1, whose resamples are table look-ups); ``binary_s``, all 0/1; ``continuous_s``, all ROUGE or F1.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import measurements
import numpy as np

from cme_bench.stats.multiple import holm
from cme_bench.stats.resampling import bootstrap, permutation_pvalues, share_best, sign_flips
from cme_bench.util import provenance

TASKS, DOMAINS = 22, 11


def scores(rng: np.random.Generator, items: int, models: int, *, binary: bool) -> np.ndarray:
    """[items, models]; items differ in difficulty, models a little in skill."""
    x = 0.7 * rng.random((items, 1)) + 0.3 * rng.random((items, models)) + np.linspace(0, 0.02, models)
    return (x > 0.55).astype(float) if binary else x


def all_tests(tasks: list[np.ndarray], resamples: int) -> float:
    """Seconds for the statistics of all tasks, domains and the average."""
    started = time.perf_counter()
    parts = [
        (
            x.mean(axis=0),
            sign_flips(x, resamples=resamples, seed=i),
            bootstrap(x, resamples=resamples, seed=i),
        )
        for i, x in enumerate(tasks)
    ]
    size = len(parts) // DOMAINS
    for group in [*(parts[i : i + size] for i in range(0, len(parts), size)), parts]:
        means, flips, draws = (sum(values) / len(group) for values in zip(*group, strict=True))
        p = permutation_pvalues(means, flips)
        holm(p[np.triu_indices(len(p), k=1)])
        share_best(draws)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1,000 items and resamples, one round")
    args = parser.parse_args()
    if args.quick:
        args.items, args.resamples, args.rounds = 1000, 1000, 1
    rng = np.random.default_rng(0)
    binary = [scores(rng, args.items, args.models, binary=True) for _ in range(TASKS)]
    continuous = [scores(rng, args.items, args.models, binary=False) for _ in range(TASKS)]
    mixes = {
        "suite_s": binary[:18] + continuous[:4],
        "binary_s": binary,
        "continuous_s": continuous,
    }
    rounds = [
        {name: all_tests(tasks, args.resamples) for name, tasks in mixes.items()} for _ in range(args.rounds)
    ]
    metrics = {name: round(float(np.median([r[name] for r in rounds])), 3) for name in mixes}
    line = measurements.line("stats", metrics, hardware=provenance.processor())
    settings = {
        "tasks": TASKS,
        "models": args.models,
        "items": args.items,
        "resamples": args.resamples,
        "cores": os.cpu_count(),
    }
    if not args.quick:
        measurements.save(line, settings=settings, rounds=rounds)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
