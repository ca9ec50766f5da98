"""Options of a run: the model and where it computes, and the questions that it is asked.

Each option stands here once: its name, its type, its default, its choices and its help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cme_bench.trackers.names import PROJECT, ReportProject, ReportTo, check_trackers
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import (
    BOS_UNKNOWN,
    AllowCode,
    BosMode,
    Data,
    DType,
    Engine,
    FormatName,
    Include,
    Limit,
    Model,
    Offline,
    Option,
    Quantize,
    ThinkingChoice,
    Worker,
    check_choices,
    check_minimums,
)

ENGINE, PROMPTS, GENERATION = "Engine", "Prompts", "Generated answers"
"""The headings of the options."""
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Below the least vLLM samples as at it; at the most all tokens are about alike."""
WIDE, PIECES, HALF = "wide_states", "float32_pieces", "float16_states"
SETTINGS = {
    "tokens_per_batch": "hf: most tokens of a batch (rows x padded length)",
    "shared_prefixes": "hf: 1 computes every shared prefix once (default), 0 computes every row alone",
    "graphs": "hf on a GPU: 1 replays steps of generation as CUDA graphs (default), 0 computes each anew",
    WIDE: "hf in 16 bits: 1 keeps hidden states in float32 (default), 0 rounds them as weights are",
    PIECES: "hf in float32: 1 multiplies by three bfloat16 pieces (default on a GPU, as exact), 0 does not",
    HALF: "vllm in bfloat16: 1 computes in float16, with more digits, what fits it (default), 0 does not",
    "block_size": "vllm: tokens of a cache block; default: 32 on a CPU, vLLM's own on a GPU",
    "kv_gib": "vllm: GiB of key-value cache; default: all (GPU); a quarter of what is free, 8 at most (CPU)",
    "memory_percent": "vllm on a GPU: percent of memory to take; default: 90, less where others hold some",
    "max_seqs": "vllm: most sequences at a time",
    "tensor_parallel": "vllm: devices (processes on a CPU) that share the model; ray: of each worker",
    "compile": "vllm: 1 compiles and captures graphs, 0 does not; default: on a GPU, for two million tokens",
    "in_process": "vllm: 1: the engine is in this process (default on a CPU, or if compile is 0); 0: not",
    "window": "vllm: most requests in the engine at a time; default 1024",
    "packs": "vllm: 1 scores choices by packs of many questions, as hf does; 0 not; default 1 on a GPU",
    "slots": "vllm: adapters that answer at the same time in one engine; default 1: one after the other",
    "graph_tokens": "vllm, compiled, on a GPU: most tokens of a step captured as a graph; default 512",
    "retries": "server: how often a request is asked again; default 8, over about a minute",
    "timeout": "server: seconds until an answer is given up; default 600",
    "max_length": "most tokens the model is fed of a row; default: the positions its config allows",
}
"""Keys of ``--set KEY=VALUE`` and what they mean."""
SWITCHES = frozenset({"shared_prefixes", "graphs", WIDE, PIECES, HALF, "compile", "in_process", "packs"})
"""Those that are 0 or 1."""


