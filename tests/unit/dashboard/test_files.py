"""The page's files: everything from this server, compressed once, kept by address, and fenced in by the policy."""

from __future__ import annotations

import asyncio
import gzip
import re
from types import SimpleNamespace
from typing import Any

import pytest

from clover.config import ListenConfig
from clover.dashboard import dashboard_paths, files, paths
from clover.dashboard.files import ASSETS, PlotlyFile, page_files
from clover.errors import LedgerError
from clover.http.streams import EventStreams
from tests.support.http_fakes import Driver, FakeView, request


def mounted(**more: Any) -> Driver:
    return Driver(FakeView(), mounted=dashboard_paths(EventStreams(lambda: b"")).paths, **more)


@pytest.fixture(scope="module")
def driver() -> Driver:
    return mounted()


def page_of(driver: Driver, path: str = "/dashboard") -> str:
    return driver.get(path).body.decode()


@pytest.mark.parametrize("path", files.PAGES)
def test_a_page_names_only_files_that_this_server_has(driver: Driver, path: str) -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', page_of(driver, path))
    assert named
    for address in named:
        assert address.startswith("/dashboard")
        if address != "/dashboard/report":
            assert driver.get(address).status == 200


def test_what_scripts_import_is_beside_them() -> None:
    for script in ASSETS.glob("*.js"):
        for name in re.findall(r'from "\./([a-z]+\.js)"', script.read_text()):
            assert (ASSETS / name).is_file(), f"{script.name} imports {name}"


def test_scripts_never_make_html_of_text() -> None:
    for script in ASSETS.glob("*.js"):
        text = script.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


def test_no_file_names_another_host() -> None:
    for path in ASSETS.iterdir():
        named = set(re.findall(r"https?://[^\s\"'<)]+", path.read_text())) - {"http://www.w3.org/2000/svg"}
        assert not named, path.name


@pytest.mark.parametrize(("path", "styles"), [("/dashboard", [""]), ("/dashboard/try", [])])
def test_a_page_has_no_inline_script_or_style_but_an_empty_one(driver: Driver, path: str, styles: list[str]) -> None:
    page = page_of(driver, path)
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\s(style|on[a-z]+)=", page)
    assert re.findall(r"<style[^>]*>([^<]*)</style>", page) == styles


@pytest.mark.parametrize("path", files.PAGES)
def test_the_policy_allows_no_inline_script_or_style_and_no_frame(driver: Driver, path: str) -> None:
    fields = driver.get(path).fields
    policy = fields["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cache-control"] == "no-cache"


def test_files_are_kept_for_good_and_sent_compressed_to_whoever_takes_that(driver: Driver) -> None:
    (address,) = re.findall(r'src="([^"]+/app\.js)"', page_of(driver))
    plain, packed = driver.get(address), driver.get(address, "Accept-Encoding: gzip, br")
    assert "immutable" in packed.fields["cache-control"]
    assert packed.fields["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body == (ASSETS / "app.js").read_bytes()


def test_an_address_changes_with_the_contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("index.html", "app.js", "style.css"):
        (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    _, before = page_files(PlotlyFile(), "1")
    (tmp_path / "app.js").write_text("changed")
    _, after = page_files(PlotlyFile(), "1")
    assert not before.keys() & after.keys()


def test_without_plotly_the_page_says_so_by_an_empty_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "plotly_script", lambda: None)
    paths = dashboard_paths(EventStreams(lambda: b"")).paths
    assert 'data-plotly=""' in page_of(Driver(FakeView(), mounted=paths))
    assert not any("plotly" in path for path in paths)


def test_plotly_is_compressed_once_and_its_map_style_has_its_element() -> None:
    async def story() -> None:
        plotly = PlotlyFile()
        first, second = await asyncio.gather(plotly.get(), plotly.get())
        assert first is second
        assert len(first.packed) < 2_000_000
        ((plain,), _), ((again,), _) = first.parts(""), first.parts("")
        assert plain is again, "one for all that take no gzip"
        assert plain == gzip.decompress(first.packed)
        assert plotly.address.startswith("/dashboard/assets/")
        assert len(plotly.style) == 64

    asyncio.run(story())


def test_the_report_says_why_there_is_none(driver: Driver) -> None:
    answer = driver.get("/dashboard/report")
    assert answer.status == 404
    assert answer.body.decode() == paths.NO_REPORT
    without = dashboard_paths(EventStreams(lambda: b""), paths.NOT_INSTALLED).paths
    answer = Driver(FakeView(), mounted=without).get("/dashboard/report")
    assert answer.status == 404
    assert "this installation of Clover is without clover.report" in answer.body.decode()


async def broken() -> bytes:
    raise LedgerError("the ledger cannot be read: it is damaged")


async def failing() -> bytes:
    raise ZeroDivisionError


async def made() -> bytes:
    return b"<h1>"


@pytest.mark.parametrize(
    ("get", "status", "text"),
    [(made, 200, "<h1>"), (broken, 503, "it is damaged"), (failing, 500, "the server failed")],
)
def test_the_report_is_shown_as_a_page_of_no_origin(get: Any, status: int, text: str) -> None:
    answered: list[Any] = []

    class FakeExchange:
        def finish(self, status: int, parts: list[bytes], fields: bytes = b"", kind: bytes = b"") -> None:
            answered.append((status, b"".join(parts), fields))

        def fault(self, error: Exception) -> None:
            answered.append((500, b"the server failed", b"sandbox"))

    report = SimpleNamespace(get=get)
    asyncio.run(paths._make_report(report, FakeExchange()))  # type: ignore[arg-type]
    ((found, body, fields),) = answered
    assert found == status
    assert text in body.decode()
    assert b"sandbox" in fields


class UnaskedReport:
    def close(self) -> None: ...

    async def get(self) -> bytes:
        raise AssertionError("it was made")


def test_the_report_is_not_made_for_a_page_of_another_site_nor_for_head() -> None:
    paths = dashboard_paths(EventStreams(lambda: b""), UnaskedReport()).paths  # type: ignore[arg-type]
    driver = Driver(FakeView(), mounted=paths)
    answer = driver.get("/dashboard/report", "Sec-Fetch-Site: cross-site")
    assert answer.status == 403
    assert "of another site" in answer.json()["error"]
    driver.feed(request("HEAD", "/dashboard/report"))
    driver.loop.settle()
    assert driver.transport.sent.startswith(b"HTTP/1.1 200 ")


def test_the_page_is_read_without_the_token_on_an_open_address() -> None:
    driver = mounted(listen=ListenConfig(host="0.0.0.0", token="t" * 16))
    assert driver.get("/dashboard").status == 200
    assert driver.get("/v2/clover/state").status == 401
