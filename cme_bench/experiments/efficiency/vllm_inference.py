"""Inference by vLLM: the base model, our methods through the plugin, and vLLM's own LoRA.

Every engine lives in a process of its own, with random weights. Where they fit beside each other they run at
the same time and are asked in turn, so that rounds are paired; else one after the other, each with the card
to itself. MoELoRA as published has no form in vLLM.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PretrainedConfig

from cme_bench.adapters.gated import GatedForm
from cme_bench.engines.vllm.host import output_to
from cme_bench.engines.vllm.settings import VllmSettings, engine_arguments, environment, on_cpu
from cme_bench.experiments.efficiency.methods import all_methods
from cme_bench.experiments.efficiency.own_cores import shared_out, stay_on
from cme_bench.experiments.efficiency.shapes import linear_sizes, targets
from cme_bench.experiments.efficiency.vllm_steps import start_log, stop_log, summary
from cme_bench.experiments.efficiency.workloads import Ask, Times, Workloads, in_turn, timed_round
from cme_bench.models.load import count_parameters
from cme_bench.util.errors import CmeError
from cme_bench.vllm_plugin.file import write_adapter
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.spec import GatedSpec

NATIVE = "lora_native"
"""vLLM's own LoRA, of rank 128: as many parameters as TeamLoRA-32 with four experts."""
NATIVE_RANK = 128
FILL = 0.92
START_SECONDS = 600
KV_GIB = 1
"""Cache of each engine on a CPU."""
_STD = 0.02


def plugin_spec(name: str, modules: Sequence[str]) -> GatedSpec | None:
    """Return how the plugin computes a form of ``experiments.efficiency.methods``; None if it cannot."""
    form = all_methods(["x"]).get(name)
    if form is None or not isinstance(form.how, PeftConfig) or not isinstance(form.method.vllm, GatedForm):
        return None
    gate = form.method.vllm.gate(form.how)
    return GatedSpec(method=form.method.name, **asdict(gate), modules=tuple(sorted(modules)))


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of one engine process. ``spec``: of the plugin. ``native``: with vLLM's own LoRA. ``log``:
    a file outside the scratch folder, read when something has failed. ``slots``: adapters that an engine
    holds at a time, which answer in turn; 0 for one. ``cores``: of the process that asks, and of the one that
    computes."""

    name: str
    model: Path
    files: Path
    dtype: str
    vocabulary: int
    workloads: Workloads
    memory_percent: int
    kv_gib: int | None
    tensor_parallel: int
    spec: GatedSpec | None
    native: bool
    log: Path
    profile: Path | None = None
    slots: int = 0
    graph_tokens: int | None = None
    cores: tuple[frozenset[int], frozenset[int]] | None = None

    @property
    def adapters(self) -> list[Path]:
        """The files, or folders, of the adapters that answer in turn."""
        if self.name == "base":
            return []
        ending = "" if self.native else ".safetensors"
        return [self.files / f"{self.name}-{i}{ending}" for i in range(max(1, self.slots))]


def vllm_times(
    config: PretrainedConfig,
    methods: Sequence[str],
    workloads: Workloads,
    *,
    dtype: str,
    rounds: int,
    note: Callable[[str], None],
    profile: Path | None = None,
    tensor_parallel: int = 1,
    slots: int = 0,
    graph_tokens: int | None = None,
    own_cores: bool = False,
) -> tuple[dict[str, Times], bool]:
    """Return seconds by method and workload, and whether the rounds were paired.

    ``methods``: "base", names that :func:`plugin_spec` knows, and ``NATIVE``. ``profile``: a folder for the
    kernels of each engine by total time. ``tensor_parallel``: GPUs that share the model. ``slots``: adapters
    that are mixed in every batch, a request each in turn; 0 for one. ``graph_tokens``: as the setting of that
    name. ``own_cores``: no two processes share a CPU core, where there are enough. CmeError if an engine does
    not start.
    """
    with tempfile.TemporaryDirectory(prefix="cme-bench-efficiency-") as scratch:
        files = Path(scratch)
        _write_model(files / "model", config, workloads)
        sizes = linear_sizes(config)
        cache = _cache_bytes(config, workloads) / tensor_parallel
        together = len(methods) > 1 and _fit_together(config, len(methods), cache, tensor_parallel)
        cores = shared_out(sorted(os.sched_getaffinity(0)), len(methods)) if own_cores else []
        setups = []
        for number, name in enumerate(methods):
            spec = None if name in ("base", NATIVE) else plugin_spec(name, list(sizes))
            assert spec is not None or name in ("base", NATIVE), name
            setups.append(
                setup := Setup(
                    name=name,
                    model=files / "model",
                    files=files,
                    dtype=dtype,
                    vocabulary=config.vocab_size,
                    workloads=workloads,
                    memory_percent=int(100 * FILL),
                    kv_gib=KV_GIB if on_cpu() else math.ceil(1.1 * cache / 2**30) if together else None,
                    tensor_parallel=tensor_parallel,
                    spec=spec,
                    native=name == NATIVE,
                    log=Path(tempfile.gettempdir()) / f"cme-bench-efficiency-{os.getpid()}-{name}.log",
                    profile=profile,
                    slots=slots,
                    graph_tokens=graph_tokens,
                    cores=cores[number] if cores else None,
                )
            )
            for seed, place in enumerate(setup.adapters):
                if spec is not None:
                    _write_plugin_adapter(place, spec, sizes, seed)
                else:
                    _write_lora(place, sizes, targets(config), seed)
        groups = [setups] if together else [[setup] for setup in setups]
        times: dict[str, Times] = {}
        for group in groups:
            times |= _group_times(group, workloads, rounds, note)
        return times, together


def _group_times(
    group: Sequence[Setup], workloads: Workloads, rounds: int, note: Callable[[str], None]
) -> dict[str, Times]:
    """Start all engines of the group at once and ask them in turn; the first round of each warms it up."""
    times: dict[str, Times] = {setup.name: {w: [] for w in workloads.asked} for setup in group}
    with ExitStack() as stack:
        engines = {setup.name: stack.enter_context(_Engine(setup)) for setup in group}
        asks = {name: engine.ready() for name, engine in engines.items()}
        for number in range(-1, rounds):
            for name in in_turn(asks, number):
                seconds = timed_round(asks[name], workloads, 1000 + number)
                for workload, value in seconds.items() if number >= 0 else ():
                    times[name][workload].append(value)
        note(f"vLLM: {', '.join(asks)}: {rounds} rounds")
    return times


class _Engine:
    """The process of one engine, which starts with the block and ends with it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup))
        self.process.start()
        theirs.close()

    def __enter__(self) -> _Engine:
        return self

    def ready(self) -> Ask:
        """Wait for the start; CmeError if it fails or takes too long."""
        if not self.pipe.poll(START_SECONDS):
            raise CmeError(f"vLLM ({self.setup.name}) did not start in {START_SECONDS} s")
        self._answer()
        return self._ask

    def _ask(self, n: int, new: int, seed: int) -> float:
        self.pipe.send((n, new, seed))
        return self._answer()

    def _answer(self) -> float:
        """Return what the process says: seconds. CmeError if it failed or died."""
        try:
            found = self.pipe.recv()
        except EOFError:
            raise CmeError(f"vLLM ({self.setup.name}) ended; the log is {self.setup.log}") from None
        if isinstance(found, str):
            raise CmeError(f"vLLM ({self.setup.name}): {found}")
        return float(found)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.pipe.send(None)
            self.process.join(60)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()
        self.pipe.close()


