"""The report of the page: the one that `clover report` makes, in a process, one at a time, and given up at a stop."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from clover.config import ReportConfig
from clover.dashboard.report import COMMAND, ReportMaker
from clover.errors import CloverError, LedgerError, Unavailable
from clover.report.cli import main
from clover.report.making import latest_page
from clover.telemetry.ledger.report_order import ReportOrder
from tests.support.ledgers import LedgerScene, write_ledger

STATED = ReportConfig(application="Shop", organisation="Example & Co")
CONFIGURED = '[report]\napplication = "Shop"\norganisation = "Example & Co"\n'


def maker(script: str, path: Path = Path("x.db")) -> ReportMaker:
    """Return one whose process runs `script`."""
    return ReportMaker(lambda: ReportOrder(str(path), STATED), (sys.executable, "-c", script))


def test_it_is_the_report_that_the_command_makes_of_that_time(tmp_path: Path) -> None:
    scene = LedgerScene(days=0.5, minutes_days=0.25)
    path = tmp_path / "shop.db"
    write_ledger(path, scene)
    (tmp_path / "clover.toml").write_text(CONFIGURED)
    now = scene.end_s - 3.0  # the last minutes are not settled yet
    out = tmp_path / "report.html"
    argv = [str(path), "--config", str(tmp_path / "clover.toml"), "--out", str(out)]
    assert main(argv, now=lambda: now, environ={}) == 0
    assert latest_page(path, STATED, now) == out.read_text()


@pytest.mark.slow
def test_the_process_makes_it_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    write_ledger(path, LedgerScene(days=0.1, minutes_days=0.1))
    page = asyncio.run(ReportMaker(lambda: ReportOrder(str(path), STATED)).get())
    assert b"Example &amp; Co" in page
    assert page.rstrip().endswith(b"</html>")
    with pytest.raises(LedgerError, match="no such file"):
        asyncio.run(ReportMaker(lambda: ReportOrder(str(tmp_path / "none.db"), STATED)).get())
    assert COMMAND[-1] == "clover.report.apart"


def test_all_that_ask_share_one_until_it_is_old(tmp_path: Path) -> None:
    report = maker(f"open({str(tmp_path / 'made')!r}, 'a').write('x'); print('page')")

    async def story() -> None:
        pages = await asyncio.gather(report.get(), report.get(), report.get())
        assert [*pages, await report.get()] == [b"page\n"] * 4
        assert (tmp_path / "made").read_text() == "x"
        report._forget()
        await report.get()
        assert (tmp_path / "made").read_text() == "xx"

    asyncio.run(story())


def test_a_stop_ends_the_process_and_none_is_begun() -> None:
    report = maker("import sys; sys.stdin.readline(); sys.stdin.read()")

    async def story() -> None:
        asked = [asyncio.ensure_future(report.get()) for _ in range(2)]
        while report._process is None:
            await asyncio.sleep(0)
        report.close()
        for one in (*asked, report.get()):
            with pytest.raises(Unavailable, match="shutting down"):
                await one

    asyncio.run(story())


def test_one_that_fails_is_made_anew() -> None:
    report = maker("import sys; print('it is empty', file=sys.stderr); sys.exit(3)")

    async def story() -> None:
        with pytest.raises(LedgerError, match="it is empty"):
            await report.get()
        await asyncio.sleep(0)
        assert report._making is None
        report._command = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGALRM)")
        with pytest.raises(CloverError, match="more than 120 s"):
            await report.get()
        await asyncio.sleep(0)
        report._command = (sys.executable, "-c", "1 / 0")
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await report.get()

    asyncio.run(story())
