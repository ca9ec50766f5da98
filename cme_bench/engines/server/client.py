"""Asking a server: patient with one that fails for a while, and then one clear line."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import itertools
import json
import os
import random
from collections.abc import Mapping
from typing import Any

from cme_bench.engines.server.address import base_url, is_local
from cme_bench.engines.server.background import Background
from cme_bench.engines.server.reply import GarbledReplyError, Reply, read_reply
from cme_bench.util.errors import CmeError, UsageError, first_line

KEY = "OPENAI_API_KEY"
RETRIES = 8
TIMEOUT_SECONDS = 600
CONCURRENCY = 8
FIRST_WAIT = 0.5
LONGEST_WAIT = 16.0
"""Seconds before the second try, which double up to the longest."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers that another try may turn into what was asked for."""
_NO_LIST = frozenset({404, 405, 500, 501})
"""Answers of servers that have no list of models, or cannot make it."""
_SHOWN = 300


def require_openai() -> None:
    """Raise UsageError unless the client's package is installed."""
    if importlib.util.find_spec("openai") is None:
        raise UsageError("engine server needs the package openai: pip install 'cme-bench[server]'")


class Server:
    """One server, and the model that it is asked for; ``close`` ends what is asked.

    ``losses``: how often a connection failed, after which another server may answer.

    Args:
        address: As ``--server`` names it.
        concurrency: Most requests that are asked at a time.
        retries: How often a request is asked again that failed for want of a connection, for patience, or
            with an answer that is none.
        timeout: Seconds until an answer is given up.
    """

    def __init__(
        self,
        address: str,
        *,
        concurrency: int = CONCURRENCY,
        retries: int = RETRIES,
        timeout: int = TIMEOUT_SECONDS,
    ) -> None:
        require_openai()
        self.url = base_url(address)
        _key()
        self.model = ""
        self.losses = 0
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self.loop = Background()
        self._free = asyncio.Semaphore(concurrency)

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=_key() or "none",
            max_retries=0,
            timeout=float(self.timeout),
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_local(self.url)),
        )

    def models(self) -> list[Mapping[str, Any]] | None:
        """Return the entries of the server's list of models; None if it has no such list."""
        try:
            content = json.loads(self.loop.run(self._patiently(self._listed)))
        except _NotThereError:
            return None
        except ValueError as error:
            raise CmeError(f"{self.url}/models: no JSON; is this an OpenAI-compatible server?") from error
        entries = content.get("data") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            return None
        return [each for each in entries if isinstance(each, dict) and isinstance(each.get("id"), str)]

    async def _listed(self) -> str:
        import openai

        try:
            return str((await self._client.models.with_raw_response.list()).text)
        except openai.APIStatusError as error:
            if error.status_code in _NO_LIST:
                raise _NotThereError(str(error)) from error
            raise

    def complete(self, **body: Any) -> Reply:
        """Return the answer to one request, and wait for it."""
        return self.loop.run(self.ask(**body))

    async def ask(self, **body: Any) -> Reply:
        """Return the answer to one request of ``/completions``; ``extra_body``: what OpenAI's has not.

        Raises UsageError, one line, for a request that the server refuses; CmeError when patience ends.
        """

        async def asked() -> Reply:
            create = self._client.completions.with_raw_response.create
            return read_reply((await create(model=self.model, **body)).text)

        async with self._free:
            try:
                reply: Reply = await self._patiently(asked)
                return reply
            except _NotThereError as error:
                raise UsageError(f"{self.url}: {error}") from error

    async def _patiently(self, ask: Any) -> Any:
        import openai

        for number in itertools.count(1):
            wait = 0.0
            try:
                return await ask()
            except openai.APIStatusError as error:
                problem = f"{error.status_code}: {self._told(error)}"
                if error.status_code not in _PASSING:
                    raise self._refused(error.status_code, problem) from error
                wait = _asked_wait(error)
            except (openai.APIConnectionError, GarbledReplyError) as error:
                problem = self._why(error)
                self.losses += isinstance(error, openai.APIConnectionError)
            if number > self.retries:
                raise CmeError(
                    f"{self.url}: the server does not answer ({problem}), {number} tries; what was answered "
                    "is stored, the same command goes on"
                )
            doubled = min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT)
            await asyncio.sleep(max(wait, doubled * random.uniform(0.75, 1.25)))
        raise AssertionError("the last try returns or raises")

    def _refused(self, status: int, problem: str) -> Exception:
        if status in (401, 403):
            given = "the key in it" if _key() else "it is not set"
            return UsageError(f"{self.url}: access refused ({problem}); {KEY} holds the key ({given})")
        return (_NotThereError if status == 404 else UsageError)(f"{self.url}: refused ({problem})")

    def _told(self, error: Any) -> str:
        """Return what a server says of its refusal, in one line and without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        text = body.get("message") or body.get("detail") or error.response.text or str(error)
        return self._shown(text if isinstance(text, str) else json.dumps(text))

    def _why(self, error: Exception) -> str:
        cause = error.__cause__ if not isinstance(error, GarbledReplyError) else None
        name = "" if cause is None else f"{type(cause).__name__}: "
        return self._shown(name + first_line(cause or error))

    def _shown(self, text: str) -> str:
        if key := _key():
            text = text.replace(key, "(key)")
        return " ".join(text.split())[:_SHOWN]

    def close(self) -> None:
        """End what is being asked, and the connections."""
        if "_client" in self.__dict__:
            self.loop.cancel()
            self.loop.run(self._client.close())
        self.loop.close()


class _NotThereError(UsageError):
    """The server has no such page, or no such model."""


def _key() -> str:
    """Return the key of the environment; "" if there is none. UsageError if no header can hold it."""
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"{KEY} holds characters that a key cannot have")
    return key


def _asked_wait(error: Any) -> float:
    """Return the seconds that a server asks for before the next try, within reason."""
    told = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, min(float(told), 60.0))
    except ValueError:
        return 0.0
