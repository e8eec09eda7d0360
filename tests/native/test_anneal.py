"""Annealing: tiling against brute force, searches against enumeration, the kernel against its twin, move for move."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.devices import tables
from clover.planning.packing.geometry import layouts
from tests.reference import anneal as twin
from tests.reference import queueing

pytestmark = pytest.mark.slow

A100 = [
    [0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 2, 0, 0], [0, 2, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0],
    [1, 3, 0, 0, 0], [2, 1, 1, 0, 0], [3, 0, 0, 1, 0], [3, 0, 1, 0, 0], [3, 2, 0, 0, 0], [4, 0, 1, 0, 0],
    [5, 1, 0, 0, 0], [7, 0, 0, 0, 0],
]  # fmt: skip
A30 = [[4, 0, 0], [2, 1, 0], [0, 2, 0], [0, 0, 1]]
SPEED = {"1g": 1.0, "2g": 0.55, "3g": 0.38, "4g": 0.33, "7g": 0.25}


def partitions_of(gpu: str) -> list[list[int]]:
    """The distinct maximal multisets of a board's base profiles, columns from its smallest profile to its largest."""
    table = tables.table(gpu)
    profiles = tables.slice_profiles(table)
    names = [profile.name for profile in sorted(profiles, key=lambda profile: profile.slices)]
    found = {
        tuple(Counter(place.profile for place in layout)[name] for name in names)
        for layout in layouts(profiles, device="gpu0", compute=table.compute_slices)
    }
    return [list(row) for row in sorted(found)]


def problem(
    n_gpus: int = 2,
    *,
    seed: int = 1,
    variants: int = 3,
    partitions: list[list[int]] = A100,
    model: str = "mf",
    load: float = 0.5,
    sla: float = 3.0,
    **more: Any,
) -> dict[str, Any]:
    """A problem after the manner of the real ones: larger variants are slower, dearer and better."""
    rng = random.Random(seed)
    slices = len(partitions[0])
    speeds = list(SPEED.values()) if slices == 5 else [1.0, 0.55, 0.3][:slices]
    service, energy, accuracy, cv, fits, slice_of = [], [], [], [], [], []
    time_s, joules, quality = rng.uniform(0.015, 0.04), rng.uniform(0.5, 1.5), rng.uniform(76.0, 80.0)
    for v in range(variants):
        for s in range(slices):
            service.append(time_s * speeds[s] * rng.uniform(0.9, 1.1))
            energy.append(joules * rng.uniform(0.9, 1.1))
            accuracy.append(quality)
            cv.append(rng.choice([0.0, 0.05, 0.2]))
            fits.append(not (v == variants - 1 and v > 0 and s == 0))
            slice_of.append(s)
        time_s, joules, quality = (
            time_s * rng.uniform(1.2, 4.0),
            joules * rng.uniform(1.2, 3.5),
            quality + rng.uniform(1, 4),
        )
    fastest = max(sum(n * s for n, s in zip(row, (1 / x for x in service), strict=False)) for row in partitions)
    return {
        "n_gpus": n_gpus,
        "rate": load * n_gpus * fastest,
        "service_s": service,
        "cv": cv,
        "energy_j": energy,
        "accuracy": accuracy,
        "fits": fits,
        "slice_of": slice_of,
        "partitions": partitions,
        "model": model,
        "sla_s": sla * service[-1],
        "quantile": 0.95,
        "lam": 0.1,
        "intensity": 250.0,
        "reference_intensity": 250.0,
        "idle_w": 60.0,
        "base_energy_j": 3.0 * energy[-1],
        "base_accuracy": accuracy[-1],
        **more,
    }


def sums(partitions: list[list[int]], n_gpus: int) -> set[tuple[int, ...]]:
    """Every number of slices that `n_gpus` GPUs may have, by adding one GPU after the other."""
    reached = {tuple([0] * len(partitions[0]))}
    for _ in range(n_gpus):
        reached = {tuple(a + b for a, b in zip(total, row, strict=True)) for total in reached for row in partitions}
    return reached


def configurations(asked: dict[str, Any]) -> list[list[int]]:
    """Every configuration of a small problem."""
    found = []
    where, fits = asked["slice_of"], asked["fits"]
    for slices in sums(asked["partitions"], asked["n_gpus"]):
        choices = []
        for s, n in enumerate(slices):
            members = [j for j in range(len(where)) if where[j] == s and fits[j]]
            choices.append([Counter(chosen) for chosen in itertools.combinations_with_replacement(members, n)])
        for parts in itertools.product(*choices):
            total: Counter[int] = sum(parts, Counter())
            found.append([total[j] for j in range(len(where))])
    return found


