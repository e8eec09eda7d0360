"""The shadows that add up beside a server: which windows and rows they cover, and what they come to."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from clover.accounting import Account, ProfiledEnergy, Spans, WorkerMeter
from clover.carbon.grid import Reference
from clover.control.baselines.comparison import Floats, Overheads, Spectrum, Window
from clover.control.baselines.saved import compared, saved, saved_by_all
from clover.control.baselines.shadow import ASK_S
from clover.planning.budget.counterfactual import Fixed, base
from clover.planning.budget.frontiers import fixed_mixes
from clover.planning.model.correction import apply_factors
from clover.planning.model.problem import base_capacity
from clover.types import EnergySample, Reading, State
from tests.support.profiles_fixture import VARIANTS, cpu, fixed, objective, profile, state, worker
from tests.support.savings_fixture import RATE, SavingServer, drive, mix

SECOND = 1_000_000_000


def modelled(rows: int, weights: tuple[float, float], own: Floats) -> Window:
    """A window that the model has `own` of, by [variant, joules or grams]."""
    return Window(Overheads.none(), rows, 0.0, np.zeros(2), own, np.array(weights))


def test_a_spectrum_gives_each_accuracy_what_its_mix_would_have_used() -> None:
    """Two windows of other frontiers: read where the accuracy reached, rows weighted, is the one asked for."""
    spectrum = Spectrum.over([88.0, 90.0, 92.0])
    own = np.array([[7.0, 14.0], [0.0, 0.0], [0.0, 0.0]])
    first = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    spectrum.add(modelled(30, (30.0, 60.0), own), np.array([88.0, 92.0]), first)
    spectrum.add(
        modelled(10, (10.0, 40.0), 0.0 * own), np.array([90.0, 92.0]), np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
    )
    for asked in (88.0, 89.3, 91.0, 92.0):
        least = max(asked, 90.0)
        right, change = spectrum.at(30 * asked + 10 * least)
        assert right == pytest.approx(30 * asked + 10 * least)
        high, late = (asked - 88.0) / 4, (least - 90.0) / 2
        assert change[:, 0].tolist() == pytest.approx([30 * (1 - high) - 7, 20 * (1 - late), 90 * high + 40 * late])
        assert change[:, 1].tolist() == pytest.approx([60 * (1 - high) - 14, 80 * (1 - late), 180 * high + 160 * late])
    assert spectrum.at(40 * 80.0)[0] == pytest.approx(30 * 88.0 + 10 * 90.0)


def test_nothing_is_said_before_anything_was_served() -> None:
    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        assert rig.controller.state()["models"]["toy"]["saved"] is None
        await rig.serve({}, 3)
        assert rig.controller.state()["models"]["toy"]["saved"] is None, "idle power alone is no saving of 0 %"
        assert saved_by_all(rig.controller.shadows.by_family.values()) is None
        assert not list(compared(rig.controller.shadows.by_family))
        assert not rig.asked

    drive(story)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_a_server_that_runs_base_saves_nothing_whatever_its_meter_and_load_are(ratio: float) -> None:
    async def story() -> None:
        rig = SavingServer(policy="base", ratio=ratio)
        await rig.deploy()
        for rate, g in ((5.0, 100.0), (50.0, 700.0), (120.0, 300.0), (3.0, 50.0)):
            await rig.serve({"large": 1.0}, 5, rate=rate, g=g)
        told = rig.told("base")
        assert told["grams"] == pytest.approx(0.0, abs=1e-9 * told["emitted_g"])
        assert told["part"] == pytest.approx(0.0, abs=1e-12)
        assert told["accuracy_given_up"] == 0.0
        assert told["against"].startswith("BASE: large on 1 x 2 cores, equal load and hardware, modelled")
        assert told["words"].startswith(
            "saved 0 g of CO2e (95 %: 0 g to 0 g, 0.0 to 0.0 %), 0.0 % of BASE (large on 1 x 2 cores, equal "
        )
        assert (told["low"], told["high"]) == (0.0, 0.0), "the same workers: whatever errs, errs on both sides"
        assert rig.controller.state()["models"]["toy"]["saved"]["base"] == told

    drive(story)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_the_cheapest_fixed_mix_saves_what_the_model_says_and_nothing_against_itself(ratio: float) -> None:
    async def story() -> None:
        rig = SavingServer(policy="static", objective="floor", ratio=ratio)
        await rig.deploy()
        standing = rig.family.deployed
        assert standing is not None
        cheapest, *_ = fixed_mixes(state(rate=RATE, config=objective(floor=91.0)), RATE)
        await rig.controller.command(
            "pin", {"configuration": msgspec.to_builtins(cheapest.configuration), "force": True}, "me"
        )
        await rig.serve(cheapest.shares, 3)
        assert rig.asked[0].objective.accuracy_floor == 91.0
        first = rig.shadow.rows
        await rig.serve(cheapest.shares, 30, g=350.0)
        on_base = base(profile(), (cpu(2),))
        assert on_base is not None
        told = rig.told("base")
        own_j, base_j = mix(cheapest).joules(RATE), on_base.joules(RATE)
        more = rig.ratio * own_j  # the meter shows more than the model, which is no reason to have saved more
        expected = (base_j - own_j) * min(1.0, rig.ratio) / (more + (base_j - own_j) * min(1.0, rig.ratio))
        assert 0.1 < expected < 0.9
        assert told["part_without_idle"] == pytest.approx(expected)
        assert 0.0 < told["part"] < expected, "idle power is in it, and saved by nobody"
        served = sum(VARIANTS[variant][0] * share for variant, share in cheapest.shares.items())
        assert told["accuracy_given_up"] == pytest.approx(92.0 - served, abs=0.05)  # rows are whole
        assert rig.told("matched")["part"] == pytest.approx(0.0, abs=2e-3)
        assert rig.told("matched")["rows_left_out"] == 0, "rows before the first answer waited for it"
        assert rig.told("matched")["rows"] == rig.shadow.rows > first

    drive(story)


def test_accuracy_bought_where_the_grid_is_clean_beats_the_fixed_mix_at_the_same_accuracy() -> None:
    async def story() -> None:
        rig = SavingServer(family={"accuracy_floor": 88.0}, ratio=1.0)
        await rig.deploy()
        await rig.controller.command("pin", {"configuration": {"small@1c": 1, "large@1c": 1}, "force": True}, "me")
        mixes = [fixed(("small", "1c", 1), ("large", "1c", 1), small=1.0), fixed(("large", "2c", 1), large=1.0)]
        rig.controller.shadows._alternatives = None
        await rig.serve({"small": 1.0}, 12, rate=40.0, g=0.0)
        rig.shadow.held.clear()
        rig.shadow.rows = 0
        rig.shadow.learn(40.0, tuple(mixes))
        await rig.serve({"large": 1.0}, 10, rate=40.0, g=100.0)
        await rig.serve({"small": 1.0}, 10, rate=40.0, g=500.0)
        told = rig.told("matched")
        low, high = mix(mixes[0]).joules(40.0), mix(mixes[1]).joules(40.0)
        own = mix(fixed(("large", "1c", 1), large=1.0)).joules(40.0)
        assert told["accuracy"] == pytest.approx(90.0)
        assert told["accuracy_given_up"] == pytest.approx(0.0, abs=1e-9)
        emitted = 400 * own * 100.0 + 400 * low * 500.0
        fixed_g = 400 * (low + high) / 2 * (100.0 + 500.0)
        assert told["emitted_g"] == pytest.approx(emitted + 30.0 * 600.0)
        assert told["grams"] == pytest.approx(fixed_g - emitted)
        assert told["grams"] > 0.0
        assert "% of the best fixed mix at 90.00 %, as served (equal load and hardware; modelled" in told["words"]

    drive(story)


def test_matched_says_if_no_fixed_mix_has_the_accuracy_served() -> None:
    async def story() -> None:
        rig = SavingServer(family={"accuracy_floor": 88.0})
        await rig.deploy()
        rig.controller.shadows._alternatives = None
        await rig.controller.command("pin", {"variant": "small", "force": True}, "me")
        await rig.serve({"small": 1.0}, 20)
        rig.shadow.learn(RATE, (fixed(("medium", "1c", 1), medium=1.0),))
        told = rig.told("matched")
        assert (told["accuracy"], told["shadow_accuracy"]) == pytest.approx((88.0, 90.0))
        name = "the best fixed mix at 90.00 %, the lowest that a fixed mix has at this load (88.00 % was served)"
        assert told["against"].startswith(f"{name}: ")
        assert ", as served" not in told["words"]

    drive(story)


def test_a_load_that_base_could_not_serve_is_said() -> None:
    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        capacity = base_capacity(profile(), (cpu(2),))
        await rig.controller.command("pin", {"variant": "small", "force": True}, "me")
        await rig.serve({"small": 1.0}, 20, rate=round(0.5 * capacity))
        assert rig.told("base")["rows_beyond_shadow"] == 0
        await rig.serve({"small": 1.0}, 40, rate=round(1.5 * capacity))
        told = rig.told("base")
        assert told["rows_beyond_shadow"] / told["rows"] == pytest.approx(0.85, abs=0.1)
        assert "could not have served the load of" in told["words"]

    drive(story)


def test_what_is_served_below_the_floor_has_fixed_mixes_down_there() -> None:
    async def story() -> None:
        rig = SavingServer(family={"accuracy_floor": 91.0})
        await rig.deploy()
        await rig.controller.command("pin", {"variant": "small", "force": True}, "me")
        await rig.serve({"small": 1.0}, 200)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0, 88.0]
        told = rig.told("matched")
        assert told["shadow_accuracy"] < 91.0

    drive(story)


def test_fixed_mixes_are_asked_for_when_the_load_moved_and_not_too_often() -> None:
    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        await rig.serve({"large": 1.0}, 100)
        assert len(rig.asked) == 1
        assert rig.asked[0].arrival_rate == pytest.approx(RATE)
        await rig.serve({"large": 1.0}, 300, rate=51.0)
        assert len(rig.asked) == 1, "within a rate step of what is known"
        await rig.serve({"large": 1.0}, 300, rate=80.0)
        moved = len(rig.asked)
        assert moved == 2, "there, and not on the way"
        assert rig.asked[-1].arrival_rate == pytest.approx(80.0, rel=0.05)
        await rig.serve({"large": 1.0}, 300)
        assert len(rig.asked) == moved, "that load is known"
        for rate in range(20, 45):
            await rig.serve({"large": 1.0}, 10, rate=float(rate))
        assert len(rig.asked) <= moved + 250 / ASK_S + 1
        seen = len(rig.asked)
        await rig.controller.command("set", {"accuracy_floor": 90.0}, "me")
        await rig.serve({"large": 1.0}, 2)
        assert len(rig.asked) == seen + 1, "other targets are another question"
        assert rig.asked[-1].objective.accuracy_floor == 90.0

    drive(story)


def test_another_reference_intensity_is_not_another_question() -> None:
    async def story() -> None:
        rig = SavingServer(reference_g_per_kwh=None)
        await rig.deploy()
        await rig.serve({"large": 1.0}, 30)
        known = rig.shadow._answers
        assert len(rig.asked) == len(known) == 1
        for hour in range(1, 5):
            rig.family.grid_reference = Reference(200.0 + hour, "median of the hours so far")
            await rig.serve({"large": 1.0}, 200)
        assert len(rig.asked) == len(known) == 1

    drive(story)


def test_an_answer_to_what_is_no_longer_asked_is_dropped() -> None:
    async def story() -> None:
        rig = SavingServer()
        slow = asyncio.Event()

        async def late(asked: State) -> tuple[Fixed, ...]:
            await slow.wait()
            return await rig.alternatives(asked)

        rig.controller.shadows._alternatives = late
        await rig.deploy()
        await rig.serve({"large": 1.0}, 5)
        await rig.controller.command("set", {"accuracy_floor": 90.0}, "me")
        await rig.serve({"large": 1.0}, 1)
        slow.set()
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0]
        assert rig.shadow.matched.rows == 0
        await rig.serve({"large": 1.0}, 5)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0, 90.0]
        assert rig.shadow.matched.rows > 0
        await rig.controller.shadows.stop()

    drive(story)


def test_without_fixed_mixes_base_is_told_alone_and_windows_wait_for_them() -> None:
    async def story() -> None:
        rig = SavingServer()
        rig.refuse = "no"
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        told = saved(rig.shadow)
        assert told is not None
        assert told["base"] is not None
        assert told["matched"] is None
        assert rig.shadow.held_rows == 20 * RATE
        assert len(rig.shadow.held) == 1, "windows at one load are one"
        rig.refuse = ""
        await rig.serve({"large": 1.0}, 200)
        assert rig.told("matched")["rows"] == 220 * RATE
        assert rig.told("matched")["rows_left_out"] == rig.told("matched")["rows_waiting"] == 0
        rig.shadow.rows += 7
        assert rig.told("matched")["rows_left_out"] == 7
        assert "7 rows left out" in rig.told("matched")["words"]

    drive(story)


def test_a_variant_that_serves_before_its_change_is_done_is_known_by_its_workers() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base")
        await rig.deploy()
        await rig.serve({"large": 1.0}, 3)
        await rig.fleet.spawn(worker("small", 0, 1))
        await rig.serve({"large": 0.5, "small": 0.5}, 3)
        assert rig.shadow.on_base.rows == rig.shadow.rows == 6 * RATE
        await rig.serve({"medium": 1.0}, 1)
        assert rig.shadow.on_base.rows == rig.shadow.rows - RATE, "nobody knows who did these"
        assert rig.told("base")["rows_left_out"] == RATE

    drive(story)


def test_rows_that_a_silent_meter_tells_of_at_once_are_no_burst() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base")
        await rig.deploy()
        await rig.serve({"large": 1.0}, 3)
        for seconds, rows in ((0.0, 0), (0.0, 0), (300.0, 300 * 50)):
            spans = Spans(seconds=seconds)
            if rows:
                spans.for_family("toy").rows = {"large": rows}
            rig.controller.shadows.compare(spans)
        assert rig.shadow.rate == pytest.approx(RATE)
        assert rig.told("base")["rows_beyond_shadow"] == 0

    drive(story)


def test_an_unloaded_family_goes_on_where_it_was() -> None:
    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        before = {(item.model, item.against): item for item in compared(rig.controller.shadows.by_family)}
        await rig.controller.release("toy")
        last = Spans(seconds=1.0)
        last.for_family("toy").rows = {"large": 50}
        rig.controller.shadows.compare(last)
        rig.controller.shadows.poll()
        assert rig.shadow.on_base.rows == 21 * RATE, "what it answered at the end counts"
        rig.controller.shadows.compare(Spans(seconds=1.0))
        await rig.controller.adopt(rig.family.spec, rig.profile, rig.fleet, rig.settings)
        rig.family = rig.controller.context.families["toy"]
        await rig.serve({"large": 1.0}, 20)
        for item in compared(rig.controller.shadows.by_family):
            then = before.get((item.model, item.against))
            assert then is None or item.shadow_g > then.shadow_g

    drive(story)


def test_devices_that_are_dealt_count_where_they_belong() -> None:
    async def story() -> None:
        rig = SavingServer()
        other, _ = rig.second(share=3.0)
        await rig.deploy()
        await rig.controller.deploy("second")
        await rig.serve({"large": 1.0}, 4)
        assert rig.shadow.on_base.overheads.idle[0] == pytest.approx(4 * 2.0)
        assert rig.shadow.on_base.overheads.unowned[0] == pytest.approx(4 * 0.25)
        assert rig.controller.shadows.by_family["second"].on_base.overheads.unowned[0] == pytest.approx(4 * 0.75)
        rig.controller.shadows.compare(Spans(seconds=1.0, unowned={"host": (3.0, 0.0)}))
        for name, before in (("toy", 1.0), ("second", 3.0)):
            unowned = rig.controller.shadows.by_family[name].on_base.overheads.unowned[0]
            assert unowned == pytest.approx(before + 1.5), "the host beside devices is everybody's"
        told = saved_by_all(rig.controller.shadows.by_family.values())
        assert told is not None
        assert told["base"]["rows"] == 4 * RATE, "a family that served nothing takes no part"
        assert told["since_s"] == rig.shadow.since_s
        assert other.name == "second"

    drive(story)


def test_windows_that_wait_are_compared_as_if_they_had_not_at_every_load() -> None:
    """One rig knows the fixed mixes from the start, the other learns them at the end."""

    async def story() -> None:
        told = []
        for late in (False, True):
            rig = SavingServer()
            rig.controller.shadows._alternatives = None
            await rig.deploy()
            found = fixed_mixes(state(rate=RATE, config=objective(floor=91.0)), RATE)
            await rig.serve({}, 1)
            if not late:
                rig.shadow.learn(RATE, found)
            for rate, g in ((50.0, 100.0), (20.0, 300.0), (80.0, 200.0), (50.0, 500.0)):
                await rig.serve({"large": 1.0}, 15, rate=rate, g=g)
            if late:
                assert rig.shadow.held_rows == rig.shadow.rows
                assert len(rig.shadow.held) < 61, "windows at one load are one"
                rig.shadow.learn(RATE, found)
            told.append(rig.told("matched"))
        first, second = told
        assert second["rows"] == first["rows"] == 3000
        for key in ("grams", "joules", "low", "high", "shadow_accuracy"):
            assert second[key] == pytest.approx(first[key], rel=1e-6, abs=1e-6), key

    drive(story)


def test_rows_that_a_cascade_passes_on_are_compared_when_their_answer_comes() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base")
        await rig.deploy()
        await rig.fleet.spawn(worker("small", 0, 1))
        for rows, gone_on in (({"small": 5}, 5), ({"large": 5}, 0)):
            spans = Spans(seconds=1.0)
            span = spans.for_family("toy")
            span.rows, span.gone_on, span.share.active_j = rows, gone_on, 0.5
            rig.controller.shadows.compare(spans)
        sums = rig.shadow.on_base
        assert (rig.shadow.rows, sums.rows) == (5, 5)
        assert sums.active[0] == 1.0, "what small used belongs to the answers of large"
        spans = Spans(seconds=1.0)
        spans.for_family("toy").gone_on = -1
        rig.controller.shadows.compare(spans)
        assert rig.shadow.rows == 5, "a row that kept an answer of before counts with the next ones"
        spans = Spans(seconds=1.0)
        spans.for_family("toy").rows = {"large": 2}
        rig.controller.shadows.compare(spans)
        assert (rig.shadow.rows, sums.rows) == (8, 8)

    drive(story)


def test_spans_hold_what_the_account_holds_and_rows_of_unknown_energy_are_in_neither() -> None:
    book, grid = Account(pue=1.5), Reading(g_per_kwh=360.0, at_s=0.0, provider="test")
    book.add_device("cpu0", 2)
    book.add_family("toy")

    def window(second: int, total_j: float, epoch: int = 0) -> None:
        at_ns = second * SECOND
        book.close_window(
            EnergySample(device="cpu0", at_ns=at_ns, total_j=total_j, idle_w=2.0, method="measured", epoch=epoch), grid
        )

    meter = book.attach(
        WorkerMeter(
            family="toy", variant="small", device="cpu0", placement="p0", slices=1, profiled=ProfiledEnergy((0.5, 0.5))
        )
    )
    window(0, 0.0)
    meter.add(3, SECOND, SECOND)
    window(1, 10.0)
    first = book.collect_spans()
    assert first.families["toy"].rows == {"small": 3}
    assert first.seconds == pytest.approx(1.0)
    assert first.families["toy"].share.active_j == pytest.approx(8.0)
    assert first.families["toy"].share.idle_j == pytest.approx(1.0)
    assert first.families["toy"].methods == {"measured"}
    assert first.families["toy"].grids == {grid.method}
    assert first.unowned["cpu0"] == (pytest.approx(1.0), pytest.approx(1.0 / 3.6e6 * 360.0 * 1.5))
    meter.add(5, SECOND, SECOND)
    window(2, 0.0, epoch=1)
    assert not book.collect_spans().families, "the meter began anew: nobody knows what these rows used"
    meter.add(7, SECOND, SECOND)
    book.detach(meter)
    window(3, 4.0, epoch=1)
    window(4, 9.0, epoch=1)
    last = book.collect_spans()
    assert last.seconds == pytest.approx(1.0)
    assert last.families["toy"].rows == {"small": 7}, "also of a worker that is gone"
    totals = book.totals("toy")
    assert totals["active_j"] == pytest.approx(8.0 + last.families["toy"].share.active_j)
    assert totals["carbon_g"] == pytest.approx(first.families["toy"].share.total_g + last.families["toy"].share.total_g)
    assert not book.collect_spans().families


def test_base_is_verified_by_its_variant_and_the_past_restated_by_what_is_better_known() -> None:
    async def story() -> None:
        rig = SavingServer(ratio=1.0, family={"accuracy_floor": 88.0})
        await rig.deploy()
        await rig.controller.command("pin", {"configuration": {"small@2c": 1}, "force": True}, "me")
        learned, small, large = rig.family.learned, ("small", "2c"), ("large", "2c")
        await rig.serve({"small": 1.0}, 20)
        told = rig.told("base")
        assert told["verified"] is False
        assert "; BASE not yet verified here), " in told["short"]
        assert told["errors_g"]["profile"] > 0.9 * told["grams"]

        def learn(factors: dict[tuple[str, str], float], errors: dict[tuple[str, str], float]) -> None:
            learned.energy, learned.energy_errors, learned.changed = factors, errors, learned.changed + 1
            learned.corrected = apply_factors(rig.profile, {}, factors)
            rig.controller.shadows.poll()

        def base_j() -> float:
            return float(rig.shadow.on_base.change[2, 0])

        before_j = base_j()
        learn({small: 1.0, large: 1.5}, {small: 0.01, large: 0.1})
        assert base_j() == pytest.approx(1.5 * before_j)
        told = rig.told("base")
        assert told["verified"] is True
        assert "not yet verified" not in told["words"]
        assert told["part_low"] < told["part"] < told["part_high"]
        own = rig.shadow.on_base.own.copy()
        learn({small: 1.2, large: 1.6}, {small: 0.009, large: 0.09})
        assert base_j() == pytest.approx(1.6 * before_j), "what did not serve is known by nothing else"
        assert rig.shadow.on_base.own.tolist() == own.tolist(), "what served was metered"
        learn({small: 1.2, large: 1.0}, {small: 0.009, large: 0.3})
        assert base_j() == pytest.approx(1.6 * before_j), "less is known now"
        await rig.serve({"small": 1.0}, 1)
        assert base_j() == pytest.approx(1.6 * before_j + before_j / 20.0, rel=0.02)

    drive(story)
