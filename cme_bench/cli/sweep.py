"""``cme-bench sweep``."""

from __future__ import annotations

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command
from cme_bench.cli.plugins import Plugins
from cme_bench.training.sweep.options import SweepOptions
from cme_bench.util.phases import phase
from cme_bench.util.terminal import say

_EXAMPLES = {
    "train every adapter of a file; the same command again goes on after an interruption": (
        "cme-bench sweep experiments/seeds.yaml --data ./data -o adapters"
    ),
}


@command(app, _EXAMPLES, panel=ADAPTERS)
def sweep(options: SweepOptions, plugin: Plugins = ()) -> None:
    """Train many adapters on one base in one process: methods, seeds and settings of a YAML file.

    The file, with options of `train`: {model: smollm2, settings: {max_steps: 300}, adapters: {team: {method:
    teamlora}, plain: {method: lora}}, vary: {seed: [0, 1]}}. It makes team-seed0 to plain-seed1.

    The base's products are computed once for the rows of all adapters. Each adapter equals its own training,
    up to rounding, and has an ordinary folder. Interrupted or killed, the same command goes on.
    """
    with phase("libraries"):
        from cme_bench.reports.engine_stats import phases_line
        from cme_bench.runs.display import show_progress
        from cme_bench.training.sweep.file import read_sweep
        from cme_bench.training.sweep.sweep import sweep as train_together

    asked = read_sweep(
        options.file, options.out, model=options.model, data=options.data, offline=options.offline
    )
    with show_progress() as listener:
        listener.note(f"cme-bench sweep: {len(asked)} adapters")
        train_together(asked, listener)
        listener.note(phases_line(*phase.seconds()))
    say(f"The {len(asked)} adapters are in {options.out}")
