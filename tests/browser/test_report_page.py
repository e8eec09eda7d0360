"""The report's page in a real browser: it draws its charts, loads nothing, has no errors, and can be read by all."""

from __future__ import annotations

import importlib.util
import shutil
from datetime import UTC
from pathlib import Path

import pytest

from clover.charts import sheet
from clover.report.render.page import report_page
from tests.support.reports import made_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PACKAGES = ("playwright", "axe_playwright_python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in PACKAGES), reason=f"not installed: {', '.join(PACKAGES)}"
    ),
    pytest.mark.skipif(sheet.plotly_script() is None, reason="the extra dashboard (plotly) is not installed"),
]


def test_the_page_is_drawn_and_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    path, plain = tmp_path / "report.html", tmp_path / "plain.html"
    path.write_text(report_page(made_report(), UTC), encoding="utf-8")
    monkeypatch.setattr(sheet, "plotly_script", lambda: None)
    plain.write_text(report_page(made_report(), UTC), encoding="utf-8")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            said: list[str] = []
            asked: list[str] = []
            page = browser.new_page(viewport={"width": 390, "height": 800})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_function("document.querySelectorAll('.chart svg.main-svg').length >= 5", timeout=60_000)
            assert said == []
            assert asked == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= 390  # tables scroll by themselves
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            assert page.evaluate("[...document.querySelectorAll('details')].every(item => item.open)")
            # axe is put into the page, which the page's own policy forbids.
            page = browser.new_context(bypass_csp=True).new_page()
            page.goto(plain.as_uri())
            found = Axe().run(page).response["violations"]
            assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []
        finally:
            browser.close()
