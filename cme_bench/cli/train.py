"""``cme-bench train``."""

from __future__ import annotations

import os

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command
from cme_bench.cli.plugins import Plugins
from cme_bench.training.options import TrainOptions, check_options
from cme_bench.util.terminal import say

_EXAMPLES = {
    "train an adapter on the CME mixture; the same command again goes on after an interruption": (
        "cme-bench train smollm2 --method teamlora --data ./data --out adapters/team"
    ),
    "train on several GPUs": "accelerate launch -m cme_bench train MODEL --method lora --data DIR --out DIR",
}


@command(app, _EXAMPLES, panel=ADAPTERS)
def train(options: TrainOptions, plugin: Plugins = ()) -> None:
    """Train an adapter on the CME mixture: 22 datasets as instructions, loss on the answers only.

    Interrupted or killed, the same command goes on at the last checkpoint, exactly.
    """
    check_options(options)  # before anything slow is imported
    from cme_bench.runs.display import show_progress
    from cme_bench.training.ranks import leave
    from cme_bench.training.train import train as train_adapter

    main_process = os.environ.get("RANK", "0") == "0"
    with show_progress(shown=main_process) as listener:
        listener.note(f"cme-bench train {options.model} --method {options.method}: preparing")
        folder = train_adapter(options, listener)
    leave()
    if main_process:
        say(f"The adapter is in {folder}")
