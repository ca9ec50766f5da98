"""The whole training, decided before the model is loaded: examples, tokens, batches and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.row_files import Rows
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
from cme_bench.training.options import DEFAULT_FORMAT, TrainOptions
from cme_bench.training.own_set import OwnRow, OwnSet, load_own
from cme_bench.training.parts import CME, HUB, DataPart, data_parts
from cme_bench.training.published import PUBLISHED
from cme_bench.training.templates import DatasetTemplate, Prompted, load_templates, select_datasets
from cme_bench.training.tokens import TokenTable, TrainingEncoder
from cme_bench.util.collection import uncollected
from cme_bench.util.errors import UsageError
from cme_bench.util.options import FormatName

ItemSet: TypeAlias = TrainingSet | OwnSet
"""A part of the mixture: rows of one dataset of CME, or rows of one's own."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """``batches[i]``: indices into ``examples``, for all processes; ``mixture``: what to record of it."""

    examples: TokenTable
    batches: list[list[int]]
    steps: int
    mixture: dict[str, Any]


@uncollected()
def make_plan(
    options: TrainOptions,
    source: DataSource | None,
    encoder: TrainingEncoder,
    *,
    processes: int,
    note: Callable[[str], None],
    sets: Sequence[ItemSet] | None = None,
) -> TrainingPlan:
    """Load the rows, draw the mixture, tokenise what is drawn and group it by length.

    ``sets``: the rows, where :func:`load_sets` has loaded them already for the same options. Raises
    UsageError for unknown datasets, missing files, rows that do not fit their template, and where every row
    is left out.
    """
    if sets is None:
        sets = load_sets(options, source, note=note)
    sets = [s.fitted(encoder.fits, options.max_length) if isinstance(s, OwnSet) else s for s in sets]
    for own in own_sets(sets):
        for line in own.left_out:
            note(line.text(own.origin))
    sizes = [len(s) for s in sets]
    weights = _weights(sets, options)
    per_epoch = options.samples or sum(sizes)
    per_step = options.batch_size * options.accumulate * processes
    total = per_epoch * options.epochs if options.max_steps is None else options.max_steps * per_step
    epochs = _draw(sets, allot(per_epoch, weights), total, seed=options.seed)
    draws = [draw for epoch in epochs for draw in epoch]
    note(f"tokenising {total:,} examples of {len(sets)} datasets")
    examples = TokenTable(encoder.encode(_prompts(sets, draws)))
    if options.pack_tokens:
        _check_packs(examples, options.pack_tokens, lambda i: sets[draws[i].dataset].place_of(draws[i].index))
    batches: list[list[int]] = []
    start = 0
    for number, epoch in enumerate(epochs):
        lengths = examples.lengths[start : start + len(epoch)]
        planned = plan_batches(
            lengths,
            batch_size=options.batch_size,
            batches_per_step=options.accumulate * processes,
            seed=options.seed + number,
            order=options.batches,
        )
        batches += [[start + i for i in batch] for batch in planned]
        start += len(epoch)
    steps = len(batches) // (options.accumulate * processes)
    if options.max_steps is not None and steps > options.max_steps:  # epochs that do not fill their last step
        steps = options.max_steps
        batches = batches[: steps * options.accumulate * processes]
    mixture = {
        "source": ", ".join(dict.fromkeys(_source_name(part) for part in data_parts(options.data))),
        "data": options.plain()["data"],
        "weighting": options.weighting,
        "temperature": options.temperature if options.weighting == "temperature" else None,
        "items_per_epoch": per_epoch,
        "examples": total,
        "truncated_sources": examples.cut_sources,
        "truncated_targets": examples.cut_targets,
        "datasets": _describe(sets, weights, draws, examples),
    }
    return TrainingPlan(examples, batches, steps, mixture)


def _check_packs(examples: TokenTable, most: int, place: Callable[[int], str]) -> None:
    """Raise UsageError for the first example that is longer than a pack, with the place of its row."""
    long = np.flatnonzero(examples.lengths > most)
    if len(long):
        first = int(long[0])
        raise UsageError(
            f"{place(first)}: {examples.lengths[first]} tokens with its answer (as {len(long):,} examples in "
            f"all), more than a pack holds (--pack-tokens {most}); give {examples.lengths.max()}, or cut "
            f"rows with --max-length {most}"
        )


@uncollected()
def load_sets(
    options: TrainOptions,
    source: DataSource | None = None,
    *,
    note: Callable[[str], None],
    own: Sequence[OwnSet] | None = None,
    chosen: Sequence[DatasetTemplate] | None = None,
) -> list[ItemSet]:
    """Load the rows of every dataset of CME that the options name, and one's own rows behind them, capped and
    with their held-out items apart.

    ``source``: of CME's rows, where it is open; ``own``: the own rows, where they are loaded; ``chosen``:
    what :func:`chosen_templates` returns.
    """
    chosen = chosen_templates(options) if chosen is None else chosen
    sets: list[ItemSet] = []
    for part in (part for part in data_parts(options.data) if part.kind == CME):
        note(f"reading {len(chosen)} datasets")
        opened = source or open_source(part.place, offline=options.offline)
        spared = _spared_rows(options, opened)
        sets += [
            load_training_set(t, opened, cap=options.cap, holdout=options.holdout, spared=spared)
            for t in chosen
        ]
    return [*sets, *(load_own_sets(options, note=note) if own is None else own)]


