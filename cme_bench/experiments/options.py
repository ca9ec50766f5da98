"""Options of `router` and of `parity`; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cme_bench.runs.options import parse_settings
from cme_bench.util.errors import UsageError
from cme_bench.util.options import DType, FormatName, LocalEngine, Model, Offline, Option

_UNKNOWN_ENGINE = "--engines: unknown engine {value!r}{hint} ({known})"


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """The adapter whose router is looked at, and the prompts that it is shown."""

    source: Annotated[
        Path, Option("A run folder (its stored prompts are used), or an adapter folder.", argument=True)
    ]
    model: Annotated[
        str | None, Option("Base model; default: the run's, or the one the adapter records.")
    ] = None
    tasks: Annotated[
        str | None, Option("Tasks and domains; default: those of the run; cme for an adapter.")
    ] = None
    data: Annotated[str, Option("For an adapter: 'hub', 'mini', or a folder of DATASET/SPLIT.jsonl.")] = "hub"
    limit: Annotated[
        int | None,
        Option("Only N items of each task (or group): the first of a fixed shuffle.", minimum=1),
    ] = 100
    by: Annotated[str | None, Option("Group items by a field, e.g. subject (MMLU).", metavar="FIELD")] = None
    prompt_format: Annotated[FormatName, Option("For an adapter, as for `run`.", flag="--format")] = "auto"
    dtype: Annotated[DType | None, Option("Default: the run's, or auto.")] = None
    offline: Offline = False


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """The model that two engines answer with, the items, and how far their answers may lie apart.

    Raises UsageError unless there are two engines.
    """

    model: Model
    adapter: Annotated[str | None, Option("A PEFT adapter: a folder or a hub name.")] = None
    engines: Annotated[
        tuple[LocalEngine, ...],
        Option("Two engines, the reference first.", separated=True, noun=_UNKNOWN_ENGINE),
    ] = ("hf", "vllm")
    tasks: Annotated[str, Option("Tasks, domains and suites to ask.")] = "cme_rte_ll,cme_rte"
    data: Annotated[str, Option("'hub', 'mini', or a folder of DATASET/SPLIT.jsonl.")] = "mini"
    limit: Annotated[int | None, Option("Only N items of each task.", minimum=1)] = None
    shots: Annotated[int | None, Option("Few-shot exemplars.", minimum=0)] = None
    dtype: Annotated[DType, Option("What weights and products are computed in.")] = "auto"
    tolerance: Annotated[
        float | None,
        Option("Most |d logprob| a token. Default: float32 1e-4, float16 0.125, bfloat16 1.", minimum=0),
    ] = None
    offline: Offline = False
    settings: Annotated[
        Mapping[str, int],
        Option("Engine setting, as in run.", flag="--set", metavar="KEY=VALUE", parse=parse_settings),
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.engines) != 2:
            raise UsageError(f"--engines takes two engines, not {len(self.engines)}: for example hf,vllm")
