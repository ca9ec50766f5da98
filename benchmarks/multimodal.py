"""One image task by lmms-eval's own ``llava_hf`` and by ``cme-bench run``, on one model: time, same answers.

lmms-eval runs a LLaVA one question at a time: it reads, resizes and encodes the image for each question, and
its class refuses larger batches. Both are timed without loading the model: theirs in ``generate_until``, with
texts and pictures that it is given; ours reads rows, renders, tokenises, answers, scores and stores.
``over_lmms_eval`` is their seconds by ours, ``over_lmms_eval_cpu`` their processor's seconds by ours: on a
CPU that others use too, the second says more. ``over_lmms_eval_again``: by ours in a second run of the
process, which finds its kernels compiled and its trials made, but no answer. It fails if an answer differs,
in float32.

lmms-eval is not among the dependencies. Put it, without its own, into a folder that ``--lmms`` names:

    pip install --no-deps --target FOLDER lmms-eval==0.7.3 decord

``--model FOLDER`` takes any LLaVA of transformers. ``--shape llava-1.5-7b`` makes one of that shape with
random weights and ``--layers`` decoder layers; every answer has all its tokens then.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_shape
import measurements
import torch

from cme_bench.engines.stopping import cut_at_stop
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import choose_dtype, evaluation_device, load_config, load_model, load_tokenizer
from cme_bench.models.vision import load_vision
from cme_bench.runs.live_source import run_live
from cme_bench.runs.options import RunOptions
from cme_bench.runs.store import read_records, samples_file
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import open_source, source_of
from cme_bench.tasks.suite import load_suite


def build(args: argparse.Namespace, data: str) -> Task:
    suite = load_suite(tuple(args.include))
    spec = suite.task(args.task)
    return build_task(spec, suite, source_of(spec, open_source(data, offline=False)), shots=0)


def first_images(task: Task, count: int, folder: Path) -> None:
    """Write all rows of the first ``count`` pictures of a task into a folder of rows."""
    place = folder / str(task.spec.config["metadata"]["folder"])
    place.mkdir(parents=True)
    column = str(task.spec.config["doc_to_image"])
    files: dict[str, str] = {}
    lines = []
    for row in task.docs:
        [image] = task.lm_eval.images_of(row)
        if image.digest not in files and len(files) == count:
            continue
        name = files.setdefault(image.digest, f"{len(files)}.png")
        (place / name).write_bytes(image.data)
        lines.append(json.dumps(dict(row) | {column: name}))
    (place / "test.jsonl").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a clock on the wall, and of the processor's cores together."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        """Return what has been spent so far."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


def theirs(args: argparse.Namespace, folder: Path, task: Task, new: int) -> tuple[Spent, dict[int, str], int]:
    """Seconds, answers by row, and pictures of lmms-eval's ``llava_hf``."""
    sys.path.insert(0, str(args.lmms))
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava_hf import LlavaHf

    device = str(evaluation_device())
    model = LlavaHf(str(folder), device=device, dtype=args.dtype, device_map=device, batch_size=1)
    checkpoint = resolve_model(str(folder))
    tokenizer = load_tokenizer(checkpoint)
    pillow = load_vision(folder, load_config(checkpoint), tokenizer).processor.image_processor
    model._image_processor.image_processor = pillow  # where torchvision is, theirs would see other pixels
    model.task_dict[args.task] = {"test": task.docs}
    ids = range(len(task.docs))
    lm_task: Any = task.lm_eval
    seen = {i: lm_task.images_of(task.docs[i]) for i in ids}
    pictures = {i: [image.pixels() for image in seen[i]] for i in ids}
    asked = []
    for number, i in enumerate(ids):
        settings = {"max_new_tokens": new, "temperature": 0, "until": ["\n\n"]}
        context = lm_task.doc_to_text(task.docs[i])
        arguments = (context, settings, lambda doc, i=i: pictures[i], i, args.task, "test")
        metadata = {"task": args.task, "doc_id": i, "repeats": 1}
        asked.append(Instance("generate_until", arguments, number, metadata))
    started = Spent.now()
    answers = model.generate_until(asked)
    taken = Spent.now() - started
    distinct = len({image.digest for images in seen.values() for image in images})
    del model
    gc.collect()
    return taken, dict(zip(ids, answers, strict=True)), distinct


