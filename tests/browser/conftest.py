"""A server and a real browser, shared by the tests of a file; skipped if there is no Chromium or no playwright."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clover
from tests.support.toy_family import TOY, settings

TOKEN = "a-token-of-the-tests"
CHROMIUM = os.environ.get("CLOVER_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""


class Served:
    """A server with a dashboard in a thread, which can be started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: clover.Server | None = None
        self._asking = threading.Event()
        self.port = 0

    def start(self) -> None:
        more = {**settings(self._folder), "http": True, "port": self.port, "token": TOKEN, "carbon": "synthetic"}
        more["state_dir"] = str(self._folder / "state")
        server = self._server = clover.Server(TOY, **more).start_background()
        self.port = int(server.url.rpartition(":")[2])
        self._asking.clear()
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        """Send a row now and then, so that there is something to see."""
        inputs = [{"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [4.0, 3.0, 2.0, 1.0]}]
        body = json.dumps({"inputs": inputs}).encode()
        while not self._asking.wait(0.05):
            try:
                urllib.request.urlopen(self.url + "/v2/models/toy/infer", body, timeout=5).read()
            except OSError:
                time.sleep(0.2)

    def stop(self) -> None:
        self._asking.set()
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def server(self) -> clover.Server:
        assert self._server is not None
        return self._server


@pytest.fixture(scope="session")
def playwright_sync() -> Any:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    if not CHROMIUM:
        pytest.skip("needs Chromium (Debian: apt-get install chromium); CLOVER_TEST_CHROMIUM names another one")
    return sync


@pytest.fixture(scope="module")
def chromium(playwright_sync: Any) -> Iterator[Any]:
    """Start a browser for the tests of one file, which have contexts of their own in it; not for longer: while
    playwright runs, no other test of this process could run an event loop."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright_sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(playwright_sync: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve for the tests of one file; after them, its rows would be asked for through whatever other tests replace."""
    made = Served(tmp_path_factory.mktemp("dashboard"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def open_page(chromium: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Open the dashboard in a browser of its own; at the end, nothing stands in any console but what is allowed."""
    opened: list[tuple[Any, list[str]]] = []

    def opens(width: int = 1440, height: int = 900, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda line: said.append(f"{line.type}: {line.text}") if line.type in LOUD else None)
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.said = said
        opened.append((context, said))
        page.goto(f"{served.url}/dashboard")
        page.wait_for_selector("body[data-messages]")
        return page

    yield opens
    for context, _ in opened:
        context.close()
    assert [line for _, said in opened for line in said] == []


LOUD = ("error", "warning")


def text(page: Any, selector: str) -> str:
    found: str = page.inner_text(selector)
    return found


def until(page: Any, condition: str, within_s: float = 30.0) -> None:
    """Wait for an expression of the page, by the debugger: the page's policy forbids to wait for it in the page."""
    end_s = time.monotonic() + within_s
    while not page.evaluate(condition):
        assert time.monotonic() < end_s, f"{condition} did not come about"
        page.wait_for_timeout(50)


def grave(page: Any) -> list[Any]:
    """Return what axe-core finds serious or critical; nothing if it is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    return [
        (item["id"], item["impact"], [node["target"] for node in item["nodes"]][:4])
        for item in axe.Axe().run(page).response["violations"]
        if item["impact"] in ("serious", "critical")
    ]
