"""Who a viewer lets in: the token, the Host header (DNS rebinding), other sites, methods; routes fuzzed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cme_bench.view.app import viewer
from cme_bench.view.guard import HEADERS, App, new_token
from cme_bench.view.state import run_id
from tests.support.folders import MadeTask, make_run
from tests.support.hostile import MARKUP, SECRET, hostile_runs, outside

PORT = 8765
TOKEN = "t" * 43
OWN = (("host", f"127.0.0.1:{PORT}"),)
TASKS = {"cme_a": MadeTask([1.0, 0.0, 1.0]), "cme_b": MadeTask([0.25, 0.5], "summarization", "b", "rouge_l")}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(
    app: App,
    path: str,
    query: bytes = b"",
    headers: Sequence[tuple[str, str]] = OWN,
    method: str = "GET",
) -> Answer:
    """What a server would hand to the application, and what comes back."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "query_string": query,
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 50000),
    }
    asyncio.run(app(scope, receive, send))
    start = next(message for message in sent if message["type"] == "http.response.start")
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return Answer(start["status"], found, body)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "runs"
    make_run(folder / "one", TASKS)
    make_run(folder / "two", TASKS, name="other")
    return folder


@pytest.fixture(scope="module")
def app(root: Path) -> App:
    return viewer(root, port=PORT, token=TOKEN)


def test_the_owner_of_the_token_sees_the_pages(app: App, root: Path) -> None:
    page = ask(app, f"/{TOKEN}/")
    assert page.status == 200
    assert HEADERS.items() <= page.headers.items()
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"https?:|//", page.text.replace("// ", "")), "nothing comes from elsewhere"
    state = orjson.loads(ask(app, f"/{TOKEN}/state.json").body)
    assert [run["name"] for run in state["runs"]] == ["one", "two"]
    ids = [run["id"] for run in state["runs"]]
    assert ids == [run_id(root / name, root) for name in ("one", "two")]
    report = ask(app, f"/{TOKEN}/report", f"run={ids[0]}&run={ids[1]}".encode())
    assert report.status == 200
    assert "← all runs" in report.text and "Significance of every pair" in report.text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "t", TOKEN.upper(), "ü", "\udcff", "%00"])
def test_a_wrong_token_gets_nothing(app: App, token: str) -> None:
    for path in ("", "state.json", "report"):
        found = ask(app, f"/{token}/{path}")
        assert found.status == 404
        assert b"one" not in found.body.replace(b"the one", b"")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"localhost.evil.example:{PORT}",
        "",
    ],
)
def test_another_name_for_this_address_is_refused(app: App, host: str) -> None:
    assert ask(app, f"/{TOKEN}/", headers=[("host", host)]).status == 403


def test_one_host_is_named_and_it_is_this(app: App) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert ask(app, f"/{TOKEN}/", headers=[("Host", f"{name}:{PORT}")]).status == 200
    assert ask(app, f"/{TOKEN}/", headers=[]).status == 403
    assert ask(app, f"/{TOKEN}/", headers=[*OWN, ("host", "evil.example")]).status == 403


def test_another_site_is_refused(app: App) -> None:
    def status(**more: str) -> int:
        return ask(
            app, f"/{TOKEN}/state.json", headers=[*OWN, *((k.replace("_", "-"), v) for k, v in more.items())]
        ).status

    assert status(origin="https://evil.example") == 403
    assert status(origin="null") == 403
    assert status(origin=f"http://127.0.0.1:{PORT + 1}") == 403
    assert status(origin=f"http://127.0.0.1:{PORT}") == 200
    assert status(sec_fetch_site="cross-site") == 403
    assert status(sec_fetch_site="same-site", sec_fetch_mode="cors") == 403
    assert status(sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe") == 403
    assert status(sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document") == 200
    assert status(sec_fetch_site="same-origin") == 200
    assert status(sec_fetch_site="none") == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "x"])
