"""Tasks that show images: which images an item gets, where they stand, and what is refused."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, Features, Image

from cme_bench.images.decode import decode_image
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import RenderedItem, render_item
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import DataSource, FolderSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.stored_rows import table_of, undecoded
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.pictures import encoded, picture

PLAIN = resolve_format("plain", None, generated=False)
TASK = """\
task: seen
dataset_path: {source}
test_split: test
{fewshot}output_type: multiple_choice
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
        source: str = "own/data",
        fewshot: str = "fewshot_split: train\n",
        more: str = "",
    ) -> Task:
        data = self.folder / "own"
        data.mkdir(exist_ok=True)
        for number in range(10):
            (data / f"{number}.png").write_bytes(encoded(picture(seed=number)))
        for split in ("test", "train"):
            (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        file = self.folder / "seen.yaml"
        file.write_text(TASK.format(images=images, text=text, source=source, fewshot=fewshot) + more)
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
        ("!function own_code.lazy", row("2"), "{{ q }}", "<image>\nred?", [2]),
        ("!function own_code.images", row("2"), "{{ q }}", "<image>\nred?", [2]),
    ],
)
def test_images_come_in_the_order_of_their_marks(
    album: Album, images: str, made: dict[str, Any], text: str, prompt: str, expected: list[int] | None
) -> None:
    code = "def images(row):\n    return [row['image'] + '.png']\n"
    code += "def lazy(row):\n    yield row['image'] + '.png'\n"
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
        (row("../../seen.yaml"), {}, "leads out of"),
        (row("x"), {"images": "'[{{ image }}'"}, "renders '[1.png', which is no list of paths"),
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


def test_exemplars_of_the_task_file_name_images_beside_it(album: Album) -> None:
    more = "fewshot_config:\n  split: null\n  samples:\n    - {image: own/3.png, q: blue?, label: 0}\n"
    task = album.build([row("1.png")], shots=1, more=more, fewshot="")
    item = render_item(task, 0, PLAIN)
    assert item.contexts[0] == "<image>\nQ: blue? no\n\n<image>\nQ: red?"
    assert numbers(item) == [3, 1]


def test_exemplars_inside_rows_are_shown(album: Album) -> None:
    task = pictured(album, [embedded(1), embedded(2), embedded(3)], shots=2, fewshot="fewshot_split: test\n")
    item = render_item(task, 1, PLAIN)
    assert numbers(item) == [n + 1 for n in (*task.exemplars(0, 1), 1)]
    assert len(set(numbers(item))) == 3


def test_images_may_lie_anywhere_below_the_folder_of_data(album: Album) -> None:
    (album.folder / "shared").mkdir()
    (album.folder / "shared" / "a.png").write_bytes(encoded(picture(seed=6)))
    assert numbers(render_item(album.build([row("../shared/a.png")]), 0, PLAIN)) == [6]
    (album.folder / "rows").mkdir()
    (album.folder / "rows" / "test.jsonl").write_text(json.dumps(row("../shared/a.png")) + "\n")
    more = "dataset_kwargs: {data_files: {test: rows/test.jsonl}}\n"
    assert numbers(render_item(album.build([row("1.png")], source="json", more=more), 0, PLAIN)) == [6]


def test_an_exemplar_whose_image_is_missing_is_named(album: Album) -> None:
    task = album.build([row("1.png"), row("none.png")], shots=1)
    with pytest.raises(UsageError, match=r"train\.jsonl:2: exemplar of task seen: .*none\.png: no such file"):
        render_item(task, 0, PLAIN)


def pictured(album: Album, values: list[Any], **settings: Any) -> Task:
    """A task over a Parquet file with these values in its column ``image``."""
    import pyarrow
    import pyarrow.parquet

    columns = {"image": values, "q": ["red?"] * len(values), "label": [1] * len(values)}
    pyarrow.parquet.write_table(pyarrow.table(columns), album.folder / "test.parquet")
    more = "dataset_kwargs: {data_files: {test: test.parquet}}\n"
    return album.build([row("1.png")], source="parquet", more=more, **settings)


def embedded(seed: int, kind: str = "PNG", **settings: Any) -> dict[str, Any]:
    return {"bytes": encoded(picture(seed=seed), kind, **settings), "path": f"{seed}.png"}


def test_the_hash_is_that_of_the_pixels(album: Album) -> None:
    task = pictured(album, [embedded(1), embedded(2)])
    same = [
        pictured(album, [embedded(1, compress_level=0), embedded(2, "WEBP", lossless=True)]),
        pictured(album, [embedded(n)["bytes"] for n in (1, 2)]),
        pictured(album, [f"own/{n}.png" for n in (1, 2)]),
        pictured(album, [base64.b64encode(embedded(n)["bytes"]).decode() for n in (1, 2)]),
    ]
    assert {other.hash for other in same} == {task.hash}
    assert pictured(album, [embedded(2), embedded(1)]).hash != task.hash
    assert pictured(album, [embedded(1), embedded(3)]).hash != task.hash
    assert pictured(album, [[embedded(1)], [embedded(2)]]).hash == task.hash


