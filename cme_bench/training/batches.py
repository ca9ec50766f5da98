"""Which examples stand in which batch, for the whole training and every process; the seed decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cme_bench.training.options import BatchOrder
from cme_bench.training.packing import pack
from cme_bench.training.packs import boundaries, fill, static_places

IGNORED = -100
"""The label of a token that is not learnt."""
_GROUPS_SORTED_TOGETHER = 50


def pad_token(tokenizer: Any, embeddings: int) -> int:
    """Return the id that fills a batch; it is masked, but must have one of the ``embeddings``."""
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in own if token is not None and token < embeddings), 0)


def plan_batches(
    lengths: NDArray[np.int64],
    *,
    batch_size: int,
    batches_per_step: int,
    seed: int,
    order: BatchOrder = "auto",
) -> list[list[int]]:
    """Group examples into batches of ``batch_size``, in training order.

    Every example occurs once; if they do not fill the last step, examples from elsewhere come a second time.
    ``batches_per_step`` consecutive batches make one optimizer step (processes x accumulated batches).

    ``order``: the examples of a step are of ``similar`` length, so processes wait little for each other; at
    ``random``; or dealt out, so that batches are ``even``: each has its share of long and short ones, and
    about as many tokens as any other. The step with the longest example, or with the most tokens where
    lengths are mixed, comes first: what does not fit in memory fails at once.
    """
    step = batch_size * batches_per_step
    random = np.random.default_rng([seed, len(lengths), step])
    drawn = random.permutation(len(lengths))
    drawn = np.resize(drawn, -(-len(drawn) // step) * step)
    if order in ("auto", "similar"):
        return _similar(drawn, lengths, step, batch_size, random)
    if order == "even":
        drawn = _dealt(drawn, lengths, batch_size, random)
    steps = drawn.reshape(-1, step)
    most = int(lengths[steps].sum(1).argmax())
    steps[[0, most]] = steps[[most, 0]]
    return [list(map(int, batch)) for batch in steps.reshape(-1, batch_size)]


def _dealt(
    drawn: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the examples batch by batch, of about as many tokens each, in a random order.

    The longest are dealt out first, one to each batch; then the next, the longest of them to the batch with
    the fewest tokens; and so on.
    """
    hands = drawn[np.argsort(-lengths[drawn], kind="stable")].reshape(batch_size, -1)
    tokens = np.zeros(hands.shape[1], dtype=np.int64)
    dealt = np.empty((hands.shape[1], batch_size), dtype=np.int64)
    for number, hand in enumerate(hands):
        fewest_first = np.argsort(tokens, kind="stable")
        dealt[fewest_first, number] = hand
        tokens[fewest_first] += lengths[hand]
    return random.permutation(dealt).ravel()


def _similar(
    drawn: NDArray[np.int64], lengths: NDArray[np.int64], step: int, batch: int, random: np.random.Generator
) -> list[list[int]]:
    """Return batches of examples, those of each step of similar length."""
    sorted_together = step * _GROUPS_SORTED_TOGETHER
    steps: list[NDArray[np.int64]] = []
    for start in range(0, len(drawn), sorted_together):
        part = drawn[start : start + sorted_together]
        part = part[np.argsort(-lengths[part], kind="stable")]
        steps += [part[i : i + step] for i in range(0, len(part), step)]
    shuffled = [steps[i] for i in random.permutation(len(steps))]
    longest = max(range(len(shuffled)), key=lambda i: int(lengths[shuffled[i]].max()))
    shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
    return [list(map(int, s[i : i + batch])) for s in shuffled for i in range(0, step, batch)]


def share(batches: Sequence[list[int]], *, process: int, processes: int) -> list[list[int]]:
    """Return the batches of one process: batch i goes to process i modulo ``processes``."""
    return list(batches[process::processes])


def width_multiple(device: str) -> int:
    """Return the number that a row's width is a multiple of: 8 on a GPU, for its matrix units. ``device``:
    torch's type of it."""
    return 8 if device == "cuda" else 1


def count_targets(batch: Mapping[str, Tensor]) -> int:
    """Return the tokens of a batch that are learnt."""
    return int((batch["labels"] != IGNORED).sum())


def count_learnt(example: Mapping[str, Any]) -> int:
    """Return the tokens of an example that are learnt, as :func:`count_targets` finds them in its batch."""
    gaps = sum(stop - start for start, stop in example.get("gaps", ()))
    learnt: int = len(example["ids"]) - max(1, example["source_length"]) - gaps
    return max(0, learnt)


