"""How intervals are judged, and that a draw's interval comes from the production code."""

from __future__ import annotations

import pytest

from bench.truth import SITUATIONS, Judged, played


def test_the_least_that_covers_is_the_multiple_that_holds_95_of_100() -> None:
    said = (-10.0, 0.0, 10.0)
    judged = Judged.of([(at / 5.0, said, 100.0) for at in range(100)])  # errors of 0 to 19.8, half are inside
    assert judged.cover == pytest.approx(51.0)
    assert (judged.half, judged.least) == (pytest.approx(10.0), pytest.approx(18.8))
    assert judged.bias == pytest.approx(-9.9)


def test_joules_counted_and_the_saving_of_a_draw_are_near_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.truth.SECONDS", 240)
    [unverified] = [item for item in SITUATIONS if item.name == "no audits"]
    [audited] = [item for item in SITUATIONS if item.name == "each 50 % off"]
    far, near = played(unverified, 7), played(audited, 7)
    for draw in (far, near):
        assert 0.5 < draw.counted < 1.5
        assert draw.said_g[0] < draw.said_g[1] < draw.said_g[2]
    assert near.errors_g["profile"] / near.base_g < 0.25 * far.errors_g["profile"] / far.base_g, "audits verify BASE"