# ---- the process of one engine


def _serve(connection: Connection, setup: Setup) -> None:
    """Start vLLM, and answer ``(n, new, seed)`` with seconds until None comes; a string says what failed."""
    try:
        with output_to(setup.log):
            llm, requests = _start(setup)
    except Exception as error:  # vLLM and what it builds on raise any type here
        connection.send(f"did not start: {type(error).__name__}: {error} (log: {setup.log})")
        return
    if setup.cores:
        asking, computing = setup.cores
        stay_on(None, asking)
        llm.collective_rpc(stay_on, args=(sorted(computing),))
    connection.send(0.0)
    while (asked := connection.recv()) is not None:
        connection.send(_generate(llm, requests, setup, asked))
    if setup.profile:
        _profile(llm, requests, setup, setup.profile)
    llm.llm_engine.engine_core.shutdown()  # else this process waits for the engine's until it is terminated


def _start(setup: Setup) -> tuple[Any, list[Any]]:
    """Return ``(LLM, the LoRARequests that answer in turn, none for an engine that answers alike)``."""
    settings = VllmSettings(
        memory_percent=setup.memory_percent,
        max_seqs=setup.workloads.requests,
        kv_gib=setup.kv_gib,
        tensor_parallel=setup.tensor_parallel,
        graph_tokens=setup.graph_tokens,
    )
    for name, value in environment(settings, setup.dtype).items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if settings.alone else "1"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # the profiler's functions travel by pickle
    most = 2 * (setup.workloads.prompt + setup.workloads.new)
    several = setup.slots if setup.spec is not None else 0
    room = setup.spec if setup.spec is None or not several else common_room([setup.spec])
    arguments = engine_arguments(setup.model, setup.dtype, most, settings, room, slots=several)
    arguments |= {"load_format": "dummy", "skip_tokenizer_init": True, "enable_prefix_caching": False}
    if setup.native:
        arguments |= {"enable_lora": True, "max_lora_rank": NATIVE_RANK, "max_loras": max(1, setup.slots)}
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    llm = LLM(**arguments)
    llm.collective_rpc("exact_logits")  # the base model pays for it as adapters do
    if setup.spec is not None and not several:
        llm.collective_rpc("load_gated_adapter", args=(str(setup.adapters[0]),))
        return llm, []
    requests = [LoRARequest(place.stem, i + 1, str(place)) for i, place in enumerate(setup.adapters)]
    for request in requests:
        llm.llm_engine.add_lora(request)
    return llm, requests


