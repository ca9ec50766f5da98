"""``cme-bench reproduce``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command
from cme_bench.cli.options import as_typed
from cme_bench.cli.plugins import Plugins
from cme_bench.cli.shared import tell
from cme_bench.experiments.reproduce.options import CallOptions, RecipeOptions
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "rerun the paper's experiments": (
        "cme-bench reproduce smollm2 --scale cpu --data ./data --out results/runs/cpu"
    ),
    "see what that costs, from a step measured here": (
        "cme-bench reproduce smollm2 --scale cpu --out results/runs/cpu --plan"
    ),
    "fix a plan before its first score": (
        "cme-bench reproduce experiments/smollm2.yaml --scale verdict --data ./data --out out --register"
    ),
    "stop in time, and carry what is done to another machine": (
        "cme-bench reproduce smollm2 --scale hour --out out --minutes 10 --state parts"
    ),
}


@command(app, _EXAMPLES, panel=ADAPTERS)
def reproduce(
    recipe: RecipeOptions,
    call: CallOptions,
    plugin: Plugins = (),
    plan: Annotated[bool, Option("Only say what it costs, from a step measured here.")] = False,
    register: Annotated[
        bool, Option("Only write the registration of a scale with a protocol, which is then committed.")
    ] = False,
) -> None:
    """Rerun the paper's experiments from a recipe: trainings, evaluations, tables, figures and claims.

    Stopped or killed, the same command goes on and computes nothing twice.
    """
    from cme_bench.experiments.reproduce.recipe import read_recipe

    if call.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, below
    chosen = read_recipe(
        recipe.recipe,
        recipe.scale,
        model=recipe.model,
        data=recipe.data,
        seeds=recipe.seeds,
        side_seeds=recipe.side_seeds,
        workers=recipe.workers,
    )
    from cme_bench.experiments.reproduce.reproduce import plan as plan_costs
    from cme_bench.experiments.reproduce.reproduce import reproduce as run_recipe

    if register:
        from cme_bench.experiments.reproduce.registration import register as write_registration

        say(f"{write_registration(chosen)}: commit this file before the first score")
        return
    if plan:
        say(plan_costs(chosen, call.out, offline=call.offline, note=tell), end="")
        return
    again = ["reproduce", *as_typed(recipe), "--out", str(call.out), "--helper"]
    again += [word for name in plugin for word in ("--plugin", name)]
    again += ["--offline"] if call.offline else []
    run_recipe(chosen, replace(call, helper_command=tuple(again)), tell)
    if not call.is_helper:
        say(f"Results are in {call.published or call.out}")
