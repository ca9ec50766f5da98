"""A model and an adapter as ``run.json`` records them."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class ModelRecord(Struct, frozen=True, kw_only=True):
    """The base model of a run. ``hash``: sha256 of its files; ``revision``: its commit on the Hub; ``hub``:
    the hub name that it was asked for by; ``quantisation``: how its weights are quantised; runs of
    before it was recorded do not say it."""

    name: str
    path: str | None = None
    hash: str | None = None
    revision: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    dtype_because: str | None = None
    hub: str | UnsetType = UNSET
    quantisation: str | UnsetType = UNSET

    @property
    def label(self) -> str:
        """Its name, with its quantisation if it has one."""
        return f"{self.name} ({self.quantisation})" if self.quantisation else self.name


class CodeRecord(Struct, frozen=True, kw_only=True):
    """The file that an adapter method came from, where it is neither this package's nor PEFT's."""

    file: str
    hash: str


class AdapterRecord(Struct, frozen=True, kw_only=True):
    """The adapter of a run.

    ``percent``: its parameters, in percent of the base's, ``percent_language``: of the language model's in a
    base that takes images; ``settings``: the fields of its config that decide
    what it computes, ``config``: all of them; ``training``: the arguments of its training but for the seed,
    None where they are not recorded; ``code``: that of a method from a
    plugin; ``revision`` and ``hub``: its commit on the hub, and the hub name that it was asked for by;
    ``task``: that of all rows, of an adapter of several tasks.
    """

    name: str
    path: str | None = None
    hash: str | None = None
    method: str
    rank: int | None = None
    experts: int | None = None
    targets: list[str] | None = None
    parameters: int | float | None = None
    percent: float | None = None
    settings: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    training_seconds: float | None = None
    tokens_trained: int | float | None = None
    code: CodeRecord | UnsetType = UNSET
    revision: str | UnsetType = UNSET
    hub: str | UnsetType = UNSET
    task: int | UnsetType = UNSET
    percent_language: float | UnsetType = UNSET
