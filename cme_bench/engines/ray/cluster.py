"""The ray cluster of a run: one that is there, or one started on this machine for the run alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cme_bench.util.errors import CmeError, UsageError, first_line

if TYPE_CHECKING:
    import torch

OBJECT_STORE_BYTES = 256 << 20
"""Size of the object store of a cluster of our own: only token ids and scores travel."""

OWN_CLUSTER = {
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    "RAY_worker_niceness": "0",
}
"""Environment of a cluster of our own: a worker's processes end with it, and none has a low priority."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Count the whole cores and GPUs that one machine lends."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Say how many workers run, with how many cores and GPUs each."""

    workers: int
    cpus: int
    gpus: int


class Cluster:
    """Connect to a cluster, from the time this is made until ``close``.

    Args:
        address: ``HOST:PORT`` of the head, ``auto`` for the one that runs on this machine, None for the one
            that RAY_ADDRESS names (as under ``ray job submit``), else for one of our own.
        workers: how many; None: as many as there is room for, on a cluster without GPUs one a node.
        gpus: of each worker, if the cluster has any; else workers share its cores.

    Raises UsageError if ray is not installed, nobody answers there, or there is no room for so many.
    """

    def __init__(self, address: str | None, workers: int | None, gpus: int) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UsageError("engine ray: ray is not installed; install the extra 'ray' (README, Install)")
        import ray

        if address is not None and address.startswith("ray://"):
            raise UsageError(
                f"--address {address}: takes HOST:PORT of the cluster's head, from a machine of the cluster; "
                "from elsewhere use 'ray job submit'"
            )
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(address)
        machines = alive_machines()
        try:
            self.plan = plan_workers(machines, workers, gpus if any(one.gpus for one in machines) else 0)
        except UsageError:
            self.close()
            raise

    @property
    def device(self) -> torch.device:
        """Return the kind of device that workers compute on."""
        import torch

        return torch.device("cuda" if self.plan.gpus else "cpu")

    def close(self) -> None:
        """Leave the cluster: its workers end, and so does a cluster of our own."""
        import ray

        if self._ours and ray.is_initialized():
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    settings: dict[str, Any] = {}
    if address == "local":
        settings = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        for name, value in OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
    try:
        with _signals_kept():
            ray.init(address, log_to_driver=False, logging_level="ERROR", **settings)
    except Exception as error:  # ray raises any type here, Exception itself where a node does not come up
        reason = first_line(error)
        if settings:
            raise CmeError(f"ray did not start on this machine: {reason}") from error
        raise UsageError(f"--address {address}: no ray cluster answers there ({reason})") from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's signal handlers while ray starts.

    ray takes SIGTERM for itself when it starts a cluster; a run has its own way to stop. Where ray's own
    processes are to end with their children it also ignores SIGCHLD, unseen by Python, and every child of
    this process would seem to have ended well.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL)


def alive_machines() -> list[Machine]:
    """Return the machines that are up now."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(lent.get("CPU", 0)), int(lent.get("GPU", 0))) for lent in resources]


def plan_workers(machines: Sequence[Machine], workers: int | None, gpus: int) -> WorkerPlan:
    """Plan workers for a cluster as ``Cluster`` says; ``gpus`` 0: workers compute on cores."""
    if gpus:
        room = sum(machine.gpus // gpus for machine in machines)
        if room < (workers or 1):
            raise UsageError(
                f"the cluster has room for {room} workers of {gpus} GPUs, not for {workers or 1} "
                f"({sum(machine.gpus for machine in machines)} GPUs on {len(machines)} nodes)"
            )
        return WorkerPlan(workers or room, 1, gpus)
    cores = [machine.cpus for machine in machines if machine.cpus]
    workers = workers or len(cores)
    most = next((c for c in range(max(cores, default=0), 0, -1) if sum(n // c for n in cores) >= workers), 0)
    if not workers or not most:
        raise UsageError(f"the cluster has room for {sum(cores)} workers of one core, not for {workers or 1}")
    return WorkerPlan(workers, most, 0)
