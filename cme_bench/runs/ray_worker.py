"""The parts of a run that go to the workers of engine ray: how to open engines there, and proof of what to
open.

A worker reads the model and adapters from its own node, by the same names: a shared file system, or the same
files. Hashes and versions must be those of the driver, else answers of two kinds would stand in one run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.engines.base import Engine
from cme_bench.engines.ray.cluster import WorkerPlan
from cme_bench.models.adapter import resolve_adapter
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.local_engines import open_local
from cme_bench.runs.options import ModelOptions
from cme_bench.util.errors import UsageError
from cme_bench.util.provenance import versions

if TYPE_CHECKING:
    from cme_bench.models.loaded import SavedModel


def worker_environment(options: ModelOptions, plan: WorkerPlan) -> dict[str, str]:
    """Return the environment variables of a worker."""
    environment = {"TQDM_DISABLE": "1"}
    if options.offline:
        environment["HF_HUB_OFFLINE"] = "1"
    if not plan.gpus:
        # vLLM's workers of one node would all bind to its first cores
        environment |= {"OMP_NUM_THREADS": str(plan.cpus), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment


def worker_source(model: SavedModel, options: ModelOptions) -> Callable[[], WorkerSource]:
    """Make, in a worker's process, the source of engines for ``model`` there."""
    there = replace(options, engine=options.worker, model=_name_there(model, options), dtype=model.dtype_name)
    from cme_bench.adapters.plugins import loaded_plugins

    return functools.partial(WorkerSource, there, model.hash, versions(), loaded_plugins())


def _name_there(model: SavedModel, options: ModelOptions) -> str:
    """Return the name by which every node finds the same model: a folder, or a hub name at its commit."""
    checkpoint = model.checkpoint
    if Path(options.model).expanduser().is_dir():
        return model.place
    hub = None if checkpoint.hub is None else parse_hub_name(checkpoint.hub)
    return options.model if hub is None else str(hub.at(str(checkpoint.revision)))


class WorkerSource:
    """The engines of one worker.

    Raises UsageError if the model on this node has another hash, or the packages other versions.
    """

    def __init__(
        self, options: ModelOptions, hash_: str, driver: Mapping[str, str], plugins: Sequence[str] = ()
    ) -> None:
        here = versions()
        for package, version in driver.items():
            if here.get(package) != version:
                raise UsageError(f"{_node()} has {package} {here.get(package)}, the driver {version}")
        if plugins:
            from cme_bench.adapters.plugins import load_plugins

            load_plugins(plugins)
        self._engines = open_local(options)
        if self._engines.model.hash != hash_:
            raise UsageError(f"{_node()}: {self._engines.model.place} is another model than the driver's")

    def open(self, adapter: tuple[str, str] | None, job: EngineJob) -> Engine:
        """Return an engine with the adapter of this folder and hash; raises UsageError if it is another
        here."""
        if adapter is None:
            return self._engines.open(None, job)
        offline = self._engines.options.offline
        found = resolve_adapter(adapter[0], self._engines.model.config, offline=offline)
        if found.hash != adapter[1]:
            raise UsageError(f"{_node()}: {found.path} is another adapter than the driver's")
        return self._engines.open(found, job)

    def release(self) -> None:
        self._engines.release()

    def close(self) -> None:
        self._engines.close()


def _node() -> str:
    return f"node {os.uname().nodename}"
