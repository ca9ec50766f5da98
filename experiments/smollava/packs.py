"""Sequences that ask several questions of one image: each sees head, image and itself, nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from questions import END, HEADS, Asked, Questions
from torch.utils.data import IterableDataset, get_worker_info

from cme_bench.models.smollava.tower import SIZE
from cme_bench.tasks.made.scenes import pick

IMAGE_TOKENS = (SIZE // 14) ** 2
_END_WEIGHT = 0.1
"""How much the token that ends an answer counts beside one of the answer."""


@dataclass
class Packs:
    """Sequences of one length. ``part``: 0 for head and image, then the question's number, -1 for padding;
    ``weight``: of the loss of a token, summing to about 1 an answer; ``answer``: its number in the batch.
    ``pictures``: the pool and the number of each sequence's picture."""

    pictures: Sequence[tuple[str, int]]
    ids: torch.Tensor
    place: torch.Tensor
    part: torch.Tensor
    weight: torch.Tensor
    answer: torch.Tensor
    is_image: torch.Tensor
    answers: int

    def mask(self, device: torch.device) -> torch.Tensor:
        """Return what each token sees, (N, 1, L, L): what stands before it in its own part, and part 0."""
        part = self.part.to(device)
        length = part.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        seen = (part[:, None, :] == part[:, :, None]) | (part[:, None, :] == 0)
        return (seen & before)[:, None]


Segment = tuple[str, str]
"""The text between image and answer; the answer."""


def segment(head: str, asked: Asked, answer: str | None = None) -> Segment:
    """Return the text after an image under ``head``, and an answer to it (the right one)."""
    answer = asked.answer if answer is None else answer
    if head != "plain":
        return f"\n{asked.text}{END}\n<|im_start|>assistant\n", answer
    if asked.kind == "caption":
        return "\n", answer
    stem = asked.text if asked.text.endswith("Answer:") else f"{asked.text}\nAnswer:"
    return f"\n{stem}", f" {answer}"


def pack(
    tokenizer: Any,
    pictures: Sequence[tuple[str, int]],
    heads: Sequence[str],
    rows: Sequence[Sequence[Segment]],
) -> Packs:
    """Put the segments of each row behind its head and image."""
    flat = [text for row in rows for part in row for text in part]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END)
    starts = {name: tokenizer(HEADS[name], add_special_tokens=False)["input_ids"] for name in set(heads)}
    tokens = [[(next(encoded), next(encoded)) for _ in row] for row in rows]
    longest = max(
        len(starts[head]) + IMAGE_TOKENS + sum(len(a) + len(b) + 1 for a, b in row)
        for head, row in zip(heads, tokens, strict=True)
    )
    shape = (len(rows), -(-longest // 32) * 32)
    ids, place, answer = (np.zeros(shape, np.int64) for _ in range(3))
    part, weight, is_image = np.full(shape, -1, np.int16), np.zeros(shape, np.float32), np.zeros(shape, bool)
    number = 0
    for i, (head, row) in enumerate(zip(heads, tokens, strict=True)):
        start = starts[head]
        at = begin = len(start) + IMAGE_TOKENS
        ids[i, : len(start)], part[i, :begin], place[i, :begin] = start, 0, np.arange(begin)
        is_image[i, len(start) : begin] = True
        for k, (before, after) in enumerate(row, start=1):
            full = [*before, *after, end]
            last = at + len(full)
            ids[i, at:last], part[i, at:last], place[i, at:last] = (
                full,
                k,
                np.arange(begin, begin + len(full)),
            )
            scored = slice(at + len(before), last)
            weight[i, scored], answer[i, scored] = 1 / (len(after) + _END_WEIGHT), number
            weight[i, last - 1] *= _END_WEIGHT
            at, number = last, number + 1
    tensors = [torch.from_numpy(array) for array in (ids, place, part, weight, answer, is_image)]
    return Packs(pictures, *tensors, answers=number)


class Stream(IterableDataset[Packs]):
    """Endless batches: pictures by the pools' shares, each with questions of its own."""

    def __init__(
        self,
        tokenizer: Any,
        questions: Questions,
        pools: Sequence[tuple[str, float, Sequence[Any]]],
        *,
        pictures: int,
        each: int,
        seed: int,
    ) -> None:
        """``pools``: name, share, labels. ``pictures`` a batch, ``each``: questions a picture."""
        self.tokenizer, self.questions, self.pools = tokenizer, questions, pools
        self.pictures, self.each, self.seed = pictures, each, seed

    def __iter__(self) -> Iterator[Packs]:
        """Yield batches by a generator of this worker's own."""
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            yield self._batch(rng)

    def _batch(self, rng: random.Random) -> Packs:
        pictures: list[tuple[str, int]] = []
        heads: list[str] = []
        rows: list[list[Segment]] = []
        for name, _, labels in rng.choices(
            self.pools, [share for _, share, _ in self.pools], k=self.pictures
        ):
            index = int(rng.random() * len(labels))
            head = pick(rng, ("plain", "plain", "chat", "chat", "bare chat"))
            asked = [self.questions.ask(rng, name, labels[index]) for _ in range(self.each)]
            pictures.append((name, index))
            heads.append(head)
            rows.append([segment(head, one) for one in asked])
        return pack(self.tokenizer, pictures, heads, rows)
