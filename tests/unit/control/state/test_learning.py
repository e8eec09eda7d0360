"""A profile that is wrong is corrected by what workers report: plans, decisions and files follow, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.accounting import Account, WorkerMeter
from clover.accounting.meters import profiled_energy
from clover.control.state.learner import Learner
from clover.control.state.learning import EVERY_S, FAR_S, REPLAN_S, SETTLE_S, Learning, SavedCorrection
from clover.planning.budget.counterfactual import base, lanes_of, mix_of
from clover.planning.model.correction import apply_factors
from clover.planning.model.problem import accuracies, services_of
from clover.profiles import ProfileStore
from clover.research.simulate.flow import FleetModel
from clover.types import EnergySample, MeteredWindow, Reading, WorkReport
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import cpu, profile
from tests.support.savings_fixture import RATE, SavingServer


class Plant:
    """What the workers of a rig's fleet do for `rate` rows a second, if times and joules of each variant are other
    than profiled by hidden factors."""

    def __init__(self, rig: Rig, time: dict[str, float], energy: dict[str, float], rate: float = 100.0) -> None:
        self.rig = rig
        self.time = time
        self.energy = energy
        self.rate = rate
        self.services = services_of(rig.profile)
        self.shares: dict[str, float] = {}
        """Of rows, if they are not those of the routing."""

    def work(self, seconds: float = 1.0) -> WorkReport:
        """Return what is done in so many seconds, in batches of one and two rows."""
        shares = self.shares or self.rig.fleet.routing.shares
        served: dict[tuple[str, str, int], tuple[float, float]] = {}
        metered = []
        for variant, share in shares.items():
            shapes = {item.placement.profile for item in self.rig.fleet.routed if item.variant == variant}
            for shape in shapes:
                service = self.services[variant, shape]
                expected_j = 0.0
                for rows in (1, 2):
                    batches = round(self.rate * share * seconds / len(shapes) / 3.0)
                    if batches:
                        took_s = batches * service.seconds(rows) * self.time.get(variant, 1.0)
                        served[variant, shape, rows] = batches, took_s
                        expected_j += batches * rows * service.energy_j(rows)
                joules = expected_j * self.energy.get(variant, 1.0)
                window = MeteredWindow(
                    device="cpu0", joules=joules, expected_j={(variant, shape): expected_j}, shared=False
                )
                metered.append(window)
        return WorkReport(served=served, metered=tuple(metered))

    async def serve(self, seconds: int) -> None:
        """Serve for so many looks, a second apart."""
        for _ in range(seconds):
            self.rig.fleet.work = self.work()
            await self.rig.look()


def rig(**more: Any) -> Rig:
    made = Rig(**{"form": "floor", **more}) if "form" in more else Rig(**more)
    made.fleet.figures["arrival_rate"] = 100.0
    return made


def fed(learned: Learning, seconds: int, *, since_s: float = 0.0, time: float = 1.5, energy: float = 0.5) -> float:
    """Let `large` on one core be observed for so many seconds; return the time then."""
    service = services_of(learned.profile)["large", "1c"]
    now_s = since_s
    for _ in range(seconds):
        now_s += 1.0
        work = WorkReport(
            served={("large", "1c", 1): (20, 20 * service.seconds(1) * time)},
            metered=(MeteredWindow(device="cpu0", joules=energy, expected_j={("large", "1c"): 1.0}, shared=False),),
        )
        learned.observe(work, 1.0, now_s)
    return now_s


@pytest.mark.parametrize("time", [0.5, 1.5])
@pytest.mark.parametrize("energy", [0.5, 1.5])
def test_wrong_profiles_are_within_five_percent_of_the_truth_after_five_minutes(time: float, energy: float) -> None:
    async def play() -> None:
        made = rig()
        await made.settled()
        variants = list(made.profile.backend)
        truth = Plant(made, dict.fromkeys(variants, time), dict.fromkeys(variants, energy))
        await truth.serve(300)
        used = {(item.variant, item.placement.profile) for item in made.fleet.routed}
        assert used
        for variant, shape in used:
            learned = made.family.learned
            assert learned.time[variant, shape, 1] == pytest.approx(time, rel=0.05)
            assert learned.energy[variant, shape] == pytest.approx(energy, rel=0.05)

    asyncio.run(play())


def test_plans_capacities_and_shadows_use_the_corrected_profile_and_the_measured_one_stays() -> None:
    async def play() -> None:
        made = rig()
        await made.settled()
        before = made.profile.latency
        variants = list(made.profile.backend)
        await Plant(made, dict.fromkeys(variants, 2.0), dict.fromkeys(variants, 1.3)).serve(120)
        assert made.family.profile is made.profile
        assert made.profile.latency is before
        item = made.family.desired[0]
        measured = services_of(made.profile)[item.variant, item.placement.profile].capacity()
        assert made.family.capacity(1.0)(item) < 0.75 * measured
        state = await state_of(made)
        assert state.profile is made.family.corrected
        assert made.fleet.energy_factors[item.variant, item.placement.profile] == pytest.approx(1.3, rel=0.05)
        assert any(decision["trigger"].startswith("profile corrected") for decision in made.controller.decisions(99))
        assert f"{item.variant}@{item.placement.profile}: time x" in made.last["inputs"]["profile_correction"]

    asyncio.run(play())


async def state_of(made: Rig) -> Any:
    from clover.control.state.request import PlanRequest

    context = made.controller.context
    return made.family.state(await context.conditions(made.family), context.config, PlanRequest(trigger="test"))


@pytest.mark.parametrize(("rate", "slo_ms"), [(200.0, 9.0), (300.0, 15.0), (400.0, 9.0)])
def test_a_slo_that_a_wrong_profile_misses_is_planned_for_within_a_minute(rate: float, slo_ms: float) -> None:
    async def play() -> None:
        made = rig(family={"accuracy_floor": 88.5, "slo_ms": slo_ms})
        made.fleet.figures["arrival_rate"] = rate
        await made.settled()
        truth = Plant(made, dict.fromkeys(made.profile.backend, 1.5), {}, rate=rate)
        assert await true_p95_ms(made, truth) > slo_ms
        await truth.serve(60)
        assert await true_p95_ms(made, truth) <= slo_ms

    asyncio.run(play())


async def true_p95_ms(made: Rig, truth: Plant) -> float:
    """Return the p95 (ms) of what runs with its routing, by the queueing model with the true service times."""
    deployed, state = made.family.deployed, await state_of(made)
    assert deployed is not None
    times = {(m.variant, m.profile, m.batch): truth.time.get(m.variant, 1.0) for m in made.profile.latency}
    model = FleetModel(apply_factors(made.profile, times, {}), state.objective.slo_ms)
    return model.flow(deployed.configuration, deployed.routing, truth.rate).p95_ms


def test_a_true_profile_makes_no_plan() -> None:
    async def play() -> None:
        made = rig()
        await made.settled()
        await Plant(made, {}, {}).serve(120)
        assert made.family.learned.changed == 0
        assert not any(decision["trigger"].startswith("profile") for decision in made.controller.decisions(99))

    asyncio.run(play())


def test_what_is_done_while_workers_change_is_left_out() -> None:
    learned = Learning("toy", profile())
    now_s = fed(learned, 60, time=1.0, energy=1.0)
    learned.unsettle(now_s)
    fed(learned, int(SETTLE_S) - 1, since_s=now_s, time=40.0, energy=40.0)
    now_s = fed(learned, 60, since_s=now_s + SETTLE_S, time=1.0, energy=1.0)
    assert learned.changed == 0


def test_a_family_with_half_of_the_machine_may_take_twice_as_long() -> None:
    half, whole = Learning("toy", profile()), Learning("toy", profile())
    service = services_of(half.profile)["large", "1c"]
    for second in range(1, 60):
        work = WorkReport(served={("large", "1c", 1): (20, 20 * service.seconds(1) * 1.8)})
        half.observe(work, 0.5, float(second))
        whole.observe(work, 1.0, float(second))
    assert half.time.get(("large", "1c", 1), 1.0) == pytest.approx(1.0, rel=0.02)
    assert whole.time["large", "1c", 1] == pytest.approx(1.8, rel=0.05)


def test_factors_in_force_change_only_if_one_moves() -> None:
    learned = Learning("toy", profile())
    now_s = fed(learned, 120)
    changed, made = learned.changed, learned.corrected
    fed(learned, 120, since_s=now_s)
    assert learned.changed == changed
    assert learned.corrected is made


def test_noise_changes_the_factors_ever_more_rarely_and_a_change_of_the_truth_at_once() -> None:
    learned, noise, now_s = Learning("toy", profile()), random.Random(1), 0.0
    for _ in range(720):
        time, energy = noise.lognormvariate(0.0, 0.1), noise.gauss(1.0, 0.1)
        now_s = fed(learned, 5, since_s=now_s, time=time, energy=energy)
    assert learned.changed <= 15
    fed(learned, 240, since_s=now_s, time=2.0, energy=2.0)
    assert learned.time["large", "1c", 1] == pytest.approx(2.0, rel=0.05)


def test_factors_that_moved_are_a_reason_to_plan_once_and_not_too_often() -> None:
    learned = Learning("toy", profile())
    now_s = fed(learned, 30)
    assert learned.trigger(now_s).startswith("profile corrected: the energy of a row of large on 1c is 0.5")
    learned.record_plan()
    assert learned.trigger(now_s + REPLAN_S) == ""
    learned.energy = {("large", "1c"): 0.9}
    assert learned.trigger(now_s + REPLAN_S / 2) == ""
    assert learned.trigger(now_s + REPLAN_S)


def test_a_profile_that_stays_far_off_is_to_be_measured_again_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learned = Learning("toy", profile())
    with caplog.at_level(logging.WARNING, "clover.control"):
        now_s = fed(learned, 120, time=2.0)
        assert not learned.advice
        now_s = fed(learned, int(FAR_S) + 60, since_s=now_s, time=2.0)
        assert "--profile force" in learned.advice
        assert [record.getMessage() for record in caplog.records] == [f"toy: {learned.advice}"]
        fed(learned, 1200, since_s=now_s, time=1.0, energy=1.0)
        assert not learned.advice


def test_joules_on_cores_that_are_more_than_profiled_are_no_reason_to_measure_again() -> None:
    learned = Learning("toy", profile())
    fed(learned, int(FAR_S) + 120, time=1.0, energy=2.5)
    assert learned.energy["large", "1c"] == pytest.approx(2.5, rel=0.05)
    assert not learned.advice


class SharedMeter:
    """A GPU whose one counter is of `small` and `large`, each on a slice, with joules other than profiled."""

    def __init__(self, truth: dict[str, float], seed: int) -> None:
        self.truth, self.rng = truth, random.Random(seed)
        self.profile = profile()
        self.services = services_of(self.profile)
        self.learned = Learning("toy", self.profile)
        self.account = Account(pue=1.0)
        self.account.add_device("gpu0", 2)
        self.account.add_family("toy")
        self.meters = {
            variant: self.account.attach(
                WorkerMeter(
                    family="toy", variant=variant, device="gpu0", placement=f"gpu0:1c@{at}", slices=1,
                    profiled=profiled_energy(self.profile, variant, "1c", self.profile.backend[variant], 8),
                )
            )
            for at, variant in enumerate(truth)
        }  # fmt: skip
        self.second, self.total_j = 0, 0.0

    def serve(self, seconds: int) -> None:
        """Serve 50 rows a second: each is asked of `small`, and every other one of `large`."""
        for _ in range(seconds):
            for row in range(50):
                for variant in ("small", "large"):
                    if variant == "large" and row % 2 == 0:
                        continue
                    service = self.services[variant, "1c"]
                    self.meters[variant].add(1, round(service.seconds(1) * 1e9), 0)
                    self.total_j += service.energy_j(1) * self.truth[variant] * self.rng.gauss(1.0, 0.1)
            self.second += 1
            self._look()

    def _look(self) -> None:
        at_ns = self.second * 1_000_000_000
        sample = EnergySample(device="gpu0", at_ns=at_ns, total_j=self.total_j, idle_w=0.0, method="measured")
        self.account.close_window(sample, Reading(g_per_kwh=300.0, at_s=0.0, provider="test"))
        self.learned.observe(self.account.work_report("toy"), 1.0, float(self.second))

    def errors(self) -> dict[str, float]:
        """Return the standard errors that the state shows."""
        return {row["variant"]: row["energy_error"] for row in self.learned.rows() if row["profile"] == "1c"}


def test_a_mix_that_never_varies_says_how_little_is_known_of_each_variant() -> None:
    shared = SharedMeter({"small": 1.5, "large": 0.5}, 1)
    shared.serve(60)
    assert min(shared.errors()[variant] for variant in shared.truth) > 0.1


# --- files ------------------------------------------------------------------------------------------------------------


def learner(made: Rig, folder: Path) -> Learner:
    found = Learner(made.controller.context, wall=made.clock)
    found.store = ProfileStore(folder)
    return found


def file_of(made: Rig, folder: Path) -> Path:
    return ProfileStore(folder).correction_path("toy", made.profile.key)


def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    async def play() -> None:
        made = rig()
        fed(made.family.learned, 120, since_s=made.clock.now_s)
        await learner(made, tmp_path).finish([made.family])
        again = rig()
        again.clock.now_s = made.clock.now_s + 180.0
        learner(again, tmp_path).add(again.family)
        assert again.family.learned.time == pytest.approx(made.family.learned.time, rel=0.02)
        assert again.fleet.energy_factors["large", "1c"] == pytest.approx(0.5, rel=0.05)
        assert again.family.learned.trigger(again.clock.now_s) == ""  # the first plan takes them anyway

    asyncio.run(play())


@pytest.mark.parametrize("seconds", [120, int(FAR_S) + 120])
def test_a_profile_that_was_far_off_for_long_before_a_restart_is_said_to_be_at_the_start(seconds: int) -> None:
    before, after = Learning("toy", profile()), Learning("toy", profile())
    now_s = fed(before, seconds, time=2.0)
    after.restore(before.save(now_s, 5000.0), 10.0, 5100.0)
    assert bool(after.advice) == bool(before.advice) == (seconds > FAR_S)


@pytest.mark.parametrize("how", ["damaged", "of another version", "of another profile", "with impossible figures"])
def test_a_file_that_does_not_fit_is_ignored_with_a_line_in_the_log(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        made = rig()
        fed(made.family.learned, 120, since_s=made.clock.now_s)
        await learner(made, tmp_path).finish([made.family])
        path = file_of(made, tmp_path)
        saved = msgspec.json.decode(path.read_bytes(), type=SavedCorrection)
        if how == "damaged":
            path.write_bytes(path.read_bytes()[:100])
        elif how == "of another version":
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(saved, version=99)))
        elif how == "of another profile":
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(saved, made_at="2020-01-01T00:00:00Z")))
        else:
            energy = msgspec.structs.replace(saved.energy[0], expected_j=-1.0)
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(saved, energy=(energy,))))
        again = rig()
        learner(again, tmp_path).add(again.family)
        assert again.family.learned.time == {}
        assert again.family.corrected is again.profile

    with caplog.at_level(logging.WARNING, "clover.control"):
        asyncio.run(play())
    assert "is not used" in caplog.text


def test_nothing_is_written_if_nothing_was_learned(tmp_path: Path) -> None:
    async def play() -> None:
        made = rig()
        await learner(made, tmp_path).finish([made.family])
        assert not file_of(made, tmp_path).exists()

    asyncio.run(play())


def test_a_folder_that_cannot_be_written_to_is_said_and_serving_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        made = rig()
        fed(made.family.learned, 60, since_s=made.clock.now_s)
        (tmp_path / "profiles").write_bytes(b"a file, and no folder")
        await learner(made, tmp_path).finish([made.family])

    with caplog.at_level(logging.WARNING, "clover.control"):
        asyncio.run(play())
    assert "cannot be kept" in caplog.text


def test_what_was_learned_is_in_the_state() -> None:
    async def play() -> None:
        made = rig()
        await made.settled()
        fed(made.family.learned, 60, since_s=made.clock.now_s + 10.0)
        found = made.controller.state()["models"]["toy"]["profile_correction"]
        row = next(row for row in found["factors"] if (row["variant"], row["profile"]) == ("large", "1c"))
        assert row["time"] == pytest.approx(1.5, rel=0.05)
        assert row["energy"] == pytest.approx(0.5, rel=0.05)
        assert 0.0 < row["energy_error"] < 0.05
        assert set(row["time_by_batch"]) == {"1", "2", "4", "8"}
        assert "large@1c: time x" in found["words"]

    asyncio.run(play())


def test_a_profile_without_the_variant_that_is_reported_is_not_corrected() -> None:
    learned = Learning("toy", profile(variants={"small": (88.0, 1.0), "large": (92.0, 4.0)}))
    for second in range(60):
        learned.observe(WorkReport(served={("medium", "1c", 1): (20, 9.0)}), 1.0, float(second))
    assert learned.changed == 0


def test_looks_between_two_evaluations_only_collect() -> None:
    learned = Learning("toy", profile())
    fed(learned, 60)
    looked_s = learned._looked_s
    learned.observe(WorkReport(), 1.0, looked_s + EVERY_S / 2)
    assert learned._looked_s == looked_s


@pytest.mark.parametrize("small", [0.5, 1.5])
@pytest.mark.parametrize("large", [0.5, 1.5])
def test_what_is_said_to_be_saved_is_within_three_points_of_the_truth(small: float, large: float) -> None:
    """BASE is `large` on both cores, where it never ran: one core serves `large` and one `small`."""

    async def play() -> None:
        made = SavingServer(ratio=1.0)
        await made.deploy()
        await made.controller.command("pin", {"configuration": {"small@1c": 1, "large@1c": 1}, "force": True}, "me")
        factors = {"small": small, "large": large}
        energy = {(m.variant, m.profile): factors.get(m.variant, 1.0) for m in made.profile.latency}
        truth = apply_factors(made.profile, {}, energy)
        shares = {"small": 0.5, "large": 0.5}
        plant = Plant(made, {}, factors, rate=RATE)
        plant.shares = shares
        for _ in range(300):
            made.fleet.work = plant.work()
            await made.look()
        made.profile = truth  # what serves
        await made.serve(shares, 30)
        deployed, on_base = made.family.deployed, base(truth, (cpu(2),))
        assert deployed is not None
        own = mix_of(lanes_of(truth, deployed.configuration), shares, accuracies(truth))
        assert own is not None
        assert on_base is not None
        saved_part = 1.0 - own.joules(RATE) / on_base.joules(RATE)
        assert made.told("base")["part_without_idle"] == pytest.approx(saved_part, abs=0.03)

    asyncio.run(play())
