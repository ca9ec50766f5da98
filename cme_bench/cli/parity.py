"""``cme-bench parity``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme_bench.cli import app
from cme_bench.cli.help import EVALUATE, command
from cme_bench.cli.plugins import Plugins
from cme_bench.experiments.options import ParityOptions
from cme_bench.runs.options import RunOptions
from cme_bench.util.errors import CmeError
from cme_bench.util.terminal import say

if TYPE_CHECKING:
    from cme_bench.experiments.parity import Parity

_EXAMPLES = {
    "see that two engines answer alike, token for token": "cme-bench parity smollm2 --data mini",
    "the same with an adapter, on rows of your own": (
        "cme-bench parity ./llama --adapter ./team --engines hf,vllm --tasks cme_ll --data ./data --limit 20 "
        "--dtype bfloat16"
    ),
}


@command(app, _EXAMPLES, panel=EVALUATE)
def parity(options: ParityOptions, plugin: Plugins = ()) -> None:
    """Send the same token ids through two engines; exit code 1 if they do not answer alike.

    In float32 every label and text must be the same and no log-likelihood may differ by more than the
    tolerance. In 16-bit types near ties may fall either way: only the log-likelihoods decide. What that does
    to the score of every task and domain, and to the average, is printed too.
    """
    from cme_bench.experiments.parity import measure_parity

    run = RunOptions(
        model=options.model,
        tasks=options.tasks,
        adapters=(options.adapter,) if options.adapter else (),
        data=options.data,
        limit=options.limit,
        shots=options.shots,
        dtype=options.dtype,
        offline=options.offline,
        settings=options.settings,
    )
    first, second = options.engines
    measured = measure_parity(run, (first, second), options.tolerance)
    _print(measured)
    if not measured.alike:
        raise CmeError(f"the engines do not answer alike (tolerance {measured.tolerance:g} a token)")
    say(f"  alike (tolerance {measured.tolerance:g} a token)")


def _print(parity: Parity) -> None:
    first, second = parity.engines
    say(f"{first} against {second}, {parity.dtype}")
    if parity.choices:
        say(
            f"  |d logprob| a token: max {parity.max_difference:.2e}, mean {parity.mean_difference:.2e} "
            f"({parity.choices} continuations)"
        )
        say(f"  same choice: {parity.labels_equal} of {parity.labels} questions")
    if parity.texts:
        say(f"  same text: {parity.texts_equal} of {parity.texts} answers")
    if parity.first:
        say(f"  first difference: {parity.first.task}, item {parity.first.id}")
        for name, answer in zip(parity.engines, parity.first.answers, strict=True):
            say(f"    {name}: {answer!r}")
    say(f"  scores in %, {first} and {second}:")
    for line in parity.scores:
        one, other = (100 * score for score in line.scores)
        say(f"    {line.form} {line.kind} {line.name}: {one:.2f} {other:.2f} ({100 * line.gap:+.2f} points)")
