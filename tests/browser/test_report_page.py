"""Pages that are files, in a real browser: they draw their charts, load nothing, have no errors, can be read by all."""

from __future__ import annotations

import importlib.util
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clover.charts import sheet
from clover.report.cluster import ClusterOptions, NodeLedger, cluster_report_of
from clover.report.render.cluster import cluster_report_page
from clover.report.render.page import report_page
from tests.support.reports import made_report

PACKAGES = ("playwright", "axe_playwright_python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in PACKAGES), reason=f"not installed: {', '.join(PACKAGES)}"
    ),
]


@pytest.mark.skipif(sheet.plotly_script() is None, reason="the extra dashboard (plotly) is not installed")
def test_the_page_is_drawn_and_loads_nothing(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axe_playwright_python.sync_playwright import Axe

    path, plain = tmp_path / "report.html", tmp_path / "plain.html"
    path.write_text(report_page(made_report(), UTC), encoding="utf-8")
    monkeypatch.setattr(sheet, "plotly_script", lambda: None)
    plain.write_text(report_page(made_report(), UTC), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    page = chromium.new_page(viewport={"width": 390, "height": 800})
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
    page = chromium.new_context(bypass_csp=True).new_page()
    page.goto(plain.as_uri())
    found = Axe().run(page).response["violations"]
    assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []


def _note(said: list[str], message: Any) -> None:
    said.append(message.text)


def test_the_page_of_a_cluster_fits_any_width_and_can_be_read_by_all(chromium: Any, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    made = made_report()
    options = ClusterOptions(start=made.period.start, end=made.period.end, made=made.made)
    report = cluster_report_of([NodeLedger("shop", "GB", made), NodeLedger("late", "FR", None, "it is empty")], options)
    path = tmp_path / "report.html"
    path.write_text(cluster_report_page(report, UTC), encoding="utf-8")
    for scheme in ("light", "dark"):
        # axe is put into the page, which the page's own policy forbids.
        page = chromium.new_context(bypass_csp=True, color_scheme=scheme).new_page()
        said: list[str] = []
        page.on("console", partial(_note, said))
        page.goto(path.as_uri())
        for width in (320, 1200):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert said == []
        found = Axe().run(page).response["violations"]
        assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []
