"""What the ledger has of today, against its own rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.accounting.boundaries import WITHIN
from clover.dashboard.today import midnight, read_today, today
from clover.errors import LedgerError
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.rows import SavedRow
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
    assert (found["at"], found["models"]) == (now_s, sorted(scene.models))


def test_the_figures_say_how_their_energy_and_intensity_are_known(tmp_path: Path) -> None:
    scene = LedgerScene()
    path = tmp_path / "ledger.db"
    write_ledger(path, scene)
    now_s = scene.end_s - 3600.0
    found = read_today(path, now_s)
    with LedgerReader(path) as ledger:
        labels = {row.label for row in ledger.lines(midnight(now_s)) if row.line in WITHIN["server"]}
        grids = {row.known for row in ledger.grid(midnight(now_s)) if row.joules > 0.0}
    assert found["energy"] == " + ".join(sorted(labels))
    assert found["intensity"] == " + ".join(sorted(grids))
    assert f"intensity {found['intensity']}; within the server" in found["known"]
    assert grids > {"live"}, "the provider failed for a while"


@pytest.mark.parametrize(("rows", "part"), [(99, None), (100, 0.25)])
def test_a_few_rows_make_no_percentage(rows: int, part: float | None) -> None:
    row = SavedRow(
        start=0, length=60, model="m", boundary="server", against="base", label="modelled", rows=rows, own_j=3.0,
        own_g=3.0, shadow_j=4.0, shadow_g=4.0, own_accuracy_rows=0.0, shadow_accuracy_rows=0.0, error_g=0.5,
    )  # fmt: skip
    assert today([], [row], [], 0)["saved"][0]["part"] == part


def test_a_day_of_which_nothing_is_kept_is_empty() -> None:
    found = today([], [], [], 0)
    assert (found["grams"], found["saved"], found["known"]) == (0, [], "")


def test_a_ledger_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no ledger")
    with pytest.raises(LedgerError):
        read_today(tmp_path / "x.db", 0.0)


def test_a_day_begins_at_midnight_utc() -> None:
    assert midnight(86_400.0 * 3 + 5.0) == 86_400 * 3
