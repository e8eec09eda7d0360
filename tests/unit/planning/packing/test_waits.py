"""Waits and largest batches: held against simulations with other random numbers than the planner's."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover._native import des
from clover._native.route import Quota
from clover.emulation.profiles.pace import by_place, shipped
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service
from clover.planning.packing import waits
from clover.planning.packing.evaluation import evaluate
from clover.planning.packing.waits import LEAST_GAIN, tune_waits
from clover.types import Candidate, Configuration, GroupCount, ObjectiveConfig
from tests.support.examples import examples

ACCURACY = {"cheap": 80.0, "middle": 82.0, "dear": 84.0}
BATCHES = (1, 2, 4, 8, 16)


def service(fixed_ms: float, row_ms: float, fixed_j: float, row_j: float, cv: float = 0.05) -> Service:
    """A batch costs something, and so does each of its rows."""
    return Service(
        BATCHES,
        tuple(fixed_ms + row_ms * batch for batch in BATCHES),
        tuple(fixed_j / batch + row_j for batch in BATCHES),
        cv,
    )


STEEP = service(8.0, 0.5, 1.0, 0.1)
PROPORTIONAL = service(0.5, 4.0, 0.0, 0.4)


def problem(services: dict[str, Service], rate: float, slo_ms: float) -> Problem:
    variants = tuple(sorted(services, key=lambda variant: ACCURACY[variant]))
    return Problem(
        family="toy",
        variants=variants,
        accuracy={variant: ACCURACY[variant] for variant in variants},
        backend=dict.fromkeys(variants, "eager"),
        own={},
        services={(variant, "1g"): services[variant] for variant in variants},
        rate=rate,
        objective=ObjectiveConfig(
            form="floor", slo_ms=slo_ms, accuracy_floor=80.0, lam=None, reference_g_per_kwh=250.0
        ),
        devices=(),
    )


def objective(slo_ms: float, *, form: str = "floor", lam: float = 0.5, floor: float = 80.0) -> Objective:
    return Objective(
        form=form,
        lam=lam,
        carbon_weight=1.0,
        base_energy_j=1.0,
        base_accuracy=84.0,
        slo_ms=slo_ms,
        accuracy_floor=floor,
        planned_floor=floor,
        max_utilisation=0.85,
    )


def configuration(**counts: int) -> Configuration:
    return tuple(GroupCount(variant=name, profile="1g", count=number) for name, number in sorted(counts.items()))


def really(posed: Problem, candidate: Candidate, seed: int, rows: int = 30_000) -> tuple[float, float]:
    """p95 (ms) and joules a row of all rows, with Poisson arrivals dealt by the quotas of the router."""
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(1.0 / posed.rate, rows))
    counts = {group.variant: group.count for group in candidate.configuration}
    variants = sorted(counts)
    quota = Quota(len(variants))
    routing = candidate.routing
    quota.set_shares([routing.shares.get(variant, 0.0) for variant in variants])
    lane = np.zeros(rows, np.uint32)
    quota.choose_many((1 << len(variants)) - 1, rows, lane)
    latencies, joules = [], 0.0
    for index, variant in enumerate(variants):
        mine = arrivals_s[lane == index]
        if not len(mine):
            continue
        own = posed.services[variant, "1g"]
        sizes = range(1, own.max_batch + 1)
        outcome = des.simulate(
            [[own.seconds(batch) for batch in sizes]],
            [counts[variant]],
            des.trace(mine),
            seed=seed,
            law="normal",
            cv=[own.cv],
            energy_j=[[batch * own.energy_j(batch) for batch in sizes]],
            largest=[min(own.max_batch, routing.largest.get(variant, own.max_batch))],
            credits=2,
            in_turn=True,
            delay_s=routing.wait_ms.get(variant, 0.0) * 1e-3,
        )
        latencies.append(outcome.latency_s)
        joules += float(outcome.energy_j.sum())
    return float(np.quantile(np.concatenate(latencies), 0.95)) * 1e3, joules / rows


# --- where waiting pays -----------------------------------------------------------------------------------------------


def test_rows_wait_where_a_batch_costs_little_more_than_a_row() -> None:
    posed, asked = problem({"cheap": STEEP}, 100.0, 60.0), objective(60.0)
    plain = evaluate(posed, asked, configuration(cheap=2))
    found = tune_waits(posed, asked, plain)
    assert found.score > plain.score
    assert 1.0 < found.routing.wait_ms["cheap"] < 60.0
    assert found.prediction.energy_j_per_row < 0.6 * plain.prediction.energy_j_per_row
    for seed in (1, 2, 3):
        before_ms, before_j = really(posed, plain, seed)
        p95_ms, joules = really(posed, found, seed)
        assert before_ms < p95_ms <= 60.0
        assert p95_ms == pytest.approx(found.prediction.p95_ms, rel=0.08)
        assert joules / before_j == pytest.approx(
            found.prediction.energy_j_per_row / plain.prediction.energy_j_per_row, rel=0.05
        )


def microjoules(batches: tuple[int, ...], ms: tuple[float, ...], uj: tuple[float, ...], rested_uj: float) -> Service:
    """A service as a profile of cores has it: milliseconds a batch, microjoules a row, and of a batch after a pause."""
    return Service(batches, ms, tuple(1e-6 * each for each in uj), 0.5, 1e-6 * rested_uj)


# Measured on a core of an AMD EPYC, 2026-11-29: an image of 588 KiB whose every byte is read once, its batches copied
# together, and beside it read in place, four minutes before; and `tiny` of `fashion`, whose rows have 3 KiB.
LARGE_ROWS = microjoules((1, 4, 8), (0.0264, 0.1039, 0.2401), (23.4, 25.7, 27.1), 65.3)
READ_IN_PLACE = microjoules((1, 4, 8), (0.0211, 0.0637, 0.1331), (21.9, 12.2, 11.8), 44.8)
SMALL_ROWS = microjoules((1, 4, 32), (0.0198, 0.0255, 0.059), (18.9, 6.3, 1.8), 117.3)


def on_a_core(own: Service, rate: float, slo_ms: float = 50.0) -> tuple[Candidate, Candidate]:
    """A worker on one core without waits, and what `tuned` makes of it."""
    posed, asked = replace(problem({"cheap": own}, rate, slo_ms), services={("cheap", "1c"): own}), objective(slo_ms)
    plain = evaluate(posed, asked, (GroupCount(variant="cheap", profile="1c", count=1),))
    assert plain.feasible
    return plain, tune_waits(posed, asked, plain)


def a100(family: str, shape: str, rate: float, slo_ms: float) -> tuple[Problem, tuple[str, ...]]:
    """The table of an emulated A100 that comes with Clover, on one shape."""
    services = {
        variant: Service(
            tuple(row.batch for row in rows),
            tuple(row.ms for row in rows),
            tuple(row.ms * row.watts / row.batch / 1e3 for row in rows),
        )
        for (variant, profile), rows in by_place(shipped().rows_of(family)).items()
        if profile == shape
    }
    names = tuple(sorted(services, key=lambda variant: services[variant].mean_ms))[:2]
    renamed = dict(zip(("cheap", "dear"), (services[name] for name in names), strict=True))
    return problem(renamed, rate, slo_ms), names


@pytest.mark.parametrize(("family", "shape"), [("efficientnet", "1g.5gb"), ("yolov5", "3g.20gb")])
def test_rows_wait_on_an_emulated_a100_at_low_load(family: str, shape: str) -> None:
    slo_ms = 250.0
    posed, _ = a100(family, shape, 40.0, slo_ms)
    asked = objective(slo_ms)
    plain = evaluate(posed, asked, configuration(cheap=2, dear=2), standby=False)
    assert plain.feasible
    found = tune_waits(posed, asked, plain)
    assert set(found.routing.wait_ms) == {"cheap", "dear"}
    assert found.prediction.energy_j_per_row < 0.7 * plain.prediction.energy_j_per_row
    for seed in (5, 6):
        p95_ms, joules = really(posed, found, seed)
        assert p95_ms <= slo_ms
        assert joules < 0.75 * really(posed, plain, seed)[1]


@pytest.mark.parametrize(("own", "rate"), [(SMALL_ROWS, 100.0), (SMALL_ROWS, 4_000.0), (LARGE_ROWS, 100.0)])
def test_rows_wait_on_a_core_where_a_call_or_waking_up_costs_more_than_a_row(own: Service, rate: float) -> None:
    plain, found = on_a_core(own, rate)
    assert found.routing.wait_ms
    assert found.prediction.energy_j_per_row < 0.75 * plain.prediction.energy_j_per_row


def test_a_wait_spares_the_pauses_of_the_workers_and_not_only_their_calls() -> None:
    # Batch after batch a row costs the same in any batch; after a pause a batch costs as much again as a row.
    own = Service(BATCHES, tuple(0.1 * batch for batch in BATCHES), (1e-3,) * 5, 0.05, 1e-3)
    plain, found = on_a_core(own, 100.0, 100.0)
    assert plain.prediction.energy_j_per_row == pytest.approx(1.9e-3, rel=0.05)
    rows = 1.0 + 100.0 * found.routing.wait_ms["cheap"] * 1e-3
    assert rows > 4.0
    assert found.prediction.energy_j_per_row == pytest.approx(1e-3 + 1e-3 / rows, rel=0.05)
    posed = replace(problem({"cheap": own}, 100.0, 100.0), services={("cheap", "1c"): own})
    again = waits.as_batched(posed, found.configuration, found.routing, plain.prediction)
    assert again.energy_j_per_row == pytest.approx(found.prediction.energy_j_per_row)


def test_the_rate_may_move_before_the_next_plan() -> None:
    posed, asked = problem({"cheap": STEEP}, 100.0, 40.0), objective(40.0)
    found = tune_waits(posed, asked, evaluate(posed, asked, configuration(cheap=2)))
    assert found.routing.wait_ms
    for factor in (0.02, 0.2, 0.5, 0.8, 1.25):
        moved = problem({"cheap": STEEP}, 100.0 * factor, 40.0)
        assert really(moved, found, 7, 10_000)[0] <= 40.0


# --- where it does not ------------------------------------------------------------------------------------------------


def test_nobody_waits_where_energy_is_proportional_to_the_rows() -> None:
    posed, asked = problem({"cheap": PROPORTIONAL, "dear": PROPORTIONAL}, 100.0, 60.0), objective(60.0)
    plain = evaluate(posed, asked, configuration(cheap=2, dear=1), standby=False)
    assert tune_waits(posed, asked, plain) is plain


@pytest.mark.parametrize("rate", [5_000.0, 8_000.0])
def test_large_rows_do_not_wait_where_workers_hardly_sleep(rate: float) -> None:
    plain, found = on_a_core(LARGE_ROWS, rate)
    assert found is plain, "to copy rows together costs more than the calls that it spares"
    assert on_a_core(READ_IN_PLACE, rate)[1].routing.wait_ms, "which a profile of rows read in place does not know"


def test_nobody_waits_where_energy_is_worth_nothing() -> None:
    posed, asked = problem({"cheap": STEEP}, 100.0, 60.0), objective(60.0, form="paper", lam=0.0)
    plain = evaluate(posed, asked, configuration(cheap=2))
    assert tune_waits(posed, asked, plain) is plain


def test_nobody_waits_where_nobody_comes() -> None:
    posed, asked = problem({"cheap": STEEP}, 0.1, 60.0), objective(60.0)
    plain = evaluate(posed, asked, configuration(cheap=2))
    assert tune_waits(posed, asked, plain) is plain


@pytest.mark.parametrize("slo_ms", [9.5, 10.2])
def test_nobody_waits_where_the_slo_leaves_no_room(slo_ms: float) -> None:
    posed, asked = problem({"cheap": STEEP}, 20.0, slo_ms), objective(slo_ms)
    plain = evaluate(posed, asked, configuration(cheap=4))
    assert plain.feasible
    assert tune_waits(posed, asked, plain) is plain


def test_what_is_overloaded_or_tuned_already_is_left_alone() -> None:
    posed, asked = problem({"cheap": STEEP}, 5_000.0, 60.0), objective(60.0)
    plain = evaluate(posed, asked, configuration(cheap=1))
    assert not plain.feasible
    assert tune_waits(posed, asked, plain) is plain
    posed = problem({"cheap": STEEP}, 100.0, 60.0)
    found = tune_waits(posed, asked, evaluate(posed, asked, configuration(cheap=2)))
    assert tune_waits(posed, asked, found) is found


def test_a_plan_below_the_floor_saves_what_it_can_and_stays_infeasible() -> None:
    posed, asked = problem({"cheap": STEEP}, 100.0, 60.0), objective(60.0, floor=90.0)
    plain = evaluate(posed, asked, configuration(cheap=2))
    assert not plain.feasible
    found = tune_waits(posed, asked, plain)
    assert found.routing.wait_ms
    assert not found.feasible
    assert found.why == plain.why


# --- caps -------------------------------------------------------------------------------------------------------------


UNEVEN_MS = (10.0, 10.5, 11.0, 24.0, 60.0)
"""Up to four rows a batch costs 10 ms, and then it grows out of all proportion (memory, say)."""


@pytest.mark.parametrize(("joules", "slo_ms"), [((0.3,) * 5, 40.0), ((1.0, 0.5, 0.26, 0.26, 0.26), 30.0)])
def test_smaller_batches_keep_an_slo_that_long_ones_break(joules: tuple[float, ...], slo_ms: float) -> None:
    uneven = Service(BATCHES, UNEVEN_MS, joules, 0.05)
    posed, asked = problem({"cheap": uneven}, 240.0, slo_ms), objective(slo_ms)
    plain = evaluate(posed, asked, configuration(cheap=1))
    assert not plain.feasible
    assert "p95" in plain.why
    found = tune_waits(posed, asked, plain)
    assert found.feasible
    assert not found.why
    assert found.routing.largest == {"cheap": 4}
    assert bool(found.routing.wait_ms) == (joules[0] > joules[-1])
    assert found.prediction.p95_ms <= slo_ms
    assert found.prediction.utilisation <= 0.85
    for seed in (1, 2):
        assert really(posed, plain, seed)[0] > slo_ms
        assert really(posed, found, seed)[0] <= slo_ms
    posed = problem({"cheap": uneven}, 340.0, slo_ms)  # batches of four cannot carry this
    plain = evaluate(posed, asked, configuration(cheap=1))
    assert tune_waits(posed, asked, plain) is plain


# --- always -----------------------------------------------------------------------------------------------------------


SERVICES = st.builds(
    service,
    st.sampled_from([1.0, 5.0, 12.0]),
    st.sampled_from([0.2, 1.0, 4.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.05, 0.3]),
    st.sampled_from([0.0, 0.1, 0.25]),
)


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(
    own=st.dictionaries(st.sampled_from(sorted(ACCURACY)), SERVICES, min_size=1, max_size=3),
    workers=st.integers(1, 3),
    load=st.sampled_from([0.02, 0.1, 0.3, 0.6, 0.8]),
    slo_ms=st.sampled_from([10.0, 30.0, 100.0]),
    form=st.sampled_from(["floor", "paper"]),
    seed=st.integers(0, 3),
)
def test_never_worse_and_never_late(
    own: dict[str, Service], workers: int, load: float, slo_ms: float, form: str, seed: int
) -> None:
    rate = load * workers * sum(each.capacity() for each in own.values())
    posed, asked = problem(own, rate, slo_ms), objective(slo_ms, form=form)
    plain = evaluate(posed, asked, configuration(**dict.fromkeys(own, workers)), standby=False)
    found = tune_waits(posed, asked, plain)
    assert tune_waits(posed, asked, plain) == found
    assert msgspec.json.decode(msgspec.json.encode(found), type=Candidate) == found
    assert found.configuration == plain.configuration
    assert found.routing.shares == plain.routing.shares
    if found is plain:
        return
    assert found.feasible >= plain.feasible
    routing, before, after = found.routing, plain.prediction, found.prediction
    assert routing.wait_ms or routing.largest
    assert after.accuracy == before.accuracy
    assert after.p95_ms <= slo_ms
    assert after.utilisation <= max(before.utilisation, asked.max_utilisation)
    assert all(waits.TICK_MS <= wait_ms < slo_ms for wait_ms in routing.wait_ms.values())
    assert all(rows >= 1 for rows in routing.largest.values())
    if before.p95_ms <= slo_ms:
        assert found.score > plain.score
        assert after.energy_j_per_row <= (1.0 - LEAST_GAIN) * before.energy_j_per_row
        assert math.isclose(found.score, asked.score(after.accuracy, after.energy_j_per_row))
    p95_ms, joules = really(posed, found, seed)
    plain_ms, plain_j = really(posed, plain, seed)
    # Near their capacity lanes differ from play to play by some percent, whether rows wait or not.
    noise = 1.05 if after.utilisation > 0.6 else 1.0
    if before.p95_ms <= slo_ms:
        assert p95_ms <= max(noise * slo_ms, plain_ms)
        assert joules < plain_j
    else:
        assert p95_ms <= noise * slo_ms
