"""The HTML report: what is in the file, and what it does in a real browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from cme_bench.images.decode import decode_image
from cme_bench.reports.page.payload import CHUNK_ITEMS
from cme_bench.reports.page.render import render_page
from cme_bench.reports.runs import RunView
from cme_bench.runs.thumbnails import Thumbnails
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run
from tests.support.pictures import picture

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<style>body{display:none}</style>&lt;b&gt;]]>--><!-- {{ 7 * 7 }} javascript:window.hacked=1"
)


def two_runs(folder: Path, n: int = 450) -> list[RunView]:
    """B is right where A is, and on every ninth item beside; item 7 holds hostile text everywhere."""
    a = [float(i % 3 == 0) for i in range(n)]
    b = [float(i % 3 == 0 or i % 9 == 1) for i in range(n)]
    texts = ["" if i % 50 == 2 else f"answer {i}" for i in range(n)]
    texts[7] = HOSTILE
    targets = [f"gold {i}" for i in range(n)]
    targets[7] = HOSTILE
    return [
        make_run(
            folder / name,
            {
                "cme_one": MadeTask(scores, "nli", "one", texts=texts, targets=targets),
                "cme_two": MadeTask([0.25, 0.5, 0.125], "summarization", "two", "rouge_l"),
            },
            name="smollm2" if name == "a" else f"evil {HOSTILE}",
            adapter=None if name == "a" else ADAPTER | {"name": HOSTILE},
        )
        for name, scores in (("a", a), ("b", b))
    ]


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self._inside = False
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        self._open = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


def test_hostile_text_adds_no_element_and_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = Tags(render_page(two_runs(tmp_path), title=HOSTILE))
    kinds = [tag for tag, _ in page.tags]
    assert "img" not in kinds
    assert kinds.count("style") == 1
    types = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert types.count(None) == 1
    assert set(types) == {None, "application/json", "application/octet-stream"}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        assert "src" not in attrs
        assert tag != "a" or str(attrs["href"]).startswith("#")


def test_the_policy_names_the_pages_own_script_and_nothing_else(tmp_path: Path) -> None:
    page = Tags(render_page(two_runs(tmp_path)))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[None].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def unpack(text: str) -> Any:
    return orjson.loads(gzip.decompress(base64.b64decode(text)))


def unpacked_blocks(page: str) -> str:
    """The items of a page, as text."""
    scripts = Tags(page).scripts
    blocks = [unpack(text) for name, text in scripts.items() if str(name).startswith("block-")]
    return orjson.dumps(blocks).decode()


def test_blocks_hold_every_item_of_both_runs_once(tmp_path: Path) -> None:
    page = Tags(render_page(two_runs(tmp_path)))
    meta = orjson.loads(page.scripts["meta"])
    task = next(t for t in meta["tasks"] if t["name"] == "cme_one")["payload"]
    index = unpack(page.scripts[f"block-{task['index']}"])
    assert index["ids"] == list(range(450))
    assert index["runs"][1][1] == [1.0, 0, 0, 0]
    assert index["runs"][0][2] == [0.0, 1, 0, 0], "an empty extraction"
    items = [item for chunk in task["chunks"] for item in unpack(page.scripts[f"block-{chunk}"])]
    assert len(task["chunks"]) == -(-450 // CHUNK_ITEMS)
    assert [item["id"] for item in items] == index["ids"]
    assert items[7]["runs"][0]["text"] == HOSTILE
    assert len(items[7]["questions"]) == 1, "a prompt that both runs share is held once"


def test_no_script_of_ours_writes_markup() -> None:
    source = (Path(__file__).parents[2] / "cme_bench/reports/page/page.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert word not in source
    template = (Path(__file__).parents[2] / "cme_bench/reports/page/page.html.j2").read_text()
    assert set(re.findall(r"(\w+) \| safe", template)) == {"style", "script", "meta"}


def test_unlike_runs_are_refused(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    other = make_run(tmp_path / "c", {"cme_one": MadeTask([1.0])})
    with pytest.raises(UsageError, match="--allow-mixed"):
        render_page([runs[0], other])
    assert "MIXED: item sets differ" in render_page([runs[0], other], allow_mixed=True)


def test_runs_without_records_still_make_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {"cme_one": MadeTask([1.0, 0.0])}, records=False)
    text = render_page([run])
    assert "No per-item records lie in the run folders" in text
    assert "block-0" not in text


class Opened:
    """A page of two runs in the browser; ``problems`` are console errors, exceptions and requests."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1400, "height": 900}, **settings)
        self.problems: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("request", lambda r: None if r.url == file.as_uri() else self.problems.append(r.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=true]")

    def column(self, number: int, table: str = "#summary-0 table") -> list[str]:
        return [
            row.strip()
            for row in self.page.locator(f"{table} tbody tr > :nth-child({number})").all_inner_texts()
        ]

    def open_task(self, name: str) -> None:
        self.page.click(f"button.open[data-task={name}]")
        self.page.wait_for_selector("#items .row")

    def ids(self) -> list[str]:
        return self.page.locator("#list .row span:first-child").all_inner_texts()

    def detail(self, containing: str) -> str:
        self.page.locator("#detail", has_text=containing).wait_for()
        return str(self.page.locator("#detail").inner_text())


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    file = tmp_path / "report.html"
    file.write_text(render_page(two_runs(tmp_path / "runs"), title=HOSTILE), encoding="utf-8")
    found = Opened(browser, file)
    yield found
    assert found.page.evaluate("window.hacked") is None
    assert found.problems == []
    found.page.close()


@pytest.mark.slow
def test_tables_sort_by_number_and_back(opened: Opened) -> None:
    before = opened.column(8)
    head = opened.page.locator("#summary-0 thead th").nth(7)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = opened.column(8)
    values = [float(cell.split()[0].rstrip("†")) for cell in down]
    assert values == sorted(values, reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert opened.column(8) == down[::-1]
    assert sorted(before) == sorted(down)


@pytest.mark.slow
def test_filters_drill_down_and_both_sides(opened: Opened) -> None:
    opened.open_task("cme_one")
    page = opened.page
    assert "450 of 450" in page.locator("#count").inner_text()
    page.select_option("#filter", "flipped")
    assert "50 of 450" in page.locator("#count").inner_text()
    assert opened.ids()[:3] == ["1", "10", "19"]
    page.select_option("#filter", "worse")
    assert "0 of 450" in page.locator("#count").inner_text()
    assert "No item passes" in opened.detail("No item")
    page.select_option("#filter", "wrong")
    assert "300 of 450" in page.locator("#count").inner_text()
    page.select_option("#filter", "empty")
    assert "9 of 450" in page.locator("#count").inner_text()
    assert "no answer found" in opened.detail("item 2")
    page.select_option("#filter", "all")
    page.fill("#goto", "10")
    page.press("#goto", "Enter")
    text = opened.detail("item 10")
    assert "Question 10 of cme_one?" in text
    assert text.count("Question 10") == 1, "a shared prompt stands once, above both sides"
    assert text.count("answer 10") >= 2
    assert "gold 10" in text
    assert page.locator("#detail .sides > section").count() == 2
    page.select_option("#run-b", "-1")
    page.wait_for_function("document.querySelectorAll('#detail .sides > section').length === 1")


@pytest.mark.slow
def test_hostile_text_is_shown_as_text(opened: Opened) -> None:
    opened.open_task("cme_one")
    opened.page.fill("#goto", "7")
    opened.page.press("#goto", "Enter")
    assert HOSTILE in opened.detail("window.hacked")
    assert opened.page.title() == HOSTILE
    assert opened.page.locator("#detail img, #detail script, h1 img").count() == 0


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(opened: Opened) -> None:
    page = opened.page
    button = page.locator("button.open[data-task=cme_one]")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#items .row")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("ArrowDown")
    opened.detail("item 1")
    page.keyboard.press("End")
    opened.detail("item 449")
    assert page.locator("#list").get_attribute("aria-activedescendant") == "item-449"
    assert page.locator("#item-449").get_attribute("aria-selected") == "true"
    page.keyboard.press("Home")
    opened.detail("item 0")
    page.keyboard.press("PageDown")
    page.wait_for_function(
        "document.querySelector('#list').getAttribute('aria-activedescendant') !== 'item-0'"
    )
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.task") == "cme_one"


@pytest.mark.slow
def test_significance_is_shown_for_every_pair(opened: Opened) -> None:
    table = opened.page.locator("#pairs-0 .matrix:not([hidden])")
    assert "average" in table.locator("caption").inner_text()
    opened.page.select_option("#pairs-0 .matrix-choice", label="nli")
    assert opened.page.locator("#pairs-0 .matrix:not([hidden]) caption").inner_text() == "nli"
    cells = opened.page.locator("#pairs-0 .matrix:not([hidden]) td.significant").all_inner_texts()
    assert [c.split()[0] for c in cells] == ["-11.11", "+11.11"]
    assert all("p <0.001" in c for c in cells)


@pytest.mark.slow
def test_long_lists_hold_only_the_rows_in_sight(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", {"cme_one": MadeTask([float(i % 2) for i in range(20_000)])})
    file = tmp_path / "long.html"
    file.write_text(render_page([run]), encoding="utf-8")
    opened = Opened(browser, file)
    opened.open_task("cme_one")
    opened.page.focus("#list")
    opened.page.keyboard.press("End")
    opened.detail("item 19999")
    assert opened.page.locator("#list .row").count() < 80
    assert opened.problems == []
    opened.page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, tmp_path: Path, scheme: str) -> None:
    """WCAG's contrast ratio of 4.5 for text, soft text, links and the colours of right and wrong."""
    file = tmp_path / "report.html"
    file.write_text(render_page(two_runs(tmp_path / "runs")), encoding="utf-8")
    opened = Opened(browser, file, color_scheme=scheme)
    colors = opened.page.evaluate(
        "() => { const style = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(['paper', 'fill', 'ink', 'soft', 'accent', 'right', 'wrong']"
        ".map(name => [name, style.getPropertyValue('--' + name).trim()])); }"
    )
    for name in ("ink", "soft", "accent", "right", "wrong"):
        for ground in ("paper", "fill"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    opened.page.close()


def contrast(one: str, two: str) -> float:
    """WCAG 2.1's contrast ratio of two #rgb or #rrggbb colours."""

    def luminance(color: str) -> float:
        digits = color.lstrip("#")
        pairs = [c * 2 for c in digits] if len(digits) == 3 else re.findall("..", digits)
        linear = [
            (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
            for v in (int(p, 16) / 255 for p in pairs)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.slow
def test_print_leaves_out_what_only_a_screen_can_do(opened: Opened) -> None:
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("nav").is_visible()
    assert not opened.page.locator(".controls").is_visible()
    assert opened.page.locator("#summary-0 table").is_visible()
    assert opened.page.locator("#bars-0 figure").first.is_visible()
    assert len(opened.page.pdf(format="A4", landscape=True)) > 10_000


def run_with_images(folder: Path) -> RunView:
    """Four items: one image, two images, one whose small copy is not there, none."""
    images = [decode_image(picture(40, 30, seed=seed), folder=None) for seed in range(3)]
    first, second, third = (image.digest for image in images)
    made = MadeTask([1.0] * 4, images=[[first], [second, first], [third], []])
    run = make_run(folder, {"seen": made})
    Thumbnails(folder).keep(images[:2])
    return run


def test_each_image_is_on_the_page_once(tmp_path: Path) -> None:
    text = render_page([run_with_images(tmp_path / "a"), run_with_images(tmp_path / "b")])
    page = Tags(text)
    blocks = [unpack(block) for name, block in page.scripts.items() if str(name).startswith("block-")]
    shown = [block for block in blocks if isinstance(block, str)]
    assert len(shown) == 2
    assert all(data.startswith("data:image/webp;base64,UklGR") for data in shown)
    items = next(block for block in blocks if isinstance(block, list))
    known = [[number is not None for _, number in item["questions"][0].get("images", [])] for item in items]
    assert known == [[True], [True, True], [False], []]
    assert "img-src data:;" in text
    assert "img-src" not in render_page(two_runs(tmp_path / "texts"))


def test_a_page_holds_so_much_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cme_bench.reports.page.payload.MOST_IMAGE_BYTES", 1)
    assert unpacked_blocks(render_page([run_with_images(tmp_path / "a")])).count("data:image") == 1


@pytest.mark.slow
def test_images_are_shown_before_their_prompt(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_page([run_with_images(tmp_path / "a")]), encoding="utf-8")
    found = Opened(browser, file)
    found.open_task("seen")
    found.page.wait_for_function("document.querySelector('#detail img')?.naturalWidth === 40")
    found.page.focus("#list")
    found.page.keyboard.press("ArrowDown")
    found.detail("item 1")
    found.page.wait_for_function(
        "[...document.querySelectorAll('#detail img')].filter(i => i.naturalWidth === 40).length === 2"
    )
    found.page.keyboard.press("ArrowDown")
    found.detail("item 2")
    assert found.page.locator("#detail img").count() == 0
    assert len(found.page.locator("#detail .pictures code").inner_text()) == 12
    assert [url[:16] for url in found.problems if not url.startswith("data:image/webp;")] == []
    found.page.close()