def objective(asked: dict[str, Any], counts: list[int]) -> float:
    """f as problems define it, minus infinity where it may not be used."""
    stable, _, joules, accuracy, p95_s, _ = queueing.evaluate(
        **{key: asked[key] for key in ("service_s", "cv", "energy_j", "accuracy", "rate", "model", "quantile")},
        counts=counts,
    )
    if not stable or p95_s > asked["sla_s"] * (1 + 1e-9):
        return -math.inf
    energy = asked["idle_w"] * asked["n_gpus"] / asked["rate"] + joules
    carbon = energy * asked["intensity"] / (asked["base_energy_j"] * asked["reference_intensity"])
    f: float = asked["lam"] * (1 - carbon) - (1 - asked["lam"]) * (1 - accuracy / asked["base_accuracy"])
    return f


# --- tiling ---


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 4])
def test_tiling_is_what_brute_force_finds(compiled: SimpleNamespace, n_gpus: int) -> None:
    """Of all boards; many are cut alike."""
    boards = {str(partitions): partitions for partitions in map(partitions_of, tables.names())}
    for partitions in boards.values():
        reached = sums(partitions, n_gpus)
        most = [n_gpus * max(row[s] for row in partitions) for s in range(len(partitions[0]))]
        if len(most) == 5:  # within what the compute slices allow; the rest cannot tile, and a sample of it is enough
            boxes = [m for m in itertools.product(*(range(n + 1) for n in most)) if weight(m) <= 7 * n_gpus]
        else:
            boxes = list(itertools.product(*(range(n + 2) for n in most)))
        for slices in boxes:
            assert compiled.anneal.feasible(partitions, slices, n_gpus) == (slices in reached), (partitions, slices)


def weight(slices: tuple[int, ...]) -> int:
    return sum(n * size for n, size in zip(slices, (1, 2, 3, 4, 7), strict=True))


@given(st.lists(st.integers(0, 60), min_size=14, max_size=14).filter(any), st.integers(0, 4), st.integers(-2, 2))
def test_large_tilings_have_a_decomposition(
    compiled: SimpleNamespace, numbers: list[int], which: int, change: int
) -> None:
    slices = np.array(numbers) @ np.array(A100)
    found = compiled.anneal.decompose(A100, slices, sum(numbers))
    assert found is not None
    assert found.sum() == sum(numbers)
    assert (found @ np.array(A100) == slices).all()
    slices[which] += change
    found = compiled.anneal.decompose(A100, slices, sum(numbers))
    assert (found is not None) == compiled.anneal.feasible(A100, slices, sum(numbers))
    assert found is None or (found @ np.array(A100) == slices).all()


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.integers(0, 4),
)
def test_any_partitions(kernels: SimpleNamespace, partitions: list[list[int]], slices: list[int], n_gpus: int) -> None:
    found = kernels.anneal.decompose(partitions, slices, n_gpus)
    expected = tuple(slices) in sums(partitions, n_gpus)
    assert (found is not None) == expected == kernels.anneal.feasible(partitions, slices, n_gpus)
    if found is not None:
        assert found.sum() == n_gpus
        assert list(found @ np.array(partitions)) == slices


def test_bad_tables(kernels: SimpleNamespace) -> None:
    for table, slices in (([], [1]), ([[1, -1]], [1, 1]), ([[1], [2, 3]], [1]), ([[1, 2]], [1])):
        with pytest.raises(ValueError):
            kernels.anneal.feasible(table, slices, 1)


# --- the objective ---


@pytest.mark.parametrize("model", ["pf", "mf"])
def test_the_objective_is_the_one_of_the_definition(kernels: SimpleNamespace, model: str) -> None:
    asked = problem(2, model=model, variants=2)
    given_problem = kernels.anneal.Problem(**asked)
    rng = random.Random(3)
    seen = {True: 0, False: 0}
    for counts in rng.sample(configurations(asked), 200):
        expected = objective(asked, counts)
        allowed, f = given_problem.score(counts)
        seen[allowed] += 1
        assert allowed == (expected > -math.inf)
        if allowed:
            assert f == pytest.approx(expected, abs=1e-12)
    assert min(seen.values()) > 5


