"""Serving the page of runs on this machine's own address, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.util.errors import UsageError
from cme_bench.util.paths import cache_folder
from cme_bench.view.guard import App, new_token

if TYPE_CHECKING:
    import uvicorn

ADDRESS = "127.0.0.1"
NEEDED = ("starlette", "uvicorn")


def serve(root: Path, *, port: int = 0, browser: bool = True, tell: Callable[[str], None]) -> None:
    """Serve the runs below ``root`` until the process is interrupted.

    ``port`` 0 takes a free one; ``browser`` opens the page where there is a screen. ``tell`` is given the
    address, once: nothing else prints or logs it. Raises UsageError if the port is taken, or if there is no
    such folder.
    """
    from cme_bench.view.app import viewer

    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; runs are written to --out, by default to runs/")
    with listening(port) as sock:
        token, number = new_token(), sock.getsockname()[1]
        address = f"http://{ADDRESS}:{number}/{token}/"
        tell(address)
        with _opened(address, number) if browser else contextlib.nullcontext():
            run_server(viewer(root, port=number, token=token), sock)


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Yield a socket of this machine's own address. UsageError if the port is taken or not allowed."""
    try:
        sock = socket.create_server((ADDRESS, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--port {port}: cannot be used ({reason}); leave it out for a free one") from error
    with sock:
        yield sock


def run_server(app: App, sock: socket.socket) -> None:
    """Answer on a socket until SIGINT or SIGTERM, which then goes its usual way.

    asyncio may take the SIGINT that uvicorn sends again for the end of a task that is over already.
    """
    running = server(app)
    running.run(sockets=[sock])
    if running.should_exit:
        raise KeyboardInterrupt


def server(app: App) -> uvicorn.Server:
    """Return a server that logs nothing and believes no header about where a request came from.

    The token stands in every address: whatever loggers a program has set up, none may see one.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _opened(address: str, port: int) -> Iterator[None]:
    """Open the page in a browser, by a file that only this user can read.

    The address as an argument of the browser could be read by every user of the machine.
    """
    if not _has_screen():
        yield
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"view-{port}.html"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(f'<meta http-equiv="refresh" content="0; url={escape(address)}">')
    try:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(file.as_uri())
        yield
    finally:
        file.unlink(missing_ok=True)


def _has_screen() -> bool:
    """Return whether a browser would have a window: where there is none, one for terminals may start."""
    return sys.platform in {"darwin", "win32"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
