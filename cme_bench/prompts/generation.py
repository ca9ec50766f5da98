"""How a generated task is answered: length, stop strings, sampling and repeats, by its file and the user."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cme_bench.engines.base import Sampling
from cme_bench.util.errors import UsageError

DEFAULT_NEW_TOKENS = 256  # lm-eval's
DEFAULT_THINKING_BUDGET = 1024
_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING_KEYS = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p"})
"""Settings of generation without effect where it is greedy."""
_GENERATION_KEYS = {"until", "num_beams", *_LENGTH_KEYS, *SAMPLING_KEYS}
_COMBINING = ("majority_vote", "take_first_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """The user's wishes for generated answers; None leaves it to the task.

    ``seed`` is the run's: answers are drawn by it, the task, the item and the repeat.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeats: int | None = None
    thinking_budget: int | None = None
    seed: int = 0

    @property
    def overrides(self) -> dict[str, Any]:
        """Options that decide a score in place of the task's own; empty by default."""
        given = asdict(self)
        return {k: v for k, v in given.items() if v is not None and k not in ("seed", "thinking_budget")}


@dataclass(frozen=True, slots=True)
class Generation:
    """How one task is answered. ``sampling``: None is greedy; its seed is none yet.

    ``repeats``: answers of each item; ``combined``: whether the task's own filters make one score of them.
    ``notes``: what a user must know of it.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling | None = None
    repeats: int = 1
    combined: bool = False
    notes: tuple[str, ...] = ()

    def drawn(self, seed: int, task: str, item: int, repeat: int) -> Sampling | None:
        """Return the sampling of one answer: its seed follows from the run's, task, item and repeat."""
        if self.sampling is None:
            return None
        digest = hashlib.sha256(f"{seed}:{task}:{item}:{repeat}".encode()).digest()
        return replace(self.sampling, seed=int.from_bytes(digest[:8], "big") >> 1)


def generation_of(name: str, lm_task: Any, options: GenerationOptions) -> Generation:
    """Return how the task called ``name`` is answered. ``lm_task``: as lm-eval holds it.

    Raises UsageError for settings that are not supported, and for options that have no effect or
    contradict the task.
    """
    settings = dict(lm_task.config.generation_kwargs or {})
    beams = {"num_beams"} if settings.get("num_beams", 1) != 1 else set()
    if unknown := sorted(settings.keys() - _GENERATION_KEYS | beams):
        raise UsageError(f"task {name}: unsupported generation_kwargs: {', '.join(unknown)}")
    until = settings.get("until") or []
    stop = tuple(str(s) for s in ([until] if isinstance(until, str) else until) if s)  # "" ends nothing
    lengths = (settings[key] for key in _LENGTH_KEYS if settings.get(key) is not None)
    own_length = int(next(lengths, DEFAULT_NEW_TOKENS))
    most = options.max_new_tokens or own_length
    own = _own_sampling(settings)
    sampling = _sampling(name, settings, own, options)
    repeats, combined = _repeats(name, lm_task, sampling, options)
    notes = []
    if most != own_length:
        notes.append(f"--max-new-tokens {most} takes the place of the tasks' own limits")
    if own is not None and own != sampling:
        notes.append(f"task {name}: {_named(sampling)} takes the place of its own sampling ({_named(own)})")
    return Generation(most, stop, sampling, repeats, combined, tuple(notes))


def _own_sampling(settings: Mapping[str, Any]) -> Sampling | None:
    """Return the sampling of a task file, as lm-eval reads it; its temperature is 0 where that is missing."""
    temperature = float(settings.get("temperature") or 0)
    sampled = settings.get("do_sample")
    if not (temperature > 0 if sampled is None else sampled):
        return None
    top_p, top_k = settings.get("top_p"), settings.get("top_k")
    return Sampling(temperature, 1.0 if top_p is None else float(top_p), max(0, int(top_k or 0)))


def _sampling(
    name: str, settings: Mapping[str, Any], own: Sampling | None, options: GenerationOptions
) -> Sampling | None:
    """Return what counts: the user's temperature, or the task's own with the user's restrictions."""
    restricted = [f"--{key.replace('_', '-')}" for key in ("top_p", "top_k") if getattr(options, key)]
    if options.temperature == 0 or (options.temperature is None and own is None):
        if restricted:
            raise UsageError(f"{restricted[0]} is for sampled answers: give --temperature above 0")
        return None
    if options.temperature is not None:
        return Sampling(options.temperature, options.top_p or 1.0, options.top_k or 0)
    assert own is not None
    if own.temperature == 0:
        raise UsageError(
            f"task {name}: do_sample: true without a temperature above 0, on which lm-eval fails too; give "
            "--temperature"
        )
    if float(settings.get("min_p") or 0):
        raise UsageError(f"task {name}: min_p is not supported; give --temperature, which replaces it")
    return replace(own, top_p=options.top_p or own.top_p, top_k=options.top_k or own.top_k)


def _repeats(
    name: str, lm_task: Any, sampling: Sampling | None, options: GenerationOptions
) -> tuple[int, bool]:
    """Return how many answers each item gets, and whether the task's filters make one score of them."""
    own = int(getattr(lm_task.config, "repeats", 1) or 1)
    asked = options.repeats or own
    if sampling is None:
        if options.repeats and options.repeats > 1:
            raise UsageError(
                f"--repeats {asked}: greedy answers of task {name} are all alike; give --temperature above 0"
            )
        return 1, False
    if own == 1 or getattr(lm_task, "answer", None) is not None:
        return asked, False
    if (filters := combines(lm_task)) and asked != own:
        raise UsageError(
            f"--repeats {asked}: task {name} makes one score of its own {own} answers "
            f"({', '.join(filters)}); leave --repeats out"
        )
    return asked, options.repeats is None or bool(filters)


def combines(lm_task: Any) -> list[str]:
    """Return the filters of a task that look at several answers of an item."""
    pipelines = lm_task.config.filter_list or ()
    used = {str(step.get("function")) for pipeline in pipelines for step in pipeline["filter"]}
    return [name for name in _COMBINING if name in used]


def _named(sampling: Sampling | None) -> str:
    if sampling is None:
        return "greedy decoding"
    more = "".join(
        f", {key} {value:g}"
        for key, value, idle in (("top_p", sampling.top_p, 1.0), ("top_k", sampling.top_k, 0))
        if value != idle
    )
    return f"temperature {sampling.temperature:g}{more}"