def test_nothing_can_be_changed(app: App, method: str) -> None:
    found = ask(app, f"/{TOKEN}/state.json", method=method)
    assert (found.status, found.text) == (405, "nothing can be changed here\n")


def test_a_token_is_long_and_new() -> None:
    assert len(new_token()) == 43
    assert new_token() != new_token()


def test_the_token_is_in_no_answer_and_no_representation(app: App) -> None:
    for path in (f"/{TOKEN}/", f"/{TOKEN}/state.json", f"/{TOKEN}/nowhere", "/x"):
        assert TOKEN not in str(ask(app, path))
    assert TOKEN not in repr(app)


def test_unlike_runs_are_told_and_shown_on_demand(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"cme_a": MadeTask([1.0, 0.0])})
    make_run(tmp_path / "b", {"cme_a": MadeTask([1.0, 0.0, 1.0])})
    app = viewer(tmp_path, port=PORT, token=TOKEN)
    query = "&".join(f"run={run_id(tmp_path / name, tmp_path)}" for name in "ab").encode()
    refused = ask(app, f"/{TOKEN}/report", query)
    assert refused.status == 422
    assert "item sets differ" in refused.text and "&mixed=1" in refused.text
    assert refused.headers["content-type"].startswith("text/plain")
    assert "MIXED: item sets differ" in ask(app, f"/{TOKEN}/report", query + b"&mixed=1").text


def test_a_folder_that_is_gone_is_a_note(tmp_path: Path) -> None:
    app = viewer(tmp_path / "gone", port=PORT, token=TOKEN)
    state = orjson.loads(ask(app, f"/{TOKEN}/state.json").body)
    assert state["runs"] == [] and "no such folder" in state["notes"][0]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    root = folder / "runs"
    hostile_runs(root, outside(folder / "secret"))
    make_run(root / "good", TASKS)
    yield viewer(root, port=PORT, token=TOKEN), root


@pytest.mark.timeout(600)
def test_hostile_folders_are_shown_and_nothing_outside_is_read(hostile: tuple[App, Path]) -> None:
    app, root = hostile
    ids = [run_id(folder, root) for folder in sorted(root.glob("run*"))]
    found = ask(app, f"/{TOKEN}/state.json", "&".join(f"open={key}" for key in ids).encode())
    assert found.status == 200
    assert SECRET not in found.text
    state = orjson.loads(found.body)
    assert {run["id"] for run in state["runs"]} >= set(ids)
    good = run_id(root / "good", root)
    for key in ids:
        report = ask(app, f"/{TOKEN}/report", f"run={good}&run={key}&mixed=1".encode())
        assert report.status in {200, 404, 422}
        assert SECRET not in report.text
        assert MARKUP not in report.text.split('<script type="application')[0]


SEGMENTS = st.sampled_from(
    ["..", ".", "", "%2e%2e", "..\\", "state.json", "report", "\0", "etc", "passwd", "~"]
)
PATHS = st.lists(SEGMENTS | st.text(max_size=8), max_size=6).map("/".join)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["run", "open", "seen", "mixed", "x"]),
        st.sampled_from(["../secret", "/etc/passwd", "..%2f..", "1", "", "one", "good"])
        | st.text(max_size=8),
    ),
    max_size=5,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode(errors="replace"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=PATHS,
    query=QUERIES | st.binary(max_size=30),
    method=st.sampled_from(["GET", "HEAD", "POST", ""]),
    known=st.booleans(),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["host", "origin", "range", "accept", "if-none-match", "cookie"]),
            st.text(st.characters(max_codepoint=255), max_size=12),
        ),
        max_size=2,
    ),
)
def test_no_route_fails_or_reads_outside(
    app: App, path: str, query: bytes, method: str, known: bool, headers: list[tuple[str, str]]
) -> None:
    found = ask(app, f"/{TOKEN}/{path}" if known else f"/{path}", query, [*OWN, *headers], method)
    assert found.status in {200, 403, 404, 405, 422}
    assert "root:x:0" not in found.text and SECRET not in found.text
    if not known:
        assert found.status in {403, 404, 405}
