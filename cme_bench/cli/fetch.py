"""``cme-bench fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cme_bench.cli import app
from cme_bench.cli.help import TASKS, command
from cme_bench.cli.shared import tell
from cme_bench.util.options import Include, Option
from cme_bench.util.terminal import say

if TYPE_CHECKING:
    from cme_bench.tasks.fetch import WantedSplit
    from cme_bench.tasks.suite import Suite

_EXAMPLES = {
    "get rows, pinned, for use without a network": "cme-bench fetch --tasks cme,cme_ll --out ./data",
    "get a model or an adapter, pinned, for --offline": "cme-bench fetch owner/model owner/adapter@v1",
    "get a model into a folder": "cme-bench fetch owner/model --out ./data",
}


@command(app, _EXAMPLES, panel=TASKS)
def fetch(
    models: Annotated[
        tuple[str, ...],
        Option(
            "Hub names of models and adapters, OWNER/NAME[/SUB][@REVISION], or ours.",
            argument=True,
        ),
    ] = (),
    out: Annotated[
        Path | None,
        Option(
            "Folder for rows, models and the lock file; default: the hub's cache, for models and adapters.",
            short="-o",
        ),
    ] = None,
    tasks: Annotated[str, Option("Fetch the rows of these tasks, domains and suites.")] = "",
    train: Annotated[bool, Option("Also the training rows of their datasets.")] = False,
    include: Include = (),
) -> None:
    """Prefetch models, adapters and rows from the hub, for runs without a network.

    Without --out, models and adapters go into the hub's cache: `run` finds them there by the same names.
    Every dataset and model is pinned: the hub names its commit once, hub-lock.json keeps it, runs record it.
    """
    from cme_bench.models.fetch import fetch_model
    from cme_bench.tasks.fetch import fetch_splits, wanted_splits
    from cme_bench.tasks.made.training_rows import FILE, write_training_rows
    from cme_bench.tasks.suite import load_suite
    from cme_bench.util.errors import CmeError, UsageError

    if not models and not tasks:
        raise UsageError("nothing to fetch: name models, or --tasks")
    if tasks and out is None:
        raise UsageError("--tasks needs --out: the folder for the rows, which --data takes")
    failed = 0
    if tasks and out is not None:
        suite = load_suite(include)
        specs = suite.select(tasks)
        wanted = wanted_splits(specs, out)
        if train:
            wanted += _training_splits(suite, {spec.dataset for spec in specs}, out)
        for item in fetch_splits(wanted, out):
            failed += item.error is not None
            done = "there already" if item.rows is None else f"{item.rows} rows"
            say(f"{item.wanted.file}: {item.error or done}")
        if train and (count := write_training_rows(suite, specs, out)):
            say(f"{out / FILE}: {count} rows with images, for train --data")
    for name in models:
        try:
            say(f"{fetch_model(name, out, tell)}: {name}")
        except CmeError as error:
            failed += 1
            say(error)
    if failed:
        raise CmeError(f"{failed} could not be fetched; the same command goes on with those")
    if out is None:
        say("Everything is in the hub's cache; use it by the same names, with --offline")
    else:
        say(f"Everything is in {out}; use it with --data {out} --offline, and models by their folder")


def _training_splits(suite: Suite, datasets: set[str], out: Path) -> list[WantedSplit]:
    """List the training rows of the datasets, under the names by which ``train --data`` finds them."""
    from cme_bench.tasks.fetch import WantedSplit, located
    from cme_bench.tasks.sources import FolderSource
    from cme_bench.training.templates import load_templates

    wanted: dict[Path, WantedSplit] = {}
    for template in load_templates(suite).values():
        for part in template.parts if template.dataset in datasets else ():
            plain = [file for file in part.files if not file.columns]
            if part.hub is None or not plain:
                continue
            source = next((file for file in plain if file.stem == part.hub), plain[0])
            spec = located(part.task, source.folder)
            file = FolderSource(out).file(spec, source.stem)
            wanted.setdefault(file, WantedSplit(spec, part.hub, file))
    return list(wanted.values())
