"""The consumer report of SCI for AI: its fields, its sum, and when it is refused."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import UTC
from typing import Any

import msgspec
import pytest

from clover.report.build import LedgerRows, report_of
from clover.report.records import EmbodiedFigures, KnownPart, Report
from clover.report.render.columns import csv_of
from clover.report.render.page import report_page
from clover.report.render.sci_page import sci_page
from clover.report.render.text import report_text, sci_text
from clover.report.sci_for_ai import STATED, SciForAi, SciRefused, sci_for_ai
from tests.support.reports import SCENE, made_report, options_of, rows_of


def known(name: str, part: float = 0.25) -> tuple[KnownPart, ...]:
    return (
        KnownPart(name="measured", joules=1.0, part=1.0 - part, about=""),
        KnownPart(name=name, joules=1.0, part=part, about=""),
    )


def changed(**more: Any) -> Report:
    return msgspec.structs.replace(made_report(), **more)


def test_the_breakdown_sums_to_the_score() -> None:
    found = sci_for_ai(made_report(), UTC)
    assert sum(item.per_unit_g for item in found.breakdown) == pytest.approx(found.sci.grams, rel=1e-9)
    assert sum(item.part for item in found.breakdown) * found.manifest.rows == pytest.approx(
        found.manifest.rows, rel=1e-6
    )
    assert {item.term for item in found.breakdown} == {"O", "M"}


def test_the_template_is_filled_in() -> None:
    found = sci_for_ai(made_report(), UTC)
    assert found.missing == ()
    assert [item.term for item in found.methodology] == ["C", "O", "M", "E", "I", "R"]
    assert {item.method for item in found.methodology} <= {"sourced", "measured", "modeled"}
    assert {item.name for item in found.coefficients} >= {"PUE", "TE of gpu0", "EL of gpu0"}
    assert all(item.source for item in found.coefficients)
    assert found.insights
    text, page = sci_text(found, UTC, 80), sci_page(found, UTC)
    for word in ("Shop", "3.1", "classifies pictures", "https://example.org", "Ada", "ada@example.org"):
        assert word in text
        assert word in page
    assert "<search>" not in page
    assert "Example &amp; Co" in page


def test_what_is_not_stated_is_named() -> None:
    options = replace(options_of(), application=type(options_of().application)(name="Shop"))
    found = sci_for_ai(report_of(rows_of(), options), UTC)
    assert found.missing == STATED[1:]
    assert "set report.version, report.description" in " ".join(sci_text(found, UTC, 80).split())


def test_measured_energy_at_published_intensities_is_measured() -> None:
    def methods(report: Report) -> dict[str, str]:
        return {item.term: item.method for item in sci_for_ai(report, UTC).methodology}

    measured = changed(
        energy_known=(KnownPart(name="measured", joules=1.0, part=1.0, about=""),),
        intensity_known=(KnownPart(name="live", joules=1.0, part=1.0, about=""),),
    )
    assert methods(measured) == {
        "C": "modeled",
        "O": "measured",
        "M": "sourced",
        "E": "measured",
        "I": "sourced",
        "R": "measured",
    }
    unsaid = msgspec.structs.replace(measured, intensity_known=known("unknown"))
    assert (methods(unsaid)["I"], methods(unsaid)["O"]) == ("modeled", "modeled")
    assert methods(made_report()) | {"M": "", "R": ""} == {
        "C": "modeled",
        "O": "modeled",
        "M": "",
        "E": "modeled",
        "I": "modeled",
        "R": "",
    }


def test_a_marginal_intensity_is_not_called_location_based() -> None:
    for grids, word in (
        (made_report().grids, "location-based"),
        (tuple(msgspec.structs.replace(item, signal="marginal") for item in made_report().grids), "marginal"),
        ((*made_report().grids, msgspec.structs.replace(made_report().grids[0], signal="marginal")), "partly marginal"),
    ):
        report = changed(grids=grids)
        found = sci_for_ai(report, UTC)
        (about,) = (item.about for item in found.methodology if item.term == "I")
        assert about.startswith(f"{word}, by energy")
        assert f"  {word}" in report_text(report, "day", UTC, 132)
        assert f"CO2e, {word}<" in report_page(report, UTC)
        signals = {row["signal"] for row in csv.DictReader(io.StringIO(csv_of(report, "day"), newline=""))}
        assert all(("marginal" in signal) == (word != "location-based") for signal in signals)


def test_coefficients_say_what_they_are() -> None:
    found = sci_for_ai(made_report(), UTC)
    text = " ".join(sci_text(found, UTC, 80).split())
    assert all(item.about in text for item in found.coefficients)
    plain = " ".join(report_text(made_report(), "day", UTC, 80).split())
    assert all(item.about in plain for item in made_report().inputs.factors)


def test_emulated_data_is_refused() -> None:
    scene = replace(SCENE, gpu_label="emulated")
    with pytest.raises(SciRefused, match=r"% of the period's energy is emulated: .* Choose a period without emulated"):
        sci_for_ai(made_report(scene), UTC)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (lambda: changed(energy_known=known("emulated", 0.001)), r"0.1 % of the period's energy is emulated"),
        (lambda: changed(intensity_known=known("synthetic")), r"25 % .* on an invented grid .*--carbon"),
        (lambda: changed(rows=0), "no row was answered"),
        (
            lambda: changed(embodied=None),
            "embodied carbon of .* is unknown.* set embodied.gpu_kg or embodied.machine_kg",
        ),
        (
            lambda: changed(hardware=tuple(emulated(item) for item in made_report().hardware)),
            "the hardware of the period is emulated",
        ),
    ],
)
def test_what_stands_for_nothing_is_refused(report: Any, why: str) -> None:
    with pytest.raises(SciRefused, match=why):
        sci_for_ai(report(), UTC)


def emulated(item: EmbodiedFigures) -> EmbodiedFigures:
    return msgspec.structs.replace(item, known="emulated")


def test_an_empty_period_is_refused() -> None:
    with pytest.raises(SciRefused):
        sci_for_ai(report_of(LedgerRows(), options_of()), UTC)


def test_it_survives_json() -> None:
    found = sci_for_ai(made_report(), UTC)
    assert msgspec.json.decode(msgspec.json.encode(found), type=SciForAi) == found
