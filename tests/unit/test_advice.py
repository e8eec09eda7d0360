"""What would save most grams: figures by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from clover.accounting.boundaries import PARTS, where_words
from clover.accounting.devices import LINES
from clover.advice import DAY_S, Advice, FamilyLoad, advise, predicted, recorded
from clover.telemetry.ledger.rows import KeptProfile, LedgerSums, LineRow, QualityRow, RunRow
from clover.types import CascadeProfile, FamilyProfile
from tests.support.chains_fixture import point
from tests.support.profiles_fixture import profile

LARGE_J, SMALL_J = 0.04, 0.01
"""Joules of a row alone on one core."""


def load(measured: FamilyProfile | None = None, **how: Any) -> FamilyLoad:
    plain = FamilyLoad(
        profile=measured or profile(),
        rate=10.0,
        slo_ms=30.0,
        accuracy=92.0,
        cascade=False,
        waits=False,
        idle_g_a_day=100.0,
        idle_how="modelled",
        grams_a_j=1e-3,
    )
    return replace(plain, **how)


def found(given: FamilyLoad) -> dict[str, Advice]:
    return {item.setting: item for item in advise(given)}


def test_every_line_of_the_account_is_part_of_one() -> None:
    assert sorted(line for own in PARTS.values() for line in own) == sorted(LINES)


def test_where_grams_go() -> None:
    lines = {"active": 10.0, "idle": 60.0, "unowned": 20.0, "front_end": 4.0, "control": 1.0, "foreign": 5.0}
    assert where_words(lines, 2.0) == (
        "80 % idle power (40 g a day), 10 % workers' active (5 g a day), 5 % front end and control (2.5 g a day), "
        "5 % other programs (2.5 g a day)"
    )
    assert where_words({}, 1.0) == ""


def test_cores_that_the_load_does_not_need() -> None:
    one = found(load())["a machine with 1"]
    assert one.grams_a_day == pytest.approx(50.0)
    assert one.words == (
        "1 of 2 cores would do for toy at 10 rows/s: 50 g a day less (the others' part of the idle power, modelled)"
    )
    assert not any("machine" in setting for setting in found(load(rate=400.0, slo_ms=200.0)))


def test_gpus_that_the_load_does_not_need() -> None:
    measured = profile()
    base = msgspec.structs.replace(measured.base, profile="whole", count=4)
    latency = tuple(msgspec.structs.replace(item, profile="whole") for item in measured.latency[:4])
    rest = tuple(msgspec.structs.replace(item, profile="whole") for item in measured.latency if item.profile == "1c")
    measured = msgspec.structs.replace(measured, base=base, latency=rest or latency)
    two = found(load(measured, rate=600.0, slo_ms=60.0))["a machine with 2"]
    assert "2 of 4 GPUs would do" in two.text
    assert two.grams_a_day == pytest.approx(50.0)


def test_an_slo_with_room_saves_what_waiting_does() -> None:
    given = load()
    now, roomy = predicted(given), predicted(load(slo_ms=150.0, waits=True))
    assert now is not None
    assert roomy is not None
    assert now.joules == pytest.approx(LARGE_J, rel=0.03)
    assert LARGE_J / 2 < roomy.joules < now.joules, "half of a row's joules are a batch's"
    saved = found(given)["--slo-ms 150"]
    assert saved.grams_a_day == pytest.approx((now.joules - roomy.joules) * 10.0 * DAY_S * 1e-3)
    assert saved.how == "workers and front end at 10 rows/s, modelled"


def test_cascades_that_are_off() -> None:
    cascade = CascadeProfile(points=(point(92.0),), quantiles={}, calibration_rows=5000, held_out_rows=5000)
    measured = msgspec.structs.replace(profile(), cascade=cascade)
    saved = found(load(measured))["leave out --no-cascade"]
    chain_j = SMALL_J + 0.2 * LARGE_J
    assert saved.grams_a_day == pytest.approx((LARGE_J - chain_j) * 10.0 * DAY_S * 1e-3, rel=0.05)
    assert "leave out --no-cascade" not in found(load(measured, cascade=True))


def test_most_grams_first() -> None:
    cascade = CascadeProfile(points=(point(92.0),), quantiles={}, calibration_rows=5000, held_out_rows=5000)
    every = advise(load(msgspec.structs.replace(profile(), cascade=cascade)))
    grams = [item.grams_a_day for item in every]
    assert grams == sorted(grams, reverse=True)
    assert len(grams) == 3
    assert min(grams) > 0.0
    assert advise(load(slo_ms=0.1)) == [], "nothing keeps that SLO"


class Ledger:
    """What a day of a server left: ten rows a second, 1 g/kJ."""

    def __init__(self, served: FamilyProfile, slo_ms: float = 30.0) -> None:
        digest = hashlib.sha256(msgspec.json.encode(served)).hexdigest()
        self._kept = [KeptProfile(digest, "toy", 0.0, "{}")]
        self._slo_ms = slo_ms

    def sums(self, start: float, end: float) -> LedgerSums:
        return LedgerSums(seconds=43_200.0)

    def lines(self, start: float, end: float) -> list[LineRow]:
        rows = {"active": (30e3, "modelled"), "idle": (20e3, "measured"), "unowned": (50e3, "measured")}
        return [LineRow(0, 60, "cpu0", line, label, j, 1e-3 * j) for line, (j, label) in rows.items()]

    def quality(self, start: float, end: float) -> list[QualityRow]:
        right = 432_000 * 91.5
        return [QualityRow(0, 60, "toy", self._slo_ms, 432_000, right, 0, 0, 432_000, 0, 0, 0, "")]

    def profiles(self) -> list[KeptProfile]:
        return self._kept

    def runs(self) -> list[RunRow]:
        text = '{"controller": {"cascade": false}, "families": [{"family": "toy", "slo_ms": 30.0}]}'
        return [RunRow(1, 0.0, 0.0, None, "0", "box", 1, "", text, "{}")]


def test_a_load_that_a_ledger_knows() -> None:
    served = profile()
    ledger: Any = Ledger(served)
    seen = recorded(ledger, [msgspec.structs.replace(served, key="other"), served], 0.0, DAY_S)
    assert seen is not None
    assert seen.profile is served
    assert (seen.rate, seen.slo_ms, seen.cascade, seen.waits) == (10.0, 30.0, False, True)
    assert seen.accuracy == pytest.approx(91.5)
    assert (seen.idle_g_a_day, seen.idle_how) == (pytest.approx(140.0), "measured")
    assert seen.grams_a_j == pytest.approx(1e-3)
    assert recorded(ledger, [], 0.0, DAY_S) is None
    other: Any = Ledger(served, slo_ms=0.0)
    assert recorded(other, [served], 0.0, DAY_S) is None
