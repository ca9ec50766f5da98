"""Asking the hub: patient with a network that fails for a while, and then one clear line."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cme_bench.util.errors import CmeError, first_line

Answer = TypeVar("Answer")
WAITS = (1.0, 4.0, 15.0)
"""Seconds between one try and the next."""
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another try may turn into what was asked for."""


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the hub's client for a failing hub or network. Its versions use httpx or
    httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError, OSError, *(client.HTTPError for client in _clients())


def from_hub(
    what: str,
    ask: Callable[[], Answer],
    *also: type[Exception],
    refusal: Callable[[Exception], CmeError | None] = lambda error: None,
) -> Answer:
    """Return ``ask()``, asked again after a while where the network or the hub failed.

    ``also``: further errors that mean that the hub did not deliver; ``refusal``: makes the error of one that
    says why it gives nothing. Raises CmeError, one line that begins with ``what``, after the last try, or at
    once where another would not help.
    """
    for number, wait in enumerate((*WAITS, None), start=1):
        try:
            return ask()
        except (*hub_errors(), *also) as err:
            if refused := refusal(err):
                raise refused from err
            if wait is None or not _may_pass(err):
                tries = f", {number} tries" if number > 1 else ""
                raise CmeError(
                    f"{what}: the hub did not deliver it ({first_line(err)}){tries}; what has arrived is "
                    "kept, the same command goes on"
                ) from err
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: BaseException) -> bool:
    """Return whether it failed for want of a connection, or with an answer that asks for patience."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    network = (ConnectionError, TimeoutError, *(client.TransportError for client in _clients()))
    lost = False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status in _PASSING
        lost = lost or isinstance(cause, network)
        cause = cause.__cause__ or cause.__context__
    return lost


def _clients() -> list[Any]:
    return [importlib.import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
