"""What a user asks of a measurement; light to import."""

from __future__ import annotations

from dataclasses import dataclass

from cme_bench.errors import UsageError, did_you_mean

PARTS = ("train", "hf", "vllm")
"""Training steps; inference by transformers; inference by vLLM."""
PRESETS = ("llama-2-7b", "llama-3-8b", "small", "tiny")
"""Shapes that need no checkpoint; weights are random."""
METHODS = (
    "lora32 lora64 lora128 lora128_lean adalora128 moslora128 hydralora32 moelora32_k2 moelora32 "
    "moelora32_k8 moelora32_fused_k2 moelora32_fused moelora32_fused_k8 teamlora16 "
    "teamlora32_k2 teamlora32 teamlora32_k8"
).split()
DEFAULT_METHODS = (
    "lora32",
    "lora128",
    "hydralora32",
    "moelora32",
    "moelora32_fused",
    "teamlora16",
    "teamlora32",
)


@dataclass(frozen=True, slots=True)
class EfficiencyOptions:
    """The arguments of ``cme-bench efficiency``; see its help for their meaning.

    ``batch`` of None fills a GPU with the hungriest method, and is 2 on a CPU; ``layers`` of None takes all;
    ``dtype`` of None is bfloat16 on a GPU, float32 on a CPU.
    """

    model: str
    methods: tuple[str, ...] = DEFAULT_METHODS
    parts: tuple[str, ...] = PARTS
    rounds: int = 5
    steps: int = 3
    warmup: int = 2
    batch: int | None = None
    seq: int = 1024
    layers: int | None = None
    requests: int = 256
    prompt: int = 256
    new: int = 128
    dtype: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        for name, given, known in (("method", self.methods, METHODS), ("part", self.parts, PARTS)):
            object.__setattr__(self, f"{name}s", tuple(given))
            for value in given:
                if value not in known:
                    raise UsageError(
                        f"unknown {name} {value!r}{did_you_mean(value, known)} (known: {', '.join(known)})"
                    )
        for name in ("rounds", "steps", "requests", "prompt", "seq"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.new < 2:
            raise UsageError(f"--new must be at least 2 (decoding is what follows the first), got {self.new}")
