"""``cme-bench card``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cme_bench
from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.shared import Output, RunFolder, print_or_write
from cme_bench.util.errors import UsageError
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

if TYPE_CHECKING:
    from cme_bench.reports.runs import RunView

_EXAMPLES = {
    "add a run's scores to the model card of an adapter": "cme-bench card runs/llama-team >> README.md",
    "write card, results and adapter as the hub takes them, and look": (
        "cme-bench card runs/llama-team --folder ./for-the-hub"
    ),
    "write the run as lm-eval stores its own": "cme-bench card runs/llama-team --lm-eval ./lm-eval-results",
    "publish them": "cme-bench card runs/llama-team --push owner/team",
}


@command(app, _EXAMPLES, panel=READ)
def card(
    run: RunFolder,
    output: Output = None,
    folder: Annotated[
        Path | None,
        Option("Write a repository here: README.md, .eval_results, results, and the adapter's files."),
    ] = None,
    push: Annotated[
        str | None,
        Option("Commit that to the hub, with your token of `hf auth login`.", metavar="OWNER/NAME"),
    ] = None,
    lm_eval: Annotated[
        Path | None,
        Option("Write lm-eval's folder of results and samples below this one.", metavar="DIR"),
    ] = None,
    private: Annotated[bool, Option("Make the repository private, where --push makes it.")] = False,
    adapter: Annotated[
        Path | None, Option("The adapter's folder, where it is not the one the run was made with.")
    ] = None,
) -> None:
    """Print a run's scores as the metrics block (model-index) of a model card; or publish run and adapter.

    With --folder or --push: a model card with method, data, scores and how to load it, the scores as
    .eval_results, and the adapter. A run without an adapter gives results only.
    """
    view = cme_bench.open_run(run).view
    if lm_eval is not None:
        if any((output, folder, push, private, adapter)):
            raise UsageError("--lm-eval stands alone: give the other options in a call of their own")
        from cme_bench.reports.lm_eval_folder import write_lm_eval_folder

        say(f"Results and samples are in {write_lm_eval_folder(view, lm_eval)}")
        return
    if folder is None and push is None:
        if private or adapter:
            raise UsageError("--private and --adapter go with --folder or --push")
        from cme_bench.reports.card import model_card

        print_or_write(model_card(view), output, "The block")
        return
    if output is not None:
        raise UsageError("--output is for the block alone: leave it out with --folder and --push")
    from cme_bench.reports.hub import publish

    own = adapter or _own_adapter(view)
    name = push or f"your-name/{own.name if own else 'results'}"
    files = publish.hub_files(view, name, own)
    if folder is not None:
        publish.write_folder(files, folder)
        say(f"The repository is in {folder}")
    if push is not None:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UsageError("--push needs the network, and HF_HUB_OFFLINE is set")
        message = f"cme-bench: adapter and results of {view.label}" if own else "cme-bench: results"
        say(f"Published: {publish.push(files, push, private=private, message=message)}")


def _own_adapter(view: RunView) -> Path | None:
    """Return the folder of the run's adapter. UsageError if it is not there any more."""
    record = view.run.adapter
    if record is None:
        return None
    if record.path is None or not Path(record.path).is_dir():
        raise UsageError(
            f"{view.folder}: its adapter {record.path or record.name} is not here: give --adapter"
        )
    return Path(record.path)
