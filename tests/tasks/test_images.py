"""Tasks that show images: which images an item gets, where they stand, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cme_bench.images.decode import decode_image
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import RenderedItem, render_item
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import FolderSource
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.pictures import encoded, picture

PLAIN = resolve_format("plain", None, generated=False)
TASK = """\
task: seen
dataset_path: own/data
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_image: {images}
doc_to_text: "{text}"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metadata: {{dataset: own}}
"""


@dataclass(frozen=True)
class Album:
    """A folder with a task file and rows that name images beside them: ``0.png`` to ``9.png``."""

    folder: Path

    def build(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        images: str = "image",
        text: str = "Q: {{ q }}",
        shots: int = 0,
        code: str = "",
        more: str = "",
    ) -> Task:
        data = self.folder / "own"
        data.mkdir(exist_ok=True)
        for number in range(10):
            (data / f"{number}.png").write_bytes(encoded(picture(seed=number)))
        for split in ("test", "train"):
            (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        file = self.folder / "seen.yaml"
        file.write_text(TASK.format(images=images, text=text) + more)
        if code:
            (self.folder / "own_code.py").write_text(code)
        suite = load_suite((file,), allow_code=bool(code))
        return build_task(suite.task("seen"), suite, FolderSource(self.folder), shots=shots)


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return Album(tmp_path)


def row(image: Any, **more: Any) -> dict[str, Any]:
    return {"image": image, "q": "red?", "label": 1, **more}


def numbers(item: RenderedItem) -> list[int]:
    """The numbers of an item's images."""
    known = {decode_image(picture(seed=number), folder=None): number for number in range(10)}
    return [known[image] for image in item.images]


def test_an_image_stands_before_a_question_that_does_not_place_it(album: Album) -> None:
    item = render_item(album.build([row("1.png")]), 0, PLAIN)
    assert (item.contexts, numbers(item)) == (("<image>\nQ: red?", "<image>\nQ: red?"), [1])


@pytest.mark.parametrize(
    ("images", "made", "text", "prompt", "expected"),
    [
        ("image", row("1.png"), "Look: <image> {{ q }}", "Look: <image> red?", [1]),
        ("[image, other]", row("1.png", other="2.png"), "{{ q }}", "<image> <image>\nred?", [1, 2]),
        ("[other, image]", row("1.png", other="2.png"), "<image>, <image>", "<image>, <image>", [2, 1]),
        ("[image, other]", row("1.png", other=None), "{{ q }}", "<image>\nred?", [1]),
        ("[image]", row(None), "{{ q }}", "red?", []),
        ("image", row(["3.png", "1.png"]), "{{ q }}", "<image> <image>\nred?", [3, 1]),
        ("'{{ q[0] | length + 3 }}.png'", row("x"), "{{ q }}", "<image>\nred?", [4]),
        ("\"['1.png', '{{ image }}']\"", row("2.png"), "{{ q }}", "<image>\nred?", None),
        ("!function own_code.images", row("2"), "{{ q }}", "<image>\nred?", [2]),
    ],
)
def test_images_come_in_the_order_of_their_marks(
    album: Album, images: str, made: dict[str, Any], text: str, prompt: str, expected: list[int] | None
) -> None:
    code = "def images(row):\n    return [row['image'] + '.png']\n"
    if expected is None:
        prompt, expected = "<image> <image>\nred?", [1, 2]
    item = render_item(album.build([made], images=images, text=text, code=code), 0, PLAIN)
    assert (item.contexts[0], numbers(item)) == (prompt, expected)


def test_exemplars_show_theirs_first(album: Album) -> None:
    task = album.build([row(f"{n}.png", q=str(n)) for n in range(4)], shots=2)
    for index in range(4):
        item = render_item(task, index, PLAIN, seed=1)
        shown = [*task.exemplars(1, index), index]
        assert numbers(item) == shown
        assert [int(n) for n in re.findall(r"<image>\nQ: (\d)", item.contexts[0])] == shown
    zero = render_item(album.build([row("5.png")]), 0, PLAIN)
    assert numbers(zero) == [5]


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (row("none.png"), {}, "none.png: no such file"),
        (row(None), {}, "image: the row has no image"),
        (row([]), {}, "image: the row has no image"),
        (row("1.png"), {"text": "<image> <image>"}, "the prompt has 2 marks <image> for 1 image"),
        (row("1.png"), {"images": "picture"}, "there is no column 'picture' (there are image, q, label)"),
        (row(["1.png", None]), {}, "an image is a path or the contents of a file, not nothing (None)"),
        (row("https://example.org/1.png"), {}, "is a URL"),
        (row("../seen.yaml"), {}, "leads out of"),
    ],
)
def test_a_row_whose_images_do_not_fit_is_named(
    album: Album, made: dict[str, Any], settings: dict[str, str], message: str
) -> None:
    first = ["1.png"] if isinstance(made["image"], list) else "1.png"
    rows = [row(first), made]
    with pytest.raises(UsageError) as caught:
        task = album.build(rows, **settings)  # type: ignore[arg-type]
        [render_item(task, index, PLAIN) for index in range(2)]
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{album.folder / 'own' / 'test.jsonl'}:")


def test_an_exemplar_whose_image_is_missing_is_named(album: Album) -> None:
    task = album.build([row("1.png"), row("none.png")], shots=1)
    with pytest.raises(UsageError, match=r"train\.jsonl:2: exemplar of task seen: .*none\.png: no such file"):
        render_item(task, 0, PLAIN)
