"""Training on rows with images: the loss is that of the model's own forward; what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from cme_bench.adapters.load import load_adapter
from cme_bench.authoring.table_files import read_table
from cme_bench.training.batches import collate
from cme_bench.training.book import Book, show
from cme_bench.training.loss import target_loss
from cme_bench.training.options import TrainOptions
from cme_bench.training.own_rows import form_of, read_rows
from cme_bench.training.own_set import OwnSet
from cme_bench.training.pictured import Pictured, with_pictures
from cme_bench.training.plan import load_sets
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.tokens import Example, TokenTable, TrainingEncoder, training_encoder
from cme_bench.training.train import train
from cme_bench.training.validation import validate
from cme_bench.util.errors import UsageError
from tests.support.pictures import picture
from tests.support.seen import Seeing
from tests.support.tiny_llava import IMAGE_TOKENS, llava_processor, random_llava, save_llava, seeing

Make = Callable[..., TrainOptions]
MARK = "<image>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    own = seeing(toy_tokenizer)
    model = random_llava(0, own, positions=256)
    return save_llava(tmp_path_factory.mktemp("llava"), model, llava_processor(own))


def chat(*turns: str) -> list[dict[str, str]]:
    """Turns as LLaVA writes them: a person's, an answer, and so on."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "conversations": chat(f"{MARK}\nIs it red?", "no")},
    {"image": ["b.png", "c.png"], "conversations": chat(f"{MARK}{MARK} Which?", "b", "Why?", "so it is")},
    {"image": "a.png", "conversations": chat("No mark?", "then before")},
    {"image": None, "conversations": chat("No image", "at all")},
    {"image": "c.png", "conversations": chat("First text.", "yes", f"Now {MARK} this?", "c")},
]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> Path:
    for seed, letter in enumerate("abc"):
        picture(32, 32, seed).save(folder / f"{letter}.png")
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[Any]:
    table = read_table(file)
    form = form_of(table.columns, "auto", table.origin)
    return with_pictures(read_rows(table, form), table.rows, table.origin, table.place)


def own_nll(model: Seeing, example: Example, images: tuple[Any, ...]) -> float:
    """The loss of one example by the model's own forward, which is fed pixels."""
    token = model.vision.token_id
    ids = torch.tensor([[token if i < 0 else i for i in example.ids]])
    learnt = torch.ones(len(example.ids), dtype=torch.bool)
    learnt[: example.source_length] = False
    for start, stop in example.gaps:
        learnt[start:stop] = False
    pixels = model.vision.inputs(images) if images else {}
    with torch.inference_mode():
        logits = model.model(input_ids=ids, **pixels, use_cache=False).logits[0, :-1]
    nlls = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return float(nlls[learnt[1:]].sum())


@pytest.mark.parametrize("form", ["conversations", "instruction", "prompt"])
def test_the_loss_is_that_of_the_models_own_forward(folder: Path, tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = ROWS
    if form == "instruction":
        rows = [
            {"image": "a.png", "instruction": f"Look: {MARK}", "input": "Red?", "output": "no"},
            {"image": ["a.png", "b.png"], "instruction": "Which?", "input": "", "output": "both of them"},
        ]
    if form == "prompt":
        rows = [{"images": ["b.png"], "prompt": f"See {MARK}:", "completion": " a thing"}]
    model = Seeing.load(folder)
    book = Book(model.vision)
    name = {"conversations": "chat", "instruction": "alpaca", "prompt": "plain"}[form]
    encoder = TrainingEncoder(model.tokenizer, name, 240, book=book)
    own = read(write(tmp_path, rows))
    examples = list(encoder.encode(own))
    images = [row.images if isinstance(row, Pictured) else () for row in own]
    for example, seen in zip(examples, images, strict=True):
        assert sum(i < 0 for i in example.ids[: example.source_length + 200]) == IMAGE_TOKENS * len(seen)
    distinct = list(dict.fromkeys(image for seen in images for image in seen))
    assert book.images == distinct and book.size == IMAGE_TOKENS * len(distinct)
    wanted = sum(own_nll(model, e, seen) for e, seen in zip(examples, images, strict=True))
    table = TokenTable(examples)
    batch = collate([table[i] for i in range(len(table))], 0)
    show(model.model, book, lambda text: None)
    with target_loss(model.model), torch.inference_mode():
        assert float(model.model(**batch).nll) == pytest.approx(wanted, rel=1e-4)
    assert table.highest < model.model.get_input_embeddings().num_embeddings


def test_learnt_parts_are_the_answers(folder: Path, tmp_path: Path) -> None:
    model = Seeing.load(folder)
    encoder = TrainingEncoder(model.tokenizer, "chat", 200, book=Book(model.vision))
    *_, last = encoder.encode(read(write(tmp_path, ROWS)))
    start, stop = last.gaps[0]
    text = lambda ids: model.tokenizer.decode([i for i in ids if i >= 0])  # noqa: E731
    assert text(last.ids[last.source_length : start]).strip() == "yes"
    assert text(last.ids[stop:]).strip() == "c</s>" and min(last.ids[start:stop]) < 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png", "conversations": chat(f"{MARK}{MARK}?", "x")}, "2 marks <image> for 1 image"),
        ({"image": None, "conversations": chat(f"{MARK}?", "x")}, "1 mark <image> for 0 images"),
        ({"image": "a.png", "conversations": chat("?", f"x {MARK}")}, "an answer has the mark"),
        ({"image": "nosuch.png", "conversations": chat("?", "x")}, "no such file"),
        ({"image": "../a.png", "conversations": chat("?", "x")}, "leads out of"),
        ({"image": 3, "conversations": chat("?", "x")}, "not a value of type int"),
        ({"image": "a.png", "images": [], "conversations": chat("?", "x")}, "columns image and images"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path, [{**row, "image": "a.png"} | row, row])
    with pytest.raises(UsageError, match=said) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))


