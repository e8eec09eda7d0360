"""What would have been: BASE, the best fixed mixes, and the shadow that adds them up beside what served."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, ProfiledEnergy, Spans, WorkerMeter
from clover.control.baselines.saved import compared, saved, saved_by_all
from clover.control.baselines.shadow import ASK_S, Shadow, Spectrum
from clover.control.solver.process import serve
from clover.control.solver.protocol import FIXED, HEAD, SolverAnswer, SolverOrder, packed, unpacked
from clover.errors import PlanError
from clover.planning.budget.counterfactual import Fixed, Frontier, Mix, base, fixed_mixes, lanes_of, line, mix_of
from clover.planning.model.problem import accuracies, base_capacity
from clover.planning.model.queueing import energy_j_per_row
from clover.types import EnergySample, GroupCount, Method, Reading, State
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import VARIANTS, cpu, objective, profile, state, worker

RATE = 50.0
SECOND = 1_000_000_000


def drive(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def fixed(*groups: tuple[str, str, int], **shares: float) -> Fixed:
    return Fixed(configuration=tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in groups), shares=shares)


def mix(item: Fixed) -> Mix:
    made = mix_of(lanes_of(profile(), item.configuration), item.shares, accuracies(profile()))
    assert made is not None
    return made


# --- by the model -------------------------------------------------------------------------------------------------


def test_base_is_the_best_variant_on_whole_devices_as_the_queueing_model_has_it() -> None:
    found = base(profile(), (cpu(2), cpu(2, "cpu1")))
    assert found is not None
    assert (found.words, found.accuracy) == ("large on 2 x 2c", 92.0)
    [(lane, share)] = found.lanes
    assert share == 1.0
    rate = math.exp(140 * math.log(1.03))
    assert found.joules(rate) == pytest.approx(energy_j_per_row(lane.workers, rate))
    assert found.joules(1.01 * rate) == found.joules(rate), "rates within a step are one question"
    capacity = base_capacity(profile(), (cpu(2), cpu(2, "cpu1")))
    assert found.holds(0.99 * capacity)
    assert not found.holds(1.01 * capacity)


def test_there_is_no_base_where_it_was_not_measured_or_there_is_no_device() -> None:
    assert base(profile(cores=(1,)), (cpu(2),)) is None
    assert base(profile(), ()) is None
    assert base(profile(), (msgspec.structs.replace(cpu(2), layouts=()),)) is None


def test_the_solver_finds_the_fixed_mixes_of_a_load() -> None:
    now = state(rate=RATE, config=objective(floor=89.0))
    found = fixed_mixes(now, RATE)
    told = [mix(item) for item in found]
    assert told[0].accuracy == pytest.approx(89.0, abs=0.01)
    assert told[-1].accuracy == pytest.approx(92.0)
    assert [item.joules(RATE) for item in told] == sorted(item.joules(RATE) for item in told)
    answers = io.BytesIO()
    serve(io.BytesIO(packed(SolverOrder(id=3, policy=FIXED, state=now))), answers)
    answer = unpacked(answers.getvalue()[HEAD.size :], SolverAnswer)
    assert answer.fixed == found
    assert answer.plan is None
    hopeless = state(rate=1e6)
    assert fixed_mixes(hopeless, 1e6) == ()


def test_between_two_fixed_mixes_the_best_lies_on_the_line_and_beyond_them_at_an_end() -> None:
    ends = [fixed(("small", "1c", 2), small=1.0), fixed(("large", "2c", 1), large=1.0)]
    frontier = Frontier.of(profile(), ends)
    low, high = (mix(item).joules(RATE) for item in ends)
    accuracy, joules = frontier.at(90.0, RATE)
    assert (accuracy, joules) == (90.0, pytest.approx((low + high) / 2))
    assert frontier.at(10.0, RATE) == (88.0, low)
    assert frontier.at(99.0, RATE)[0] == 92.0
    medium = fixed(("medium", "1c", 2), medium=1.0)
    assert Frontier.of(profile(), [*ends, medium]).at(90.0, RATE) == (90.0, mix(medium).joules(RATE))
    assert not Frontier.of(profile(), [fixed(("huge", "1c", 1), huge=1.0)]), "what was never measured is no mix"


def test_a_spectrum_gives_each_accuracy_what_its_mix_would_have_used() -> None:
    """Two windows of other frontiers: read where the accuracy reached, rows weighted, is the one asked for."""
    spectrum = Spectrum.over([88.0, 90.0, 92.0])
    spectrum.add(30, np.array([88.0, 92.0]), np.array([1.0, 3.0]), (7.0, 30.0), 2.0)
    spectrum.add(10, np.array([90.0, 92.0]), np.array([2.0, 4.0]), (0.0, 10.0), 4.0)
    for asked in (88.0, 89.3, 91.0, 92.0):
        second = max(asked, 90.0)
        right, joules, grams = spectrum.at(30 * asked + 10 * second)
        assert right == pytest.approx(30 * asked + 10 * second)
        first_j, second_j = 1.0 + (asked - 88.0) / 2, 2.0 + (second - 90.0)
        assert joules == pytest.approx(7 + 30 * first_j + 10 * second_j)
        assert grams == pytest.approx(2 * (7 + 30 * first_j) + 40 * second_j)
    assert spectrum.at(40 * 80.0)[0] == pytest.approx(30 * 88.0 + 10 * 90.0)


@given(
    rows=st.integers(1, 10_000), active_j=st.floats(0.0, 1e6), own_j=st.floats(1e-9, 1e3), other_j=st.floats(1e-9, 1e3)
)
def test_a_shadow_differs_by_no_more_than_the_model_says_and_less_where_the_meter_shows_less(
    rows: int, active_j: float, own_j: float, other_j: float
) -> None:
    offset, slope = line(rows, active_j, own_j)
    shadow_j, difference_j = offset + slope * other_j, rows * (other_j - own_j)
    close = 1e-9 * (active_j + rows * (own_j + other_j))
    assert offset >= -close
    assert shadow_j >= -close
    assert offset + slope * own_j == pytest.approx(active_j, abs=close)
    ratio = min(1.0, active_j / (rows * own_j))
    assert shadow_j - active_j == pytest.approx(ratio * difference_j, abs=close)


# --- beside a server ----------------------------------------------------------------------------------------------


class Server(Rig):
    """A rig that serves as the model says, but for a meter that shows `ratio` times as much.  `solve`: knows mixes."""

    def __init__(self, *, solve: bool = True, ratio: float = 1.7, **more: Any) -> None:
        super().__init__(**more)
        self.ratio = ratio
        self.asked: list[State] = []
        self.refuse = ""
        self.controller.shadows._fixed_mixes = self.fixed_mixes if solve else None

    async def fixed_mixes(self, asked: State) -> tuple[Fixed, ...]:
        self.asked.append(asked)
        if self.refuse:
            raise PlanError(self.refuse)
        return fixed_mixes(asked, asked.arrival_rate)

    @property
    def shadow(self) -> Shadow:
        return self.controller.shadows.of["toy"]

    async def serve(
        self, shares: dict[str, float], seconds: int = 12, *, rate: float = RATE, g: float = 100.0, look: bool = True
    ) -> None:
        """Answer `rate` rows a second by what runs; 2 W of idle power are held, and 1 W by nobody."""
        standing = self.family.deployed
        assert standing is not None
        served = mix_of(lanes_of(self.profile, standing.configuration), shares, accuracies(self.profile))
        for _ in range(seconds):
            self.clock.now_s += 1.0
            spans = Spans(seconds=1.0, unowned={"cpu0": (1.0, g * 1.0)})
            span = spans.of("toy")
            span.rows = {variant: round(rate * share) for variant, share in shares.items() if rate * share > 0.0}
            span.methods = {"measured"}
            rows = sum(span.rows.values())
            active_j = rows * served.joules(rate) * self.ratio if served is not None else 0.0
            span.share.active_j, span.share.active_g = active_j, active_j * g
            span.share.idle_j, span.share.idle_g = 2.0, 2.0 * g
            self.controller.shadows.window(spans)
            if look:
                self.controller.shadows.look()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    def told(self, kind: str) -> dict[str, Any]:
        found = saved(self.shadow)
        assert found is not None
        told: dict[str, Any] = found[kind]
        return told


def test_nothing_is_said_before_anything_was_served() -> None:
    async def story() -> None:
        rig = Server()
        await rig.deploy()
        assert rig.controller.state()["models"]["toy"]["saved"] is None
        await rig.serve({}, 3)
        assert rig.controller.state()["models"]["toy"]["saved"] is None, "idle power alone is no saving of 0 %"
        assert saved_by_all(rig.controller.shadows.of.values()) is None
        assert not list(compared(rig.controller.shadows.of))
        assert not rig.asked

    drive(story)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_a_server_that_runs_base_saves_nothing_whatever_its_meter_and_load_are(ratio: float) -> None:
    async def story() -> None:
        rig = Server(policy="base", ratio=ratio)
        await rig.deploy()
        for rate, g in ((5.0, 100.0), (50.0, 700.0), (120.0, 300.0), (3.0, 50.0)):
            await rig.serve({"large": 1.0}, 5, rate=rate, g=g)
        told = rig.told("base")
        assert told["grams"] == pytest.approx(0.0, abs=1e-9 * told["emitted_g"])
        assert told["part"] == pytest.approx(0.0, abs=1e-12)
        assert told["accuracy_given_up"] == 0.0
        assert told["against"].startswith("BASE: large on 1 x 2c, equal load and hardware, modelled")
        assert told["words"].startswith("saved 0.0 % of the gCO2e of BASE (modelled")
        assert rig.controller.state()["models"]["toy"]["saved"]["base"] == told

    drive(story)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_the_cheapest_fixed_mix_saves_what_the_model_says_and_nothing_against_itself(ratio: float) -> None:
    async def story() -> None:
        rig = Server(policy="static", objective="floor", ratio=ratio)
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
        for kind in ("static", "matched"):
            assert rig.told(kind)["part"] == pytest.approx(0.0, abs=2e-3), kind
            assert 0 < rig.told(kind)["rows_left_out"] < first, "rows before the first answer have no fixed mix"

    drive(story)


def test_accuracy_bought_where_the_grid_is_clean_beats_the_fixed_mix_at_the_same_accuracy() -> None:
    async def story() -> None:
        rig = Server(family={"accuracy_floor": 88.0}, ratio=1.0)
        await rig.deploy()
        await rig.controller.command("pin", {"configuration": {"small@1c": 1, "large@1c": 1}, "force": True}, "me")
        mixes = [fixed(("small", "1c", 1), ("large", "1c", 1), small=1.0), fixed(("large", "2c", 1), large=1.0)]
        rig.controller.shadows._fixed_mixes = None
        await rig.serve({"small": 1.0}, 12, rate=40.0, g=0.0)
        rig.shadow.learn(40.0, mixes)
        shadow = rig.shadow
        shadow.on_base.__init__()  # type: ignore[misc]
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
        assert "the best fixed mix at 90.00 %, as served (modelled from measured joules; equal load" in told["words"]

    drive(story)


def test_a_load_that_base_could_not_serve_is_said() -> None:
    async def story() -> None:
        rig = Server()
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
        rig = Server(family={"accuracy_floor": 91.0})
        await rig.deploy()
        await rig.controller.command("pin", {"variant": "small", "force": True}, "me")
        await rig.serve({"small": 1.0}, 200)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0, 88.0]
        told = rig.told("matched")
        assert told["shadow_accuracy"] < 91.0

    drive(story)


def test_fixed_mixes_are_asked_for_when_the_load_moved_and_not_too_often() -> None:
    async def story() -> None:
        rig = Server()
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


def test_an_answer_to_what_is_no_longer_asked_is_dropped() -> None:
    async def story() -> None:
        rig = Server()
        slow = asyncio.Event()

        async def late(asked: State) -> tuple[Fixed, ...]:
            await slow.wait()
            return await rig.fixed_mixes(asked)

        rig.controller.shadows._fixed_mixes = late
        await rig.deploy()
        await rig.serve({"large": 1.0}, 5)
        await rig.controller.command("set", {"accuracy_floor": 90.0}, "me")
        await rig.serve({"large": 1.0}, 1)
        slow.set()
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0]
        assert rig.shadow.static.rows == 0
        await rig.serve({"large": 1.0}, 5)
        assert [asked.objective.accuracy_floor for asked in rig.asked] == [91.0, 90.0]
        assert rig.shadow.static.rows > 0
        await rig.controller.shadows.stop()

    drive(story)


def test_without_fixed_mixes_base_is_told_alone_and_what_is_left_out_is_counted() -> None:
    async def story() -> None:
        rig = Server()
        rig.refuse = "no"
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        told = saved(rig.shadow)
        assert told is not None
        assert told["base"] is not None
        assert told["static"] is told["matched"] is None
        rig.refuse = ""
        await rig.serve({"large": 1.0}, 200)
        left_out = rig.told("static")["rows_left_out"]
        assert 20 * RATE <= left_out < 200 * RATE
        assert f"{left_out:.0f} rows left out" in rig.told("static")["words"]

    drive(story)


def test_a_variant_that_serves_before_its_change_is_done_is_known_by_its_workers() -> None:
    async def story() -> None:
        rig = Server(policy="base")
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
        rig = Server(policy="base")
        await rig.deploy()
        await rig.serve({"large": 1.0}, 3)
        for seconds, rows in ((0.0, 0), (0.0, 0), (300.0, 300 * 50)):
            spans = Spans(seconds=seconds)
            if rows:
                spans.of("toy").rows = {"large": rows}
            rig.controller.shadows.window(spans)
        assert rig.shadow.rate == pytest.approx(RATE)
        assert rig.told("base")["rows_beyond_shadow"] == 0

    drive(story)


def test_an_unloaded_family_goes_on_where_it_was() -> None:
    async def story() -> None:
        rig = Server()
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        before = {(item.model, item.against): item for item in compared(rig.controller.shadows.of)}
        await rig.controller.release("toy")
        last = Spans(seconds=1.0)
        last.of("toy").rows = {"large": 50}
        rig.controller.shadows.window(last)
        rig.controller.shadows.look()
        assert rig.shadow.on_base.rows == 21 * RATE, "what it answered at the end counts"
        rig.controller.shadows.window(Spans(seconds=1.0))
        await rig.controller.adopt(rig.family.spec, rig.profile, rig.fleet, rig.settings)
        rig.family = rig.controller.context.families["toy"]
        await rig.serve({"large": 1.0}, 20)
        for item in compared(rig.controller.shadows.of):
            then = before.get((item.model, item.against))
            assert then is None or item.shadow_g > then.shadow_g

    drive(story)


def test_devices_that_are_dealt_count_where_they_belong() -> None:
    async def story() -> None:
        rig = Server()
        other, _ = rig.second(share=3.0)
        await rig.deploy()
        await rig.controller.deploy("second")
        await rig.serve({"large": 1.0}, 4)
        assert rig.shadow.on_base.idle_j == pytest.approx(4 * (2.0 + 0.25))
        assert rig.controller.shadows.of["second"].on_base.idle_j == pytest.approx(4 * 0.75)
        told = saved_by_all(rig.controller.shadows.of.values())
        assert told is not None
        assert told["base"]["rows"] == 4 * RATE, "a family that served nothing takes no part"
        assert other.name == "second"

    drive(story)


@pytest.mark.parametrize(
    ("methods", "energy", "label"),
    [
        ({"measured"}, "measured", "modelled from measured joules"),
        ({"modelled"}, "modelled", "modelled"),
        ({"emulated"}, "analytical", "emulated, analytical profile"),
    ],
)
def test_every_saving_says_how_it_is_known(methods: set[Method], energy: Method, label: str) -> None:
    async def story() -> None:
        known = profile()
        latency = tuple(msgspec.structs.replace(item, energy_method=energy) for item in known.latency)
        rig = Server(measured=msgspec.structs.replace(known, latency=latency))
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        rig.shadow.methods = methods
        told = saved(rig.shadow)
        assert told is not None
        assert told["label"] == label
        for kind in ("base", "static", "matched"):
            assert label in told[kind]["against"]
            assert label in told[kind]["words"]
        json.dumps(rig.controller.state(), allow_nan=False)

    drive(story)


# --- what the account gives away ----------------------------------------------------------------------------------


def test_spans_hold_what_the_account_holds_and_rows_of_unknown_energy_are_in_neither() -> None:
    book, grid = Account(pue=1.5), Reading(g_per_kwh=360.0, at_s=0.0, provider="test")
    book.add_device("cpu0", 2)
    book.add_family("toy", 0)

    def window(second: int, total_j: float, epoch: int = 0) -> None:
        at_ns = second * SECOND
        book.window(
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
    first = book.take()
    assert first.families["toy"].rows == {"small": 3}
    assert first.seconds == pytest.approx(1.0)
    assert first.families["toy"].share.active_j == pytest.approx(8.0)
    assert first.families["toy"].share.idle_j == pytest.approx(1.0)
    assert first.families["toy"].methods == {"measured"}
    assert first.unowned["cpu0"] == (pytest.approx(1.0), pytest.approx(1.0 / 3.6e6 * 360.0 * 1.5))
    meter.add(5, SECOND, SECOND)
    window(2, 0.0, epoch=1)
    assert not book.take().families, "the meter began anew: nobody knows what these rows used"
    meter.add(7, SECOND, SECOND)
    book.detach(meter)
    window(3, 4.0, epoch=1)
    window(4, 9.0, epoch=1)
    last = book.take()
    assert last.seconds == pytest.approx(1.0)
    assert last.families["toy"].rows == {"small": 7}, "also of a worker that is gone"
    totals = book.totals("toy")
    assert totals["active_j"] == pytest.approx(8.0 + last.families["toy"].share.active_j)
    assert totals["carbon_g"] == pytest.approx(first.families["toy"].share.total_g + last.families["toy"].share.total_g)
    assert not book.take().families
