"""The viewer in a real browser: a run goes on before its eyes and ends; nothing of hostile runs is run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cme_bench.runs.store import RunWriter
from cme_bench.view.app import viewer
from cme_bench.view.serve import listening, server
from tests.support.folders import ADAPTER, MadeTask, make_run
from tests.support.hostile import MARKUP, hostile_runs, outside

pytestmark = pytest.mark.slow
TOKEN = "a-token-for-the-browser"
TASKS = {"cme_a": MadeTask([1.0, 0.0, 1.0, 1.0]), "cme_b": MadeTask([0.0, 0.0, 1.0, 0.0], "qa", "b")}


class Served:
    """A viewer of ``root`` in a thread, and pages of it; ``problems`` are errors and requests elsewhere."""

    def __init__(self, browser: Any, root: Path) -> None:
        self.browser, self.root = browser, root
        self.problems: list[str] = []
        self._listening = listening(0)
        self._socket = self._listening.__enter__()
        port = self._socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/{TOKEN}/"
        self._server = server(viewer(root, port=port, token=TOKEN))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def page(self, width: int = 1200, **settings: Any) -> Any:
        page = self.browser.new_page(viewport={"width": width, "height": 900}, **settings)
        page.set_default_timeout(120_000)  # the machine may be busy
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.problems.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(self.address) else self.problems.append(r.url))
        page.goto(self.address)
        page.wait_for_selector("html[data-ready=true]")
        return page

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listening.__exit__(None, None, None)


@pytest.fixture
def served(browser: Any, tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "runs").mkdir()
    found = Served(browser, tmp_path / "runs")
    yield found
    found.close()
    assert found.problems == []


def names(page: Any) -> list[str]:
    return [name.strip() for name in page.locator("button.name").all_inner_texts()]


def test_a_run_goes_on_and_ends_before_ones_eyes(served: Served) -> None:
    page = served.page()
    assert "No run yet" in page.locator("#empty").inner_text()
    folder = make_run(served.root / "going", TASKS, finished=False).folder
    results = (folder / "results.json").read_bytes()
    samples = (folder / "samples" / "cme_b.jsonl").read_bytes()
    (folder / "results.json").unlink()
    (folder / "samples" / "cme_b.jsonl").write_bytes(b"")
    with RunWriter(folder) as writer:
        page.wait_for_selector(".state.running")
        page.locator("button.name", has_text="going").click()
        page.locator("tr.detail", has_text="so far, 4 of 4").wait_for()
        assert "4 of 8" in page.locator("td.progress-cell").inner_text()
        (folder / "samples" / "cme_b.jsonl").write_bytes(samples)
        page.locator("td.progress-cell", has_text="8 of 8").wait_for()
        (folder / "results.json").write_bytes(results)
        content = orjson.loads((folder / "run.json").read_bytes())
        (folder / "run.json").write_bytes(orjson.dumps(content | {"finished": True}))
        writer.close()
    page.wait_for_selector(".state.finished")
    assert "50.00 %" in page.locator("td.score-cell").inner_text()
    assert page.locator("tr.detail .track.partial").count() == 0
    page.close()


def test_runs_are_sorted_filtered_and_compared(served: Served) -> None:
    for name, last in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        tasks = {"cme_a": MadeTask([1.0, last, 0.0, last])}
        make_run(served.root / name, tasks, adapter=None if name == "a" else ADAPTER | {"name": f"t{name}"})
    page = served.page()
    page.locator("th[data-key=score] button").click()
    assert names(page) == ["b", "a", "c"]
    assert page.locator("th[data-key=score]").get_attribute("aria-sort") == "descending"
    page.locator("th[data-key=score] button").click()
    assert names(page) == ["a", "c", "b"]
    page.fill("#filter", "TB")
    assert names(page) == ["b"]
    page.fill("#filter", "")
    page.get_by_label("Mark a", exact=True).check()
    assert page.locator("#report").inner_text() == "Open report"
    page.get_by_label("Mark b", exact=True).check()
    page.get_by_role("button", name="Compare 2 runs").click()
    page.wait_for_selector("html[data-ready=true] #summary-0")
    assert "75.00" in page.locator("#summary-0 .lead").inner_text()
    page.click("button.open[data-task=cme_a]")
    page.wait_for_selector("#items .row")
    page.get_by_role("link", name="all runs").click()
    page.wait_for_selector("#runs tbody")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(served: Served, scheme: str) -> None:
    make_run(served.root / "a-rather-long-name-of-a-run-without-a-space-in-it", TASKS, adapter=ADAPTER)
    page = served.page(width=390, color_scheme=scheme)
    page.locator("button.name").click()
    page.wait_for_selector("tr.detail table")
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing has to be scrolled to"
    page.select_option("#sort", "name")
    page.locator("input.mark").check()
    page.locator("#report").click()
    page.wait_for_selector("html[data-ready=true] #summary-0")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


def test_hostile_runs_run_nothing(served: Served, tmp_path: Path) -> None:
    hostile_runs(served.root, outside(tmp_path / "secret"))
    page = served.page()
    page.locator("button.name").first.wait_for()
    for button in page.locator("button.name").all()[:30]:
        button.click()
    page.locator(".sub", has_text="window.hacked").first.wait_for()
    assert MARKUP in page.locator("#runs").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#runs img, #runs script").count() == 0
    page.close()


def test_the_page_says_that_the_viewer_has_ended(browser: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", TASKS)
    ended = Served(browser, tmp_path)
    page = ended.page()
    ended.close()
    page.wait_for_selector("#totals.gone")
    assert names(page) == ["a"], "what was shown stays"
    page.close()
