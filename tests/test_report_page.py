"""The report's page in a real browser: loads quietly, fits the screen, sorts, enlarges, prints."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import skip_or_fail
from report_data import write_realistic

from cellray.ledger import Ledger
from cellray.report import build_report

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser():
    """Chromium, where there is one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        skip_or_fail("The page is tested in Chromium: install chromium and the playwright package.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A report of four configurations, one trial collapsed, one failed and one missing."""
    ledger = Ledger(str(tmp_path_factory.mktemp("store")), "made_up")
    plan = write_realistic(
        ledger,
        labels=["BCE: low", "Dice", "CombinedFT: overcrowd", "<b>&_%"],
        seeds=(0, 5),
        external=("far",),
        n_images=8,
        epochs=8,
        bad={("Dice", 0): "collapsed", ("BCE: low", 5): "failed"},
        missing=[("CombinedFT: overcrowd", 5)],
    )
    build_report(ledger, plan)
    return "file://" + os.path.join(ledger.uri, "report", "index.html")


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids="-".join)
def page(request, browser, url):
    """The page at one width and colour scheme; whatever it complains about or asks for fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 850}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url == url or r.url.startswith("data:") else complaints.append(r.url))
    page.goto(url)
    yield page
    context.close()
    assert complaints == []


def test_fits_the_screen_and_shows_its_parts(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for part in ("#ranking", "#external", "#figures", "#images", "#outcomes", "#protocol"):
        assert page.locator(part).is_visible()
    assert page.locator("img:not([alt])").count() == 0
    # an SVG without content would still have a box: its paths are counted
    counts = page.eval_on_selector_all(".plot svg", "all => all.map(s => s.querySelectorAll('path, use').length)")
    assert len(counts) >= 6
    assert min(counts) > 20
    broken = "all => all.filter(i => !i.closest('dialog') && !i.closest('details') && !i.naturalWidth).length"
    assert page.eval_on_selector_all("img", broken) == 0


def test_colours_can_be_read(page):
    contrast = """() => {
      const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
      const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      const card = lum(getComputedStyle(document.querySelector("#ranking")).backgroundColor);
      return [".answer p", ".note", "td small", "td.moved", "nav a", ".plot svg text, .plot svg g[id*=text] path, h2"]
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
    assert "<b>&_%" in after
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
    dialog.locator("button").click()
    assert not dialog.is_visible()


def test_prints(browser, url):
    page = browser.new_page()
    page.goto(url)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
