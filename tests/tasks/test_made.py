"""Rows that are made: each answer is true of its picture, and the same seed gives the same rows."""

from __future__ import annotations

import io
import random
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import PIL.Image
import pytest

from cme_bench.tasks.hub import HubSource
from cme_bench.tasks.made import make, packages
from cme_bench.tasks.made.art import Art, Thing, read_art
from cme_bench.tasks.made.easy_vqa import Question, labels
from cme_bench.tasks.made.make import make_split, splits_of
from cme_bench.tasks.made.packages import NpmPackage
from cme_bench.tasks.made.rows import POPE_SPLITS, emoji_count, emoji_name, emoji_pope, emoji_where
from cme_bench.tasks.made.scenes import draw, place, png
from cme_bench.tasks.made.training_rows import write_training_rows
from cme_bench.tasks.open_source import source_of
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import CmeError, UsageError

WORDS = "ant bee cat dog elk fox gnu hen ibis jay kite lark mole newt owl pig ram seal toad wolf".split()


def colour(number: int) -> tuple[int, int, int]:
    return 10 * number, 200 - 10 * number, 7 * number


def art() -> Art:
    """Twenty things, each a square of a colour of its own, of four kinds."""
    things = [Thing(word, f"kind {i % 4}", f"{word}.png") for i, word in enumerate(WORDS)]
    pictures = {
        thing.file: png(PIL.Image.new("RGBA", (64, 64), (*colour(i), 255))) for i, thing in enumerate(things)
    }
    return Art(things, (), pictures)