def test_what_does_not_tile_is_not_feasible(kernels: SimpleNamespace) -> None:
    asked = kernels.anneal.Problem(**problem(1, variants=1, sla=20.0))
    assert asked.closed_form
    assert asked.tiles([0, 0, 2, 0, 0])
    assert not asked.tiles([1, 0, 2, 0, 0])
    assert asked.score([0, 0, 2, 0, 0])[0]
    assert not asked.score([1, 0, 2, 0, 0])[0]
    assert not asked.score([0, 0, 0, 0, 0])[0]


# --- the search ---


@pytest.mark.parametrize("model", ["pf", "mf"])
@pytest.mark.parametrize(("partitions", "n_gpus"), [(A100, 2), (A30, 3)])
def test_small_problems_are_solved(
    compiled: SimpleNamespace, model: str, partitions: list[list[int]], n_gpus: int
) -> None:
    for seed in range(3):
        asked = problem(n_gpus, seed=seed, model=model, variants=2, partitions=partitions, load=0.45)
        best = max(objective(asked, counts) for counts in configurations(asked))
        found = compiled.anneal.solve(compiled.anneal.Problem(**asked), seed, 0.0, evaluations=20_000)
        assert found.feasible
        assert objective(asked, [int(n) for n in found.counts]) == pytest.approx(found.f, abs=1e-12)
        assert found.f == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("n_gpus", [1, 10, 100])
@pytest.mark.parametrize("partitions", [A100, A30, A100[:9]], ids=["a100", "a30", "some"])
def test_answers_tile_and_meet_the_target(compiled: SimpleNamespace, n_gpus: int, partitions: list[list[int]]) -> None:
    asked = problem(n_gpus, partitions=partitions)
    given_problem = compiled.anneal.Problem(**asked)
    assert given_problem.closed_form == (partitions == A100)
    found = compiled.anneal.solve(given_problem, 5, 0.0, evaluations=5_000, restarts=2)
    assert found.feasible
    assert objective(asked, [int(n) for n in found.counts]) == pytest.approx(found.f, abs=1e-12)
    slices = np.zeros(len(partitions[0]), np.int64)
    np.add.at(slices, asked["slice_of"], found.counts)
    if n_gpus <= 10:
        assert compiled.anneal.feasible(partitions, slices, n_gpus)
    assert given_problem.score(found.counts) == (True, pytest.approx(found.f, abs=1e-12))
    assert 5_000 <= found.evaluations < 5_100
    assert found.trace[-1][1] == found.f
    assert (np.diff(found.trace[:, 1]) > 0).all()


@pytest.mark.parametrize(
    "asked",
    [
        problem(1, model="pf"),
        problem(3, model="pf", seed=4),
        problem(10, seed=2),
        problem(1000, seed=3, load=0.8),
        problem(7, partitions=A30, seed=6),
        problem(5, partitions=A100[3:], model="pf", seed=7),
        problem(10, accuracy_floor=79.0),
        problem(10, utilisation_limit=0.7),
        problem(10, sla=0.4),
    ],
    ids=["pf1", "pf3", "mf10", "mf1000", "a30", "pf5", "floor", "limit", "tight"],
)
def test_the_kernel_moves_as_its_twin_does(compiled: SimpleNamespace, asked: dict[str, Any]) -> None:
    for seed in (0, 2**64 - 1):
        ours = compiled.anneal.solve(compiled.anneal.Problem(**asked), seed, 0.0, evaluations=900, restarts=2)
        other = twin.solve(twin.Problem(**asked), seed, 0.0, evaluations=900, restarts=2)
        assert ours._fields == other._fields
        assert list(ours.counts) == list(other.counts)
        assert ours.trace.tolist() == other.trace.tolist()
        assert ours[2:6] == other[2:6]
        assert ours.f == other.f or (math.isnan(ours.f) and math.isnan(other.f))