def test_images_are_never_cut(folder: Path, tmp_path: Path) -> None:
    model = Seeing.load(folder)
    encoder = TrainingEncoder(model.tokenizer, "chat", 32, book=Book(model.vision))
    file = write(tmp_path, [{"image": "a.png", "conversations": chat(f"{MARK}\n" + "word " * 9, "x")}])
    with pytest.raises(UsageError, match=rf"{file}:1: \d+ tokens with its images, and --max-length is 32"):
        list(encoder.encode(read(file)))


@pytest.mark.parametrize("kind", ["contents", "bytes", "lists"])
def test_images_inside_parquet_are_those_of_files(kind: str, tmp_path: Path) -> None:
    asked = [{"instruction": f"Look {letter}", "output": "yes"} for letter in "abc"]
    files = write(
        tmp_path, [{**row, "image": f"{letter}.png"} for row, letter in zip(asked, "abc", strict=True)]
    )
    contents = [(tmp_path / f"{letter}.png").read_bytes() for letter in "abc"]
    shown: dict[str, list[Any]] = {
        "contents": [{"bytes": data, "path": None} for data in contents],
        "bytes": contents,
        "lists": [[{"bytes": data, "path": "x.png"}] for data in contents],
    }
    table = pyarrow.Table.from_pylist(
        [{**row, "image": image} for row, image in zip(asked, shown[kind], strict=True)]
    )
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    own, wanted = (
        load_sets(
            TrainOptions(model="x", method="lora", out=tmp_path, data=str(file), holdout=1),
            note=lambda line: None,
        )[0]
        for file in (tmp_path / "mine.parquet", files)
    )
    assert isinstance(own, OwnSet) and isinstance(wanted, OwnSet)
    assert own.pictured and own.fingerprint == wanted.fingerprint
    assert own.columns == wanted.columns and own.held.tolist() == wanted.held.tolist()


def test_a_damaged_image_inside_parquet_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [{"instruction": "Look", "output": "yes", "image": {"bytes": b"no image", "path": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    options = TrainOptions(model="x", method="lora", out=tmp_path, data=str(tmp_path / "mine.parquet"))
    with pytest.raises(UsageError, match=r"mine\.parquet row 0"):
        load_sets(options, note=lambda line: None)


def test_a_text_model_is_refused(options: Make, tmp_path: Path) -> None:
    file = write(tmp_path, ROWS)
    with pytest.raises(UsageError, match="rows have images, and tiny takes text alone"):
        train(options("lora", data=str(file), datasets="all"))


def test_trainings_and_sweeps_see_images(options: Make, folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path, ROWS * 3)
    chosen = options("lora", data=str(file), datasets="all", model=str(folder), max_steps=6, batch_size=3)
    record = json.loads((train(chosen) / "cme_training.json").read_text())
    assert record["prompt_format"] == "chat"
    assert "image" in record["mixture"]["datasets"][0]["parts"][0]["columns"]
    alone = load_file(chosen.out / "adapter_model.safetensors")
    assert alone and all("language_model" in name for name in alone)  # the tower is left as it is
    together = [replace(chosen, out=tmp_path / "one"), replace(chosen, out=tmp_path / "two", rank=2)]
    sweep(together)
    swept = load_file(tmp_path / "one" / "adapter_model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(swept[name], value, rtol=1e-3, atol=1e-4)


def test_held_out_images_are_scored_as_by_the_models_own_forward(
    options: Make, folder: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, ROWS)
    chosen = options(
        "lora", data=str(file), datasets="all", model=str(folder), max_steps=2, batch_size=2, holdout=3
    )
    sets = load_sets(chosen, note=lambda line: None)
    adapter = train(chosen, sets=sets)
    found = validate(adapter, chosen, sets)
    model = Seeing.load(folder)
    load_adapter(model.model, adapter).eval()  # its layers are put into the model itself
    (own,) = sets
    assert isinstance(own, OwnSet)
    held = [own.rows[i] for i in own.held]
    asked = replace(chosen, prompt_format="chat")
    encoder = training_encoder(asked, model.tokenizer, model.model.config, Book(model.vision))
    examples = list(encoder.encode(held))
    images = [row.images if isinstance(row, Pictured) else () for row in held]
    assert any(images) and found.items == 3
    nll = sum(own_nll(model, e, seen) for e, seen in zip(examples, images, strict=True))
    assert found.loss * found.target_tokens == pytest.approx(nll, rel=1e-4)


def test_other_pixels_are_another_training(options: Make, folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path, ROWS)
    chosen = options("lora", data=str(file), datasets="all", model=str(folder), max_steps=1, batch_size=2)
    train(chosen)
    picture(32, 32, 9).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="holds a training with other data"):
        train(chosen)


@pytest.mark.slow
def test_smollava_trains_on_images(tmp_path: Path) -> None:
    """A base of 16-bit weights whose tower computes in float32 on a CPU."""
    file = write(tmp_path, ROWS[:1])
    options = TrainOptions(
        method="lora",
        model="smollava",
        out=tmp_path / "out",
        data=str(file),
        max_steps=1,
        batch_size=1,
        max_length=400,
        dtype="float32",
    )
    record = json.loads((train(options) / "cme_training.json").read_text())
    assert record["finished"] and record["final_loss"] > 0
