"""The workloads of an inference engine, and their rates."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cme_bench.experiments.efficiency.options import EfficiencyOptions

Times = dict[str, list[float]]
"""Seconds of every round, by workload."""
Ask = Callable[[int, int, int], float]
"""``(requests, new tokens, seed)`` to the seconds that it took."""


@dataclass(frozen=True, slots=True)
class Workloads:
    """Prompts of ``prompt`` random tokens. ``single``: one request, ``new`` tokens out. ``prefill``:
    ``requests`` prompts at once, one token out. ``batch``: ``requests`` at once, ``new`` tokens out."""

    requests: int
    prompt: int
    new: int

    @classmethod
    def of(cls, options: EfficiencyOptions) -> Workloads:
        return cls(options.requests, options.prompt, options.new)

    @property
    def asked(self) -> dict[str, tuple[int, int]]:
        """``(requests, new tokens)`` of each workload."""
        return {"single": (1, self.new), "prefill": (self.requests, 1), "batch": (self.requests, self.new)}

    def prompts(self, n: int, seed: int, vocabulary: int) -> list[list[int]]:
        """Return ``n`` random prompts."""
        source = random.Random(seed)
        return [[source.randrange(3, vocabulary) for _ in range(self.prompt)] for _ in range(n)]

    def rates(self, times: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return medians over rounds. ``single_ms_token``: a token's latency in one request, prompt included.
        Tokens a second: ``prefill`` (in), ``batch`` (out), ``decode`` (out, in the time that ``batch`` takes
        longer than ``prefill``)."""
        single, prefill, batch = (statistics.median(times[name]) for name in ("single", "prefill", "batch"))
        rates = {
            "single_ms_token": 1e3 * single / self.new,
            "prefill_tokens_s": self.requests * self.prompt / prefill,
            "batch_tokens_s": self.requests * self.new / batch,
        }
        if batch > prefill:  # else the rounds are too short for their noise, and decoding has no time
            rates["decode_tokens_s"] = self.requests * (self.new - 1) / (batch - prefill)
        return rates


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Return the order of round ``number``: every second one goes backwards, so that none is always the
    last."""
    order = list(names)
    return order if number % 2 == 0 else order[::-1]


def timed_round(ask: Ask, workloads: Workloads, seed: int) -> dict[str, float]:
    """Time each workload once."""
    return {name: ask(n, new, seed) for name, (n, new) in workloads.asked.items()}


def inference_metrics(
    times_of: Mapping[str, Times], workloads: Workloads, ratios: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Return the rates of each method, and for each of ``ratios`` (name: mine, other) the ratio of seconds of
    every workload. A ratio is the median over rounds in which both were measured."""
    metrics = {
        f"{name}_{rate}": value
        for name, times in times_of.items()
        for rate, value in workloads.rates(times).items()
    }
    for metric, (mine, other) in ratios.items():
        if mine in times_of and other in times_of:
            for name in workloads.asked:
                pairs = zip(times_of[mine][name], times_of[other][name], strict=True)
                metrics[f"{metric}_{name}"] = statistics.median(a / b for a, b in pairs)
    return {name: round(value, 4) for name, value in metrics.items()}