def parse_settings(pairs: list[str]) -> dict[str, int]:
    """Return ``["tokens_per_batch=2048"]`` as a mapping. UsageError for unknown keys and values that are no
    positive whole numbers (0 and 1 for switches)."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals and key in SETTINGS:
            raise UsageError(f"--set {pair}: write KEY=VALUE")
        if key not in SETTINGS:
            raise UsageError(f"--set {pair}: unknown setting {key!r}{did_you_mean(key, SETTINGS)}")
        if key in SWITCHES and value not in {"0", "1"}:
            raise UsageError(f"--set {pair}: {key} takes 0 or 1")
        if not value.isdigit() or (int(value) == 0 and key not in SWITCHES):
            raise UsageError(f"--set {pair}: {key} takes a positive whole number")
        settings[key] = int(value)
    return settings


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Whether rows and models may be fetched."""

    offline: Offline = field(default=False, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NetworkOptions):
    """The model, and what computes with it."""

    model: Model = field(kw_only=False)
    engine: Annotated[
        Literal["auto"] | Engine,
        Option(
            "What computes: hf (transformers), vllm, ray (several of either), or a server that is asked. "
            "auto: hf, or on a GPU vllm where so much is generated that its start is worth it.",
            panel=ENGINE,
        ),
    ] = "auto"
    worker: Annotated[Worker, Option("ray: the engine of a worker.", panel=ENGINE)] = "hf"
    workers: Annotated[
        int | None,
        Option(
            "ray: how many workers; default: as there are GPUs, or nodes without GPUs.",
            minimum=1,
            panel=ENGINE,
        ),
    ] = None
    address: Annotated[
        str | None,
        Option("ray: HOST:PORT of a cluster's head, or 'auto'; default: this machine alone.", panel=ENGINE),
    ] = None
    server: Annotated[
        str | None,
        Option(
            "server: its address, http://HOST:PORT; MODEL names its tokenizer, OPENAI_API_KEY holds its key.",
            metavar="URL",
            panel=ENGINE,
        ),
    ] = None
    server_model: Annotated[
        str | None, Option("server: which of its models, by the name it is served under.", panel=ENGINE)
    ] = None
    server_concurrency: Annotated[
        int, Option("server: most requests that it is asked at a time.", minimum=1, panel=ENGINE)
    ] = 8
    dtype: Annotated[
        DType, Option("Of weights and products. auto: as the model's files and the device say.", panel=ENGINE)
    ] = "auto"
    quantize: Annotated[
        Quantize | None,
        Option(
            "hf: quantise the base while it loads, by bitsandbytes. 4bit: NF4 with doubly quantised scales, "
            "the QLoRA way; 8bit: LLM.int8(). It is another model then: answers and tables keep it apart.",
            panel=ENGINE,
        ),
    ] = None
    device_map: Annotated[
        str | None,
        Option(
            "hf: spread a base that is larger than one GPU. auto, balanced or sequential fill the GPUs, then "
            "memory, then disk; or a JSON file of {module: device}.",
            panel=ENGINE,
        ),
    ] = None
    settings: Annotated[
        Mapping[str, int],
        Option(
            "Engine setting, e.g. tokens_per_batch=2048.",
            flag="--set",
            metavar="KEY=VALUE",
            parse=parse_settings,
            panel=ENGINE,
        ),
    ] = field(default_factory=dict)

    @property
    def computes(self) -> str:
        """The engine that computes answers: ``engine``, or that of ray's workers; hf while auto is not
        decided."""
        if self.engine == "ray":
            return self.worker
        return "hf" if self.engine == "auto" else self.engine

    @property
    def gpus_per_worker(self) -> int:
        """Of engine ray, where there are GPUs."""
        return self.settings.get("tensor_parallel", 1) if self.worker == "vllm" else 1


