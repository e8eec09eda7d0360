"""The dashboard in a real browser: it shows, follows, survives a restart, changes nothing without a token and a yes.

Screenshots (wide, phone, dark) are written to the test's folder; CLOVER_SCREENSHOTS names another one, to look at them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import TOKEN, Served, grave, text, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Opens = Callable[..., Any]


def charts_drawn(page: Any) -> None:
    until(page, "document.querySelectorAll('.chart .main-svg').length >= 5", 60.0)


def test_it_is_useful_before_charts_and_follows_the_server(open_page: Opens) -> None:
    page = open_page()
    until(page, "/[1-9][0-9,]* answered/.test(document.querySelector('#tile-load').innerText)")
    assert re.search(r"\d", text(page, "#tile-emits .value"))
    assert "gCO₂e/kWh" in text(page, "#tile-grid")
    assert "THE GRID IS INVENTED" in text(page, "#caveat")
    assert text(page, "#health-text")
    before = int(page.get_attribute("body", "data-messages"))
    until(page, f"Number(document.body.dataset.messages) >= {before + 2}", 20.0)
    assert text(page, "#link-text") == "live"
    assert page.locator(".worker").count() == 2
    assert page.locator("#decisions li").count() >= 1
    charts_drawn(page)
    page.locator("#grid-card details summary").click()
    until(page, "document.querySelectorAll('#grid-card details tbody tr').length > 1")  # a table beside the chart
    markup = "<img src=x onerror=alert(1)>"
    made = page.evaluate(
        """async (markup) => {
          const script = document.querySelector('script[type="module"]').src;
          const { el } = await import(new URL('dom.js', script));
          const node = el('p', { text: markup });
          return [node.children.length, node.textContent];
        }""",
        markup,
    )
    assert made == [0, markup], "names from the server are never markup"


def test_what_leaves_the_plan_as_it_is_moves_no_band_of_the_intensity(open_page: Opens) -> None:
    found = open_page().evaluate(
        """async (actions) => {
          const script = document.querySelector('script[type="module"]').src;
          const { inForce } = await import(new URL('charts.js', script));
          return inForce(actions.map((action, index) => ({ action, g_per_kwh: index })))?.action;
        }""",
        ["dry run", "refused", "rolled back", "failed", "routed", "applied"],
    )
    assert found == "routed"


def test_it_comes_back_after_a_restart_and_says_meanwhile_that_it_is_old(open_page: Opens, served: Served) -> None:
    page = open_page()
    epoch = served.server.engine.page.feed.epoch  # type: ignore[union-attr]
    served.stop()
    page.wait_for_selector('#link[data-state="stale"]', timeout=20_000)
    assert "old" in text(page, "#link-text")
    served.start()
    page.wait_for_selector('#link[data-state="live"]', timeout=60_000)
    assert served.server.engine.page.feed.epoch != epoch  # type: ignore[union-attr]
    until(page, "/started again/.test(document.querySelector('#action-result').innerText)")
    # Chromium itself says that the server was not there; the page says nothing.
    allowed = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_CONNECTION_RESET", "503")
    page.said[:] = [line for line in page.said if not any(one in line for one in allowed)]


def test_a_change_needs_the_token_and_a_yes(open_page: Opens, served: Served) -> None:
    page = open_page()
    family = served.server.engine.controller.context.families["toy"]
    page.select_option("#verb", "base")
    page.click("#action button")
    page.wait_for_selector("#token-dialog[open]")
    assert "Changes need the server's token" in text(page, "#token-why")
    page.fill("#token", "wrong")
    page.click("#token-form button.primary")
    page.click("#action button")
    until(page, "/did not take that token/.test(document.querySelector('#token-why').innerText)")
    assert family.pin is None
    page.fill("#token", TOKEN)
    page.click("#token-form button.primary")

    page.click("#action button")
    page.wait_for_selector("#confirm[open]", timeout=60_000)
    assert "predicted" in text(page, "#confirm-facts")
    assert family.pin is None, "a dry run changes nothing"
    page.click("#confirm-cancel")
    until(page, "document.querySelector('#action-result').innerText == 'left as it is'")
    assert family.pin is None

    page.click("#action button")
    page.wait_for_selector("#confirm[open]", timeout=60_000)
    page.click("#confirm-apply")
    until(page, "/^done/.test(document.querySelector('#action-result').innerText)", 60.0)
    assert family.pin is not None
    until(page, "/pinned to BASE/.test(document.querySelector('.badges').innerText)")

    page.select_option("#verb", "unpin")
    page.click("#action button")
    page.wait_for_selector("#confirm[open]", timeout=60_000)
    page.click("#confirm-apply")
    until(page, "/^done/.test(document.querySelector('#action-result').innerText)", 60.0)
    assert family.pin is None
    assert page.evaluate("localStorage.length") == 0, "the token is kept in the tab alone"

    page.select_option("#verb", "set")
    page.fill("#slo_ms", "soon")
    page.click("#action button")
    until(page, "/not a number/.test(document.querySelector('#action-result').innerText)")
    page.fill("#slo_ms", "0.001")
    page.click("#action button")
    page.wait_for_selector("#confirm[open]", timeout=60_000)
    assert "would be refused" in text(page, "#confirm-refused")
    assert page.locator("#confirm-apply").is_disabled()
    page.keyboard.press("Escape")
    # Chromium itself reports the two answers 401.
    page.said[:] = [line for line in page.said if "401" not in line]


def loaded(page: Any) -> dict[str, Any]:
    """Return how far parts of the page jumped while it loaded, and its files: address, bytes sent, bytes unpacked."""
    found: dict[str, Any] = page.evaluate(
        """() => new Promise((done) => {
          let shift = 0;
          new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) if (!entry.hadRecentInput) shift += entry.value;
          }).observe({ type: 'layout-shift', buffered: true });
          const files = performance.getEntriesByType('resource')
            .map((one) => [one.name, one.transferSize, one.decodedBodySize]);
          setTimeout(() => done({ shift, files }), 300);
        })"""
    )
    return found


def test_the_keyboard_reaches_everything_and_motion_is_spared(open_page: Opens) -> None:
    page = open_page(reduced_motion="reduce")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"report-link", "token-button", "verb", "model", "decisions"} <= set(reached)
    assert page.evaluate("getComputedStyle(document.querySelector('.worker')).transitionDuration") == "0s"


LOOKS: dict[str, dict[str, Any]] = {
    "wide": {"width": 1440, "height": 1000},
    "dark": {"width": 1440, "height": 1000, "color_scheme": "dark"},
    "phone": {"width": 390, "height": 844, "device_scale_factor": 2, "is_mobile": True},
}


@pytest.mark.parametrize("look", LOOKS)
def test_how_it_looks_and_reads(open_page: Opens, tmp_path: Path, look: str) -> None:
    page = open_page(**LOOKS[look])
    charts_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    folder = Path(os.environ.get("CLOVER_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"dashboard-{look}.png", full_page=True)
    assert (folder / f"dashboard-{look}.png").stat().st_size > 20_000
    found = loaded(page)
    own = sum(size for name, size, _ in found["files"] if "plotly" not in name and "stream" not in name)
    requests = len(found["files"])
    print(f"{look}: layout shift {found['shift']:.3f}; {requests} requests; {own} bytes without plotly")
    assert found["shift"] < 0.1, "nothing jumps"
    assert requests <= 14
    assert own < 60_000
    assert len({name.split("/")[2] for name, _, _ in found["files"]}) == 1, "nothing comes from another host"
    assert grave(page) == []
