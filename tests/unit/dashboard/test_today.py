"""What the ledger has of today, against its own rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.accounting.boundaries import WITHIN
from clover.dashboard.today import midnight, read_today, today
from clover.errors import LedgerError
from clover.telemetry.ledger import LedgerReader
from tests.support.ledgers import LedgerScene, write_ledger


def test_the_figures_of_today_are_the_sums_of_its_rows(tmp_path: Path) -> None:
    scene = LedgerScene()
    path = tmp_path / "ledger.db"
    write_ledger(path, scene)
    now_s = scene.end_s - 3600.0
    found = read_today(path, now_s)
    with LedgerReader(path) as ledger:
        lines = [row for row in ledger.lines(midnight(now_s)) if row.line in WITHIN["server"]]
        saved = [row for row in ledger.saved(midnight(now_s)) if row.boundary == "server"]
    assert found["grams"] == pytest.approx(sum(row.grams for row in lines), rel=1e-4)
    assert {item["kind"] for item in found["saved"]} == {row.against for row in saved}
    for item in found["saved"]:
        own = [row for row in saved if row.against == item["kind"]]
        assert item["grams"] == pytest.approx(sum(row.saved_g for row in own), rel=1e-4)
        assert item["low"] < item["grams"] < item["high"]
    assert found["saved"][0]["kind"] == "base"
    assert "from the ledger" in found["known"]


def test_a_day_of_which_nothing_is_kept_is_empty() -> None:
    found = today([], [], 0)
    assert (found["grams"], found["saved"], found["known"]) == (0, [], "")


def test_a_ledger_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no ledger")
    with pytest.raises(LedgerError):
        read_today(tmp_path / "x.db", 0.0)


def test_a_day_begins_at_midnight_utc() -> None:
    assert midnight(86_400.0 * 3 + 5.0) == 86_400 * 3
