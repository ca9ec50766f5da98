"""Image tasks looked over and shown: `tasks check` and `tasks preview`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cme_bench.images import image as images
from cme_bench.images.decode import decode_image
from tests.support.command import called
from tests.support.pictures import encoded, picture

TASK = """\
task: seen
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_image: [image, other]
doc_to_text: "{{ question }}"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metadata: {dataset: own}
"""


def asked(folder: Path, rows: Sequence[tuple[Any, str, int]], shots: Sequence[tuple[Any, str, int]]) -> None:
    (folder / "seen.yaml").write_text(TASK)
    for name, made in (("rows", rows), ("shots", shots)):
        lines = [{"image": i, "question": q, "label": a, "other": None} for i, q, a in made]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(picture(seed=number)))


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    code, out, err = called(monkeypatch, capsys, "tasks", *arguments)
    return code, out + err


def test_check_counts_images_and_names_bad_ones_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [("0.png", "red?", 0), ("1.png", "red?", 1), ("0.png", "blue?", 1)]
    asked(tmp_path, rows, [("2.png", "red?", 0)])
    code, text = told(monkeypatch, capsys, "check", tmp_path)
    assert code == 0, text
    assert "ok: seen: 2 distinct images of 5 x 3 pixels, 1 exemplars, 3 items" in text
    bad = [
        ("none.png", "a", 0),
        ("cut.png", "b", 1),
        ("page.jpg", "c", 1),
        ("large.png", "d", 1),
        ("1.png", "<image> <image>", 0),
    ]
    asked(tmp_path, rows + bad, [("2.png", "red?", 0)])
    (tmp_path / "cut.png").write_bytes(encoded(picture(8, 8))[:-30])
    (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "large.png").write_bytes(encoded(picture(9, 8, seed=77)))
    monkeypatch.setattr(images, "MOST_PIXELS", 71)
    code, text = told(monkeypatch, capsys, "check", tmp_path)
    assert code == 2
    for line, reason in (
        (4, "none.png: no such file"),
        (5, "cut.png: the image is damaged ("),
        (6, "page.jpg: an HTML page; images are PNG, JPEG or WebP"),
        (7, "large.png: 9 x 8 pixels are more than"),
        (8, "the prompt has 2 marks <image> for 1 image"),
    ):
        [found] = [each for each in text.splitlines() if f"rows.jsonl:{line}: " in each]
        assert found.startswith("error: ")
        assert reason in found
    assert text.count("error: ") == len(bad)


def test_check_warns_of_what_may_be_shown_unawares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [
        ("0.png", "red?", 0),
        ("0.png", "red?", 0),
        (None, "blue?", 1),
        ("clear.png", "red?", 1),
        ("full.png", "x?", 0),
    ]
    asked(tmp_path, rows, [("1.png", "red?", 0), ("0.png", "red?", 0)])
    pixels = np.full((4, 4, 4), 255, np.uint8)
    (tmp_path / "full.png").write_bytes(encoded(PIL.Image.fromarray(pixels)))
    pixels[0, 0, 3] = 0
    (tmp_path / "clear.png").write_bytes(encoded(PIL.Image.fromarray(pixels)))
    code, text = told(monkeypatch, capsys, "check", tmp_path)
    assert code == 0
    warnings = [
        line for line in text.replace(f"{tmp_path}/", "").splitlines() if line.startswith("warning: ")
    ]
    assert warnings == [
        "warning: rows.jsonl:2: the same question stands in rows.jsonl:1",
        "warning: rows.jsonl:3: no image: it is asked as text alone",
        "warning: rows.jsonl:4: an image with transparent parts: what is stored below them is shown",
        "warning: shots.jsonl:2: this exemplar is also scored, in rows.jsonl:2",
    ]


def test_preview_shows_where_images_stand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked(tmp_path, [("0.png", "red?", 0)], [("1.png", "blue?", 1)])
    code, text = told(monkeypatch, capsys, "preview", "seen", "--include", tmp_path, "--shots", 1)
    assert code == 0, text
    first, second = (decode_image(f"{n}.png", folder=tmp_path).digest[:12] for n in (1, 0))
    assert "  | <image>\n  | blue? yes\n" in text
    assert f"image 1: 5 x 3 pixels, sha256 {first}, {tmp_path / '1.png'}\n" in text
    assert f"image 2: 5 x 3 pixels, sha256 {second}, {tmp_path / '0.png'}\n" in text


def test_a_text_model_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    asked(tmp_path, [("0.png", "red?", 0)], [])
    (tmp_path / "shots.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    for command in (("preview", "seen", "--include", tmp_path), ("check", tmp_path)):
        code, text = told(monkeypatch, capsys, *command, "--model", tiny_checkpoint)
        assert code == 2
        assert "task seen shows images (doc_to_image), and this model reads text alone" in text


def test_a_task_whose_rows_have_no_images_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked(tmp_path, [(None, "red?", 0), (None, "blue?", 1)], [("1.png", "green?", 0)])
    code, text = told(monkeypatch, capsys, "check", tmp_path)
    assert code == 2
    assert f"error: {tmp_path / 'seen.yaml'}:7: no row has an image" in text
