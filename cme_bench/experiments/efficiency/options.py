"""The options of a measurement; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import Offline, Option, check_choices

Part = Literal["train", "hf", "vllm"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Training steps; inference by transformers; inference by vLLM."""
_UNKNOWN_PART = "unknown part {value!r}{hint} (known: {known})"
PRESETS = ("llama-2-7b", "llama-2-70b", "llama-3-8b", "small", "tiny")
"""Shapes that need no checkpoint; weights are random."""


def method_choices(*, default: bool = False) -> tuple[str, ...]:
    """Return the names of all forms that methods register; of those measured by default, if asked."""
    from cme_bench.adapters.registry import methods

    forms = [form for method in methods() for form in method.measured]
    return tuple(form.name for form in forms if form.default or not default)


@dataclass(frozen=True, slots=True)
class EfficiencyOptions:
    """Whose shapes are measured, with which methods, and how often.

    ``("all",)`` stands for every method, ``("default",)`` for those that are measured unless named otherwise.

    Raises UsageError for unknown methods and parts, and for numbers that are too small.
    """

    model: Annotated[
        str,
        Option(f"A model (its shapes are used) or a preset: {', '.join(PRESETS)}.", argument=True),
    ]
    methods: Annotated[
        tuple[str, ...],
        Option("Comma-separated forms, 'default' or 'all'; `adapters methods` lists them.", separated=True),
    ] = ("default",)
    parts: Annotated[
        tuple[Part, ...],
        Option("train (step time, memory), hf and vllm (inference).", separated=True, noun=_UNKNOWN_PART),
    ] = PARTS
    rounds: Annotated[int, Option("Rounds; every method is measured in each.")] = 5
    steps: Annotated[int, Option("Timed training steps of a method in a round.")] = 3
    warmup: Annotated[int, Option("Steps before them, not timed.", minimum=0)] = 2
    batch: Annotated[
        int | None, Option("Sequences of a step; default: fill the card; 2 on a CPU.", minimum=1)
    ] = None
    seq: Annotated[int, Option("Tokens of a training sequence.")] = 1024
    layers: Annotated[int | None, Option("Decoder layers; default: the model's.", minimum=1)] = None
    requests: Annotated[int, Option("Requests of the full batch.")] = 256
    prompt: Annotated[int, Option("Tokens of a prompt.")] = 256
    new: Annotated[int, Option("Tokens to generate.")] = 128
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Option("Of inference; default: bfloat16 on a GPU, float32 on a CPU."),
    ] = None
    offline: Offline = False

    def __post_init__(self) -> None:
        known = method_choices()
        groups: dict[tuple[str, ...], tuple[str, ...]]
        groups = {("all",): known, ("default",): method_choices(default=True)}
        object.__setattr__(self, "methods", groups.get(tuple(self.methods), tuple(self.methods)))
        object.__setattr__(self, "parts", tuple(self.parts))
        for name in self.methods:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"unknown method {name!r}{hint} (known: {', '.join(known)})")
        check_choices(self)
        for name in ("rounds", "steps", "requests", "prompt", "seq"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.new < 2:
            raise UsageError(f"--new must be at least 2 (decoding is what follows the first), got {self.new}")
