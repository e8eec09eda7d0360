"""A report that was changed is found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.report.build import report_of
from clover.report.checking import UnreadableReport, Verdict, report_in, verify
from clover.report.recalculation import deviations, differing, gap_deviations
from clover.report.records import Report
from clover.report.render.page import report_page
from clover.report.source import read_rows
from clover.telemetry.ledger import LedgerReader, LedgerWriter
from tests.support.ledgers import write_ledger
from tests.support.reports import SCENE, ledger_file, made_report, options_of


@cache
def page() -> str:
    return report_page(made_report(), UTC)


def document() -> str:
    return msgspec.json.encode(made_report()).decode()


def verified(text: str, path: Path | None = None) -> Verdict:
    """Return what is found of a report by the ledger `path`, by default its own."""
    with LedgerReader(path or ledger_file()[0]) as ledger:
        return verify(report_in(text), text, ledger)


def test_a_report_as_it_was_made_is_given_again_by_its_ledger() -> None:
    for text in (document(), page(), json.dumps(json.loads(document()), indent=3)):
        found = verified(text)
        assert found.faults == ()
        assert "that the ledger gives the same report" in found.checked
        assert ("that the page shows its data" in found.checked) == (text == page())


def test_another_ledger_gives_other_figures(tmp_path: Any) -> None:
    write_ledger(tmp_path / "other.db", replace(SCENE, seed=2, minutes_days=0.0))
    found = verified(document(), tmp_path / "other.db")
    assert any(text.startswith("the ledger gives") for text in found.faults)


def test_entries_that_were_put_together_give_the_same_sums(tmp_path: Any) -> None:
    path = tmp_path / "folded.db"
    write_ledger(path, SCENE)
    with LedgerReader(path) as ledger:
        made = report_of(read_rows(ledger, SCENE.start_s, SCENE.end_s, UTC), options_of())
    writer = LedgerWriter(path)
    writer.fold(SCENE.end_s, SCENE.end_s)
    writer.close()
    found = verified(msgspec.json.encode(made).decode(), path)
    assert found.faults == ()
    assert any("the same sums" in text for text in found.checked)


def forgeries(report: Report) -> dict[str, Report]:
    """Return a report with one figure changed each."""
    change = msgspec.structs.replace
    saved = tuple(
        change(item, saved=change(item.saved, grams=10.0 * item.saved.grams), other_g=10.0 * item.other_g)
        for item in report.saved
    )
    assert report.embodied is not None
    assert report.sci is not None
    return {
        "saved": change(report, saved=saved),
        "embodied": change(report, embodied=change(report.embodied, grams=1.0)),
        "market_g": change(report, market_g=0.0),
        "sci": change(report, sci=change(report.sci, grams=1e-6)),
        "gaps": change(report, gaps=()),
        "lines": change(report, lines=tuple(change(line, grams=2.0 * line.grams) for line in report.lines)),
        "quality": change(report, quality=tuple(change(item, accuracy=99.0) for item in report.quality)),
        "breakdowns": change(
            report,
            breakdowns=tuple(
                change(item, buckets=(change(item.buckets[0], grams=0.0), *item.buckets[1:]))
                for item in report.breakdowns
            ),
        ),
    }


@pytest.mark.parametrize("until", ["as it was", "of another version", "folded"])
def test_a_forged_report_is_found(until: str, tmp_path: Any) -> None:
    report = made_report()
    if until == "of another version":
        report = msgspec.structs.replace(report, clover="0.0.1")
    path = ledger_file()[0]
    if until == "folded":
        path = tmp_path / "folded.db"
        shutil.copy(ledger_file()[0], path)
        writer = LedgerWriter(path)
        writer.fold(SCENE.end_s, SCENE.end_s)
        writer.close()
    forged = msgspec.structs.replace(
        report, **{name: getattr(item, name) for name, item in forgeries(report).items() if name != "breakdowns"}
    )
    found = verified(msgspec.json.encode(report).decode(), path)
    assert found.faults == ()
    assert until != "folded" or any("grams of operation, market-based" in line for line in found.checked)
    assert verified(msgspec.json.encode(forged).decode(), path).faults


def test_each_forged_figure_is_found_by_itself() -> None:
    report = made_report()
    assert deviations(report, report) == []
    for part, forged in forgeries(report).items():
        assert deviations(forged, report), part
        assert differing(forged, report) == ([part] if part != "gaps" else [])
    without = msgspec.structs.replace(report, market_g=None)
    assert deviations(msgspec.structs.replace(without, market_g=0.0), without)
    assert gap_deviations(forgeries(report)["gaps"], report)


def test_minutes_that_became_hours_leave_all_figures(tmp_path: Any) -> None:
    path = tmp_path / "folded.db"
    shutil.copy(ledger_file()[0], path)
    writer = LedgerWriter(path)
    writer.fold(SCENE.end_s, 0)
    writer.close()
    found = verified(document(), path)
    assert found.faults == ()
    assert any("exactly the same figures" in text for text in found.checked)


@pytest.mark.parametrize("field", ["rows", "joules", "market_g"])
def test_a_changed_figure_is_found(field: str) -> None:
    changed = json.loads(document())
    changed[field] += 1
    assert any(field in text for text in verified(json.dumps(changed)).faults)


def test_a_changed_input_is_found() -> None:
    changed = json.loads(document())
    changed["inputs"]["factors"][0]["value"] = 1.0
    assert any("the report says 1" in text for text in verified(json.dumps(changed)).faults)


def test_a_changed_page_is_found() -> None:
    text = page().replace("<strong>", "<strong>0.1 x ", 1)
    assert any("page does not follow from its data" in fault for fault in verified(text).faults)


@pytest.mark.parametrize(
    "added",
    [
        "<script>document.body.textContent = '0 g CO2e'</script>",
        '<p class="note">Audited: emitted 0 g CO2e</p>',
        '<div class="chart">Emitted: 0 g</div>',
    ],
)
def test_what_was_added_to_a_page_is_found(added: str) -> None:
    text = page().replace("</body>", f"{added}</body>", 1)
    assert any("or of plotly, which draws its charts" in fault for fault in verified(text).faults)


def test_a_page_without_charts_holds_where_they_could_be_drawn() -> None:
    assert verified(report_page(made_report(), UTC, charts=False)).faults == ()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema":"clover-report/9"}', "<html></html>", "1", '"x"'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(UnreadableReport):
        report_in(text)
