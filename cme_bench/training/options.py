"""What a user asks of a training, checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.training.mixture import mixture_weights

DEFAULT_EXPERTS = 4
SAVE_DTYPES = ("float32", "bfloat16")
_NOT_IDENTITY = ("out", "save_every", "log_every", "offline", "bos")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The arguments of ``cme-bench train``; see its help for their meaning. None: the method's own default.

    ``rank`` is that of one expert; ``settings`` are further fields of the method's PEFT config.
    """

    model: str
    method: str
    out: Path
    data: str = "hub"
    datasets: str = "all"
    weighting: str = "proportional"
    temperature: float = 2.0
    samples: int | None = None
    cap: int | None = None
    holdout: int = 0
    rank: int = 16
    experts: int | None = None
    alpha: float | None = None
    dropout: float = 0.05
    targets: str = "ffn"
    preset: str | None = None
    scaling: str | None = None
    collaboration: bool = True
    competition: bool = True
    balance_loss: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_format: str = "teamlora"
    bos: str = "auto"
    max_length: int = 1024
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    pack: int | None = None
    learning_rate: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: str = "auto"
    save_dtype: str = "float32"
    checkpointing: bool | None = None
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    offline: bool = False

    def identity(self) -> dict[str, Any]:
        """The arguments that decide what is trained; ``out`` and how often to save do not.

        ``bos`` counts by what it makes of the prompts, see :func:`cme_bench.training.record.identity`.
        ``save_dtype`` counts where it is no float32: adapters that are older than the option have none.
        """
        left_out = (*_NOT_IDENTITY, *(("save_dtype",) if self.save_dtype == "float32" else ()))
        return {k: v for k, v in self.plain().items() if k not in left_out}

    def plain(self) -> dict[str, Any]:
        """All arguments as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def method_names() -> tuple[str, ...]:
    """Return the names of all adapter methods.

    They are read from the registry if it is imported by now, else from the names of this package's files.
    """
    registry: Any = sys.modules.get("cme_bench.adapters.registry")
    if registry is not None:
        found: tuple[str, ...] = registry.names()
        return found
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
    """Raises UsageError for every setting that is impossible by itself, naming it."""
    known = method_names()
    if options.method not in known and not _installed(options.method):
        hint = did_you_mean(options.method, known)
        raise UsageError(
            f"unknown method {options.method!r}{hint} (known: {', '.join(known)}; name a file of yours with "
            "--plugin)"
        )
    if options.rank < 1:
        raise UsageError(f"--rank must be at least 1, got {options.rank}")
    for name in ("epochs", "batch_size", "accumulate", "save_every", "log_every"):
        _at_least_one(name, getattr(options, name))
    for name in ("samples", "cap", "max_steps"):
        if getattr(options, name) is not None:
            _at_least_one(name, getattr(options, name))
    if options.pack is not None and options.pack < 2:
        raise UsageError(f"--pack must be at least 2, got {options.pack}; without it every example is padded")
    if options.learning_rate <= 0:
        raise UsageError(f"--learning-rate must be above 0, got {options.learning_rate}")
    if not 0 <= options.warmup < 1:
        raise UsageError(f"--warmup is a share of the steps, in [0, 1); got {options.warmup}")
    if options.save_dtype not in SAVE_DTYPES:
        hint = did_you_mean(options.save_dtype, SAVE_DTYPES)
        raise UsageError(f"--save-dtype must be {' or '.join(SAVE_DTYPES)}, got {options.save_dtype!r}{hint}")
    for name in ("holdout", "weight_decay", "max_grad_norm", "balance_loss"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")
    mixture_weights([1], options.weighting, options.temperature)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def parse_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """``["init=random", "r=4"]`` as a mapping; values are JSON where they can be. UsageError without '='."""
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
