"""What a user asks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cme_bench.errors import UsageError, did_you_mean

ENGINES = ("hf", "vllm", "ray")
WORKERS = ("hf", "vllm")
"""What computes in a worker of engine ray."""
SETTINGS = {
    "tokens_per_batch": "hf: most tokens of a batch (rows x padded length)",
    "shared_prefixes": "hf: 1 computes every shared prefix once (default), 0 computes every row alone",
    "block_size": "vllm: tokens of a cache block; default: 32 on a CPU, vLLM's own on a GPU",
    "kv_gib": "vllm on a CPU: GiB of key-value cache; default: a quarter of the free memory, 8 at most",
    "memory_percent": "vllm on a GPU: percent of memory to take; default: 90, less where others hold some",
    "max_seqs": "vllm: most sequences at a time",
    "tensor_parallel": "vllm: devices (processes on a CPU) that share the model; ray: of each worker",
    "compile": "vllm: 1 compiles and captures graphs (default on a GPU), 0 runs eagerly (default on a CPU)",
    "in_process": "vllm: 1 runs the engine in this process (default on a CPU), 0 in processes of its own",
    "window": "vllm: most requests in the engine at a time; default 1024",
    "max_length": "most tokens the model is fed of a row; default: the positions its config allows",
}
"""Keys of ``--set KEY=VALUE`` and what they mean."""
SWITCHES = frozenset({"shared_prefixes", "compile", "in_process"})
"""Those that are 0 or 1."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The arguments of ``cme-bench run``; see its help for their meaning."""

    model: str
    tasks: str = "cme"
    adapters: tuple[str, ...] = ()
    engine: str = "hf"
    worker: str = "hf"
    workers: int | None = None
    address: str | None = None
    data: str = "hub"
    limit: int | None = None
    shots: int | None = None
    seed: int = 0
    dtype: str = "auto"
    out: Path | None = None
    offline: bool = False
    prompt_format: str = "auto"
    system: str | None = None
    bos: str = "auto"
    include: tuple[Path, ...] = ()
    allow_code: bool = False
    max_truncated: int | None = None
    settings: Mapping[str, int] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def computes(self) -> str:
        """The engine that computes answers: ``engine``, or that of ray's workers."""
        return self.worker if self.engine == "ray" else self.engine

    @property
    def gpus_per_worker(self) -> int:
        """Of engine ray, where there are GPUs."""
        return self.settings.get("tensor_parallel", 1) if self.worker == "vllm" else 1


def parse_settings(pairs: list[str]) -> dict[str, int]:
    """``["tokens_per_batch=2048"]`` as a mapping. UsageError for unknown keys and values that are no
    positive whole numbers (0 and 1 for switches)."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in SETTINGS:
            raise UsageError(f"--set {pair}: unknown setting {key!r}{did_you_mean(key, SETTINGS)}")
        if key in SWITCHES and value not in {"0", "1"}:
            raise UsageError(f"--set {pair}: {key} takes 0 or 1")
        if not value.isdigit() or (int(value) == 0 and key not in SWITCHES):
            raise UsageError(f"--set {pair}: {key} takes a positive whole number")
        settings[key] = int(value)
    return settings