def count_tokens(batch: Mapping[str, Tensor]) -> int:
    """Return the tokens of a batch, without padding."""
    return int(batch["attention_mask"].sum())


@dataclass(frozen=True, slots=True)
class Layout:
    """How the examples of a batch are laid out: one a row, or packed.

    ``multiple``: rows are as wide as the longest, rounded up to a multiple of it. ``per_row``: about so many
    examples a row (:mod:`~cme_bench.training.packing`). ``width``: rows of exactly so many tokens
    (:mod:`~cme_bench.training.packs`). ``longest``: most tokens of an example in them; None for the width.
    ``learnt``: most tokens that a batch learns, where that is known.
    """

    pad_token: int
    multiple: int = 1
    per_row: int | None = None
    width: int | None = None
    longest: int | None = None
    learnt: int | None = None

    def places(self, lengths: Sequence[int]) -> int:
        """Return the places of a batch of examples of these lengths, padding included."""
        if self.width is not None:
            return self.width * len(fill(lengths, self.width))
        if self.per_row is not None:
            rows = pack(lengths, self.per_row)
            return len(rows) * max(sum(lengths[i] for i in row) for row in rows)
        return len(lengths) * max(lengths)

    def packs(self, examples: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Return the examples of each pack, as indices. ValueError for one that is longer than it may be."""
        lengths = [len(example["ids"]) for example in examples]
        if self.longest is not None and max(lengths) > self.longest:
            raise ValueError(f"an example of {max(lengths)} tokens, where {self.longest} are the most")
        return fill(lengths, self.width or 0)

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch, as :func:`collate` does, or as :meth:`packed` where there is a width."""
        if self.width is None:
            return collate(examples, self.pad_token, self.multiple, self.per_row)
        return self.packed(examples, self.packs(examples))

    def packed(self, examples: Sequence[dict[str, Any]], packs: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the batch with these examples in each pack, which may be none.

        It has besides: ``places`` and ``targets`` (:func:`~cme_bench.training.packs.static_places`), and
        ``starts`` (:func:`~cme_bench.training.packs.boundaries`).
        """
        batch = _laid(examples, packs, self.pad_token, self.width or 0)
        places, targets = static_places(batch["labels"], IGNORED, self.learnt)
        starts = boundaries(batch["attention_mask"], batch["position_ids"], len(examples), self.longest)
        return batch | {"places": places, "targets": targets, "starts": starts}


def collate(
    examples: Sequence[dict[str, Any]], pad_token: int, multiple: int = 1, per_row: int | None = None
) -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask``, ``labels``: int64 [rows, longest], padded on the right.

    ``labels`` repeat the ids where they are to be learnt and are ``IGNORED`` elsewhere; ``multiple``: the
    width is rounded up to a multiple of it. A row is an example; with ``per_row`` rows are packed (see
    :func:`~cme_bench.training.packing.pack`) and there are ``position_ids``, which begin at 0 with every
    example and are 0 in the padding.
    """
    lengths = [len(example["ids"]) for example in examples]
    rows = [[i] for i in range(len(examples))] if per_row is None else pack(lengths, per_row)
    width = max(sum(lengths[i] for i in row) for row in rows)
    batch = _laid(examples, rows, pad_token, -(-width // multiple) * multiple)
    if per_row is None:
        del batch["position_ids"]
    return batch


def _laid(
    examples: Sequence[dict[str, Any]], rows: Sequence[Sequence[int]], pad_token: int, width: int
) -> dict[str, Tensor]:
    """Return the batch in which each of ``rows`` holds its examples end to end."""
    ids = np.full((len(rows), width), pad_token, dtype=np.int64)
    mask, places = np.zeros_like(ids), np.zeros_like(ids)
    labels = np.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for i in row:
            tokens = np.asarray(examples[i]["ids"])
            here = slice(start, start + len(tokens))
            learnt = max(1, examples[i]["source_length"])  # nothing predicts an example's first token
            ids[number, here] = tokens
            mask[number, here] = 1
            places[number, here] = np.arange(len(tokens))
            labels[number, here][learnt:] = tokens[learnt:]
            for a, b in examples[i].get("gaps", ()):
                labels[number, here][a:b] = IGNORED
            start = here.stop
    laid = {"input_ids": ids, "attention_mask": mask, "labels": labels, "position_ids": places}
    return {name: torch.from_numpy(array) for name, array in laid.items()}
