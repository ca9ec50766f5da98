"""The address of a server, as the client takes it."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from cme_bench.util.errors import UsageError

_HOST = re.compile(r"[\w.:-]+")
_ROOT = "/v1"
_CHAT = "/chat/completions"
_COMPLETIONS = "/completions"


def base_url(text: str) -> str:
    """Return the address below which ``/completions`` is: ``http://host:8000`` becomes ``.../v1``.

    Raises UsageError for what is no http address, for a key in it, and for the chat endpoint.
    """
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"--server: no address ({error})") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or ""):
        raise UsageError(f"--server {without_login(parts)}: write http://HOST:PORT or https://HOST")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"--server {without_login(parts)}: an address without user, key or query; a key goes into "
            "OPENAI_API_KEY"
        )
    path = parts.path.rstrip("/")
    if path.endswith(_CHAT):
        raise UsageError(
            f"--server {text}: chat prompts are no token ids; name the server, whose /completions is asked"
        )
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix(_COMPLETIONS) or _ROOT}"


def without_login(parts: SplitResult) -> str:
    """Return an address as it may be shown."""
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return shown.geturl()


def is_local(url: str) -> bool:
    """Return whether an address is one of this machine, to which no proxy leads."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
