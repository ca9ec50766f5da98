"""Engine server of a run: a model that is served elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.engines.base import Engine, LoglikelihoodRequest, Request
from cme_bench.models.adapter import resolve_adapter
from cme_bench.runs.engine_source import EngineJob, EngineSource, never
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard

if TYPE_CHECKING:
    from cme_bench.engines.server.client import Server
    from cme_bench.models.adapter import Adapter, AdapterCheckpoint
    from cme_bench.models.served import ServedModel
    from cme_bench.runs.options import ModelOptions

SPARE = 2
"""Positions that are left of the server's length: a row's last token is read there as well, and the server
generates one more."""


def open_server(options: ModelOptions, note: Note = unheard) -> ServerSource:
    """Return what answers as the server that ``options`` name; it is asked what it is.

    Raises UsageError for a server that does not serve MODEL, CmeError for one that does not answer.
    """
    from cme_bench.engines.server.client import RETRIES, TIMEOUT_SECONDS, Server
    from cme_bench.models.served import ServedModel

    settings = options.settings
    server = Server(
        str(options.server),
        concurrency=options.server_concurrency,
        retries=settings.get("retries", RETRIES),
        timeout=settings.get("timeout", TIMEOUT_SECONDS),
    )
    try:
        model = ServedModel(options.model, server, options.server_model, offline=options.offline, note=note)
        return ServerSource(model, _within(options, model.served.max_length), server, note)
    except BaseException:
        server.close()
        raise


def _within(options: ModelOptions, length: int | None) -> ModelOptions:
    """Return the options with the length that the server takes."""
    if length is None:
        return options
    most = max(1, length - SPARE)
    if (asked := options.settings.get("max_length", most)) > most:
        raise UsageError(f"--set max_length={asked}: {options.server} takes {most} tokens at most")
    return replace(options, settings={**options.settings, "max_length": asked})


class ServerSource(EngineSource):
    """A served model. Likelihoods are proven before the first is asked."""

    model: ServedModel

    def __init__(
        self, model: ServedModel, options: ModelOptions, server: Server, note: Note = unheard
    ) -> None:
        super().__init__(model, options, note)
        self.server = server
        self._named: str | None = None
        self._proven = False
        note(f"{server.url} serves {model.served.name}; prompts go as {model.served.dialect.name}")

    def adapter(self, name: str | None) -> AdapterCheckpoint | None:
        """Return the adapter whose prompts are asked, if the served model is called as it is."""
        if name is None:
            return None
        found = resolve_adapter(name, self.model.config, offline=self.options.offline, note=self.note)
        served = self.model.served.name
        if Path(served).name != found.name or self._named not in (None, name):
            raise UsageError(
                f"--adapter {name}: {self.server.url} answers as {served!r}, whatever adapter is named here; "
                f"serve it under the name {found.name!r} and give --server-model {found.name}, or leave "
                "--adapter out"
            )
        self._named = name
        return found

    def check(self, requests: Iterable[Request]) -> None:
        """Raise UsageError if likelihoods or thoughts are asked that the server does not give."""
        from cme_bench.engines.server.engine import NO_THOUGHTS
        from cme_bench.engines.server.likelihood import prove_likelihood

        served = self.model.served
        for request in requests:
            if request.images:
                raise UsageError(
                    f"{self.server.url}: images are not sent to a server; use --engine hf or vllm"
                )
            if isinstance(request, LoglikelihoodRequest):
                if not self._proven:
                    prove_likelihood(self.server, served, self.model.tokenizer)
                    self._proven = True
            elif request.thought is not None and not served.dialect.tells_ids:
                raise UsageError(f"{self.server.url}: {NO_THOUGHTS}")

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        from cme_bench.engines.server.engine import ServerEngine
        from cme_bench.engines.stopping import end_token_ids

        tokenizer = self.model.tokenizer_of(adapter).tokenizer
        ends = end_token_ids(self.model.eos, tokenizer)
        return ServerEngine(self.server, self.model.served, tokenizer, ends, max_length=job.max_length)

    def release(self) -> None:
        """Do nothing: the server stays."""

    def close(self) -> None:
        self.server.close()