def test_the_hash_covers_the_images_of_exemplars(album: Album) -> None:
    more = "fewshot_config:\n  split: null\n  samples:\n    - {image: own/3.png, q: blue?, label: 0}\n"

    def hashed(seed: int, shots: int) -> str:
        task = album.build([row("1.png")], shots=shots, more=more, fewshot="")
        (album.folder / "own" / "3.png").write_bytes(encoded(picture(seed=seed)))
        return task.hash

    assert hashed(3, 0) == hashed(7, 0)
    assert hashed(3, 1) == hashed(3, 1) != hashed(7, 1)


def test_a_damaged_image_anywhere_is_named_when_the_task_is_hashed(album: Album) -> None:
    task = pictured(album, [embedded(1), {"bytes": b"GIF89a", "path": "2.png"}])
    with pytest.raises(UsageError, match=r"test\.parquet row 1: a GIF; images are PNG, JPEG or WebP"):
        _ = task.hash


def test_rows_do_not_hold_the_contents_of_their_images(album: Album) -> None:
    for form in ([embedded(1)], [[embedded(1)]], [embedded(1)["bytes"]]):
        task = pictured(album, form)
        item = render_item(task, 0, PLAIN)
        assert numbers(item) == [1]
        assert len(repr(item.doc)) < 100
        stored = task.lm_eval.recorded(item.doc)["image"]
        digest = f"sha256:{item.images[0].digest}"
        assert stored == ([digest] if isinstance(form[0], list) else digest)


def test_a_function_gets_images_of_pillow(album: Album) -> None:
    code = "def images(row):\n    return [row['image'].convert('RGB').crop((0, 0, 2, 1)), row['image']]\n"
    task = pictured(album, [embedded(1)], images="!function own_code.images", code=code)
    part, whole = render_item(task, 0, PLAIN).images
    assert (part.width, part.height, whole) == (2, 1, decode_image(picture(seed=1), folder=None))
    assert whole.data == embedded(1)["bytes"]


def test_images_of_datasets_are_not_decoded_when_rows_are_read() -> None:
    import datasets
    import pyarrow

    features = datasets.Features(
        {"image": datasets.Image(), "more": datasets.List(datasets.Image()), "sound": datasets.Audio()}
    )
    made = {"image": embedded(1), "more": [embedded(2)], "sound": {"bytes": b"RIFF", "path": None}}
    table = undecoded(table_of(pyarrow.Table.from_pylist([made], features.arrow_schema), features))
    assert table[0] == made
    prints = [Rows(table, "hub").fingerprint() for _ in range(2)]
    assert prints[0] == prints[1]
    pillow = datasets.Dataset.from_list(
        [{"image": embedded(1)}], features=datasets.Features({"image": datasets.Image()})
    )
    assert Rows(pillow, "hub").fingerprint() == Rows(pillow, "hub").fingerprint()


class Hubs(DataSource):
    """Rows as ``datasets`` gives them, with images that it would decode."""

    name = "made"

    def __init__(self, rows: list[dict[str, Any]], images: list[str]) -> None:
        kinds = {key: Image() for key in images}
        table = pyarrow.Table.from_pylist(rows)
        features = Features.from_arrow_schema(table.schema)
        self._rows = Rows(Dataset.from_list(rows, features=Features({**features, **kinds})), "hub")

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        return self._rows

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        return {}


def lm_eval_item(name: str, source: Hubs) -> RenderedItem:
    suite = load_suite()
    [spec] = suite.select(name)
    return render_item(build_task(spec, suite, source), 0, PLAIN)


def test_chartqa_of_lm_eval_shows_its_column() -> None:
    item = lm_eval_item(
        "lm_eval:chartqa", Hubs([{"image": embedded(3), "query": "How many?", "label": ["3"]}], ["image"])
    )
    assert item.contexts[0].startswith("<image>How many?\n")
    assert numbers(item) == [3]


def test_mmmu_of_lm_eval_shows_an_image_as_often_as_it_is_named() -> None:
    columns = [f"image_{n}" for n in range(1, 8)]
    made: dict[str, Any] = {name: embedded(n) for n, name in enumerate(columns, start=1)} | {"image_7": None}
    made |= {"question": "Is <image 2> or <image 1> in <image 2>?", "options": "['<image 3>', 'both']"}
    item = lm_eval_item(
        "lm_eval:mmmu_val_art", Hubs([made | {"answer": "A", "question_type": "multiple-choice"}], columns)
    )
    assert item.contexts[0].startswith("Is <image> or <image> in <image>?\n\n(A) <image>\n(B) both")
    assert numbers(item) == [2, 1, 2, 3]


def test_answers_that_a_server_would_judge_are_refused() -> None:
    with pytest.raises(UsageError, match="a model of a server judges the answers"):
        load_suite().select("lm_eval:pisa_en_llm_judged")
