"""The pages that a viewer serves: the runs of a folder, their state as JSON, and a report of some of them."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import jinja2
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from cme_bench.reports.page.render import page_policy, render_page
from cme_bench.util.errors import CmeError
from cme_bench.util.terminal import visible
from cme_bench.view.guard import App, Guard
from cme_bench.view.state import Board

MOST_RUNS = 40
"""Runs of one report: more bars do not fit beside each other."""
_MIXED = (
    "\n\nWith &mixed=1 at the end of the address runs that differ are shown all the same, with a note for "
    "each difference."
)
NO_ACCESS = "; frame-ancestors 'none'"


def viewer(root: Path, *, port: int, token: str) -> App:
    """Return the application for the runs below ``root``, which lets in who knows the token."""
    pages = _Pages(Board(root))
    app = Starlette(
        routes=[
            Route("/", pages.runs),
            Route("/state.json", pages.state),
            Route("/report", pages.report),
        ]
    )
    app.router.redirect_slashes = False
    return Guard(app, port, token)


class _Pages:
    """The answers to requests; each runs in a thread, since it reads files."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def runs(self, request: Request) -> Response:
        """Return the page of all runs, which asks for its contents itself."""
        policy = page_policy(_file("view.js"), _style()) + "; connect-src 'self'" + NO_ACCESS
        return HTMLResponse(_page(), headers={"content-security-policy": policy})

    def state(self, request: Request) -> Response:
        """Return the state of all runs, and the tasks of those that the query names as ``open``."""
        state = self._board.state(frozenset(request.query_params.getlist("open")))
        if request.query_params.get("seen") == state["seen"]:
            state = {"seen": state["seen"], "now": state["now"]}
        return Response(orjson.dumps(state, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")

    def report(self, request: Request) -> Response:
        """Return the report of the runs that the query names, or one line that says why there is none."""
        ids = request.query_params.getlist("run")
        if len(set(ids)) > MOST_RUNS:
            return _line(f"a report shows {MOST_RUNS} runs at most", 422)
        views = self._board.views(ids)
        if views is None:
            return _line("no such run, or none of its tasks is finished", 404)
        mixed = request.query_params.get("mixed") == "1"
        try:
            page = render_page(views, title=_title(self._board.root), allow_mixed=mixed, back="./")
        except (CmeError, OSError) as error:
            return _line(visible(str(error)) + ("" if mixed else _MIXED), 422)
        return HTMLResponse(page, headers={"content-security-policy": NO_ACCESS.lstrip("; ")})


def _title(root: Path) -> str:
    return f"Runs of {root.resolve().name}"


def _line(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text}\n", status)


@functools.cache
def _page() -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_file("view.html.j2"))
    return template.render(style=_style(), script=_file("view.js"))


@functools.cache
def _style() -> str:
    return _file("view.css")


@functools.cache
def _file(name: str) -> str:
    return resources.files("cme_bench.view").joinpath(name).read_text(encoding="utf-8")
