"""The texts of training rows, whatever ``train --data`` would read them from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cme_bench.authoring.table_files import read_table
from cme_bench.experiments.contaminated_run import file_texts
from cme_bench.experiments.contamination import row_texts
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite
from cme_bench.training.mixture import load_training_set
from cme_bench.training.parts import CME, HUB, DataPart, data_parts
from cme_bench.training.templates import load_templates, select_datasets


def training_texts(data: str, *, datasets: str = "all", offline: bool = False) -> Iterator[str]:
    """Yield every text of the rows that ``data`` names, or the lines of a ``.txt`` file.

    Of CME the rows that would be trained on; of other rows every text in every column, of any form. Raises
    UsageError for what is not there or cannot be read.
    """
    file = Path(data).expanduser()
    if file.is_file() and file.suffix == ".txt":
        yield from file_texts(file)
        return
    for part in data_parts(data):
        yield from _cme_texts(part, datasets, offline) if part.kind == CME else _own_texts(part, offline)


def _cme_texts(part: DataPart, datasets: str, offline: bool) -> Iterator[str]:
    source = open_source(part.place, offline=offline)
    for template in select_datasets(load_templates(load_suite()), datasets):
        for loaded in load_training_set(template, source).parts:
            for index in loaded.kept:
                yield from row_texts(loaded.table[int(index)])


def _own_texts(part: DataPart, offline: bool) -> Iterator[str]:
    if part.place.startswith(HUB):
        from cme_bench.tasks.hub import hub_rows

        for row in hub_rows(part.place.removeprefix(HUB), offline=offline)[0].table:
            yield from row_texts(row)
    for file in part.files:
        if file.suffix == ".jsonl":  # line by line: a corpus may be larger than the memory
            yield from file_texts(file)
            continue
        for row in read_table(file).rows:
            yield from row_texts(row)
