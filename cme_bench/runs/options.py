"""Options of a run: the model and where it computes, and the questions that it is asked.

Each option stands here once: its name, its type, its default and its help. ``metadata`` of a field has

* ``help``: one sentence for users;
* ``flag``: its name on the command line where that is not the field's (None: not on the command line);
* ``choices``: the values it may have;
* ``min``: the least number it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.models.load import DTYPES
from cme_bench.prompts.bos import BOS_MODES
from cme_bench.prompts.formats import FORMATS

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


@dataclass(frozen=True)
class NetworkOptions:
    """Whether rows and models may be fetched."""

    offline: bool = field(default=False, kw_only=True, metadata={"help": "Never use the network."})


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """The model, and what computes with it."""

    model: str = field(metadata={"help": "A model folder, a hub id, or 'smollm2' (the embedded default)."})
    engine: str = field(
        default="auto",
        metadata={
            "help": "What computes: hf (transformers), vllm, or ray (several of either). auto: hf.",
            "choices": ("auto", *ENGINES),
        },
    )
    worker: str = field(
        default="hf", metadata={"help": "ray: the engine of a worker, hf or vllm.", "choices": WORKERS}
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "ray: how many workers; default: as there are GPUs, or nodes without GPUs.",
            "min": 1,
        },
    )
    address: str | None = field(
        default=None,
        metadata={"help": "ray: HOST:PORT of a cluster's head, or 'auto'; default: this machine alone."},
    )
    dtype: str = field(
        default="auto", metadata={"help": "auto, float32, bfloat16 or float16.", "choices": DTYPES}
    )
    settings: Mapping[str, int] = field(
        default_factory=dict,
        metadata={
            "help": "Engine setting, e.g. tokens_per_batch=2048.",
            "flag": "--set",
            "metavar": "KEY=VALUE",
        },
    )

    @property
    def computes(self) -> str:
        """The engine that computes answers: ``engine``, or that of ray's workers."""
        if self.engine == "ray":
            return self.worker
        return "hf" if self.engine == "auto" else self.engine

    @property
    def gpus_per_worker(self) -> int:
        """Of engine ray, where there are GPUs."""
        return self.settings.get("tensor_parallel", 1) if self.worker == "vllm" else 1


@dataclass(frozen=True)
class AskOptions(NetworkOptions):
    """What is asked, of the model alone or with each of several adapters, and where answers are stored."""

    tasks: str = field(
        default="cme",
        metadata={"help": "Comma-separated tasks, domains and suites: cme, cme_ll, nli, cme_rte_ll, ..."},
    )
    adapters: tuple[str | None, ...] = field(
        default=(),
        metadata={
            "help": "A PEFT adapter folder, or teamlora-demo, which ships with this. Give it several times: "
            "one run folder each, base loaded once.",
            "flag": "--adapter",
        },
    )
    data: str = field(
        default="hub",
        metadata={"help": "'hub', 'mini' (our own smoke-test items), or a folder of DATASET/SPLIT.jsonl."},
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Only N items of each task: the first of a fixed shuffle.", "min": 1},
    )
    shots: int | None = field(
        default=None, metadata={"help": "Few-shot exemplars; default: the task's own.", "min": 0}
    )
    seed: int = field(default=0, metadata={"help": "Seed of few-shot sampling."})
    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "auto, chat, plain or teamlora. auto: the adapter's, else chat where the model has a "
            "template and the task generates, else plain.",
            "flag": "--format",
            "choices": FORMATS,
        },
    )
    system: str | None = field(
        default=None,
        metadata={"help": "System prompt, where the format is chat (exemplars are turns there)."},
    )
    bos: str = field(
        default="auto",
        metadata={
            "help": "auto, always or never: whether prompts begin with BOS. auto: as the adapter was "
            "trained, else as the tokenizer does; where it adds none, one for families trained with it.",
            "choices": BOS_MODES,
        },
    )
    out: Path | None = field(default=None, metadata={"help": "Run folder; default: runs/MODEL-HASH."})
    include: tuple[Path, ...] = field(default=(), metadata={"help": "Folder of your own task files."})
    allow_code: bool = field(default=False, metadata={"help": "Run !function code of --include files."})
    max_truncated: int | None = field(
        default=None, metadata={"help": "Fail if more prompts than this must be cut to fit.", "min": 0}
    )
    command: tuple[str, ...] = field(
        default=(), metadata={"help": "The command line that asks, for run.json.", "flag": None}
    )


@dataclass(frozen=True)
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
    """Raise UsageError for an engine or worker that there is not, and for ray's options elsewhere."""
    for option in fields(ModelOptions):
        known, value = option.metadata.get("choices"), getattr(options, option.name)
        if known is not None and value not in known:
            raise UsageError(f"unknown {option.name} {value!r}{did_you_mean(str(value), known)}")
    if options.engine != "ray":
        for name in ("worker", "workers", "address"):
            if getattr(options, name) != getattr(ModelOptions, name):
                raise UsageError(f"--{name} is for --engine ray, not for {options.computes}")
    _check_numbers(ModelOptions, options)


def check_ask(options: AskOptions) -> None:
    """Raise UsageError for a number that is none or too small."""
    _check_numbers(AskOptions, options)


def _check_numbers(kind: type[Any], options: object) -> None:
    for name, flag, least in _bounded(kind):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{flag}: a whole number of at least {least}, not {value!r}")


def _bounded(kind: type[Any]) -> Iterator[tuple[str, str, int]]:
    """Name, flag and least value of every number that has one."""
    for option in fields(kind):
        if (least := option.metadata.get("min")) is not None:
            yield option.name, option.metadata.get("flag") or f"--{option.name.replace('_', '-')}", least


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