def _generate(llm: Any, requests: Sequence[Any], setup: Setup, asked: tuple[int, int, int]) -> float:
    n, new, seed = asked
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in setup.workloads.prompts(n, seed, setup.vocabulary)]
    named = [requests[i % len(requests)] for i in range(n)] if requests else None
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=named)
    seconds = time.perf_counter() - started
    assert all(len(output.outputs[0].token_ids) == new for output in outputs)
    return seconds


def _profile(llm: Any, requests: Sequence[Any], setup: Setup, folder: Path) -> None:
    """Write the steps of each workload, and on a GPU kernels by total time: decoding of one request and of
    all, and a prefill."""
    import json

    def write(name: str, value: Any) -> None:
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")

    for name, (n, new) in setup.workloads.asked.items():
        llm.collective_rpc(start_log)
        seconds = _generate(llm, requests, setup, (n, new, 7))
        steps, *_ = llm.collective_rpc(stop_log)  # of the first rank
        write(f"steps-{setup.name}-{name}", {"seconds": seconds, **summary(steps), "rows": steps})
    if on_cpu():
        return
    many = setup.workloads.requests
    for name, (n, new) in {"single": (1, 32), "prefill": (many, 1), "batch": (many, 32)}.items():
        llm.collective_rpc(_profiled_start)
        _generate(llm, requests, setup, (n, new, 7))
        kernels, *_ = llm.collective_rpc(_profiled_stop)
        write(f"profile-{setup.name}-{name}", kernels)


def _profiled_start(worker: Any) -> None:
    worker.bench_profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    worker.bench_profiler.start()


def _profiled_stop(worker: Any) -> list[dict[str, Any]]:
    torch.cuda.synchronize()
    worker.bench_profiler.stop()
    rows = [
        {"kernel": event.key[:120], "calls": event.count, "microseconds": round(event.device_time_total, 1)}
        for event in worker.bench_profiler.key_averages()
        if event.device_time_total
    ]
    total = {
        "kernel": "all",
        "calls": sum(row["calls"] for row in rows),
        "microseconds": round(sum(row["microseconds"] for row in rows), 1),
    }
    return [total, *sorted(rows, key=lambda row: -row["microseconds"])[:30]]


# ---- what the engines read


def _write_model(folder: Path, config: PretrainedConfig, workloads: Workloads) -> None:
    """Write config.json only: the weights are vLLM's random ones."""
    import copy

    written = copy.deepcopy(config)
    written.max_position_embeddings = max(
        config.max_position_embeddings, 2 * (workloads.prompt + workloads.new)
    )
    written.architectures = config.architectures or ["LlamaForCausalLM"]
    written.save_pretrained(folder)


def _write_plugin_adapter(
    file: Path, spec: GatedSpec, sizes: Mapping[str, tuple[int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    tensors = {
        f"{module}.{part}": torch.randn(size) * _STD
        for module, (d_in, d_out) in sizes.items()
        for part, size in spec.shapes(d_in, d_out).items()
    }
    write_adapter(file, spec, tensors)


def _write_lora(folder: Path, sizes: Mapping[str, tuple[int, int]], names: Sequence[str], seed: int) -> None:
    """Write a LoRA of ``NATIVE_RANK``, as PEFT saves it."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for module, (d_in, d_out) in sizes.items():
        shapes = {"A": (NATIVE_RANK, d_in), "B": (d_out, NATIVE_RANK)}
        for part, shape in shapes.items():
            name = f"base_model.model.{module}.lora_{part}.weight"
            tensors[name] = (torch.randn(shape) * _STD).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(
        r=NATIVE_RANK, lora_alpha=NATIVE_RANK, target_modules=list(names), task_type="CAUSAL_LM"
    )
    config.save_pretrained(folder)


def _cache_bytes(config: PretrainedConfig, workloads: Workloads) -> float:
    """Return the bytes of keys and values of all requests, in 16 bits."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 4 * config.num_hidden_layers * config.num_key_value_heads * head
    return float(token * workloads.requests * (workloads.prompt + workloads.new))


def _fit_together(config: PretrainedConfig, engines: int, cache: float, cards: int) -> bool:
    """Return whether all engines, with all requests in their caches and 16 bits, fit on the cards that each
    is spread over. On a CPU they always do: there the models are small. ``cache``: its bytes on each card."""
    if on_cpu():
        return True
    total = int(torch.cuda.get_device_properties(0).total_memory)
    each = 1.3 * 2 * count_parameters(config) / cards + cache + 3 * 2**30  # adapter, workspace, graphs
    return bool(engines * each < FILL * total)
