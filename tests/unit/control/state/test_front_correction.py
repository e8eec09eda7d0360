"""What HTTP adds to a p95 is learned: plans, predictions and files follow."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.control.state.learner import Learner
from clover.control.state.learning import EVERY_S, FIRST_REST_S, MOST_LAG_MS, FrontCorrection, Learning, SavedFront
from clover.control.state.request import PlanRequest
from clover.planning.model.correction import HALF_LIFE_S
from clover.planning.model.problem import services_of
from clover.profiles import ProfileStore
from clover.types import FamilyProfile, FrontLag, WorkReport
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile


def measured(front_ms: float = 0.6) -> FamilyProfile:
    """A profile by which HTTP adds so much; its default SLO has it in it."""
    return msgspec.structs.replace(profile(), front_ms=front_ms)


class Probed:
    """What a family learns from a front end whose probes wait as the test says."""

    def __init__(self, found: FamilyProfile) -> None:
        self.learned = Learning("toy", found)
        self.now_s = 0.0
        self.windows = 3

    def see(self, lag_ms: float, seconds: float = EVERY_S) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += EVERY_S
            self.windows += 1
            self.learned.observe_front(FrontLag(ms=lag_ms, windows=self.windows), self.now_s)
            self.learned.observe(WorkReport(), 1.0, self.now_s)

    @property
    def ms(self) -> float:
        """What plans take HTTP to add."""
        return self.learned.corrected.front_ms


def test_waiting_that_is_seen_is_added_to_the_work_of_the_profile() -> None:
    probed = Probed(measured())
    probed.see(0.25)
    assert probed.ms == pytest.approx(0.85)
    assert probed.learned.profile.front_ms == 0.6
    assert {service.front_ms for service in services_of(probed.learned.corrected).values()} == {probed.ms}
    probed.see(7.0)
    assert probed.ms == pytest.approx(7.6)


def test_without_probes_the_profile_holds() -> None:
    learned = Learning("toy", measured())
    for second in range(120):
        learned.observe_front(None, float(second))
        learned.observe(WorkReport(), 1.0, float(second))
    assert learned.corrected is learned.profile
    assert learned.collected == 0
    assert learned.words() == ""
    assert learned.report()["front"] == {"ms": 0.6, "profile_ms": 0.6, "lag_ms": None, "windows": 0}


def test_waiting_is_bounded() -> None:
    probed = Probed(measured())
    probed.see(60_000.0)
    assert probed.ms == pytest.approx(0.6 + MOST_LAG_MS)


def test_noise_changes_nothing_and_a_little_more_does_once_in_a_while() -> None:
    probed = Probed(measured())
    for number in range(200):
        probed.see(0.05 + (0.03 if number % 2 else -0.03))
    assert probed.learned.changed == 0
    probed.see(0.6, 3600.0)
    assert probed.learned.changed == 1
    assert probed.ms == pytest.approx(1.2)


def test_without_news_it_is_drawn_back_to_the_profile() -> None:
    front = FrontCorrection(measured())
    assert front.observe(FrontLag(ms=2.0, windows=3), 0.0)
    assert not front.observe(FrontLag(ms=2.0, windows=3), 1.0), "the same windows are no news"
    assert front.at(0.0) == pytest.approx(2.6)
    halfway = front.moved(front.at(HALF_LIFE_S), 0.6)
    assert halfway == pytest.approx(front.moved(2.6, 0.6) / 2.0)
    assert front.at(40 * HALF_LIFE_S) == pytest.approx(0.6)


# --- what follows -----------------------------------------------------------------------------------------------------


def lagging(made: Rig, ms: float) -> None:
    """Let probes wait so long from now on; a window is over every ten seconds."""
    made.controller.learner.front_lag = lambda: FrontLag(ms=ms, windows=int(made.clock.now_s / 10.0))


def test_plans_that_waiting_leaves_no_room_have_it_once_that_is_over() -> None:
    async def play() -> None:
        made = Rig(measured=measured())
        made.fleet.figures["arrival_rate"] = 100.0
        await made.settled()
        lagging(made, 38.4)
        await made.look(looks=60)
        assert made.family.deployed is not None
        before = made.family.deployed.plan
        assert not before.feasible, "39 ms of the 30 are the front end's"
        lagging(made, 0.25)
        await made.look(looks=60)
        plan = made.family.deployed.plan
        assert plan.feasible
        assert plan.prediction.p95_ms < 30.0 < before.prediction.p95_ms
        conditions = await made.controller.context.conditions(made.family)
        state = made.family.state(conditions, made.controller.context.config, PlanRequest(trigger="test"))
        assert state.profile.front_ms == pytest.approx(0.85, rel=0.01)
        assert made.fleet.front_ms == state.profile.front_ms, "so is every p95 that is observed"
        told = "profile corrected: HTTP adds 39.00 ms to the p95, was 0.60"
        over = "profile corrected: HTTP adds 0.85 ms to the p95, was 39.00"
        decisions = made.controller.decisions(99)
        assert [one["trigger"] for one in decisions if one["trigger"].startswith("profile")] == [over, told]
        assert "HTTP: 0.85 ms of the p95 instead of 0.60" in made.last["inputs"]["profile_correction"]
        assert made.family.targets.slo_ms == 30.0

    asyncio.run(play())


def test_the_default_slo_stays() -> None:
    async def play() -> None:
        made = Rig(measured=measured(), family={"slo_ms": None})
        await made.settled()
        promised_ms = made.family.targets.slo_ms
        lagging(made, 38.4)
        await made.look(looks=60)
        assert made.family.corrected.front_ms == pytest.approx(39.0, rel=0.01)
        assert made.family.targets.slo_ms == promised_ms
        assert made.family.slo_source.startswith("1.2 x BASE's p95")

    asyncio.run(play())


def test_what_was_learned_survives_a_restart_and_fades_meanwhile(tmp_path: Path) -> None:
    async def play() -> None:
        made = Rig(measured=measured())
        lagging(made, 9.4)
        await made.settled()
        await made.look(looks=30)
        before = Learner(made.controller.context, wall=made.clock)
        before.store = ProfileStore(tmp_path)
        await before.finish([made.family])
        # Half of the way back, by what it makes of a p95 of 5 ms.
        for passed_s, ms in ((60.0, 10.0), (HALF_LIFE_S, (15.0 * 5.6) ** 0.5 - 5.0)):
            again = Rig(measured=measured())
            again.clock.now_s = made.clock.now_s + passed_s
            after = Learner(again.controller.context, wall=again.clock)
            after.store = ProfileStore(tmp_path)
            after.add(again.family)
            assert again.family.corrected.front_ms == pytest.approx(ms, rel=0.06)
            assert again.fleet.front_ms == again.family.corrected.front_ms
            assert again.family.learned.trigger(again.clock.now_s) == "", "the first plan takes it anyway"
            again.family.learned.observe_front(FrontLag(ms=1.0, windows=3), again.clock.now_s)
            again.family.learned.observe(WorkReport(), 1.0, again.clock.now_s + FIRST_REST_S)
            assert again.family.corrected.front_ms == pytest.approx(1.6, rel=0.06), "news counts at once"

    asyncio.run(play())


@pytest.mark.parametrize("saved", [(float("nan"), 1.0), (-1.0, 1.0), (1.0, float("inf"))])
def test_what_cannot_be_is_not_restored(saved: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no number"):
        FrontCorrection(measured()).restore(SavedFront(lag_ms=saved[0], age_s=saved[1]), 10.0)


def test_what_an_older_server_kept_is_still_read() -> None:
    old: dict[str, Any] = msgspec.to_builtins(Learning("toy", measured()).save(0.0, 0.0))
    del old["front"]
    learned = Learning("toy", measured())
    learned.restore(msgspec.convert(old, type(learned.save(0.0, 0.0))), 10.0, 20.0)
    assert learned.corrected.front_ms == 0.6
