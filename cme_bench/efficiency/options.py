"""What a user asks of a measurement; light to import."""

from __future__ import annotations

from dataclasses import dataclass

from cme_bench.errors import UsageError, did_you_mean

PARTS = ("train", "hf", "vllm")
"""Training steps; inference by transformers; inference by vLLM."""
PRESETS = ("llama-2-7b", "llama-3-8b", "small", "tiny")
"""Shapes that need no checkpoint; weights are random."""


def method_choices(*, default: bool = False) -> tuple[str, ...]:
    """Return the names of all forms that methods register; of those measured by default, if asked."""
    from cme_bench.adapters.registry import methods

    forms = [form for method in methods() for form in method.measured]
    return tuple(form.name for form in forms if form.default or not default)


@dataclass(frozen=True, slots=True)
class EfficiencyOptions:
    """The arguments of ``cme-bench efficiency``; see its help for their meaning.

    No ``methods``: the default ones. ``batch`` of None fills a GPU with the hungriest method,
    and is 2 on a CPU; ``layers`` of None takes all; ``dtype`` of None is bfloat16 on a GPU, float32 on a CPU.
    """

    model: str
    methods: tuple[str, ...] = ()
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
        methods = self.methods or method_choices(default=True)
        for name, given, known in (("method", methods, method_choices()), ("part", self.parts, PARTS)):
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
