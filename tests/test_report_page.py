"""The report's page in a real browser: loads quietly, fits the screen, sorts, enlarges, prints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from conftest import chromium
from report_data import add_cells, write_realistic

from cellray.ledger import Ledger
from cellray.report import StudyFacts, build_report
from cellray.results import Results

pytestmark = pytest.mark.slow

WIDTHS = {"desktop": 1280, "phone": 390}
NASTY = "<b>&_%"
FIGURES = {
    "ranking": {"ranking-test"},
    "differences": {"critical-difference", "pair-matrix", "rank-stability"},
    "quality": {"iou-curves", "iou-curves-sets", "precision-recall", "counts"},
    "generalisation": {"drop", "transfer", "strata", "error-kinds", "ranking-far"},
    "training": {"validation-dice", "training-loss", "range-tests", "costs"},
}
"""What each section shows."""


@pytest.fixture(scope="module")
def browser():
    """Chromium, where there is one."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A report of four configurations, one trial collapsed, one failed and one missing."""
    ledger = Ledger(str(tmp_path_factory.mktemp("store")), "made_up")
    plan = write_realistic(
        ledger,
        labels=["BCE: low", "Dice", "CombinedFT: overcrowd", NASTY],
        seeds=(0, 5),
        external=("far",),
        n_images=8,
        epochs=8,
        bad={("Dice", 0): "collapsed", ("BCE: low", 5): "failed"},
        missing=[("CombinedFT: overcrowd", 5)],
    )
    add_cells(ledger)
    build_report(Results.now(ledger, plan), StudyFacts(agreement={"far": {"f1_iou": 0.83}}))
    return "file://" + os.path.join(ledger.uri, "report", "index.html")


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids="-".join)
def loaded(request, browser, url) -> Iterator:
    """The page at one width and colour scheme; whatever it complains about or asks for fails a test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 850}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url == url or r.url.startswith("data:") else complaints.append(r.url))
    page.goto(url)
    yield page, complaints
    context.close()


@pytest.fixture
def page(loaded):
    """The page as it was loaded; quiet before and after."""
    found, complaints = loaded
    yield found
    assert complaints == []


def test_fits_the_screen_and_shows_its_parts_in_order(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sections = page.eval_on_selector_all("main > section", "all => all.map(s => s.id)")
    known = ["answer", "ranking", "images", "differences", "quality", "generalisation", "training", "protocol"]
    assert sections == known  # no weights: this is no study of them
    for part in (*sections, "outcomes", "set-1"):
        assert page.locator(f"#{part}").is_visible()
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.hash.slice(1))")
    assert [link for link in links if link in sections] == sections
    assert page.evaluate("ids => ids.every(id => document.getElementById(id))", links)
    assert page.locator("#generalisation").get_by_text("Human experts reach F1 (IoU) 0.830").count()
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_every_figure_stands_in_its_section_and_has_content(page):
    found = page.eval_on_selector_all(
        ".plot svg",
        """all => all.map(s => [s.closest("section").id, s.closest("figure").id.replace("figure-", ""),
          s.getAttribute("aria-label").length, s.querySelectorAll("path, use, image").length,
          s.closest("figure").querySelector(".reading").textContent.length])""",
    )
    for section, names in FIGURES.items():
        assert {name for where, name, *_ in found if where == section} == names
    for _, name, alt, parts, reading in found:
        assert alt > 20, name
        assert parts > 20, name  # an empty SVG would still have a box
        assert reading > 60, name
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("img[alt='']").count() == 1  # the dialog's, before it shows something
    broken = "all => all.filter(i => !i.closest('dialog') && !i.naturalWidth).length"
    assert page.eval_on_selector_all("img", broken) == 0


def test_colours_can_be_read(page):
    contrast = """() => {
      const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
      const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      const card = lum(getComputedStyle(document.querySelector("#ranking")).backgroundColor);
      return [".answer p", ".note", "td small", "td.moved", "nav a", "h2", "summary", "h2 a", "dt"]
        .map(s => { const e = document.querySelector(s);
          return e ? ratio(lum(getComputedStyle(e).color), card) : 99; });
    }"""
    assert min(page.evaluate(contrast)) >= 4.5


def test_sorts_by_a_header_with_the_keyboard(page):
    table = page.locator("#ranking table.sortable").first
    labels = "rows => rows.map(r => r.querySelector('th').textContent)"
    before = table.locator("tbody tr").evaluate_all(labels)
    button = table.locator("thead button", has_text="Configuration")
    button.focus()
    page.keyboard.press("Enter")
    assert table.locator("th[aria-sort=ascending]").count() == 1
    after = table.locator("tbody tr").evaluate_all(labels)
    assert sorted(after) == sorted(before)
    assert NASTY in after
    button.press("Enter")
    assert table.locator("tbody tr").evaluate_all(labels) == after[::-1]
    table.locator("thead button", has_text="Rank").click()
    assert table.locator("tbody tr").evaluate_all(labels) == before


def test_enlarges_an_image_and_closes_again(page):
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    button = page.locator("button.zoom").first
    button.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    assert dialog.locator("img").evaluate("i => i.naturalWidth") > 100
    assert "cells" in dialog.locator("p").text_content()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    button.click()
    dialog.locator("[data-close]").click()
    assert not dialog.is_visible()


def test_arrows_step_through_the_images_of_a_row_and_to_other_rows(page):
    rows = page.locator("button.zoom[data-grid=own]").evaluate_all("all => all.map(b => b.dataset.row)")
    assert len(rows) % 3 == 0  # worst, median and best of each configuration
    first, second = rows[0], rows[3]
    caption = page.locator("dialog p")
    page.locator("button.zoom[data-grid=own]").first.press("Enter")
    seen = [caption.text_content()]
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(caption.text_content())
    expected = [(first, "worst"), (first, "median"), (first, "best"), (first, "best"), (second, "best"),
                (second, "median"), (first, "median"), (first, "median")]  # fmt: skip
    for text, (label, role) in zip(seen, expected, strict=True):
        assert text.startswith(f"{label}, seed ") and f": {role} image of test" in text
    assert page.locator("dialog [data-jump='-1']").get_attribute("aria-disabled") == "true"
    page.locator("dialog [data-jump='1']").click()
    assert caption.text_content() == seen[5]
    page.keyboard.press("Escape")
    # the focus is where the eye was, so that the keyboard goes on from there; it moves once the browser says "closed"
    page.wait_for_function("seen => document.activeElement.dataset.caption === seen", arg=seen[5])


def test_the_same_image_is_stepped_through_across_configurations(page):
    shots = page.locator("button.zoom[data-grid=same][data-row=test]")
    labels = shots.evaluate_all("all => all.map(b => b.dataset.caption.split(', seed')[0])")
    assert len(labels) == len(set(labels)) == 4
    shots.first.press("Enter")
    seen = []
    for _ in labels:
        seen.append(page.locator("dialog p").text_content())
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert [text.split(", seed")[0] for text in seen] == labels
    assert all("crowded image of test (test_3)" in text for text in seen)


def test_a_link_to_a_folded_part_unfolds_it(page):
    figure = page.locator("#figure-range-tests")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    assert not figure.is_visible()
    page.evaluate("location.hash = 'figure-range-tests'")
    figure.wait_for(state="visible", timeout=2000)


def test_what_is_not_folded_fits_the_screen(page):
    """No dot of a figure or of a table's seeds lies where a reader would have to scroll for it."""
    seen = """all => all.filter(e => !e.closest("details") && e.getClientRects().length)
      .map(e => e.getBoundingClientRect().right <= innerWidth)"""
    assert all(page.eval_on_selector_all(".plot svg", seen))
    assert page.eval_on_selector_all("#ranking svg.strip", seen) == [True] * 4


def test_prints_what_is_open_on_few_pages_without_cutting_it(browser, url):
    page = browser.new_page(viewport={"width": 700, "height": 1000})  # an A4 page within its margins
    page.goto(url)
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= 8
    page.emulate_media(media="print")
    assert page.locator("summary:visible").count() == 0
    assert page.get_by_text("What is folded on screen isn't printed").is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    too_wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    assert page.eval_on_selector_all("table, svg, img, pre", too_wide) == 0
    page.close()
