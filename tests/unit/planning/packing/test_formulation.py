"""Fleets as the kernel takes them, and their bound; small ones against every configuration (more: `bench.fleets`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.packing.formulation import DWELL_S, SWITCH_S, Formulation, PackingMember, Sleep
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.configurations import EVALUATIONS, KEEP, RESTARTS
from clover.types import GroupCount
from tests.reference import fleets
from tests.support.mig_fixture import a100s, mig_profile, slice_worker
from tests.support.profiles_fixture import objective, state

pytestmark = pytest.mark.slow


def toy(count: int = 2, *, peak: float = 0.0, rate: float = 400.0) -> PackingMember:
    """The synthetic family on A100s."""
    asked = state(rate=rate, devices=a100s(count), measured=mig_profile())
    return PackingMember(problem_of(asked), objective_of(asked), peak)


def searched(form: Formulation, seed: int = 0) -> lanes.Solution:
    return lanes.solve(form.kernel(), seed, EVALUATIONS, form.alike(), RESTARTS, KEEP)


# --- against every configuration ---


@pytest.mark.parametrize(("seed", "gpus"), [(4, 1), (26, 1), (5, 2)])
def test_two_families_share_devices_as_well_as_they_can(seed: int, gpus: int) -> None:
    form = fleets.two_families(seed, gpus)
    best, _, _, total = fleets.exhaustive(form, form.kernel())
    assert total > 500
    assert best > -math.inf
    assert best - fleets.alike(form, form.kernel()) > 0.02 * fleets.scale(form)
    found = searched(form, seed).found
    assert found[0].value >= best - 0.005 * fleets.scale(form)
    assert plan_bound(form) >= best - 1e-9
    for member in range(2):
        assert form.configuration(found[0].counts, member)


def in_states(form: Formulation, used: Iterable[int]) -> dict[str, int]:
    """Return the devices in each state of sleep."""
    found = Counter[str]()
    for cut, number in zip(form.cuts, used, strict=True):
        if not cut.profiles and number:
            found[cut.state] += int(number)
    return found


@pytest.mark.parametrize(("seed", "gpus"), [(3, 1), (1, 2), (19, 2), (47, 3)])
def test_as_many_devices_sleep_as_should(seed: int, gpus: int) -> None:
    form = fleets.sleepers(seed, gpus)
    best, by_state, _, _ = fleets.exhaustive(form, form.kernel())
    found = searched(form, seed).found[0]
    asleep = in_states(form, found.used)
    chosen = (asleep.get("parked", 0), asleep.get("released", 0))
    assert by_state[chosen] == pytest.approx(best, abs=1e-9)
    assert plan_bound(form) >= best - 1e-9


# --- sleep ---


def test_a_peak_parks_devices_that_a_lull_releases() -> None:
    def asleep(peak: float, rate: float) -> dict[str, int]:
        form = Formulation([toy(peak=peak, rate=rate)], a100s(2), sleep=fleets.SLEEP, awake_w=fleets.AWAKE_W)
        found = searched(form).found[0]
        problem = form.kernel()
        assert problem.judge(found.counts, found.used).value == found.value
        return in_states(form, found.used)

    rate = 0.4 * 7 * toy().problem.services["small", "1g.5gb"].capacity()
    assert asleep(1.2, rate) == {"released": 1}
    assert asleep(2.0, rate) == {"parked": 1}
    assert asleep(2.0, 1.25 * rate) == {}


def test_a_watt_costs_what_its_joules_cost() -> None:
    one = toy()
    form = Formulation([one], a100s(2), sleep=[Sleep(name="off", watts=10.0, wakes=False)], awake_w=60.0)
    joules = form.watt * 60.0
    assert joules == pytest.approx(one.objective.score(90.0, 0.0) - one.objective.score(90.0, 60.0 / one.problem.rate))
    counts, used = form.alike()[0]
    plain = Formulation([one], a100s(2))
    value = plain.kernel().judge(counts, used[: len(plain.cuts)]).value
    assert form.kernel().judge(counts, used).value == pytest.approx(value - 2.0 * joules)


# --- what is asked, and what comes back ---


def test_configurations_and_counts_are_one_thing() -> None:
    form = Formulation([toy()], a100s(2))
    configuration = (
        GroupCount(variant="large", profile="3g.20gb", count=2),
        GroupCount(variant="small", profile="1g.5gb", count=7),
    )
    counts = form.counts([configuration])
    assert counts.sum() == 9
    assert form.configuration(counts) == configuration
    assert form.counts([(GroupCount(variant="other", profile="1g.5gb", count=1),)]).sum() == 0
    running = [
        *(slice_worker("small", "1g.5gb", start, "gpu0") for start in range(7)),
        slice_worker("large", "3g.20gb", 0, "gpu1"),
        slice_worker("large", "3g.20gb", 4, "gpu1"),
    ]
    stands = form.standing(running)
    assert stands is not None
    assert (stands[0] == counts).all()
    used = stands[1]
    assert used.sum() == 2
    assert sorted(used @ form.table) == [0, 0, 0, 2, 7]
    judged = form.kernel().judge(counts, used)
    assert judged.shares.sum() == pytest.approx(1.0)
    assert form.standing(running[:7]) is None, "the second GPU is cut in no way"
    assert form.standing([*running, slice_worker("small", "1g.5gb", 0, "gpu9")]) is None, "that GPU is not ours"


def test_starts_are_configurations_of_all_devices() -> None:
    form = Formulation([toy(), toy()], a100s(2))
    starts = form.alike()
    assert len(starts) > 14
    for counts, used in starts:
        form.kernel().judge(counts, used)
        assert used.sum() == 2
        assert np.count_nonzero(used) == 1


def test_what_runs_need_not_be_started() -> None:
    counts, used = Formulation([toy()], a100s(2)).alike()[5]
    plain = Formulation([toy()], a100s(2))
    running = plain.configuration(counts)
    warm = Formulation([toy()], a100s(2), running=[running])
    cold = Formulation([toy()], a100s(2), running=[()])
    value = plain.kernel().judge(counts, used).value
    assert warm.kernel().judge(counts, used).value == pytest.approx(value)
    watts = [group.service.least_energy_j * group.service.capacity() for group in plain.groups]
    cost = plain.watt * float(counts @ watts) * SWITCH_S / DWELL_S
    assert cost > 0.0
    assert cold.kernel().judge(counts, used).value == pytest.approx(value - cost)


def test_late_rows_are_tabled_by_load() -> None:
    form = Formulation([toy(rate=2000.0)], a100s(1))
    counts, used = (np.array(rows) for rows in zip(*form.alike(), strict=True))
    loose, strict = (form.kernel(part).judge_many(counts, used)[0] for part in (1.0, 0.01))
    assert 0 < strict.sum() < loose.sum()
    assert (loose | ~strict).all()


def test_where_no_slice_keeps_the_slo_there_is_no_formulation() -> None:
    asked = state(rate=10.0, devices=a100s(1), measured=mig_profile(), config=objective(slo_ms=0.01))
    late = PackingMember(problem_of(asked), objective_of(asked))
    with pytest.raises(PlanError):
        Formulation([late], a100s(1))
    form = Formulation([late], a100s(1), slow=True)
    solution = lanes.solve(form.kernel(), 1, 500, form.alike())
    assert not solution.feasible
    assert solution.nearest.counts.sum() > 0


def test_a_bound_says_when_devices_cannot_serve_the_rate() -> None:
    form = Formulation([toy(rate=1e6)], a100s(1))
    kernel = form.kernel()
    assert not kernel.judge_many(*map(np.array, zip(*form.alike(), strict=True)))[0].any()
    enough = Formulation([toy(rate=100.0)], a100s(1))
    assert plan_bound(form) < plan_bound(enough)
