"""Engine ray of a run: workers on the nodes of a cluster, each with local engines, for the whole run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cme_bench.engines.base import Engine, Request
from cme_bench.runs.engine_source import EngineJob, SavedSource, never, saved
from cme_bench.runs.ray_worker import worker_environment, worker_source
from cme_bench.util.notes import Note, unheard

if TYPE_CHECKING:
    from cme_bench.engines.ray.cluster import Cluster
    from cme_bench.engines.ray.pool import Pool
    from cme_bench.models.adapter import Adapter
    from cme_bench.models.loaded import SavedModel
    from cme_bench.runs.options import ModelOptions


class RaySource(SavedSource):
    """Workers of ``cluster``, which start when they are first asked; the cluster is closed with them."""

    def __init__(
        self, model: SavedModel, options: ModelOptions, cluster: Cluster, note: Note = unheard
    ) -> None:
        super().__init__(model, options, note)
        self.cluster = cluster

    @functools.cached_property
    def _pool(self) -> Pool:
        from cme_bench.engines.ray.pool import Pool

        plan = self.cluster.plan
        return Pool(plan, worker_source(self.model, self.options), worker_environment(self.options, plan))

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        """Open the engine; an error of opening an adapter in a worker is raised by the first answer."""
        from cme_bench.engines.ray.engine import RayEngine

        found = saved(adapter)
        named = None if found is None else (found.portable, found.hash)
        return RayEngine(
            self._pool,
            (named, job),
            max_length=job.max_length,
            kind=self.options.worker,
            note=self.note,
            stopping=stopping,
        )

    def check(self, requests: Iterable[Request]) -> None:
        """Raise UsageError for images that workers with vLLM cannot be given."""
        if self.options.worker == "vllm":
            from cme_bench.runs.vllm_source import VLLMSource

            VLLMSource(self.model, self.options).check(requests)

    def release(self) -> None:
        """Do nothing: workers take their adapter off when they are told to open the next."""

    def close(self) -> None:
        if "_pool" in self.__dict__:
            self._pool.close()
        self.cluster.close()
