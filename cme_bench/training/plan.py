"""The whole training, decided before the model is loaded: examples, tokens, batches and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.suite import load_suite
from cme_bench.training.batches import plan_batches
from cme_bench.training.mixture import (
    Draw,
    TrainingSet,
    allot,
    draw_epoch,
    load_training_set,
    mixture_weights,
)
from cme_bench.training.options import TrainOptions
from cme_bench.training.templates import Prompted, load_templates, select_datasets
from cme_bench.training.tokens import TokenTable, TrainingEncoder


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """``batches[i]``: indices into ``examples``, for all processes; ``mixture``: what to record of it."""

    examples: TokenTable
    batches: list[list[int]]
    steps: int
    mixture: dict[str, Any]


def make_plan(
    options: TrainOptions,
    source: DataSource,
    encoder: TrainingEncoder,
    *,
    processes: int,
    note: Callable[[str], None],
    sets: Sequence[TrainingSet] | None = None,
) -> TrainingPlan:
    """Load the rows, draw the mixture, tokenise what is drawn and group it by length.

    ``sets``: the rows, where :func:`load_sets` has loaded them already for the same options. Raises
    UsageError for unknown datasets, missing files and rows that do not fit their template.
    """
    if sets is None:
        sets = load_sets(options, source, note=note)
    sizes = [len(s) for s in sets]
    weights = mixture_weights(sizes, options.weighting, options.temperature)
    per_epoch = options.samples or sum(sizes)
    per_step = options.batch_size * options.accumulate * processes
    total = per_epoch * options.epochs if options.max_steps is None else options.max_steps * per_step
    epochs = _draw(sets, allot(per_epoch, weights), total, seed=options.seed)
    draws = [draw for epoch in epochs for draw in epoch]
    note(f"tokenising {total:,} examples of {len(sets)} datasets")
    examples = TokenTable(encoder.encode(_prompts(sets, draws)))
    batches: list[list[int]] = []
    start = 0
    for number, epoch in enumerate(epochs):
        lengths = examples.lengths[start : start + len(epoch)]
        planned = plan_batches(
            lengths,
            batch_size=options.batch_size,
            batches_per_step=options.accumulate * processes,
            seed=options.seed + number,
        )
        batches += [[start + i for i in batch] for batch in planned]
        start += len(epoch)
    steps = len(batches) // (options.accumulate * processes)
    if options.max_steps is not None and steps > options.max_steps:  # epochs that do not fill their last step
        steps = options.max_steps
        batches = batches[: steps * options.accumulate * processes]
    mixture = {
        "source": source.name,
        "data": options.data,
        "weighting": options.weighting,
        "temperature": options.temperature if options.weighting == "temperature" else None,
        "items_per_epoch": per_epoch,
        "examples": total,
        "truncated_sources": examples.cut_sources,
        "truncated_targets": examples.cut_targets,
        "datasets": _describe(sets, weights, draws, examples),
    }
    return TrainingPlan(examples, batches, steps, mixture)


def load_sets(options: TrainOptions, source: DataSource, *, note: Callable[[str], None]) -> list[TrainingSet]:
    """Load the rows of every dataset that the options name, capped and with their held-out items apart."""
    chosen = select_datasets(load_templates(load_suite()), options.datasets)
    note(f"reading {len(chosen)} datasets")
    return [load_training_set(t, source, cap=options.cap, holdout=options.holdout) for t in chosen]


def _draw(sets: Sequence[TrainingSet], counts: Sequence[int], total: int, *, seed: int) -> list[list[Draw]]:
    """Draw epochs until there are ``total``; the last epoch may be cut short."""
    names, sizes = [s.name for s in sets], [len(s) for s in sets]
    epochs: list[list[Draw]] = []
    while (missing := total - sum(map(len, epochs))) > 0:
        epochs.append(draw_epoch(names, sizes, counts, seed=seed, epoch=len(epochs))[:missing])
    return epochs


def _prompts(sets: Sequence[TrainingSet], draws: Sequence[Draw]) -> Iterator[Prompted]:
    return (sets[draw.dataset].prompted(draw.index, draw.turn) for draw in draws)


def _describe(
    sets: Sequence[TrainingSet], weights: Sequence[float], draws: Sequence[Draw], examples: TokenTable
) -> list[dict[str, Any]]:
    owner = np.array([draw.dataset for draw in draws])
    described = []
    for index, (loaded, weight) in enumerate(zip(sets, weights, strict=True)):
        mine = owner == index
        described.append(
            {
                "dataset": loaded.name,
                "domain": loaded.template.domain,
                "items": len(loaded),
                "weight": weight,
                "examples": int(mine.sum()),
                "tokens": int(examples.lengths[mine].sum()),
                "target_tokens": int(examples.target_lengths[mine].sum()),
                "paraphrases": len(loaded.template.paraphrases),
                "note": loaded.template.note,
                "parts": [part.describe() for part in loaded.parts],
            }
        )
    return described
