"""``cme_training.json``: beside an adapter, everything that made it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cme_bench.models.checkpoint import Checkpoint
from cme_bench.prompts.bos import Bos
from cme_bench.runs.identity import short
from cme_bench.training.options import USUAL, TrainOptions
from cme_bench.training.parts import data_parts
from cme_bench.training.ranks import Ranks
from cme_bench.training.tokens import TrainingEncoder
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json
from cme_bench.util.provenance import commit, machine, versions

FILE = "cme_training.json"
SCHEMA = 1


def identity(
    options: TrainOptions, base: Checkpoint, mixture: Mapping[str, Any], processes: int, bos: Bos
) -> dict[str, Any]:
    """Return the identity of a training; a checkpoint is only gone on with if all of it is the same."""
    data = {
        f"{dataset['dataset']}/{part['task']}/{part['split']}": part["sha256"]
        for dataset in mixture["datasets"]
        for part in dataset["parts"]
    }
    weights = [part.weight for part in data_parts(options.data)]
    if weights[0] is not None:
        data["weights"] = ", ".join(map(str, weights))
    return {
        "base": base.hash,
        "data": data,
        "processes": processes,
        **({"bos": list(bos.prefix)} if bos.changed else {}),
        **{k: v for k, v in options.identity().items() if k not in ("model", "data")},
    }


def begun_order(out: Path) -> str | None:
    """Return the order of examples of the training that ``out`` holds; None if it holds none."""
    file = out / FILE
    return str(read_json(file).get("identity", {}).get("batches")) if file.exists() else None


def check_folder(out: Path, identity: Mapping[str, Any]) -> bool:
    """Return whether ``out`` holds this very training, finished. UsageError if it holds anything else."""
    file = out / FILE
    if not file.exists() and _holds_more(out) and not file.exists():  # another process may just begin it
        raise UsageError(f"--out {out} exists and is no training of ours; name another folder")
    if not file.exists():
        return False
    old = read_json(file)
    usual = dict.fromkeys(("bos", *USUAL))  # absent where they are as they always were
    for key, value in {**usual, **identity}.items():
        held = old.get("identity", {}).get(key)
        if held != value:
            shown = "" if isinstance(value, dict) else f" ({short(held)} there, {short(value)} now)"
            raise UsageError(
                f"{out} holds a training with other {key}{shown}; name another folder with --out"
            )
    return bool(old.get("finished"))


def _holds_more(out: Path) -> bool:
    """Return whether a path is more than an empty folder, or one in which a training is about to begin."""
    begins = (".lock", f".{FILE}.tmp")
    return out.exists() and (not out.is_dir() or any(each.name not in begins for each in out.iterdir()))


def describe_training(
    options: TrainOptions,
    base: Checkpoint,
    encoder: TrainingEncoder,
    mixture: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of a training that begins; ``finished`` and its totals are added at the end."""
    return {
        "schema": SCHEMA,
        "finished": False,
        "prompt_format": encoder.format.name,
        "policy": "separate",
        "tokenization": encoder.describe(),
        "method": options.method,
        "base": {"name": base.name, "path": str(base.path), "hash": base.hash, "revision": base.revision},
        "mixture": dict(mixture),
        "arguments": options.plain(),
        "identity": dict(identity),
        "versions": _versions(),
        "commit": commit(),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return the devices, processes and the machine that computed."""
    return {
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": Ranks.here().count,
        **machine(),
    }


def _versions() -> dict[str, str]:
    return versions() | {name: metadata.version(name) for name in ("accelerate", "tokenizers")}
