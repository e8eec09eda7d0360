"""A report that was changed is found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC
from functools import cache
from typing import Any

import msgspec
import pytest

from clover.report.build import report_of
from clover.report.checking import UnreadableReport, verify
from clover.report.recalculation import deviations, differing, gap_deviations
from clover.report.records import Report
from clover.report.render.page import report_page
from clover.report.render.sci_page import sci_page
from clover.report.sci_for_ai import sci_for_ai
from clover.report.sealing import canonical, faults, sealed
from clover.report.source import read_rows
from clover.telemetry.ledger import LedgerReader, LedgerWriter
from tests.support.ledgers import write_ledger
from tests.support.reports import SCENE, ledger_file, made_report, options_of, rows_of

KEY = b"a key"


@cache
def page() -> str:
    return report_page(made_report(), UTC)


def document() -> str:
    return msgspec.json.encode(made_report()).decode()


def test_a_report_as_it_was_made_holds() -> None:
    for text in (document(), page(), json.dumps(json.loads(document()), indent=3)):
        found = verify(text, b"", None)
        assert found.faults == ()
        assert found.checked


def test_figures_are_calculated_again_from_the_ledger() -> None:
    with LedgerReader(ledger_file()[0]) as ledger:
        found = verify(document(), b"", ledger)
    assert found.faults == ()
    assert "that the ledger gives the same report" in found.checked


def test_another_ledger_gives_other_figures(tmp_path: Any) -> None:
    write_ledger(tmp_path / "other.db", replace(SCENE, seed=2, minutes_days=0.0))
    with LedgerReader(tmp_path / "other.db") as ledger:
        found = verify(document(), b"", ledger)
    assert any(text.startswith("the ledger gives") for text in found.faults)


def test_entries_that_were_put_together_give_the_same_sums(tmp_path: Any) -> None:
    path = tmp_path / "folded.db"
    write_ledger(path, SCENE)
    with LedgerReader(path) as ledger:
        made = report_of(read_rows(ledger, SCENE.start_s, SCENE.end_s, UTC), options_of())
    writer = LedgerWriter(path)
    writer.fold(SCENE.end_s, SCENE.end_s)
    writer.close()
    with LedgerReader(path) as ledger:
        found = verify(msgspec.json.encode(made).decode(), b"", ledger)
    assert found.faults == ()
    assert any("the same sums" in text for text in found.checked)


def forgeries(report: Report) -> dict[str, Report]:
    """Return a report with one figure changed each, sealed again as anyone can without a key."""
    change = msgspec.structs.replace
    saved = tuple(
        change(item, saved=change(item.saved, grams=10.0 * item.saved.grams), other_g=10.0 * item.other_g)
        for item in report.saved
    )
    assert report.embodied is not None
    assert report.sci is not None
    found = {
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
    return {name: sealed(item) for name, item in found.items()}


@pytest.mark.parametrize("until", ["as it was", "of another version", "folded"])
def test_a_forged_report_with_a_new_seal_is_found(until: str, tmp_path: Any) -> None:
    report = made_report()
    if until == "of another version":
        report = sealed(msgspec.structs.replace(report, clover="0.0.1"))
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
    text = msgspec.json.encode(sealed(forged)).decode()
    with LedgerReader(path) as ledger:
        found = verify(msgspec.json.encode(report).decode(), b"", ledger)
        assert found.faults == ()
        assert until != "folded" or any("grams of operation, market-based" in line for line in found.checked)
        assert verify(text, b"", None).faults == ()  # its seal says nothing
        assert verify(text, b"", ledger).faults


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
    with LedgerReader(path) as ledger:
        found = verify(document(), b"", ledger)
    assert found.faults == ()
    assert any("exactly the same figures" in text for text in found.checked)


@pytest.mark.parametrize("field", ["rows", "joules", "market_g", "made", "server"])
def test_a_changed_figure_is_found(field: str) -> None:
    changed = json.loads(document())
    changed[field] = "other" if isinstance(changed[field], str) else changed[field] + 1
    assert any("figures are not those of the seal" in text for text in verify(json.dumps(changed), b"", None).faults)


def test_a_changed_input_is_found() -> None:
    changed = json.loads(document())
    changed["inputs"]["factors"][0]["value"] = 1.0
    assert any("inputs are not those of the seal" in text for text in verify(json.dumps(changed), b"", None).faults)


def test_a_changed_page_is_found() -> None:
    text = page().replace("<strong>", "<strong>0.1 x ", 1)
    assert any("page does not follow from its data" in fault for fault in verify(text, b"", None).faults)


@pytest.mark.parametrize(
    "added",
    [
        "<script>document.body.textContent = '0 g CO2e'</script>",
        '<p class="note">Audited: emitted 0 g CO2e</p>',
        '<div class="chart">Emitted: 0 g</div>',
    ],
)
def test_what_was_added_to_a_page_is_found_though_it_may_depend_on_the_charts(added: str) -> None:
    text = page().replace("</body>", f"{added}</body>", 1)
    assert any("cannot be checked here" in fault for fault in verify(text, b"", None).faults)


def test_a_page_without_charts_holds_where_they_could_be_drawn() -> None:
    assert verify(report_page(made_report(), UTC, charts=False), b"", None).faults == ()


def test_a_changed_score_is_found() -> None:
    found = sci_for_ai(made_report(), UTC)
    assert verify(msgspec.json.encode(found).decode(), b"", None).faults == ()
    assert verify(sci_page(found, UTC), b"", None).faults == ()
    lower = msgspec.structs.replace(found, sci=msgspec.structs.replace(found.sci, grams=1e-9))
    assert any(
        "score does not follow" in text for text in verify(msgspec.json.encode(lower).decode(), b"", None).faults
    )


def test_a_signature_needs_the_key() -> None:
    signed = report_of(rows_of(), options_of(key=KEY))
    text = msgspec.json.encode(signed).decode()
    assert signed.seal.hmac_sha256
    assert verify(text, KEY, None).faults == ()
    assert verify(text, b"", None).faults == ()
    assert verify(text, b"another", None).faults == ("it was not signed with this key",)
    assert verify(document(), KEY, None).faults == ("it is not signed, though a key was given",)
    odd = msgspec.structs.replace(signed, seal=msgspec.structs.replace(signed.seal, hmac_sha256="\xfc" * 64))
    assert faults(odd, KEY) == ["it was not signed with this key"]
    # Who changes a figure can make its digests again, but not its signature.
    forged = sealed(msgspec.structs.replace(signed, rows=1), b"guess")
    assert faults(forged, b"") == []
    assert faults(forged, KEY) == ["it was not signed with this key"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema":"clover-report/9"}', "<html></html>", "1", '"x"'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(UnreadableReport):
        verify(text, b"", None)


def test_json_is_canonical_whatever_the_order() -> None:
    assert (
        canonical({"b": 1.5, "a": "ü"})
        == canonical(json.loads('{"a": "\\u00fc", "b": 1.50}'))
        == '{"a":"ü","b":1.5}'.encode()
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
