"""Which examples stand in which batch, for the whole training and every process; the seed decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""The label of a token that is not learnt."""
_GROUPS_SORTED_TOGETHER = 50


def plan_batches(
    lengths: NDArray[np.int64], *, batch_size: int, batches_per_step: int, seed: int
) -> list[list[int]]:
    """Batches of ``batch_size`` examples of similar length, in training order.

    ``batches_per_step`` consecutive batches make one optimizer step (processes x accumulated batches) and are
    of similar length too, so that processes wait little for each other. The step with the longest example
    comes first: what does not fit in memory fails at once. Every example occurs once; if they do not fill the
    last step, examples from elsewhere come a second time.
    """
    step = batch_size * batches_per_step
    random = np.random.default_rng([seed, len(lengths), step])
    order = random.permutation(len(lengths))
    order = np.resize(order, -(-len(order) // step) * step)
    sorted_together = step * _GROUPS_SORTED_TOGETHER
    steps: list[NDArray[np.int64]] = []
    for start in range(0, len(order), sorted_together):
        part = order[start : start + sorted_together]
        part = part[np.argsort(-lengths[part], kind="stable")]
        steps += [part[i : i + step] for i in range(0, len(part), step)]
    shuffled = [steps[i] for i in random.permutation(len(steps))]
    longest = max(range(len(shuffled)), key=lambda i: int(lengths[shuffled[i]].max()))
    shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
    return [list(map(int, s[i : i + batch_size])) for s in shuffled for i in range(0, step, batch_size)]


def share(batches: Sequence[list[int]], *, process: int, processes: int) -> list[list[int]]:
    """The batches of one process: batch i goes to process i modulo ``processes``."""
    return list(batches[process::processes])


def collate(examples: Sequence[dict[str, object]], pad_token: int, multiple: int = 1) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask``, ``labels``: int64 [examples, longest], padded on the right.

    ``labels`` repeat the ids where they are to be learnt and are ``IGNORED`` elsewhere; ``multiple``: the
    width is rounded up to a multiple of it.
    """
    width = max(len(e["ids"]) for e in examples)  # type: ignore[arg-type]
    width = -(-width // multiple) * multiple
    ids = torch.full((len(examples), width), pad_token, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(np.asarray(example["ids"]), dtype=torch.int64)
        source = int(str(example["source_length"]))
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, source : len(tokens)] = tokens[source:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
