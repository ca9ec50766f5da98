"""An ablation of the paper: of every layer of a MoELoRA the busiest expert alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from cme_bench.adapters.files import WEIGHTS_FILE, read_config
from cme_bench.adapters.methods.moelora import MoeLoraConfig, one_expert
from cme_bench.experiments.options import RouterOptions
from cme_bench.experiments.router import load_frame, mean_by
from cme_bench.experiments.router_load import measure_router
from cme_bench.runs.progress import Listener
from cme_bench.training import record
from cme_bench.util.errors import UsageError


def keep_busiest(asked: RouterOptions, out: Path, listener: Listener) -> dict[str, int]:
    """Write to ``out`` the plain LoRA of each layer's busiest expert; return which those are, by layer.

    The busiest has the largest mean softmax weight over the prompts that ``asked`` names, tasks counting
    alike. UsageError if ``asked.source`` is no MoELoRA's folder.
    """
    config = read_config(asked.source)
    if not isinstance(config, MoeLoraConfig):
        raise UsageError(f"{asked.source}: busiest_of is for MoELoRA, whose experts are LoRAs")
    means = mean_by(load_frame(measure_router(asked, listener).slices), ["layer"])
    first = means.sort_values("load", ascending=False, kind="stable").drop_duplicates("layer")
    chosen = dict(zip(first["layer"], map(int, first["expert"]), strict=True))
    plain, tensors = one_expert(config, load_file(asked.source / WEIGHTS_FILE), chosen)
    out.mkdir(parents=True, exist_ok=True)
    plain.save_pretrained(out)
    save_file(tensors, out / WEIGHTS_FILE)
    if (trained := asked.source / record.FILE).is_file():
        shutil.copyfile(trained, out / record.FILE)
    return chosen
