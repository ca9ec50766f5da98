"""`tasks new` with columns of images: guessed and said, copied from elsewhere, refused if unclear."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from cme_bench.images.decode import decode_image
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import RenderedItem, render_item
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from tests.support.command import called
from tests.support.pictures import encoded, picture

PLAIN = resolve_format("plain", None, generated=False)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with four images, ``0.png`` to ``3.png``."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(picture(seed=number)))
    return folder


def new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    code, out, err = called(monkeypatch, capsys, "tasks", "new", *arguments)
    return code, out + err


def jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def asked(folder: Path, name: str) -> list[RenderedItem]:
    suite = load_suite((folder,))
    task = build_task(suite.task(name), suite, mini_source(), shots=0)
    return [render_item(task, index, PLAIN) for index in range(len(task.docs))]


def shows(item: RenderedItem) -> list[int]:
    known = {decode_image(picture(seed=number), folder=None): number for number in range(4)}
    return [known[image] for image in item.images]


ROWS = [{"q": f"Is {n} red?", "answer": ["no", "yes"][n % 2]} for n in range(4)]


@pytest.mark.parametrize("form", ["path", "bytes", "datasets", "base64", "list"])
def test_every_form_of_an_image_column_becomes_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path, form: str
) -> None:
    data = [(raw / f"{n}.png").read_bytes() for n in range(4)]
    made: list[Any] = {
        "path": [f"{n}.png" for n in range(4)],
        "bytes": data,
        "datasets": [{"bytes": each, "path": None} for each in data],
        "base64": [base64.b64encode(each).decode() for each in data],
        "list": [[f"{n}.png"] for n in range(4)],
    }[form]
    rows = [
        {"picture": image, "question": row["q"], "answer": row["answer"]}
        for image, row in zip(made, ROWS, strict=True)
    ]
    file = raw / "rows.parquet"
    pandas.DataFrame(rows).to_parquet(file)
    out = tmp_path / "tasks"
    code, text = new(monkeypatch, capsys, "seen", "--from", file, "-o", out)
    assert code == 0, text
    assert "note: shown as images, before the question: picture (--images says otherwise)" in text
    assert "left out" not in text
    items = asked(out, "seen")
    assert [shows(item) for item in items] == [[0], [1], [2], [3]]
    assert "<image>\n" in items[0].contexts[0] and "Is 0 red?" in items[0].contexts[0]
    assert len(list((out / "seen_images").iterdir())) == 4
    assert "b'" not in (out / "seen_test.jsonl").read_text()


def test_images_below_the_folder_of_the_task_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Path
) -> None:
    file = jsonl(raw / "rows.jsonl", [{"image": f"{n}.png", "label": "ab"[n % 2]} for n in range(4)])
    code, text = new(monkeypatch, capsys, "seen", "--from", file, "-o", raw, "--shots-from", file)
    assert code == 0, text
    assert not (raw / "seen_images").exists()
    items = asked(raw, "seen")
    assert [shows(item) for item in items] == [[0], [1], [2], [3]]
    assert items[0].contexts[0] == "<image>\nLook at the image. Answer with one of: a, b.\n\n\nLabel:"
    assert "question (none), answer label" in text


def test_rows_may_lack_an_image_and_several_are_shown_in_the_order_that_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Path
) -> None:
    rows = [
        {"a": "0.png", "b": "1.png", "question": "x?", "answer": "u"},
        {"a": "2.png", "b": None, "question": "y?", "answer": "v"},
    ]
    file = jsonl(raw / "rows.jsonl", rows)
    code, text = new(monkeypatch, capsys, "seen", "--from", file, "-o", raw, "--type", "qa")
    assert code == 2
    assert f"{file}: a and b hold images; say which are shown, in their order: --images a,b (or" in text
    code, text = new(
        monkeypatch, capsys, "seen", "--from", file, "-o", raw, "--type", "qa", "--images", "b,a"
    )
    assert code == 0, text
    assert [shows(item) for item in asked(raw, "seen")] == [[1, 0], [2]]


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        (["0.png", "none.png"], (), "rows.jsonl:2: "),
        (["0.png", "../raw.png"], (), "rows.jsonl:2: '../raw.png' leads out of"),
        (
            ["cat", "dog"],
            (),
            "column image may name images, but 'cat' is no PNG, JPEG or WebP; say --images image",
        ),
        (["https://example.org/a.png"] * 2, (), "but 'https://example.org/a.png' is no PNG, JPEG or WebP"),
        (["0.png", "https://example.org/a.png"], (), "but 'https://example.org/a.png' is no PNG"),
        (["0.png", "1.png"], ("--images", "picture"), "no column 'picture'"),
        (["0.png", "1.png"], ("--images", "image", "--question", "image"), "no column 'image'"),
        (["data:image/png;base64,%%", "0.png"], (), "rows.jsonl:1: broken base64"),
    ],
)
def test_what_is_unclear_or_broken_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raw: Path,
    values: list[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    rows = [{"image": value, "question": f"{n}?", "answer": "uv"[n]} for n, value in enumerate(values)]
    file = jsonl(raw / "rows.jsonl", rows)
    code, text = new(monkeypatch, capsys, "seen", "--from", file, "-o", raw / "out", *flags)
    assert code == 2
    assert message in text
    assert not (raw / "out").exists()


def test_images_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Path
) -> None:
    rows = [{"image": f"{n}.png", "question": f"{n}?", "answer": "uv"[n]} for n in range(2)]
    file = jsonl(raw / "rows.jsonl", rows)
    code, text = new(monkeypatch, capsys, "seen", "--from", file, "-o", raw, "--images", "none")
    assert code == 0, text
    assert [item.images for item in asked(raw, "seen")] == [(), ()]


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([{"question": f"Which file {n}?", "answer": f"{n}.png"} for n in range(2)], []),
        ([{"photo": "A man on a bike", "question": f"{n}?", "answer": "uv"[n]} for n in range(2)], []),
        ([{"image": None, "question": f"{n}?", "answer": "uv"[n]} for n in range(2)], []),
        ([{"has_image": False, "question": f"{n}?", "answer": "uv"[n]} for n in range(2)], []),
        (
            [
                {"image": f"{n}.png", "file": f"{n}.txt", "question": f"{n}?", "answer": "uv"[n]}
                for n in range(2)
            ],
            [0],
        ),
    ],
)
def test_what_only_looks_like_an_image_is_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raw: Path,
    rows: list[dict[str, Any]],
    shown: list[int],
) -> None:
    file = jsonl(raw / "rows.jsonl", rows)
    code, text = new(
        monkeypatch, capsys, "seen", "--from", file, "-o", raw, "--type", "qa", "--question", "question"
    )
    assert code == 0, text
    assert shows(asked(raw, "seen")[0]) == shown
    assert f"cme-bench run {'smollava' if shown else 'smollm2'} --tasks seen" in text
