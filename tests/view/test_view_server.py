"""The viewer on a real socket: a browser's requests, raw ones, and Ctrl-C."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from cme_bench.util.errors import UsageError
from cme_bench.view import serve as serving
from cme_bench.view.app import viewer
from cme_bench.view.serve import listening, server
from tests.support.folders import MadeTask, make_run

TOKEN = "secret-token-of-this-test"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A viewer of one run on a free port, in a thread."""
    root = tmp_path_factory.mktemp("view")
    make_run(root / "one", {"cme_a": MadeTask([1.0, 0.0, 1.0])})
    with listening(0) as sock:
        number = sock.getsockname()[1]
        running = server(viewer(root, port=number, token=TOKEN))
        thread = threading.Thread(target=running.run, args=([sock],))
        thread.start()
        yield number
        running.should_exit = True
        thread.join()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def raw(port: int, request: bytes, *, whole: bool = True) -> bytes:
    """Send a request; one that is not whole ends with the connection. Nothing if it is broken off."""
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
    ):
        connection.sendall(request)
        if not whole:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def test_it_answers_its_owner_and_logs_nothing(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    status, body = get(port, f"/{TOKEN}/state.json")
    assert status == 200
    state = orjson.loads(body)
    assert [run["name"] for run in state["runs"]] == ["one"]
    status, body = get(port, f"/{TOKEN}/state.json?seen={state['seen']}")
    assert set(orjson.loads(body)) == {"seen", "now"}, "nothing changed, so nothing is sent again"
    assert get(port, "/state.json")[0] == 404
    assert get(port, f"/{TOKEN}/", Host="evil.example")[0] == 403
    assert get(port, f"/{TOKEN}/", **{"X-Forwarded-Host": "evil.example"})[0] == 200
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        f"/{TOKEN}/../../../../etc/passwd",
        f"/{TOKEN}/%2e%2e/%2e%2e/etc/passwd",
        f"/{TOKEN}/..%2f..%2fetc%2fpasswd",
        f"/{TOKEN}//etc/passwd",
        f"/{TOKEN}/report?run=../../../../etc/passwd",
        f"/{TOKEN}/report?run=",
        f"/{TOKEN}/static/../../etc/passwd",
        "//evil.example/",
        f"/{TOKEN}/\\..\\..\\",
    ],
)
def test_no_path_leads_out(port: int, path: str) -> None:
    answer = raw(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ", 2)[1] == b"404"
    assert b"root:x:0" not in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 100,
    ],
)
def test_broken_requests_are_refused_and_it_goes_on(port: int, request_: bytes) -> None:
    answer = raw(port, request_, whole=b"HTTP" in request_)
    assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert get(port, f"/{TOKEN}/")[0] == 200


def test_only_this_machine_is_listened_to() -> None:
    with listening(0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match="leave it out for a free one"), listening(sock.getsockname()[1]):
            pass
    with pytest.raises(UsageError, match="--port 70000"), listening(70_000):
        pass


def test_the_browser_gets_the_address_by_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":0")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with serving._opened("http://127.0.0.1:1/a&b/", 1):
        [file] = tmp_path.iterdir()
        assert opened == [file.as_uri()], "an argument of a program can be read by everybody"
        assert file.stat().st_mode & 0o777 == 0o600
        assert "url=http://127.0.0.1:1/a&amp;b/" in file.read_text()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_as_any_command(tmp_path: Path) -> None:
    make_run(tmp_path / "one", {"cme_a": MadeTask([1.0, 0.0, 1.0])})
    command = [sys.executable, "-m", "cme_bench", "view", str(tmp_path), "--no-browser"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    address = next(line for line in lines if "http" in line).strip()
    port, path = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{43}/)", address).groups()  # type: ignore[union-attr]
    assert get(int(port), path)[0] == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert err == "cme-bench: interrupted\n"
    assert path.strip("/") not in out + err


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        serving.serve(tmp_path / "absent", tell=print)
