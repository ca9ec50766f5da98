"""The records of a task with images: digests and small copies, never contents; scored again from them."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.images.decode import decode_image
from cme_bench.reports.page.render import render_page
from cme_bench.reports.runs import open_run
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import AskOptions, ModelOptions, RunOptions
from cme_bench.runs.planner import Planner, TaskPlan
from cme_bench.runs.rescore import rescore
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import run as run_all
from cme_bench.runs.store import read_records, samples_file
from cme_bench.runs.thumbnails import read_thumbnail
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.pictures import encoded, picture
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing

TASK = """\
task: seen
dataset_path: parquet
dataset_kwargs: {data_files: {test: rows.parquet}}
test_split: test
output_type: multiple_choice
doc_to_image: picture
doc_to_text: "{{ question }}\\nA:"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metadata: {dataset: own}
"""


@pytest.mark.slow
def test_a_run_of_embedded_images(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    own = seeing(toy_tokenizer)
    model = save_llava(tmp_path / "llava", random_llava(0, own, positions=128), llava_processor(own))
    images = [decode_image(picture(40, 30, seed), folder=None) for seed in (0, 1)]
    cells = [{"bytes": encoded(picture(40, 30, n % 2)), "path": f"{n}.png"} for n in range(4)]
    columns = {"picture": cells, "question": ["a?", "b?", "c?", "d?"], "label": [0, 1, 0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "seen.yaml").write_text(TASK)
    options = RunOptions(
        model=str(model), tasks="seen", include=(tmp_path,), out=tmp_path / "out", prompt_format="plain"
    )
    [folder] = run_all(options)
    file = samples_file(folder, "seen")
    records = sorted(read_records(file), key=lambda record: record.id)
    assert [record.images for record in records] == [[images[n % 2].digest] for n in range(4)]
    assert [record.doc["picture"] for record in records] == [
        f"sha256:{images[n % 2].digest}" for n in range(4)
    ]
    assert len(file.read_bytes()) < 4 * 2000
    assert all(read_thumbnail(folder, image.digest) for image in images)
    assert "img-src data:" in render_page([open_run(folder)])
    before = file.read_bytes()
    assert run_all(options) == [folder]
    assert file.read_bytes() == before, "asked again, nothing is computed"
    rescore(folder)
    again = {record.id: record for record in read_records(file)}
    assert [again[n].scores for n in range(4)] == [record.scores for record in records]
    cells[3]["bytes"] = encoded(picture(40, 30, 7))
    pyarrow.parquet.write_table(pyarrow.table(columns | {"picture": cells}), tmp_path / "rows.parquet")
    run_all(options)
    last = {record.id: record for record in read_records(file)}
    assert last[3].images == [decode_image(picture(40, 30, 7), folder=None).digest]
    assert last[2].key == records[2].key, "the other items' answers are used again"


@pytest.mark.slow
def test_items_without_an_image_are_told(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    own = seeing(toy_tokenizer)
    model = save_llava(tmp_path / "llava", random_llava(0, own, positions=128), llava_processor(own))
    responder = Responder(open_engines(ModelOptions(model=str(model))), None)
    (tmp_path / "seen.yaml").write_text(TASK.replace("doc_to_image: picture", "doc_to_image: [picture]"))
    suite = load_suite((tmp_path,))

    def planned(*pictures: bytes | None) -> TaskPlan:
        n = len(pictures)
        cells = pyarrow.array(pictures, pyarrow.binary())
        rows = pyarrow.table({"picture": cells, "question": ["a?"] * n, "label": [0] * n})
        pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
        planner = Planner(AskOptions(tasks="seen", prompt_format="plain"))
        return planner.plan(build_task(suite.task("seen"), suite, mini_source()), responder)

    shown = encoded(picture())
    assert planned(shown).notes == ()
    note = "task seen: 1 of 2 items have no image and are asked as text alone"
    assert note in planned(shown, None).notes
    with pytest.raises(UsageError, match=r"seen\.yaml:6: task seen: no row has an image"):
        planned(None, None)
