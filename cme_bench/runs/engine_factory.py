"""From options to engines: hf, vllm, ray's workers of either, or a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme_bench.runs.engine_source import EngineSource
from cme_bench.runs.local_engines import find_model, open_local
from cme_bench.runs.options import ModelOptions, check_model, model_half
from cme_bench.util.notes import Note, unheard

if TYPE_CHECKING:
    import torch


def open_engines(options: ModelOptions, note: Note = unheard) -> EngineSource:
    """Return what answers as ``options`` say: a context manager that frees it all at its end.

    The model is found and checked, and ray's cluster joined; no weights are loaded. Raises UsageError for
    impossible options and for a model that the engine cannot compute.
    """
    check_model(options)
    options = model_half(options)
    if options.engine == "server":
        from cme_bench.runs.server_source import open_server

        return open_server(options, note)
    if options.engine != "ray":
        return open_local(options, note)
    from cme_bench.engines.ray.cluster import Cluster
    from cme_bench.runs.ray_source import RaySource

    joined: list[Cluster] = []

    def device() -> torch.device:
        joined.append(Cluster(options.address, options.workers, options.gpus_per_worker))
        return joined[0].device

    try:
        return RaySource(find_model(options, device, note), options, joined[0], note)
    except BaseException:
        for cluster in joined:
            cluster.close()
        raise
