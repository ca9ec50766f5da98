"""The pictures of the projector's training, and what each shows; how they are changed by chance."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captions
import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F  # noqa: N812

from cme_bench.tasks.made import easy_vqa
from cme_bench.tasks.made.art import Art
from cme_bench.tasks.made.make import make_split
from cme_bench.tasks.made.scenes import choose_things, draw, draw_one, place, shuffled

MIRRORED, MOVED, TONED = "mirrored", "moved", "toned"


@dataclass(frozen=True)
class Pool:
    """Pictures of one size as uint8 (N, 3, side, side), and what each shows.

    ``variants``: how often each picture is taken again, changed by chance in the ways of ``changes``.
    """

    name: str
    share: float
    pictures: torch.Tensor
    labels: Sequence[Any]
    variants: int = 0
    changes: frozenset[str] = frozenset()


def pixels(picture: Any) -> np.ndarray:
    """Return a picture as uint8 (3, height, width)."""
    return np.array(picture.convert("RGB")).transpose(2, 0, 1)


_OF_WORKER: dict[str, Art] = {}


def _keep(art: Art) -> None:
    """Give a worker process its pictures, once."""
    _OF_WORKER["art"] = art


def scene(seed: str) -> tuple[np.ndarray, list[Any]]:
    """Draw the scene of a seed: different things, or up to nine of one among others."""
    art = _OF_WORKER["art"]
    rng = random.Random(f"projector scene {seed}")
    fame = shuffled(random.Random("fame of training"), art.things)
    if rng.random() < 0.4:
        count = 2 + int(rng.random() * 5)
        wanted, *others = choose_things(rng, fame, 1 + int(rng.random() * 4))
        things = [wanted] * count + others
    else:
        things = choose_things(rng, fame, 1 + int(rng.random() * 6))
    placed = place(rng, things[: captions.grid_size()])
    return pixels(draw(rng, art, placed)), placed


def pools(
    art: Art, shapes: Path, digits: Path | None, scenes: Sequence[str], *, workers: int, variants: int
) -> list[Pool]:
    """Return the training pictures; ``scenes``: a seed each, and no pool has more pictures than these.

    ``shapes``: easy-VQA's folder; ``digits``: see :func:`_digits`.
    """
    with ProcessPoolExecutor(workers, initializer=_keep, initargs=(art,)) as several:
        made = list(several.map(scene, scenes, chunksize=64))
    few = slice(len(scenes))
    things, flags = art.things[few], art.flags[few]
    drawn = _stacked([picture for picture, _ in made])
    alone = [_stacked([pixels(draw_one(art, t)) for t in kind]) for kind in (things, flags)]
    free = frozenset({MIRRORED, MOVED, TONED})
    return [
        Pool(
            "shapes",
            0.15,
            *_shapes(shapes, len(scenes)),
            variants=min(1, variants),
            changes=frozenset({MIRRORED}),
        ),
        Pool("things", 0.25, alone[0], things, variants, free),
        Pool("flags", 0.08, alone[1], flags, min(3, variants), frozenset({TONED})),
        Pool("digits", 0.07, *_digits(digits, len(scenes))),
        Pool("scenes", 0.45, drawn, [p for _, p in made], min(1, variants), frozenset({TONED})),
    ]


def _shapes(data: Path, limit: int) -> tuple[torch.Tensor, list[Any]]:
    """Return easy-VQA's training pictures, and the questions of each."""
    known: dict[int, list[easy_vqa.Question]] = {}
    for question in easy_vqa.read_questions(data, "train"):
        known.setdefault(question.image, []).append(question)
    chosen = list(known.items())[:limit]
    files = [easy_vqa.image_file(data, "train", number) for number, _ in chosen]
    return _stacked([pixels(PIL.Image.open(file)) for file in files]), [asked for _, asked in chosen]


def _digits(folder: Path | None, limit: int) -> tuple[torch.Tensor, list[int]]:
    """Return the training digits and their numbers: of a folder of ``cme_mm``'s rows, or made here."""
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            make_split("digits", "train", folder)
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()[:limit]]
        drawn = [pixels(PIL.Image.open(folder / row["image"])) for row in rows]
    return _stacked(drawn), [row["label"] for row in rows]


def _stacked(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures))


def moved(values: torch.Tensor, *, by: float, mirrored: bool) -> torch.Tensor:
    """Shrink pictures on white to a share between ``by`` and 1, and move them there."""
    count, device = len(values), values.device
    scale = 1 / torch.empty(count, device=device).uniform_(by, 1)
    side = torch.where(torch.rand(count, device=device) < 0.5 * mirrored, -1.0, 1.0)
    shift = torch.empty(count, 2, device=device).uniform_(-1, 1) * (scale - 1)[:, None]
    grid = torch.zeros(count, 2, 3, device=device)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = scale * side, scale, shift
    places = F.affine_grid(grid, list(values.shape), align_corners=False)
    return 1 - F.grid_sample(1 - values, places, align_corners=False)


def toned(values: torch.Tensor) -> torch.Tensor:
    """Change saturation and contrast, blur some: another hand would have drawn the same things so."""
    count, device = len(values), values.device
    blurred = F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)
    values = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.3, blurred, values)
    grey = values.mean(1, keepdim=True)
    values = grey + (values - grey) * torch.empty(count, 1, 1, 1, device=device).uniform_(0.5, 1.5)
    return (1 - (1 - values) * torch.empty(count, 3, 1, 1, device=device).uniform_(0.8, 1.1)).clamp(0, 1)