def where(data: bytes, name: str) -> np.ndarray:
    """The places (y, x) of a thing's pixels."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data)))
    assert pixels.shape == (224, 224, 3)
    return np.argwhere((pixels == colour(WORDS.index(name))).all(-1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_as_many_are_there_as_the_answer_says(split: str) -> None:
    rows = list(islice(emoji_count(art(), split), 24))
    for row in rows:
        assert len(where(row.draw(), row.values["name"])) == 64 * 64 * row.values["count"]
    assert Counter(row.values["count"] for row in rows) == dict.fromkeys(range(1, 7), 4)


def test_things_stand_to_each_other_as_the_answer_says() -> None:
    rows = list(islice(emoji_where(art(), "test"), 24))
    for row in rows:
        data, values = row.draw(), row.values
        one, other = (where(data, values[key]).mean(axis=0) for key in ("one", "other"))
        axis = 1 if values["choices"] == ["left", "right"] else 0
        assert abs(one[axis] - other[axis]) > 40  # in another column, or row
        assert values["label"] == int(one[axis] > other[axis])
    assert set(Counter((*row.values["choices"], row.values["label"]) for row in rows).values()) == {6}


@pytest.mark.parametrize("split", [*POPE_SPLITS, "train"])
def test_what_is_asked_is_there_or_not(split: str) -> None:
    rows = list(islice(emoji_pope(art(), split), 24))
    for row in rows:
        there = len(where(row.draw(), row.values["name"])) > 0
        assert row.values["answer"] == ("yes" if there else "no")
    assert Counter(row.values["answer"] for row in rows) == {"yes": 12, "no": 12}
    assert Counter(row.picture for row in rows) == dict.fromkeys([row.picture for row in rows], 6)


def test_absent_things_are_frequent_or_go_with_what_is_there() -> None:
    asked = {split: list(emoji_pope(art(), split)) for split in (*POPE_SPLITS, "train")}
    scenes = {split: [row.draw() for row in rows[:6:6]] for split, rows in asked.items() if split != "train"}
    assert scenes["random"] == scenes["popular"] == scenes["adversarial"]
    seen = Counter(r.values["name"] for r in asked["train"] if r.values["answer"] == "yes")
    mean = {
        split: np.mean([seen[r.values["name"]] for r in rows if r.values["answer"] == "no"])
        for split, rows in asked.items()
    }
    assert mean["popular"] > mean["adversarial"] > mean["random"]


def test_a_name_stands_among_three_others_of_any_or_of_its_own_kind() -> None:
    kinds = {thing.name: thing.kind for thing in art().things}
    rows = list(emoji_name(art(), "test"))
    assert len(rows) == 40
    for row in rows:
        choices = row.values["choices"]
        name = choices[row.values["label"]]
        assert len(set(choices)) == 4 and row.picture == name
        alike = [kinds[choice] == kinds[name] for choice in choices]
        assert all(alike) or row.values["others"] == "any"
    assert len({row.values["label"] for row in rows}) == 4


def test_a_seed_gives_the_same_scene_on_every_machine() -> None:
    placed = place(random.Random("x"), art().things[:3])
    assert [(item.thing.name, item.row, item.column) for item in placed] == [
        ("ant", 2, 1),
        ("bee", 1, 1),
        ("cat", 2, 0),
    ]
    first, again = (draw(random.Random("y"), art(), placed) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.getpixel((0, 0)) == (255, 255, 255)


def package(folder: Path) -> Path:
    """A package of emoji as npm has it: a dog in two sizes of name, a flag, and what is left out."""

    def entry(name: str, order: int, kind: str = "animal-mammal", **more: object) -> dict[str, object]:
        known = {"has_img_google": True, "has_img_twitter": True, "image": f"{order}.png"}
        return {"name": name, "subcategory": kind, "sort_order": order, **known, **more}

    table = [
        entry("DOG FACE", 2),
        entry("DOG", 3),
        entry("WOLF", 1),
        entry("BLACK SCISSORS", 4, "office"),
        entry("GRAPES", 5, "food-fruit"),
        entry("GRINNING FACE", 6, "face-smiling"),
        entry("CAT", 7, has_img_twitter=False),
        entry("Egypt Flag", 8, "country-flag"),
    ]
    file = folder / "emoji.tgz"
    with tarfile.open(file, "w:gz") as archive:
        files = {f"img/google/64/{i}.png": png(PIL.Image.new("RGBA", (64, 64))) for i in range(1, 9)}
        for name, data in {"emoji.json": orjson.dumps(table), **files}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def test_art_has_plain_names_in_unicodes_order(tmp_path: Path) -> None:
    found = read_art(package(tmp_path), "google")
    assert [(thing.name, thing.file) for thing in found.things] == [("wolf", "1.png"), ("dog", "2.png")]
    assert [flag.name for flag in found.flags] == ["Egypt"]
    assert found.sprite(found.things[0]).size == (64, 64)
    with pytest.raises(CmeError, match="holds no pictures of style 'twitter'"):
        read_art(package(tmp_path), "twitter")
    (tmp_path / "emoji.tgz").write_bytes(b"no archive")
    with pytest.raises(CmeError, match="cannot be read"):
        read_art(tmp_path / "emoji.tgz", "google")


def test_a_split_is_written_with_its_pictures(tmp_path: Path) -> None:
    assert make_split("digits", "test", tmp_path) == 797
    rows = [orjson.loads(line) for line in (tmp_path / "test.jsonl").read_bytes().splitlines()]
    assert len(list((tmp_path / "test").iterdir())) == 797
    picture = PIL.Image.open(tmp_path / rows[0]["image"])
    assert picture.size == (64, 64) and picture.mode == "RGB"
    with pytest.raises(UsageError, match="digits has no split 'validation'"):
        make_split("digits", "validation", tmp_path)
    with pytest.raises(UsageError, match="no dataset 'digit'; did you mean 'digits'"):
        splits_of("digit")


def test_training_and_scored_digits_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{row.picture for row in make._digits(split)} for split in ("train", "test")]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 1797


def test_tasks_of_the_hub_get_rows_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    suite = load_suite()
    source = source_of(suite.task("cme_mm_digits"), HubSource())
    assert source.name == "cme-bench/made"
    assert len(source.rows(suite.task("cme_mm_digits"), "test").table) == 797
    offline = source_of(suite.task("cme_mm_flags"), HubSource(offline=True))
    with pytest.raises(CmeError, match=r"rows of cme_mm_flags: emoji-datasource-twitter@16.0.0 is not in"):
        offline.rows(suite.task("cme_mm_flags"), "test")
    with pytest.raises(CmeError, match="npm is not here to download it"):
        NpmPackage("x", "1", "0").ensure()
    assert source_of(suite.task("cme_rte"), source) is source


def test_facts_of_easy_vqa_follow_from_questions_and_answers() -> None:
    asked = [
        Question("is there not a red shape?", "yes", 1),
        Question("is there not a blue shape in the image?", "no", 1),
        Question("what shape is present?", "circle", 1),
        Question("is no triangle present?", "yes", 2),
        Question("what is the color of the triangle?", "teal", 3),
    ]
    assert labels(asked) == {1: {"blue", "circle"}, 2: set(), 3: {"triangle", "teal"}}
    assert asked[2].choices == ("circle", "rectangle", "triangle") and asked[0].choices == ("yes", "no")


def test_training_rows_ask_what_the_tasks_ask(tmp_path: Path) -> None:
    suite = load_suite()
    assert write_training_rows(suite, suite.select("cme_mm_digits,cme_mm_digits_ll"), tmp_path) == 1000
    rows = [orjson.loads(line) for line in (tmp_path / "cme_mm.train.jsonl").read_bytes().splitlines()]
    assert all((tmp_path / row["image"]).is_file() for row in rows[:20])
    assert {row["instruction"] for row in rows} == {
        "<image>\nRead the handwritten digit in the image. Answer with a number.\n\nAnswer:"
    }
    assert {row["output"] for row in rows} == set("0123456789")
    assert write_training_rows(suite, suite.select("cme_rte"), tmp_path / "none") == 0
