"""The benchmarks of LLaVA-1.5: prompts and scores are lmms-eval's, whose own functions gave the fixture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from cme_bench.scoring.llava15 import pope, pope_f1, pope_precision, pope_recall
from cme_bench.scoring.mmbench import circular, mmbench
from cme_bench.scoring.mme import mme, mme_score
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import FolderSource
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

KNOWN = json.loads((Path(__file__).parents[1] / "scoring" / "data" / "lmms_eval.json").read_text())
SUITE = load_suite()
NAMES = [spec.name.removeprefix("llava15_") for spec in SUITE.select("llava15")]
ITEM_METRIC = {"pope": "pope_accuracy", "seed": "seed_image"}


def png() -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def write(name: str, folder: Path, parts: int = 1) -> None:
    """Write the fixture's rows as the hub has them: Parquet files, images within."""
    spec = SUITE.task(f"llava15_{name}")
    rows: list[dict[str, Any]] = [dict(row["doc"]) for row in KNOWN[name]]
    for row in rows:
        image = {"bytes": png(), "path": None}
        row["image"] = [image] if name == "seed" else image
    if name == "gqa":
        for row in rows:
            del row["image"]
            file = folder / "gqa" / spec.config["dataset_name"] / "images" / f"{row['imageId']}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (4, 4)).save(file)
    if name == "seed":
        video = {**rows[0], "data_type": "video", "image": rows[0]["image"] * 8}
        rows.insert(1, video)
    target = folder / spec.folder / str(spec.config.get("dataset_name") or "data")
    target.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // parts)
    for part in range(parts):
        table = pyarrow.Table.from_pylist(rows[part * size : (part + 1) * size])
        pyarrow.parquet.write_table(
            table, target / f"{spec.eval_split}-{part:05d}-of-{parts:05d}-1a2b.parquet"
        )


def build(name: str, folder: Path) -> Task:
    return build_task(SUITE.task(f"llava15_{name}"), SUITE, FolderSource(folder))


def test_nine_benchmarks_are_there() -> None:
    assert NAMES == ["gqa", "mmbench", "mme", "pope", "scienceqa", "seed", "textvqa", "vizwiz", "vqav2"]
    assert not any(spec.in_cme for spec in SUITE.select("llava15"))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_scores_are_lmms_evals(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    task = build(name, tmp_path)
    assert len(task.docs) == len(KNOWN[name])  # SEED's video is left out
    for index, row in enumerate(KNOWN[name]):
        doc = task.docs[index]
        assert task.lm_eval.doc_to_text(doc) == f"<image>\n{row['prompt']}"
        assert len(task.lm_eval.images_of(doc)) == 1
        for response, score in row["scores"]:
            found = task.lm_eval.process_results(doc, [response])
            value = found[ITEM_METRIC.get(name, next(iter(found)))]
            value = value[-1] if isinstance(value, list) else value
            assert value == pytest.approx(score, abs=1e-12), (response, row["doc"])


def test_all_parts_of_a_split_are_read_or_none(tmp_path: Path) -> None:
    write("pope", tmp_path, parts=2)
    assert [doc["answer"] for doc in build("pope", tmp_path).docs] == ["yes", "no"]
    keys = FolderSource(tmp_path).dataset_keys(SUITE.task("llava15_pope"), ["test"])
    assert keys["dataset_path"] == "parquet" and len(keys["dataset_kwargs"]["data_files"]["test"]) == 2
    next((tmp_path / "pope" / "data").glob("test-00000*")).unlink()
    with pytest.raises(UsageError, match="1 of the 2 parts of split 'test' are there"):
        build("pope", tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        build("mme", tmp_path)


def test_pope_over_all_items() -> None:
    for known in KNOWN["pope_aggregates"]:
        items = zip(known["answers"], known["responses"], strict=True)
        values = [pope({"answer": right}, [given]) for right, given in items]
        pairs = [value["pope_f1_score"] for value in values]
        assert pope_precision(pairs) == pytest.approx(known["pope_precision"])
        assert pope_recall(pairs) == pytest.approx(known["pope_recall"])
        assert pope_f1(pairs) == pytest.approx(known["pope_f1_score"])
        mean = sum(value["pope_accuracy"] for value in values) / len(values)
        assert mean == pytest.approx(known["pope_accuracy"])


def test_mme_over_all_items() -> None:
    for known in KNOWN["mme_aggregates"]:
        items = zip(known["docs"], known["responses"], strict=True)
        values = [
            mme({"category": category, "question_id": image, "answer": right}, [given])
            for (category, image, right), given in items
        ]
        for metric in ("mme_perception_score", "mme_cognition_score"):
            mine = [value[metric] for value in values if metric in value]
            if metric in known:
                assert mme_score(mine) == pytest.approx(known[metric])
                assert mme_score(mine[1:]) != mme_score(mine[1:])  # a pair is cut: no number
    assert mme_score([]) != mme_score([])


def test_circular_over_all_items() -> None:
    options = {"A": "cat", "B": "red apple", "C": "yes", "D": "no"}
    for known in KNOWN["mmbench_aggregates"]:
        items = zip(known["docs"], known["responses"], strict=True)
        values = [
            mmbench({"index": index, "answer": right, **options}, [given])["circular_acc"]
            for (index, right), given in items
        ]
        assert circular(values) == pytest.approx(known["circular_acc"])
        assert circular(values) < sum(right for _, right in values) / len(values)