def test_a_warm_start_keeps_what_runs(kernels: SimpleNamespace) -> None:
    for partitions in (A100, A30):
        asked = problem(4, seed=8, partitions=partitions)
        free = kernels.anneal.solve(kernels.anneal.Problem(**asked), 1, 0.0, evaluations=1_500)
        running = free.counts
        dear = {**asked, "intensity": 400.0, "running": running, "switching": [1.0] * len(running)}
        kept = kernels.anneal.solve(kernels.anneal.Problem(**dear), 1, 0.0, evaluations=600, start=running)
        assert list(kept.counts) == list(running)
        cheap = kernels.anneal.Problem(**{**dear, "switching": [1e-3] * len(running)})
        other = [int(n) for n in free.counts]
        changed = kernels.anneal.solve(kernels.anneal.Problem(**asked), 2, 0.0, evaluations=200).counts
        more = np.maximum(changed - running, 0).sum()
        plain = kernels.anneal.Problem(**{**asked, "intensity": 400.0})
        assert cheap.score(changed)[1] == pytest.approx(plain.score(changed)[1] - 1e-3 * more, abs=1e-12)
        assert cheap.score(other)[1] == plain.score(other)[1]


def test_floor_and_limit_are_kept(compiled: SimpleNamespace) -> None:
    frugal, lavish = problem(3, seed=2, lam=0.9), problem(3, seed=2, lam=0.0)

    def best(asked: dict[str, Any], **limits: float) -> tuple[float, float]:
        """Accuracy and utilisation of the answer."""
        found = compiled.anneal.solve(compiled.anneal.Problem(**asked, **limits), 1, 0.0, evaluations=20_000)
        assert found.feasible
        columns = {key: asked[key] for key in ("service_s", "cv", "energy_j", "accuracy")}
        accuracy = queueing.evaluate(**columns, counts=found.counts, rate=asked["rate"], model="mf", quantile=0.95)[3]
        return accuracy, asked["rate"] / sum(n / s for n, s in zip(found.counts, asked["service_s"], strict=True))

    low, high = best(frugal)[0], best(lavish)
    floor = 0.5 * (low + high[0])
    assert low < floor <= best(frugal, accuracy_floor=floor)[0] < high[0]
    limit = 0.9 * high[1]
    assert best(lavish, utilisation_limit=limit)[1] < limit


def test_nothing_feasible_is_said(kernels: SimpleNamespace) -> None:
    for asked in (problem(2, sla=0.01), problem(2, load=3.0)):
        found = kernels.anneal.solve(kernels.anneal.Problem(**asked), 1, 0.0, evaluations=300)
        assert not found.feasible
        assert math.isnan(found.f)
        assert len(found.trace) == 0
        assert kernels.anneal.Problem(**asked).tiles(found.counts)


def test_a_problem_of_one_configuration(kernels: SimpleNamespace) -> None:
    asked = problem(3, variants=1, partitions=[[1, 0, 1]], sla=20.0)
    found = kernels.anneal.solve(kernels.anneal.Problem(**asked), 1, 0.0, evaluations=10)
    assert found.feasible
    assert list(found.counts) == [3, 0, 3]


def test_the_clock_ends_a_search(compiled: SimpleNamespace) -> None:
    found = compiled.anneal.solve(compiled.anneal.Problem(**problem(10)), 1, 0.02, restarts=3)
    assert found.feasible
    assert found.evaluations > 100


def test_a_limit_of_cpu_time_is_kept_in_cpu_time(compiled: SimpleNamespace) -> None:
    began = time.thread_time()
    found = compiled.anneal.solve(compiled.anneal.Problem(**problem(10)), 1, 0.05, cpu_time=True)
    taken = time.thread_time() - began
    assert found.feasible
    assert 0.05 <= taken < 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"n_gpus": 0},
        {"rate": 0.0},
        {"model": "x"},
        {"quantile": 1.0},
        {"lam": 1.5},
        {"slice_of": [9] * 15},
        {"cv": [0.1]},
        {"fits": [False] * 15},
        {"running": [0] * 15},
        {"base_energy_j": 0.0},
        {"utilisation_limit": 0.0},
    ],
)
def test_bad_problems(kernels: SimpleNamespace, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        kernels.anneal.Problem(**{**problem(), **change})


def test_bad_questions(kernels: SimpleNamespace) -> None:
    given_problem = kernels.anneal.Problem(**problem())
    for arguments in ({"time_limit_s": 0.0}, {"time_limit_s": -1.0}, {"time_limit_s": 0.0, "evaluations": -1}):
        with pytest.raises(ValueError):
            kernels.anneal.solve(given_problem, 1, **arguments)
    with pytest.raises(ValueError):
        kernels.anneal.solve(given_problem, 1, 0.0, evaluations=10, restarts=0)
    with pytest.raises(ValueError):
        kernels.anneal.solve(given_problem, 1, 0.0, evaluations=10, start=[1] * 15)
    with pytest.raises(ValueError):
        given_problem.score([1] * 3)
