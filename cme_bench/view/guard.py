"""Who is let in: requests of this machine's browser that know the token, and no page of somebody else.

A page of the web can make a browser send requests here. It cannot know the token. It is stopped before that
if its name was bound to this address (DNS rebinding: the Host header is its own), or if the browser says that
another site asks (Origin, Sec-Fetch-Site).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What every answer says: keep nothing, tell nobody the address, be shown in no frame."""
NAMES = ("127.0.0.1", "localhost", "[::1]")
_TOKEN_BYTES = 32


def new_token() -> str:
    """Return a token that nobody can guess, for use in an address."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


@dataclass(frozen=True, slots=True)
class Guard:
    """An application behind a token: ``/TOKEN/PATH`` reaches ``app`` as ``/PATH``, all else is refused."""

    app: App
    port: int
    token: str = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            return  # no websocket is accepted, and there is no start or end to take part in

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name: value for name, value in HEADERS.items() if not _has(message, name)}
                more = [(name.encode(), value.encode()) for name, value in own.items()]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await _refuse(answer, *refused)
            return
        _, _, rest = scope["path"].lstrip("/").partition("/")
        inner = {**scope, "path": f"/{rest}", "raw_path": b"", "root_path": ""}
        await self.app(inner, receive, answer)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason, or None for a request that is let in."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "this address answers to its own name only"
        if _foreign(scope, {f"http://{host}" for host in self._hosts}):
            return 403, "another site asks"
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, "nothing can be changed here"
        token = scope["path"].lstrip("/").partition("/")[0]
        if not secrets.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return 404, "no such page: the address must be the one that cme-bench view printed"
        return None

    @property
    def _hosts(self) -> set[str]:
        return {f"{name}:{self.port}" for name in NAMES}


def _foreign(scope: Scope, own: set[str]) -> bool:
    """Return whether a browser says that a page of another site asks; following a link is not asking."""
    if any(origin.lower() not in own for origin in _values(scope, b"origin")):
        return True
    site = set(_values(scope, b"sec-fetch-site")) - {"same-origin", "none"}
    followed = _values(scope, b"sec-fetch-mode") == ["navigate"]
    return bool(site) and not (followed and _values(scope, b"sec-fetch-dest") == ["document"])


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _has(message: MutableMapping[str, Any], name: str) -> bool:
    return any(key.lower() == name.encode() for key, _ in message.get("headers", ()))


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
