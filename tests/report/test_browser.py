"""The page in a real browser, from a file. Skipped without Chromium (see docs/editor.md)."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from oxe_curate.report import write_report
from tests import bridge
from tests.report.marked import mark, write_marks
from tests.report.test_decide import ids

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
expect = sync_api.expect
NAUGHTY = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
AXE = Path(__file__).parents[1] / "editor" / "vendor" / "axe.min.js"


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """Twenty episodes of two splits: five spikes of different height, three long, and one with a hostile text."""
    root = tmp_path_factory.mktemp("report")
    made = [bridge.episode(i, 30 if i in (3, 4, 5) else 20, NAUGHTY if i == 2 else f"task {i}") for i in range(16)]
    bridge.write(root / "source", episodes={"train": made, "val": [bridge.episode(90 + i, 20) for i in range(4)]})
    off = dict.fromkeys((name for name, value in vars(Criteria()).items() if value == "report"), False)
    run_filter(root / "source", root / "index", FilterOptions(criteria=Criteria(**off), workers=1, progress=False))
    index = Index.open(root / "index")
    some = ids(index)
    train, val = [id for id in some if "/train/" in id], [id for id in some if "/val/" in id]
    marks = {id: [mark("action_spike", 2.0 + i, 2.0, 5, "x: sign flipped")] for i, id in enumerate(train[:12])}
    marks[val[0]] = [mark("action_spike", 99.0, 2.0, 5, "yaw")]
    write_marks(index, marks, {val[0]: "action_spike", val[1]: "no_language"}, {val[2]: train[15]})
    return write_report(root / "index", root / "report.html", progress=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(browser, html) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(html.as_uri())
    yield page
    assert page.problems == []
    assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}
    context.close()


def shown(page) -> list[str]:
    return [node.get_attribute("data-id") for node in page.locator("#cards > article").all()]


def count(page) -> str:
    return page.locator("#found").inner_text().split(" of ")[0]


def test_a_section_shows_its_worst_episodes_first(page):
    cards = page.locator("#reason-action_spike article")
    expect(cards).to_have_count(6)
    expect(cards.first.locator(".why")).to_have_text("action_spike 99 · limit 2 · 49.5 × the limit · step 5 · yaw")
    expect(cards.first.locator(".named")).to_have_text(re.compile("^yaw"))
    expect(cards.nth(1).locator(".named")).to_have_text(re.compile("^x"))
    expect(cards.nth(1).locator(".why")).to_contain_text("13 · limit 2 · 6.5 × the limit")
    expect(cards.first.locator("figure.at figcaption")).to_have_text("5")
    expect(cards.first.locator("path.at")).to_have_count(7 + 8)  # of every curve
    assert cards.first.locator("img").first.evaluate("image => image.complete && image.naturalWidth") == 16


def test_a_closed_section_is_drawn_when_it_is_opened_by_keyboard(page):
    section = page.locator("#reason-no_language")
    expect(section.locator("article")).to_have_count(0)
    section.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(section.locator("article")).to_have_count(1)


def test_filters_and_order(page):
    expect(page.locator("#cards > article").first).to_be_visible()
    page.get_by_label("Reason or mark").select_option("action_spike")
    assert count(page) == "13 episodes"
    page.get_by_label("State").select_option("marked")
    assert count(page) == "12 episodes"
    values = [node.inner_text() for node in page.locator("#cards .why").all()]
    assert [round(float(value.split()[1])) for value in values] == list(range(13, 1, -1))
    page.get_by_label("Split").select_option("val")
    assert count(page) == "0 episodes"
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#found")).to_have_text("20 episodes of the 20 on this page")
    page.get_by_label("Find").last.fill("YAW")
    expect(page.locator("#cards > article")).to_have_count(1)
    page.get_by_label("Find").last.fill("")
    page.get_by_label("Sort by").last.select_option("long")
    lengths = page.locator("#cards > article .line").all_inner_texts()
    assert [line.rsplit("· ", 1)[1] for line in lengths[:4]] == ["28 steps", "28 steps", "28 steps", "18 steps"]
    page.get_by_label("Sort by").last.select_option("id")
    assert shown(page) == sorted(shown(page))


def test_pages(page):
    first = shown(page)
    assert len(first) == 12
    page.get_by_role("button", name="Next").click()
    second = shown(page)
    assert second
    assert not set(first) & set(second)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    assert shown(page) == first


def test_a_button_leads_from_a_section_to_its_episodes(page):
    page.locator("#reason-no_language summary").click()
    page.locator("#reason-no_language").get_by_role("button").click()
    expect(page.locator("#cards > article")).to_have_count(1)
    assert page.get_by_label("Reason or mark").input_value() == "no_language"


def test_a_copy_is_next_to_its_original(page):
    page.get_by_label("Reason or mark").select_option("duplicate")
    card = page.locator("#cards > article")
    expect(card).to_have_count(1)
    expect(card.locator(".strip")).to_have_count(2)
    expect(card.locator("path.other")).to_have_count(7 + 8)
    expect(card).to_contain_text("Copy of train/00001/00007")


def test_hostile_texts_are_texts(page):
    page.get_by_label("Find").last.fill("onerror")
    expect(page.locator("#cards .text")).to_have_text([NAUGHTY])
    assert page.title() == "Filter report: index"
    assert page.locator("img[src=x]").count() == 0


def test_a_link_opens_the_data_set(page):
    expect(page.locator("#data-bridge_dataset .inside")).to_be_hidden()
    page.locator("#reason-action_spike a").click()
    expect(page.locator("#data-bridge_dataset .inside")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_within_a_narrow_screen(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    for place in (".line .soft", ".row .name"):
        for one in page.locator(place).all():
            one.evaluate("node => node.prepend('a_long_name_of_a_'.repeat(4))")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