def ours(
    args: argparse.Namespace, folder: Path, data: Path
) -> tuple[list[Spent], dict[int, str], dict[str, Any]]:
    """Seconds of the first run in a process and of one more, which finds kernels compiled and trials made;
    answers by row, and the engine's description of ``cme-bench run``."""
    checkpoint = resolve_model(str(folder))
    config, tokenizer, device = load_config(checkpoint), load_tokenizer(checkpoint), evaluation_device()
    model = load_model(checkpoint, choose_dtype(args.dtype, config, device), device)
    processor = load_vision(folder, config, tokenizer).processor
    spent = []
    with tempfile.TemporaryDirectory() as out:
        for number in range(2):
            options = RunOptions(
                model="",
                tasks=args.task,
                include=tuple(args.include),
                data=str(data),
                out=Path(out) / f"run{number}",
                prompt_format="chat",
                bos="never",  # as the processor of llava_hf does
            )
            started = Spent.now()
            [run] = run_live(model, processor, options, name="ours", root=Path(out))
            spent.append(Spent.now() - started)
        records = read_records(samples_file(run, args.task))
        answers = {record.id: str(record.response.text) for record in records}
        told = json.loads((run / "run.json").read_bytes())["engine"]
    del model
    gc.collect()
    return spent, answers, told


def differing(mine: dict[int, str], other: dict[int, str]) -> list[int]:
    """The rows whose answers differ, as a task reads them: up to the stop string, without blanks around."""

    def read(text: str) -> str:
        cut = cut_at_stop(text, ("\n\n",))
        return (text if cut is None else cut).strip()

    return [i for i in other if read(mine[i]) != read(other[i])]


def model_folder(args: argparse.Namespace, scratch: Path) -> Path:
    """The folder of the model, made there if it is a shape."""
    if args.shape is None:
        return Path(resolve_model(args.model, offline=False).path)
    smollava = resolve_model("smollava", offline=False).path
    llava_shape.make(
        scratch / "model", args.shape, smollava, layers=args.layers, dtype=getattr(torch, args.dtype)
    )
    return scratch / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollava")
    parser.add_argument("--shape", choices=llava_shape.SHAPES, help="random weights, in place of --model")
    parser.add_argument("--layers", type=int, help="decoder layers of --shape; default: all")
    parser.add_argument("--task", default="cme_mm_easy_vqa", help="a generated task with images")
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--data", default="hub")
    parser.add_argument("--images", type=int, default=12, help="how many pictures, with all their questions")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lmms", type=Path, required=True, help="the folder that holds lmms-eval")
    parser.add_argument("--save", action="store_true", help="write results/bench/multimodal-HARDWARE.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as rows:
        folder = model_folder(args, Path(rows))
        data = Path(rows) / "data"
        first_images(build(args, args.data), args.images, data)
        task = build(args, str(data))
        new = int(task.spec.config["generation_kwargs"]["max_gen_toks"])
        their, their_answers, images = theirs(args, folder, task, new)
        (our, again), our_answers, told = ours(args, folder, data)
    wrong = differing(our_answers, their_answers)
    metrics = {
        "over_lmms_eval": round(their.wall / our.wall, 2),
        "over_lmms_eval_cpu": round(their.cpu / our.cpu, 2),
        "seconds_lmms_eval": round(their.wall, 2),
        "seconds_ours": round(our.wall, 2),
        "over_lmms_eval_again": round(their.wall / again.wall, 2),
        "seconds_ours_again": round(again.wall, 2),
        "questions": len(their_answers),
        "images": images,
        "different_answers": len(wrong),
        "how": told["images"],
    }
    measured = measurements.line("multimodal", metrics, cuda=evaluation_device().type == "cuda")
    print(json.dumps(measured))
    if args.save:
        settings = {"model": args.model, "task": args.task, "dtype": args.dtype}
        file = None
        if args.shape:
            settings |= {"model": args.shape, "layers": args.layers}
            name = measured["hardware"].lower().replace(" ", "-")
            file = measurements.RESULTS / f"multimodal-{args.shape}-{name}.json"
        measurements.save(measured, settings=settings, file=file)
    if wrong and args.dtype == "float32":
        i = wrong[0]
        raise SystemExit(f"row {i}: {our_answers[i]!r}, lmms-eval: {their_answers[i]!r}")


if __name__ == "__main__":
    main()
