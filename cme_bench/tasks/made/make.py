"""A split of a ``cme_mm`` dataset on disk: ``SPLIT.jsonl`` and its pictures in ``SPLIT/``."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.tasks.made import easy_vqa
from cme_bench.tasks.made.art import Art, read_art
from cme_bench.tasks.made.packages import EASY_VQA, NOTO, TWEMOJI
from cme_bench.tasks.made.rows import EMOJI_DATASETS, POPE_SPLITS, TEST, TRAIN, Row
from cme_bench.tasks.made.scenes import png, shuffled
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.files import replacing, storing
from cme_bench.util.notes import Note, unheard

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
"""Of the rows: a change of what is drawn or asked is another version."""
_DIGIT_SIDE = 8
_DIGITS_TRAIN = 1000


def make_split(dataset: str, split: str, folder: Path, *, offline: bool = False, note: Note = unheard) -> int:
    """Write the rows of ``split`` into ``folder``, and return how many. The rows appear after their pictures,
    whole or not at all.

    UsageError for an unknown dataset or split; CmeError if its package cannot be had.
    """
    rows = _rows(dataset, split, offline, note)
    pictures = folder / split
    written: set[str] = set()
    lines: list[bytes] = []
    with storing(folder, note="the rows are not complete"):
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir(parents=True)
        for row in rows:
            file = pictures / f"{row.picture}.png"
            if row.picture not in written:
                file.write_bytes(row.draw())
                written.add(row.picture)
            lines.append(orjson.dumps({"image": f"{split}/{file.name}", **row.values}) + b"\n")
        with replacing(folder / f"{split}.jsonl") as stream:
            stream.writelines(lines)
    return len(lines)


def splits_of(dataset: str) -> tuple[str, ...]:
    """Return the splits of a dataset. UsageError for an unknown one."""
    known = ("easy_vqa", "digits", *EMOJI_DATASETS)
    if dataset not in known:
        raise UsageError(f"cme_mm has no dataset {dataset!r}{did_you_mean(dataset, known)}")
    return (TRAIN, *POPE_SPLITS) if dataset == "emoji_pope" else (TRAIN, TEST)


def _rows(dataset: str, split: str, offline: bool, note: Note) -> Iterator[Row]:
    if split not in splits_of(dataset):
        raise UsageError(f"{dataset} has no split {split!r} (there are {', '.join(splits_of(dataset))})")
    if dataset == "easy_vqa":
        return _easy_vqa(EASY_VQA.ensure(offline=offline, note=note), split)
    if dataset == "digits":
        return _digits(split)
    if split == TRAIN:
        art = _art(NOTO.ensure(offline=offline, note=note), "google")
    else:
        art = _art(TWEMOJI.ensure(offline=offline, note=note), "twitter")
    return EMOJI_DATASETS[dataset](art, split)


@functools.lru_cache(maxsize=2)
def _art(package: Path, style: str) -> Art:
    return read_art(package, style)


def _easy_vqa(data: Path, split: str) -> Iterator[Row]:
    for question in easy_vqa.read_questions(data, split):
        file = easy_vqa.image_file(data, split, question.image)
        choices = list(question.choices)
        values = {"question": question.text, "choices": choices, "label": choices.index(question.answer)}
        yield Row(f"{question.image:05d}", file.read_bytes, values)


def _digits(split: str) -> Iterator[Row]:
    """Yield scikit-learn's handwritten digits (UCI, 8 x 8 in 17 greys), black on white and 8 times as large;
    the same 1,000 of the 1,797 are for training."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = shuffled(random.Random("digits"), range(len(data.target)))
    chosen = order[:_DIGITS_TRAIN] if split == TRAIN else order[_DIGITS_TRAIN:]
    for number in sorted(chosen):
        yield Row(f"{number:05d}", _digit_png(data.images[number]), {"label": int(data.target[number])})


def _digit_png(values: NDArray[Any]) -> Callable[[], bytes]:
    def drawn() -> bytes:
        import numpy as np
        import PIL.Image

        grey = (255 - np.rint(values * 255 / 16)).astype(np.uint8)
        large = grey.repeat(_DIGIT_SIDE, axis=0).repeat(_DIGIT_SIDE, axis=1)
        return png(PIL.Image.fromarray(large).convert("RGB"))

    return drawn
