"""Forty questions about four pictures, asked of the real smollava."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import PIL.Image
import PIL.ImageDraw
import pytest

from cme_bench.images.image import image_of
from cme_bench.models import smollava
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run as run_all
from cme_bench.runs.store import read_records, samples_file
from tests.support.seen import Seeing

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
DRAWN = (("red", "circle"), ("blue", "rectangle"), ("green", "triangle"), ("teal", "rectangle"))
HEAD = "Answer the question about the image with one word.\n\n"
LOOKED_AT = (3, 17, 36)
"""Questions that are asked the plain way as well; each takes seconds."""


def drawing(colour: str, shape: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (64, 64), (235, 245, 235))
    pen = PIL.ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((14, 10, 44, 40), fill=colour)
    elif shape == "rectangle":
        pen.rectangle((12, 20, 50, 44), fill=colour)
    else:
        pen.polygon([(32, 8), (10, 50), (54, 50)], fill=colour)
    return image


def questions(colour: str, shape: str) -> list[tuple[str, tuple[str, ...], str]]:
    asked: list[tuple[str, tuple[str, ...], str]] = [
        ("what shape is in the image?", SHAPES, shape),
        (f"what is the {colour} shape?", SHAPES, shape),
        (f"what color is the {shape}?", COLOURS, colour),
    ]
    for other in ("red", "blue", "green", "teal"):
        asked.append((f"is there a {other} shape?", ("no", "yes"), "yes" if other == colour else "no"))
    for other in SHAPES:
        asked.append((f"is there a {other}?", ("no", "yes"), "yes" if other == shape else "no"))
    return asked


@pytest.mark.slow
def test_forty_questions_have_the_scores_of_the_plain_forward(tmp_path: Path) -> None:
    folder = tmp_path / "mm_easy_vqa"
    folder.mkdir()
    rows = []
    for number, (colour, shape) in enumerate(DRAWN):
        drawing(colour, shape).save(folder / f"{number}.png")
        for question, choices, answer in questions(colour, shape):
            rows.append(
                {
                    "image": f"{number}.png",
                    "question": question,
                    "choices": choices,
                    "label": choices.index(answer),
                }
            )
    assert len(rows) == 40
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = RunOptions(
        model="smollava",
        tasks="cme_mm_easy_vqa_ll",
        data=str(tmp_path),
        out=tmp_path / "out",
        dtype="float32",
    )
    [run] = run_all(options)
    assert orjson.loads((run / "run.json").read_bytes())["engine"]["images"] == "each computed once"
    records = {record.id: record for record in read_records(samples_file(run, "cme_mm_easy_vqa_ll"))}
    assert len(records) == len(rows)

    seen = Seeing.load(smollava.ensure())
    for number in LOOKED_AT:
        row, record = rows[number], records[number]
        text = f"<image>\n{HEAD}Question: {row['question']}\nAnswer:"
        choice = tuple(seen.tokenizer(f" {row['choices'][0]}")["input_ids"])
        plain = seen.logprob(text, [image_of(folder / str(row["image"]))], choice)
        assert record.response.logprobs[0] == pytest.approx(plain, abs=1e-3)
