"""lm-eval's folder of results, by lm-eval's own writer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import hash_string

from cme_bench.util.errors import CmeError


def hashes(doc: Mapping[str, Any], prompt: str, target: str) -> dict[str, str]:
    """Return the hashes by which lm-eval's samples are compared."""
    shown = json.dumps(doc, indent=2, default=str, ensure_ascii=False)
    return {
        "doc_hash": hash_string(shown),
        "prompt_hash": hash_string(prompt),
        "target_hash": hash_string(target),
    }


def write_results_folder(
    out: Path,
    results: Mapping[str, Any],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    engine: str,
    name: str,
    seconds: float,
) -> Path:
    """Write ``OUT/NAME/results_DATE.json`` and ``samples_TASK_DATE.jsonl`` beside it; return their folder.

    ``results``: in lm-eval's shape; ``samples``: by task, in the shape of its ``log_samples``. Raises
    CmeError if lm-eval's writer made no file: it tells a log alone why.
    """
    tracker = EvaluationTracker(output_path=str(out))
    config = tracker.general_config_tracker
    config.log_experiment_args(engine, {"pretrained": name}, None, None, False)
    config.start_time = time.perf_counter() - seconds  # the run's time, not that of writing
    folder = out / str(config.model_name_sanitized)
    held = set(folder.glob("*")) if folder.is_dir() else set()
    tracker.save_results_aggregated(dict(results), {task: list(rows) for task, rows in samples.items()})
    for task, rows in samples.items():
        tracker.save_results_samples(task, [dict(row) for row in rows])
    made = set(folder.glob("*")) - held
    if len(made) != 1 + len(samples):
        raise CmeError(f"{folder}: lm-eval's writer could not write all files")
    return folder
