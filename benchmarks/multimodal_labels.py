"""Labels of questions about images, by transformers and by vLLM: how many differ.

smollava, alone and with the random TeamLoRA of ``vllm_multimodal.py``, is asked the tasks of ``--tasks`` by
both engines in one dtype. A label is the most likely choice, or the score of what was generated. It fails in
float32 if a label differs that is no near tie: the two best choices within ``TIE`` in log-likelihood.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import measurements
from vllm_multimodal import random_adapter

from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import evaluation_device
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.folder import read_both
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.runner import ask
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.util.options import Engine

ENGINES: tuple[Engine, ...] = ("vllm", "hf")
TIE = 1e-3
Answers = dict[tuple[str, int], Record]


def answers(run: Path) -> Answers:
    """The records of a run by task and item."""
    _, results = read_both(run)
    return {
        (task, record.id): record
        for task in results.tasks
        for record in read_records(samples_file(run, task))
    }


def label(record: Record) -> object:
    """What an answer is read as."""
    if (logprobs := record.response.logprobs) is not None:
        return max(range(len(logprobs)), key=logprobs.__getitem__)
    return record.scores


def is_tie(record: Record) -> bool:
    """Whether the two best choices are as good as equally likely."""
    best = sorted(record.response.logprobs or (0.0, -1.0), reverse=True)
    return best[0] - best[1] < TIE


def compared(ours: Answers, other: Answers) -> dict[str, float | int]:
    """How many labels and texts differ, and the largest difference of a log-likelihood."""
    assert ours.keys() == other.keys()
    pairs = [(ours[key], other[key]) for key in sorted(ours)]
    flips = [(a, b) for a, b in pairs if label(a) != label(b)]
    gaps = [
        abs(x - y)
        for a, b in pairs
        for x, y in zip(a.response.logprobs or (), b.response.logprobs or (), strict=True)
    ]
    return {
        "questions": len(pairs),
        "different_labels": len(flips),
        "different_labels_no_tie": sum(not is_tie(a) for a, _ in flips),
        "different_texts": sum(a.response.text != b.response.text for a, b in pairs),
        "largest_logprob_difference": round(max(gaps, default=0.0), 6),
    }


def asked(engine: Engine, args: argparse.Namespace, adapter: Path, out: Path) -> list[Answers]:
    """The answers of the model alone and with the adapter, by one engine."""
    engines = open_engines(ModelOptions(model=args.model, engine=engine, dtype=args.dtype), print)
    options = AskOptions(
        tasks=args.tasks, data=args.data, limit=args.limit, adapters=(None, str(adapter)), out=out
    )
    try:
        return [answers(run) for run in ask(engines, options)]
    finally:
        engines.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollava")
    parser.add_argument("--tasks", default="cme_mm,cme_mm_ll")
    parser.add_argument("--data", default="hub")
    parser.add_argument("--limit", type=int, default=25, help="questions a task; there are nine in each form")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--save", action="store_true", help="write a file in results/bench")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "team"
        random_adapter(resolve_model(args.model, offline=False).path, adapter)
        found = {engine: asked(engine, args, adapter, Path(scratch) / engine) for engine in ENGINES}
    pairs = zip(("base", "teamlora"), found["hf"], found["vllm"], strict=True)
    metrics = {name: compared(ours, other) for name, ours, other in pairs}
    line = measurements.line("multimodal_labels", metrics, cuda=evaluation_device().type == "cuda")
    print(json.dumps(line))
    if args.save:
        settings = {"model": args.model, "tasks": args.tasks, "limit": args.limit, "dtype": args.dtype}
        measurements.save(line, settings=settings)
    if args.dtype == "float32" and any(one["different_labels_no_tie"] for one in metrics.values()):
        raise SystemExit("a label differs that is no near tie")


if __name__ == "__main__":
    main()
