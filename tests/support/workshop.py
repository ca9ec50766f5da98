"""A task of one's own, made in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import FolderSource
from cme_bench.tasks.suite import load_suite

TASK = """\
task: own_{form}
dataset_path: own/data
test_split: test
fewshot_split: train
output_type: {output_type}
doc_to_text: "Q: {{{{ question }}}}\\nA:"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metadata:
  dataset: own
"""


@dataclass(frozen=True)
class Workshop:
    """A folder with a task file, ``tasks/own.yaml``, and its rows, ``data/own/SPLIT.jsonl``."""

    folder: Path

    @property
    def yaml(self) -> Path:
        return self.folder / "tasks" / "own.yaml"

    def file(self, split: str) -> Path:
        return self.folder / "data" / "own" / f"{split}.jsonl"

    def write_rows(self, split: str, rows: Sequence[Mapping[str, Any] | str]) -> Path:
        """Rows as JSON lines; a string is written as it is."""
        file = self.file(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
        return file

    def write_yaml(self, *, output_type: str = "multiple_choice", more: str = "") -> Path:
        self.yaml.parent.mkdir(exist_ok=True)
        form = "ll" if output_type == "multiple_choice" else "gen"
        self.yaml.write_text(TASK.format(form=form, output_type=output_type) + more)
        return self.yaml

    def build(self, *, shots: int | None = None, allow_code: bool = False) -> Task:
        suite = load_suite((self.yaml,), allow_code=allow_code)
        [spec] = [spec for spec in suite.tasks.values() if spec.path == self.yaml]
        return build_task(spec, suite, FolderSource(self.folder / "data"), shots=shots)
