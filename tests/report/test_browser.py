"""The page in a real browser, Chromium without a window.

Slow, and only where there is one: `apt-get install chromium`; `make test-all` installs what drives it.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.cli import main

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-all")

pytestmark = pytest.mark.slow

Runs = Callable[[str], Path]
Browser, BrowserContext, Page = Any, Any, Any  # playwright's
Open = Callable[..., Page]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}
PATIENCE = 60_000  # milliseconds: other work may have the machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for found in map(shutil.which, names) if found), None)
    if program is None:
        pytest.skip(f"no browser: none of {names} is installed")
    with playwright_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """opened(run, ...) is the report of runs, drawn. It is an error if the page complains or asks for anything."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_(*runs: Path, **settings: Any) -> Page:
        output = tmp_path / "report.html"
        assert main(["report", *map(str, runs), "-o", str(output)]) == 0
        contexts.append(browser.new_context(**{"viewport": DESK} | settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(output.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    def asked(url: str) -> None:
        if not url.startswith(("file:", "blob:", "data:")):
            complaints.append(f"asked for {url}")

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def cells(page: Page) -> Any:
    """The texts of the map's cells, as they are drawn."""
    return page.eval_on_selector_all("#rank-map .heatmap-label", "labels => labels.map(label => label.textContent)")


def now(page: Page) -> str:
    return page.locator("#rank-map-now").inner_text()


def test_arrow_keys_move_the_map(trained: Runs, opened: Open):
    page = opened(trained("adalora"))
    at_the_end, last = cells(page), now(page)
    assert "step 8 of 8" in last
    page.focus("#rank-map-step")
    page.keyboard.press("Home")
    assert "step 0 of 8" in now(page) and set(cells(page)) == {"3"}
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    assert now(page) == last and cells(page) == at_the_end != ["3"] * len(at_the_end)
    assert page.get_attribute("#rank-map-step", "aria-valuetext") == last


def test_the_mouse_moves_the_map_and_play_walks_through_it(trained: Runs, opened: Open):
    page = opened(trained("aflora"))
    box = page.locator("#rank-map-step").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 4, box["y"] + box["height"] / 2)
    assert "step 0 of 8" in now(page)
    page.click("#rank-map-play")
    page.wait_for_selector("#rank-map-now:has-text('step 8 of 8')")
    assert page.inner_text("#rank-map-play") == "Play"


def test_another_run_can_be_chosen(trained: Runs, opened: Open):
    page = opened(trained("adalora"), trained("aflora"))
    assert page.inner_text("#rank-map-title") == "Where the ranks are"
    page.select_option("#rank-map-run", label="aflora")
    page.wait_for_selector("#rank-map-title:has-text('What still trains')")
    assert "projections frozen" in now(page) and "A" in cells(page)[0]


@pytest.mark.parametrize("name", ["adalora", "aflora", "lora"])
def test_nothing_is_wider_than_a_phone(name: str, trained: Runs, opened: Open):
    page = opened(trained(name), viewport=PHONE, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    too_wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.id)"
    assert page.eval_on_selector_all("figure, .chart, h1, h2, h3, p, button, input", too_wide) == []


def test_several_runs_and_comparisons_fit_a_phone(trained: Runs, comparison: Path, opened: Open):
    for runs in ([trained("adalora"), trained("aflora"), trained("lora")], [comparison]):
        page = opened(*runs, viewport=PHONE, is_mobile=True, has_touch=True)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def brightness(page: Page, selector: str, name: str) -> float:
    """Of a colour, from 0 to 255."""
    colour = page.eval_on_selector(selector, f"element => getComputedStyle(element)['{name}']")
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return (red + green + blue) / 3


def test_page_and_charts_follow_the_dark(trained: Runs, opened: Open):
    page = opened(trained("adalora"), color_scheme="dark")
    label = "#loss .xtick text"
    assert brightness(page, "body", "backgroundColor") < 60 and brightness(page, label, "fill") > 180
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html:not([data-drawn])", state="attached")
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert brightness(page, "body", "backgroundColor") > 240 and brightness(page, label, "fill") < 80


def test_a_page_that_was_narrow_becomes_wide(trained: Runs, opened: Open):
    page = opened(trained("adalora"), viewport=PHONE)
    page.set_viewport_size(DESK)
    page.wait_for_timeout(500)
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator("#rank-map .colorbar").count() == 1
    drawn = page.locator("#rank-map .heatmaplayer").bounding_box()
    assert drawn is not None and drawn["width"] > DESK["width"] / 2


def test_everything_is_reached_by_the_keyboard(trained: Runs, opened: Open):
    page = opened(trained("adalora"))
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
        seen = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert seen != "none", f"{reached[-1]} does not show that it has the focus"
        if reached[-1] == "Download history.jsonl":
            break
    assert {"rank-map-play", "rank-map-step", "Table: Loss", "CSV: Loss", "Download history.jsonl"} <= set(reached)
    page.keyboard.press("Home")
    page.evaluate("document.activeElement.blur()")
    outline = page.eval_on_selector_all("h1, h2, h3", "all => all.map(e => Number(e.tagName[1]))")
    assert outline[0] == 1 and all(b - a <= 1 for a, b in pairwise(outline))
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(landmark).count() == 1
    unnamed = "all => all.filter(e => !document.getElementById(e.getAttribute('aria-describedby').split(' ')[0]))"
    assert page.eval_on_selector_all("[role=img]", f"{unnamed[:-1]}).length") == 0


def test_tables_and_downloads_hold_the_numbers(trained: Runs, opened: Open):
    page = opened(trained("adalora"))
    page.get_by_role("button", name="Table: Loss").click()
    losses = [line["loss"] for line in lines(trained("adalora") / "metrics.jsonl") if "loss" in line]
    rows = page.locator("#loss ~ .actions tbody tr")
    assert float(rows.nth(0).locator("td").nth(2).inner_text()) == pytest.approx(losses[0], rel=1e-5)
    assert saved(page, "CSV: Loss").splitlines()[0] == "series,step,loss"
    ranks = saved(page, "CSV: Where the ranks are").splitlines()
    assert ranks[0] == 'step,block,module,"ranks, frozen"' and len(ranks) > 12
    assert saved(page, "Picture: Loss").startswith("<svg")
    assert saved(page, "Download history.jsonl") == (trained("adalora") / "history.jsonl").read_text()


def saved(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


EVIL = '</script><img src="x" onerror="window.fooled = 1"><b>bold</b>'


def test_a_hostile_run_runs_nothing(copied: Runs, opened: Open):
    run = copied("adalora")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": EVIL, EVIL: EVIL}))
    history = (run / "history.jsonl").read_text().replace("intermediate.dense", json.dumps(EVIL)[1:-1])
    (run / "history.jsonl").write_text(history)
    run = run.rename(run.with_name('<img src=x onerror="window.fooled = 1">'))
    page = opened(run)
    assert page.evaluate("window.fooled") is None and page.locator("img").count() == 0
    assert page.inner_text("h1") == run.name
    assert "<b>bold</b>" in "".join(page.locator("#rank-map .xtick").all_text_contents())  # as it was written
    page.get_by_role("button", name="Table: Where the ranks are").click()
    assert page.evaluate("window.fooled") is None and page.locator("b, img").count() == 0


def long_run(folder: Path, steps: int = 10_000, blocks: int = 12) -> Path:
    """A run folder as AdaLoRA on BERT-base leaves it, with a line of metrics for every step."""
    modules = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    modules += ("intermediate.dense", "output.dense")
    ranks = {f"bert.encoder.layer.{i}.{m}": 12 for i in range(blocks) for m in modules}
    began = {"event": "started", "step": 0, "method": "adalora", "total_steps": steps, "ranks": dict(ranks)}
    events = [began]
    for k, step in enumerate(range(1000, 5000, 20)):
        for name in list(ranks)[k % 7 :: 7]:
            ranks[name] = max(0, ranks[name] - (k + len(name)) % 3 // 2)
        masks = {name: ("1" * rank).ljust(12, "0") for name, rank in ranks.items()}
        live = {"ranks": dict(ranks), "live": sum(ranks.values()), "budget": sum(ranks.values())}
        scores = {"score_quantiles": [0.0] * 5, "orthogonality": 1 / (k + 1)}
        events.append({"event": "allocated", "step": step, "masks": masks, **live, **scores})
    metrics = [
        {
            "step": s,
            "seconds": s / 10,
            "loss": 2 / (1 + s / 500) + math.sin(s) / 10,
            "grad_norm": 1.0,
            "epoch": s / 1000,
        }
        for s in range(1, steps + 1)
    ]
    metrics += [{"step": s, "seconds": s / 10, "eval_loss": 1.0, "eval_accuracy": 0.9} for s in range(500, steps, 500)]
    folder.mkdir()
    for name, rows in (("history.jsonl", events), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("method: {name: adalora, rank: 12}\nmodel: bert-base-uncased\n")
    return folder


def test_a_run_of_10_000_steps_opens_in_two_seconds(browser: Browser, tmp_path: Path):
    """Texts and tables are there before plotly.js is read, two seconds on a slow machine; the charts follow."""
    assert main(["report", str(long_run(tmp_path / "long")), "-o", str(tmp_path / "report.html")]) == 0
    page = browser.new_context(viewport=DESK).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto((tmp_path / "report.html").as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=PATIENCE)
    spent = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    told = page.evaluate("({...document.documentElement.dataset})")
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    size = (tmp_path / "report.html").stat().st_size
    spent_for_all = f"all charts after {spent['ThreadTime']:.2f} s of its thread, {told}"
    print(f"first paint {first:.0f} ms; {spent_for_all}; {size:,} bytes")
    assert first < 2000 and size < 6 * 2**20
    assert page.get_attribute("#rank-map-step", "max") == "10000"
    page.context.close()
