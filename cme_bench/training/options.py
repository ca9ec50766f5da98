"""The options of a training, checked before anything is loaded."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cme_bench.authoring.new_options import delimiter_option, quotes_option
from cme_bench.trackers.names import PROJECT, ReportProject, ReportTo, check_trackers
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import (
    BOS_UNKNOWN,
    BosMode,
    DType,
    FormatName,
    Model,
    Offline,
    Option,
    Quantize,
    check_choices,
    check_minimums,
)

DEFAULT_EXPERTS = 4
DEFAULT_FORMAT: FormatName = "teamlora"
"""The prompt format of a training, unless its rows have another."""
SaveDType = Literal["float32", "bfloat16"]
RowForm = Literal["auto", "instruction", "completion", "messages"]
Weighting = Literal["proportional", "equal", "temperature"]
BatchOrder = Literal["auto", "similar", "random", "even"]
DATA, ADAPTER, TEAM, LEARNING, RUNNING = "Data", "Adapter", "TeamLoRA", "Learning", "Running"
"""The headings of the options."""
_READING = ("row_form", "encoding", "delimiter", "quotes")
"""How files are read: the rows themselves, which count, are the outcome."""
_REPORTING = ("report_to", "report_project")
_NOT_IDENTITY = ("out", "save_every", "log_every", "offline", "bos", "device_map", *_READING, *_REPORTING)
USUAL: Mapping[str, tuple[Any, ...]] = {
    "save_dtype": ("float32",),
    "quantize": (None,),
    "pack_tokens": (None,),
    "liger": (None, False),
    "spare": (None,),
    "batches": ("auto", "similar"),
}
"""Options that are younger than some adapters, and the values with which they are in no identity."""


def parse_data(values: list[str]) -> str | tuple[str, ...]:
    """Return what was typed: one value as it is, several as a tuple."""
    return values[0] if len(values) == 1 else tuple(values)


def parse_fields(pairs: list[str]) -> dict[str, Any]:
    """Return ``["init=random", "r=4"]`` as a mapping; values are JSON where they can be.

    Raises UsageError for a pair without '='.
    """
    fields = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: write FIELD=VALUE")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value
    return fields


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The arguments of a training. None: the method's own default.

    ``rank`` is that of one expert; ``settings`` are further fields of the method's PEFT config.
    """

    model: Model
    method: Annotated[str, Option(f"{', '.join(packaged_methods())}, or one of a --plugin.")]
    out: Annotated[Path, Option("Folder of the adapter.")]
    data: Annotated[
        str | tuple[str, ...],
        Option(
            "CME's rows: 'hub', 'mini' or a folder of DATASET/SPLIT.jsonl. Or rows of your own: a file "
            "(jsonl, json, csv, parquet), a folder of them, or hub:OWNER/NAME. Or commonsense-170k=FILE, "
            "math-14k=FILE. Several with shares: --data cme=DIR=2 --data mine.jsonl=1.",
            metavar="[NAME=]PLACE[=WEIGHT]",
            parse=parse_data,
            panel=DATA,
        ),
    ] = "hub"
    row_form: Annotated[
        RowForm,
        Option(
            "Own rows whose columns fit several forms: what they are. auto: by their columns.", panel=DATA
        ),
    ] = "auto"
    encoding: Annotated[str | None, Option("Of files of own rows that are not UTF-8.", panel=DATA)] = None
    delimiter: Annotated[str | None, delimiter_option(DATA)] = None
    quotes: Annotated[str | None, quotes_option(DATA)] = None
    datasets: Annotated[
        str, Option("Of CME: comma-separated datasets and domains, or 'all' 22.", panel=DATA)
    ] = "all"
    weighting: Annotated[
        Weighting,
        Option("Share of each dataset: proportional to its size, equal, or size^(1/T).", panel=DATA),
    ] = "proportional"
    temperature: Annotated[float, Option("T of --weighting temperature.", panel=DATA)] = 2.0
    samples: Annotated[int | None, Option("Examples an epoch; default: all items.", panel=DATA)] = None
    cap: Annotated[int | None, Option("At most N items of each dataset.", panel=DATA)] = None
    holdout: Annotated[int, Option("Items of each dataset kept for validation.", panel=DATA, minimum=0)] = 0
    spare: Annotated[
        str | None,
        Option(
            "Tasks and suites whose scored rows are never trained on, such as cme2. Rows that cme and cme_ll "
            "score never are.",
            metavar="TASKS",
            panel=DATA,
        ),
    ] = None
    rank: Annotated[int, Option("Rank; of ONE expert.", panel=ADAPTER)] = 16
    experts: Annotated[int | None, Option("Experts of a routed method; default 4.", panel=ADAPTER)] = None
    alpha: Annotated[float | None, Option("Scaling numerator; default 2 x rank.", panel=ADAPTER)] = None
    dropout: Annotated[float, Option("Adapter dropout.", panel=ADAPTER)] = 0.05
    targets: Annotated[
        str, Option("ffn, attention, ffn+attention, all-linear, or layer names.", panel=ADAPTER)
    ] = "ffn"
    preset: Annotated[str | None, Option("paper or authors-2024-08.", panel=TEAM)] = None
    scaling: Annotated[str | None, Option("alpha/r, alpha/(k*r) or a number.", panel=TEAM)] = None
    collaboration: Annotated[bool, Option("One shared down-projection.", panel=TEAM)] = True
    competition: Annotated[bool, Option("Learnable interaction matrix M.", panel=TEAM)] = True
    balance_loss: Annotated[float, Option("Weight of the load-balance loss.", panel=ADAPTER)] = 0.0
    settings: Annotated[
        Mapping[str, Any],
        Option(
            "Any field of the PEFT config.",
            flag="--set",
            metavar="FIELD=VALUE",
            parse=parse_fields,
            panel=ADAPTER,
        ),
    ] = field(default_factory=dict)
    prompt_format: Annotated[
        FormatName,
        Option(
            "Saved with the adapter, and used to evaluate it. auto: chat where rows are messages; plain for "
            "prompt and completion; llm-adapters for its mixtures; else teamlora.",
            flag="--format",
            panel=DATA,
        ),
    ] = "auto"
    bos: Annotated[
        BosMode,
        Option(
            "Whether prompts begin with BOS, as for `run`; saved, and followed.", noun=BOS_UNKNOWN, panel=DATA
        ),
    ] = "auto"
    max_length: Annotated[int, Option("Most tokens of an example; longer prompts are cut.", panel=DATA)] = (
        1024
    )
    epochs: Annotated[int, Option("Passes over the mixture.", panel=LEARNING)] = 1
    max_steps: Annotated[int | None, Option("Optimizer steps, instead of epochs.", panel=LEARNING)] = None
    batch_size: Annotated[int, Option("Examples a batch and process.", panel=LEARNING)] = 8
    accumulate: Annotated[int, Option("Batches a step.", panel=LEARNING)] = 1
    batches: Annotated[
        BatchOrder,
        Option(
            "Examples of a batch: of similar length, which needs little padding; at random; or even, dealt "
            "out so that every batch has about as many tokens. auto: even in packs on a GPU, else similar.",
            panel=LEARNING,
        ),
    ] = "auto"
    pack: Annotated[
        int | None,
        Option(
            "Lay a batch's examples end to end, about N a row, instead of padding each.",
            metavar="N",
            panel=LEARNING,
        ),
    ] = None
    pack_tokens: Annotated[
        int | None,
        Option(
            "Lay a batch's examples end to end in rows of exactly N tokens, so that every step has known "
            "shapes. On a GPU by default, with N chosen by the rows; 0 pads each example instead.",
            metavar="N",
            panel=LEARNING,
            minimum=0,
        ),
    ] = None
    learning_rate: Annotated[float, Option("Peak rate.", panel=LEARNING)] = 2e-4
    warmup: Annotated[float, Option("Share of warm-up steps.", panel=LEARNING)] = 0.03
    weight_decay: Annotated[float, Option("On matrices; never on M.", panel=LEARNING)] = 0.0
    max_grad_norm: Annotated[float, Option("Gradient clipping; 0 for none.", panel=LEARNING)] = 1.0
    dtype: Annotated[DType, Option("Of the base; the adapter is float32.", panel=RUNNING)] = "auto"
    save_dtype: Annotated[
        SaveDType,
        Option("Of the saved adapter; bfloat16 rounds it and halves the file.", panel=RUNNING),
    ] = "float32"
    quantize: Annotated[
        Quantize | None,
        Option(
            "Train on a base that bitsandbytes quantises while it loads. 4bit: QLoRA; 8bit: LLM.int8().",
            panel=RUNNING,
        ),
    ] = None
    device_map: Annotated[
        str | None,
        Option(
            "Spread a base that is larger than one GPU over all of them, layer by layer: auto, balanced or "
            "sequential, or a JSON file of {module: device}.",
            panel=RUNNING,
        ),
    ] = None
    checkpointing: Annotated[
        bool | None,
        Option(
            "Gradient checkpointing (less memory, more time); default: on a GPU whose memory a step without "
            "it would not fit in.",
            panel=RUNNING,
        ),
    ] = None
    liger: Annotated[
        bool | None,
        Option(
            "Gated activations and positions by Liger's kernels (package liger-kernel), on a GPU; default: "
            "in bfloat16, where they are installed and know the model.",
            panel=RUNNING,
        ),
    ] = None
    seed: Annotated[int, Option("Decides everything random.", panel=LEARNING)] = 0
    save_every: Annotated[int, Option("Steps between checkpoints.", panel=RUNNING)] = 500
    log_every: Annotated[int, Option("Steps between writes to loss.csv.", panel=RUNNING)] = 10
    report_to: ReportTo = ()
    report_project: ReportProject = PROJECT
    offline: Offline = False

    def identity(self) -> dict[str, Any]:
        """Return the arguments that decide what is trained; ``out`` and how often to save do not.

        ``bos`` counts by what it makes of the prompts, see :func:`cme_bench.training.record.identity`.
        ``save_dtype`` counts where it is no float32, ``batches`` where they are not similar; ``quantize``,
        ``pack_tokens`` and ``liger`` where they are given: adapters that are older than these options have
        none.
        """
        left_out = (*_NOT_IDENTITY, *(name for name, usual in USUAL.items() if getattr(self, name) in usual))
        return {k: v for k, v in self.plain().items() if k not in left_out}

    def plain(self) -> dict[str, Any]:
        """All arguments as JSON values."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return plain if isinstance(self.data, str) else plain | {"data": list(self.data)}


def method_names() -> tuple[str, ...]:
    """Return the names of all adapter methods.

    They are read from the registry if it is imported by now, else from the names of this package's files.
    """
    registry: Any = sys.modules.get("cme_bench.adapters.registry")
    if registry is not None:
        found: tuple[str, ...] = registry.names()
        return found
    return packaged_methods()


def packaged_methods() -> tuple[str, ...]:
    """Return the names of the methods in this package, from the names of their files."""
    files = (Path(__file__).parent.parent / "adapters" / "methods").glob("[a-z]*.py")
    return tuple(sorted(file.stem for file in files))


def _installed(method: str) -> bool:
    """Whether an installed package registers a method; it is loaded then."""
    from importlib.metadata import entry_points

    if not entry_points(group="cme_bench.adapters", name=method):
        return False
    from cme_bench.adapters.plugins import load_installed

    return load_installed(method)


def check_options(options: TrainOptions) -> None:
    """Raise UsageError for every setting that is impossible by itself, naming it."""
    known = method_names()
    if options.method not in known and not _installed(options.method):
        hint = did_you_mean(options.method, known)
        raise UsageError(
            f"unknown method {options.method!r}{hint} (known: {', '.join(known)}; name a file of yours with "
            "--plugin)"
        )
    check_choices(options)
    check_trackers(options.report_to)
    check_minimums(options)
    _check_finite(options)
    if options.rank < 1:
        raise UsageError(f"--rank must be at least 1, got {options.rank}")
    for name in ("epochs", "batch_size", "accumulate", "save_every", "log_every"):
        _at_least_one(name, getattr(options, name))
    for name in ("samples", "cap", "max_steps"):
        if getattr(options, name) is not None:
            _at_least_one(name, getattr(options, name))
    if options.pack is not None and options.pack < 2:
        raise UsageError(f"--pack must be at least 2, got {options.pack}; without it every example is padded")
    if options.pack is not None and options.pack_tokens is not None:
        raise UsageError("--pack and --pack-tokens are two ways to pack rows; give one of them")
    if options.learning_rate <= 0:
        raise UsageError(f"--learning-rate must be above 0, got {options.learning_rate}")
    if not 0 <= options.warmup < 1:
        raise UsageError(f"--warmup is a share of the steps, in [0, 1); got {options.warmup}")
    for name in ("holdout", "weight_decay", "max_grad_norm", "balance_loss"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")
    check_temperature(options.temperature)


_LARGEST_SEED = (1 << 32) - 1


def _check_finite(options: TrainOptions) -> None:
    for option in fields(options):
        value = getattr(options, option.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{option.name.replace('_', '-')} must be a finite number, got {value}")
    if not 0 <= options.seed <= _LARGEST_SEED:
        raise UsageError(
            f"--seed: from 0 to {_LARGEST_SEED}, which numpy's generators take, not {options.seed}"
        )
    if options.alpha == 0:
        raise UsageError("--alpha must not be 0: an adapter with that factor changes nothing")


def check_temperature(temperature: float) -> None:
    """Raise UsageError unless the T of ``size^(1/T)`` is above 0."""
    if temperature <= 0:
        raise UsageError(f"--temperature must be above 0, got {temperature}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
