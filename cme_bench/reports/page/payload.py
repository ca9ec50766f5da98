"""Items of the page as compressed blocks that the browser opens when they are looked at.

Everything a model or a dataset wrote travels as base64 of gzip of JSON: it cannot end a script element, and
the page's script puts it into text nodes only.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from msgspec import UNSET

from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import answer_of
from cme_bench.runs.folder import current_records, last_answers, wanted_items
from cme_bench.runs.store import samples_file
from cme_bench.runs.thumbnails import read_thumbnail
from cme_bench.scoring.record import Record
from cme_bench.scoring.repeats import merged

MOST_IMAGE_BYTES = 6 * 2**20
"""Small copies of images on one page, before they are encoded."""
CHUNK_ITEMS = 200
"""Items of a block: some 50 kB compressed, a few ms to open."""


@dataclass(slots=True)
class PageBlocks:
    """Compressed blocks, numbered from 0."""

    texts: list[str] = field(default_factory=list)
    images: dict[str, int | None] = field(default_factory=dict)
    image_bytes: int = 0

    def add(self, value: Any) -> int:
        """Return the number of a new block that holds ``value``."""
        packed = gzip.compress(orjson.dumps(value), compresslevel=6, mtime=0)
        self.texts.append(base64.b64encode(packed).decode("ascii"))
        return len(self.texts) - 1

    def image(self, folder: Path, digest: str) -> int | None:
        """Return the number of the block with the small copy of an image, as a data URI; None if the run
        folder has none, or if the page holds enough of them."""
        if digest not in self.images and self.image_bytes < MOST_IMAGE_BYTES:
            data = read_thumbnail(folder, digest)
            if data is None:
                return None  # another run may have it
            self.image_bytes += len(data)
            self.images[digest] = self.add("data:image/webp;base64," + base64.b64encode(data).decode("ascii"))
        return self.images.get(digest)


def task_payload(runs: Sequence[RunView], task: str, blocks: PageBlocks) -> dict[str, Any] | None:
    """Pack all items of a task into ``blocks``; return what the page must know of it.

    ``index`` is the block with ids, scores and flags of all items; ``chunks`` are the blocks with texts, each
    of CHUNK_ITEMS items in the index's order. Runs without the task or without records have nulls. None if
    no run has records.
    """
    answers = [_answers(run, task) for run in runs]
    by_run = [{number: merged(found) for number, found in of_run.items()} for of_run in answers]
    ids = sorted(set().union(*(set(records) for records in by_run)))
    if not ids:
        return None
    metric = next(run.results.tasks[task].primary for run in runs if task in run.results.tasks)
    index = {
        "ids": ids,
        "runs": [[_light(records.get(i), metric) for i in ids] for records in by_run],
    }
    chunks = [
        blocks.add(
            [
                _item(i, [of_run.get(i) for of_run in answers], [run.folder for run in runs], blocks)
                for i in ids[start : start + CHUNK_ITEMS]
            ]
        )
        for start in range(0, len(ids), CHUNK_ITEMS)
    ]
    return {"index": blocks.add(index), "chunks": chunks, "chunk": CHUNK_ITEMS, "n": len(ids)}


def _answers(run: RunView, task: str) -> dict[int, list[Record]]:
    """Return the answers to each item, in order; nothing where records were not kept."""
    file = samples_file(run.folder, task)
    if task not in run.results.tasks or not file.is_file():
        return {}
    planned = run.run.tasks[task]
    if planned.repeats == 1:
        return {r.id: [r] for r in current_records(run.folder, task, planned)}
    return last_answers(file, wanted_items(file, planned), planned.repeats)


def _light(record: Record | None, metric: str) -> list[Any] | None:
    """Score, and whether the extraction was empty, the generation cut by its limit, the prompt truncated."""
    if record is None:
        return None
    empty = record.answer is not None and record.answer.empty
    long = record.response.finish == "length"
    return [record.scores.get(metric), int(empty), int(long), int(record.truncated > 0)]


def _item(
    number: int, found: Sequence[list[Record] | None], folders: Sequence[Path], blocks: PageBlocks
) -> dict[str, Any]:
    """Return one item for all runs; a prompt that several runs share is held once."""
    questions: list[dict[str, Any]] = []
    answers: list[dict[str, Any] | None] = []
    for of_run, folder in zip(found, folders, strict=True):
        if of_run is None:
            answers.append(None)
            continue
        record = merged(of_run)
        question: dict[str, Any] = {
            "prompt": record.prompt,
            "choices": record.choices,
            "target": record.target,
        }
        if record.images:
            question["images"] = [[digest[:12], blocks.image(folder, digest)] for digest in record.images]
        if question not in questions:
            questions.append(question)
        repeats = [_answer(each) for each in of_run] if len(of_run) > 1 else None
        answers.append(_answer(record) | {"q": questions.index(question), "repeats": repeats})
    return {"id": number, "questions": questions, "runs": answers}


def _answer(record: Record) -> dict[str, Any]:
    response = record.response
    return {
        "answer": answer_of(record),
        "rule": record.answer.rule if record.answer else None,
        "text": response.text,
        "finish": response.finish,
        "thought": response.thought,
        "thought_end": response.thought_end,
        "logprobs": response.logprobs,
        "margin": None if response.margin is UNSET else response.margin,
        "scores": record.scores,
        "truncated": record.truncated,
    }