@dataclass(frozen=True, kw_only=True)
class AskOptions(NetworkOptions):
    """The questions, asked of the model alone or with each of several adapters, and where answers are
    stored."""

    tasks: Annotated[
        str, Option("Comma-separated tasks, domains and suites: cme, cme_ll, nli, cme_rte_ll, ...")
    ] = "cme"
    adapters: Annotated[
        tuple[str | None, ...],
        Option(
            "A PEFT adapter: a folder, a hub name, or teamlora-demo, which ships with this. Several times: "
            "one run folder each, base loaded once. #task=N at its end: the task of a Poly adapter.",
            flag="--adapter",
        ),
    ] = ()
    data: Data = "hub"
    limit: Limit = None
    shots: Annotated[
        int | None, Option("Few-shot exemplars; default: the task's own.", minimum=0, panel=PROMPTS)
    ] = None
    seed: Annotated[int, Option("Seed of few-shot sampling, and of sampled answers.", panel=PROMPTS)] = 0
    prompt_format: Annotated[
        FormatName,
        Option(
            "auto: the adapter's, else chat where the model has a template and the task generates, else "
            "plain.",
            flag="--format",
            panel=PROMPTS,
        ),
    ] = "auto"
    system: Annotated[
        str | None,
        Option("System prompt, where the format is chat (exemplars are turns there).", panel=PROMPTS),
    ] = None
    bos: Annotated[
        BosMode,
        Option(
            "Whether prompts begin with BOS. auto: as the adapter was trained, else as the tokenizer does; "
            "where it adds none, one for families trained with it.",
            noun=BOS_UNKNOWN,
            panel=PROMPTS,
        ),
    ] = "auto"
    thinking: Annotated[
        ThinkingChoice,
        Option(
            "Whether a model that can think does, before generated answers. template: as its chat template "
            "has it. auto: off where the template has a switch, else template.",
            panel=GENERATION,
        ),
    ] = "auto"
    thinking_budget: Annotated[
        int | None,
        Option(
            "Most tokens of a thought, apart from the answer's own; then it is closed and the model answers. "
            "Default: 1024.",
            minimum=1,
            panel=GENERATION,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None, Option("Most tokens of an answer; default: the task's own.", minimum=1, panel=GENERATION)
    ] = None
    temperature: Annotated[
        float | None,
        Option("Sample answers at it; 0 is greedy. Default: the task's own.", minimum=0, panel=GENERATION),
    ] = None
    top_p: Annotated[
        float | None,
        Option("Sample of the likeliest tokens with this much probability.", minimum=0, panel=GENERATION),
    ] = None
    top_k: Annotated[
        int | None, Option("Sample of so many likeliest tokens.", minimum=1, panel=GENERATION)
    ] = None
    repeats: Annotated[
        int | None,
        Option(
            "Sampled answers to each item: their mean, pass@k and the majority's answer are reported. "
            "Default: the task's own.",
            minimum=1,
            panel=GENERATION,
        ),
    ] = None
    out: Annotated[Path | None, Option("Run folder; default: runs/MODEL-HASH.")] = None
    include: Include = ()
    allow_code: AllowCode = False
    max_truncated: Annotated[
        int | None, Option("Fail if more prompts than this must be cut to fit.", minimum=0, panel=PROMPTS)
    ] = None
    report_to: ReportTo = ()
    report_project: ReportProject = PROJECT
    command: tuple[str, ...] = ()
    """The command line that asks, for run.json."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(AskOptions, ModelOptions):
    """The arguments of ``cme-bench run``: a model, and what it is asked."""


def arguments(model: ModelOptions, ask: AskOptions) -> dict[str, Any]:
    """Return both as one mapping, each by its own fields only: ``ask`` may be options of a whole run."""
    parts: tuple[tuple[Any, Any], ...] = ((ModelOptions, model), (AskOptions, ask))
    return {option.name: getattr(options, option.name) for kind, options in parts for option in fields(kind)}


def model_half(options: ModelOptions) -> ModelOptions:
    """Return the options of the model alone, without what is asked."""
    return ModelOptions(**{option.name: getattr(options, option.name) for option in fields(ModelOptions)})


def check_model(options: ModelOptions) -> None:
    """Raise UsageError for an engine, worker or dtype that there is not, and for ray's options elsewhere."""
    check_choices(options, ModelOptions)
    if options.engine != "ray":
        for name in ("worker", "workers", "address"):
            if getattr(options, name) != getattr(ModelOptions, name):
                raise UsageError(f"--{name} is for --engine ray, not for {options.computes}")
    _check_server(options)
    _check_device_map(options)
    _check_slots(options)
    check_minimums(options, ModelOptions)


def _check_server(options: ModelOptions) -> None:
    """Raise UsageError for options of a server without one, and for those that a server decides itself."""
    if options.engine == "server":
        if not options.server:
            raise UsageError("--engine server needs --server URL, for example http://127.0.0.1:8000")
        if options.dtype != "auto":
            raise UsageError(f"--dtype {options.dtype}: a server computes in its own type; leave it out")
        for name in ("quantize", "device_map"):
            if (value := getattr(options, name)) is not None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {value}: a server has loaded its model; leave it out")
        return
    for name in ("server", "server_model", "server_concurrency"):
        if getattr(options, name) != getattr(ModelOptions, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for --engine server, not for {options.computes}")


def _check_device_map(options: ModelOptions) -> None:
    if options.device_map is None:
        return
    if options.computes == "vllm":
        raise UsageError(
            "--device-map is for --engine hf; vLLM spreads a model by --set tensor_parallel=N, over N GPUs"
        )
    if options.engine == "ray":
        raise UsageError(
            "--device-map is for --engine hf on one machine: a ray worker has one GPU; --worker vllm --set "
            "tensor_parallel=N gives each N"
        )


def _check_slots(options: ModelOptions) -> None:
    slots = options.settings.get("slots", 1)
    if slots < 1:
        raise UsageError(f"--set slots={slots}: at least 1, which is one adapter after the other")
    if slots > 1 and options.engine == "ray":
        raise UsageError(
            "--set slots: a ray worker has one adapter at a time; use --engine vllm, or leave it out"
        )


def check_ask(options: AskOptions) -> None:
    """Raise UsageError for an unknown format or BOS mode, for a number that is none or too small, and for a
    tracker that is not installed."""
    check_choices(options, AskOptions)
    check_trackers(options.report_to)
    check_minimums(options, AskOptions)
    if options.temperature and not LEAST_TEMPERATURE <= options.temperature <= MOST_TEMPERATURE:
        raise UsageError(f"--temperature: 0, or from 0.01 to 100, not {options.temperature:g}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UsageError(f"--top-p: above 0 and 1 at most, not {options.top_p:g}")
    if options.thinking_budget is not None and options.thinking == "off":
        raise UsageError("--thinking-budget is for thoughts: leave it out with --thinking off")