def chosen_templates(options: TrainOptions) -> list[DatasetTemplate]:
    """Return the templates of the datasets of CME that the options name. UsageError for unknown ones."""
    if any(part.kind == CME for part in data_parts(options.data)):
        return select_datasets(load_templates(load_suite()), options.datasets)
    if options.datasets != "all":
        raise UsageError("--datasets names datasets of CME, and --data has none (add --data cme=DIR)")
    return []


def _spared_rows(options: TrainOptions, source: DataSource) -> list[Rows]:
    """Return the rows that ``--spare`` names. UsageError if the source lacks some: they could not be told."""
    specs = [] if options.spare is None else load_suite().select(options.spare)
    return [source.rows(spec, spec.eval_split) for spec in specs]


@uncollected()
def load_own_sets(options: TrainOptions, *, note: Callable[[str], None]) -> list[OwnSet]:
    """Load the rows of every part of ``--data`` that is not CME's."""
    sets: list[OwnSet] = []
    for part in data_parts(options.data):
        if part.kind == CME:
            continue
        number = sum(each.part.kind == part.kind for each in sets) + 1
        sets.append(load_own(part, options, name=part.kind if number == 1 else f"{part.kind}-{number}"))
        for line in sets[-1].notes:
            note(line)
    return sets


def own_sets(sets: Sequence[ItemSet]) -> list[OwnSet]:
    """Return those of the sets that are one's own rows."""
    return [each for each in sets if isinstance(each, OwnSet)]


def usual_format(options: TrainOptions, own: Sequence[OwnSet]) -> FormatName:
    """Return the prompt format of a training: the one that is asked for, or its rows' own.

    Messages need ``chat``. Rows that are all of one kind have that kind's; a mixture has ``teamlora``. Raises
    UsageError for messages in another format than ``chat``.
    """
    asked, messages = options.prompt_format, next((s for s in own if s.form == "messages"), None)
    if messages is None and asked != "auto":
        return asked
    if messages is not None:
        if asked in ("auto", "chat"):
            return "chat"
        raise UsageError(f"--format {asked}: {messages.origin} holds messages, which only chat can show")
    parts = data_parts(options.data)
    kinds = {_format_of(s) for s in own} | ({DEFAULT_FORMAT} if len(parts) > len(own) else set())
    return kinds.pop() if len(kinds) == 1 else DEFAULT_FORMAT


def _format_of(own: OwnSet) -> FormatName:
    if own.part.kind in PUBLISHED:
        return PUBLISHED[own.part.kind].prompt_format
    return "plain" if own.form == "completion" else DEFAULT_FORMAT


def _source_name(part: DataPart) -> str:
    """Return what the record calls the place of a part."""
    if part.kind != CME:
        return "hub" if part.place.startswith(HUB) else "files"
    return part.place if part.place in ("hub", "mini") else "folder"


def _weights(sets: Sequence[ItemSet], options: TrainOptions) -> list[float]:
    """Return the share of each set: by ``--weighting``, within the shares of ``--data`` where it has some."""
    parts = data_parts(options.data)
    if parts[0].weight is None:
        return mixture_weights([len(s) for s in sets], options.weighting, options.temperature)
    total = sum(part.weight or 0.0 for part in parts)
    own = own_sets(sets)
    cme = [len(s) for s in sets if not isinstance(s, OwnSet)]
    inner = mixture_weights(cme, options.weighting, options.temperature) if cme else []
    share = (parts[0].weight or 0.0) / total
    return [share * w for w in inner] + [(s.weight or 0.0) / total for s in own]


def _draw(sets: Sequence[ItemSet], counts: Sequence[int], total: int, *, seed: int) -> list[list[Draw]]:
    """Draw epochs until there are ``total``; the last epoch may be cut short."""
    names, sizes = [s.name for s in sets], [len(s) for s in sets]
    epochs: list[list[Draw]] = []
    while (missing := total - sum(map(len, epochs))) > 0:
        epochs.append(draw_epoch(names, sizes, counts, seed=seed, epoch=len(epochs), most=missing))
    return epochs


def _prompts(sets: Sequence[ItemSet], draws: Sequence[Draw]) -> Iterator[Prompted | OwnRow]:
    """Yield what is drawn, in order; rows are read some thousands at a time."""
    for start in range(0, len(draws), _BLOCK):
        block = draws[start : start + _BLOCK]
        drawn: dict[int, set[int]] = {}
        for draw in block:
            drawn.setdefault(draw.dataset, set()).add(draw.index)
        read = {
            number: one.rows(sorted(drawn.get(number, ())))
            for number, one in enumerate(sets)
            if isinstance(one, TrainingSet)
        }
        for draw in block:
            one = sets[draw.dataset]
            if isinstance(one, TrainingSet):
                yield one.prompted(draw.index, draw.turn, read[draw.dataset][draw.index])
            else:
                yield one.prompted(draw.index, draw.turn)


_BLOCK = 4096


def _describe(
    sets: Sequence[ItemSet], weights: Sequence[float], draws: Sequence[Draw], examples: TokenTable
) -> list[dict[str, Any]]:
    owner = np.array([draw.dataset for draw in draws])
    described = []
    for index, (loaded, weight) in enumerate(zip(sets, weights, strict=True)):
        mine = owner == index
        described.append(
            {
                "dataset": loaded.name,
                "domain": loaded.domain,
                "items": len(loaded),
                "weight": weight,
                "examples": int(mine.sum()),
                "tokens": int(examples.lengths[mine].sum()),
                "target_tokens": int(examples.target_lengths[mine].sum()),
                "paraphrases": loaded.paraphrases,
                "note": loaded.note,
                "parts": loaded.describe(),
            }
        )
    return described
