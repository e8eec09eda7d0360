"""What is said of a saving: boundary, interval, how it is known, and that it is true."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, ProfiledEnergy, Spans, WorkerMeter
from clover.accounting.boundaries import WITHIN
from clover.accounting.embodied import EmbodiedLedger
from clover.accounting.sci import sci
from clover.control.baselines.comparison import ComparisonSums, Overheads, Window
from clover.control.baselines.saved import compared, label_of, meter_error, saved
from clover.planning.budget.counterfactual import base
from clover.types import EnergySample, Method
from tests.support.profiles_fixture import cpu, fixed, profile, reading
from tests.support.savings_fixture import SavingServer, drive, mix

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("methods", "energy", "label"),
    [
        ({"measured"}, "measured", "modelled from metered joules"),
        ({"modelled"}, "modelled", "modelled"),
        ({"emulated"}, "analytical", "emulated, analytical profile"),
    ],
)
def test_every_saving_says_how_it_is_known(methods: set[Method], energy: Method, label: str) -> None:
    async def story() -> None:
        known = profile()
        latency = tuple(msgspec.structs.replace(item, energy_method=energy) for item in known.latency)
        rig = SavingServer(measured=msgspec.structs.replace(known, latency=latency))
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        rig.shadow.methods = methods
        told = saved(rig.shadow)
        assert told is not None
        assert told["label"] == label
        for kind in ("base", "matched"):
            assert label in told[kind]["against"]
            assert label in told[kind]["words"]
        json.dumps(rig.controller.state(), allow_nan=False)

    drive(story)


def test_a_host_without_a_counter_beside_a_gpu_with_one_is_in_the_label_and_in_the_interval_by_its_joules() -> None:
    gpu = {"measured_j": 990.0, "rest_j": 90.0, "method": "measured"}
    host = {"measured_j": 900.0, "rest_j": 800.0, "method": "modelled", "uncertainty_high": 0.1}
    host |= {"active_uncertainty_low": -0.2, "active_uncertainty_high": 0.45}
    lost = {"measured_j": 0.0, "rest_j": 0.0, "method": "none"}
    devices: dict[str, dict[str, float | str]] = {"gpu0": gpu, "host": host, "gpu1": lost}

    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        await rig.serve({"large": 1.0}, 5)
        assert rig.shadow.methods == {"measured"}, "the host answers no rows"
        found = saved(rig.shadow, devices)
        assert found is not None
        assert found["label"] == "modelled from metered and modelled joules"
        assert meter_error({"measured"}, devices) == pytest.approx(0.9 * 0.05 + 0.1 * 0.6)
        assert meter_error({"measured"}, {"gpu1": lost}) == 0.05, "nothing was counted yet"
        emulated = {"gpu0": gpu | {"method": "emulated"}, "host": host | {"method": "measured"}}
        rig.shadow.methods = {"emulated"}
        assert label_of([rig.shadow], emulated) == "emulated from metered and emulated joules"

    drive(story)


def test_a_replayed_grid_is_called_one() -> None:
    async def story() -> None:
        rig = SavingServer()
        await rig.deploy()
        await rig.serve({"large": 1.0}, 5)
        rig.shadow.grids = {"replayed synthetic", "published"}
        found = saved(rig.shadow)
        assert found is not None
        assert found["grid"] == "published + replayed synthetic"
        assert "on published and replayed invented intensities" in found["known"]

    drive(story)


def test_the_boundary_is_the_servers() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base")
        await rig.deploy()
        for _ in range(10):
            spans = Spans(seconds=1.0, unowned={"cpu0": (1.0, 100.0)})
            span = spans.for_family("toy")
            span.rows = {"large": 50}
            span.share.active_j, span.share.active_g = 2.0, 200.0
            span.share.idle_j, span.share.idle_g = 4.0, 400.0
            span.front_end.active_j, span.front_end.active_g = 8.0, 800.0
            span.control.active_j, span.control.active_g = 16.0, 1600.0
            span.grids = {"synthetic"}
            rig.controller.shadows.compare(spans)
        told = rig.told("base")
        assert (told["used_j"], told["shadow_j"]) == (310.0, 150.0)
        assert told["part"] == pytest.approx((150.0 - 310.0) / 150.0), "control is ours alone"
        assert told["part_without_idle"] == pytest.approx((100.0 - 260.0) / 100.0)
        held = {"active": 20.0, "idle": 40.0, "front_end": 80.0, "control": 160.0, "unowned": 10.0}
        assert told["used_j"] == sum(held.get(line, 0.0) for line in WITHIN["server"])
        assert "within the server; on an invented grid" in told["words"]
        found = saved(rig.shadow)
        assert found is not None
        assert (found["boundary"], found["grid"]) == ("server", "synthetic")
        [item] = [item for item in compared(rig.controller.shadows.by_family) if item.against == "base"]
        estimates = dict(item.estimates)
        assert estimates["likely"] == pytest.approx(-16_000.0)
        assert estimates["low"] < -16_000.0 < estimates["high"]
        span.grids = {"stand-in"}
        rig.controller.shadows.compare(spans)
        assert "on stand-in and invented intensities" in rig.told("base")["words"], "no operator configured these"

    drive(story)


def test_a_loss_is_called_one_and_a_saving_whose_interval_holds_zero_may_be_nothing() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base", ratio=1.0)
        await rig.deploy()
        await rig.serve({"large": 1.0}, 30, rate=20.0)
        sums = rig.shadow.on_base
        sums.change[2] = 0.5 * -sums.own[2]
        rig.family.learned.energy_errors = {("large", "2c"): 0.01}
        told = rig.told("base")
        assert told["part"] < 0.0
        assert told["words"].startswith("emitted ")
        assert " % more than BASE (" in told["words"]
        assert "may be nothing" not in told["words"]
        sums.change[2] = (0.0, -500.0)
        sums.change[0] = (0.0, 500.5)
        rig.shadow.methods = {"modelled"}
        doubtful = rig.told("base")
        assert doubtful["low"] < 0.0 < doubtful["high"]
        assert ": may be nothing" in doubtful["short"]

    drive(story)


def test_the_interval_holds_what_the_profile_the_ratio_and_the_meter_may_be_off_by() -> None:
    sums = ComparisonSums.over(2)
    own = np.array([[10.0, 10.0], [0.0, 0.0]])
    window = Window(Overheads.none(), 10, 900.0, np.array([30.0, 30.0]), own, np.array([10.0, 10.0]))
    sums.add_window(window, 92.0, np.array([0.0, 4.0]))
    errors = sums.errors(np.array([0.1, 0.4]), 0.2)
    assert errors.profile == pytest.approx(math.hypot(0.1 * 10.0, 0.4 * 40.0))
    assert errors.ratio == pytest.approx(20.0), "the meter showed 20 g that the model does not have, of other rows"
    assert errors.meter == pytest.approx(0.2 * 30.0)
    assert errors.total == pytest.approx(math.hypot(*errors))
    assert sums.verified(np.array([0.1, 0.4]))
    assert not sums.verified(np.array([0.1, 0.6]))
    shadow_g, profile = float(sums.shadow[1]), errors.profile
    sums.restate(np.array([1.0, 0.5]))
    assert float(sums.shadow[1]) == pytest.approx(shadow_g - 20.0)
    assert sums.errors(np.array([0.1, 0.4]), 0.2).profile < profile


@given(active_j=st.floats(0.0, 1e6), own_j=st.floats(1e-9, 1e6), other_j=st.floats(1e-9, 1e6))
def test_a_shadow_differs_by_no_more_than_the_model_says_and_less_where_the_meter_shows_less(
    active_j: float, own_j: float, other_j: float
) -> None:
    sums = ComparisonSums.over(1)
    own, active = np.array([[own_j, own_j]]), np.array([active_j, active_j])
    sums.add_window(Window(Overheads.none(), 1, 90.0, active, own, np.ones(2)), 92.0, np.array([other_j]))
    close = 1e-9 * (active_j + own_j + other_j)
    assert float(sums.shadow[0]) >= -close
    assert float((sums.shadow - sums.served)[0]) == pytest.approx(
        min(1.0, active_j / own_j) * (other_j - own_j), abs=close
    )


def test_a_few_rows_have_no_percentage() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base", ratio=1.0)
        await rig.deploy()
        await rig.serve({"large": 1.0}, 3, rate=5.0)
        assert rig.shadow.on_base.rows == 15
        for kind in ("base", "matched"):
            told = rig.told(kind)
            assert told["short"] == "too early to say (15 of the 100 rows that a percentage takes)"
            assert "% of" not in told["words"]
            assert "without idle power" not in told["words"]
            assert told["part"] is told["part_low"] is told["part_high"] is None
            assert math.isfinite(told["grams"])
            assert told["part_without_idle"] is None
        await rig.serve({"large": 1.0}, 17, rate=5.0)
        assert rig.told("base")["part"] == 0.0
        assert rig.told("base")["words"].startswith(
            "saved 0 g of CO2e (95 %: 0 g to 0 g, 0.0 to 0.0 %), 0.0 % of BASE ("
        )

    drive(story)


def test_a_loss_says_how_much_of_it_is_control() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base")
        await rig.deploy()
        for _ in range(10):
            spans = Spans(seconds=1.0)
            span = spans.for_family("toy")
            span.rows = {"large": 50}
            span.share.active_j, span.share.active_g = 2.0, 200.0
            span.control.active_j, span.control.active_g = 16.0, 1600.0
            rig.controller.shadows.compare(spans)
        told = rig.told("base")
        assert (told["grams"], told["control_g"]) == (-16_000.0, 16_000.0)
        assert told["short"].startswith("emitted 16 kg of CO2e more (")
        assert told["short"].endswith("800.0 % more than BASE; 16 kg of ours is control (planning, profiling, swaps)")

    drive(story)


def test_a_perfect_forecast_is_called_one() -> None:
    async def story() -> None:
        rig = SavingServer(policy="budget")
        await rig.deploy()
        await rig.serve({"large": 1.0}, 20)
        assert "perfect forecast" not in rig.told("base")["words"]
        rig.chain.perfect_forecast = True  # type: ignore[attr-defined]
        await rig.serve({"large": 1.0}, 2)
        assert "; perfect forecast)" in rig.told("base")["words"]
        static = SavingServer(policy="static")
        static.chain.perfect_forecast = True  # type: ignore[attr-defined]
        await static.deploy()
        await static.serve({"large": 1.0}, 20)
        assert "perfect forecast" not in static.told("base")["words"], "it plans with none"

    drive(story)


def test_a_saving_and_a_score_count_the_same_within_the_server() -> None:
    """Cores that no worker holds, others' cores, other programs, and a debt of idle energy at the end."""

    async def story() -> None:
        rig, book, grid = SavingServer(), Account(pue=1.5), reading(360.0)
        await rig.deploy()
        book.add_device("cpu0", 3, foreign=2.0)
        book.add_family("toy")
        meter = WorkerMeter(family="toy", variant="large", device="cpu0", placement="p0", slices=2)
        book.attach(meter)
        total_j = 0.0
        for second, used_j in enumerate((0.0, 30.0, 12.0, 25.0, 4.0)):
            total_j += used_j
            sample = EnergySample(device="cpu0", at_ns=second * SECOND, total_j=total_j, idle_w=10.0, method="measured")
            book.close_window(sample, grid)
            rig.controller.shadows.compare(book.collect_spans())
            if second != 1:
                meter.add(50, SECOND // 4, SECOND // 4)
        lines = book.devices()["cpu0"]
        assert float(lines["carried_j"]) < 0.0 < float(lines["unattributed_j"])
        assert float(lines["unowned_j"]) > 0.0 < float(lines["foreign_j"])
        score = sci(
            {"cpu0": lines}, {"toy": (1, {"carbon_g": 0.0})}, EmbodiedLedger((), 4.0, 0), intensities=(), pue=1.5
        ).boundaries
        assert rig.told("base")["emitted_g"] == pytest.approx(score["server"].operational_g)
        others_j = sum(float(lines[f"{line}_j"]) for line in ("unattributed", "foreign", "carried"))
        assert rig.told("base")["used_j"] + others_j == pytest.approx(total_j)

    drive(story)


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_what_is_said_to_be_saved_is_within_a_point_of_what_a_host_would_have_used(idle_w: float) -> None:
    """A host whose every watt is known serves with `small`; the same host with BASE is worked out beside it.

    Its idle power is given here; `tests/unit/energy/test_idle.py` has it found through RAPL.
    """

    async def story() -> None:
        rig, rate, front_end_w = SavingServer(family={"accuracy_floor": 88.0}), 150, 1.5
        await rig.deploy()
        await rig.controller.command("pin", {"configuration": {"small@2c": 1}, "force": True}, "me")
        on_base, book, grid = base(profile(), (cpu(2),)), Account(pue=1.5), reading(360.0)
        assert on_base is not None
        book.add_device("cpu0", 2)
        book.add_family("toy")
        profiled = ProfiledEnergy((0.01,) * 9)
        meter = WorkerMeter(family="toy", variant="small", device="cpu0", placement="p0", slices=2, profiled=profiled)
        book.attach(meter)
        small_j = mix(fixed(("small", "2c", 1), small=1.0)).joules(rate)
        base_j = on_base.joules(rate)
        total_j = 0.0
        for second in range(120):
            sample = EnergySample(
                device="cpu0", at_ns=second * SECOND, total_j=total_j, idle_w=idle_w, method="measured"
            )
            book.close_window(sample, grid)
            rig.controller.shadows.compare(book.collect_spans())
            meter.add(rate, SECOND // 4, SECOND // 4)
            total_j += idle_w + front_end_w + rate * small_j
        emitted, shadow = idle_w + front_end_w + rate * small_j, idle_w + front_end_w + rate * base_j
        told = rig.told("base")
        assert told["part"] == pytest.approx((shadow - emitted) / shadow, abs=0.01)
        assert told["part_low"] <= (shadow - emitted) / shadow <= told["part_high"]

    drive(story)
