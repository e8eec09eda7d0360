"""Annealing over lanes: a configuration's worth against formulas of another kind, searches against enumeration, the
kernel against its twin, move for move."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.model.shares import best_mix
from tests.reference import lanes as twin
from tests.support.examples import examples

A100 = [
    [0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 2, 0, 0], [0, 2, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0],
    [1, 3, 0, 0, 0], [2, 1, 1, 0, 0], [3, 0, 0, 1, 0], [3, 0, 1, 0, 0], [3, 2, 0, 0, 0], [4, 0, 1, 0, 0],
    [5, 1, 0, 0, 0], [7, 0, 0, 0, 0],
]  # fmt: skip
A30 = [[4, 0, 0], [2, 1, 0], [0, 2, 0], [0, 0, 1]]
SMALL = [[2, 0], [0, 1]]
SPEED = {5: (1.0, 1.8, 2.5, 3.1, 4.5), 3: (1.0, 1.8, 3.1), 2: (1.0, 1.9)}
ASLEEP = ((45.0, 1.0), (0.0, 0.0))  # watts, and whether it wakes: parked and released
AWAKE_W = 60.0


def problem(
    seed: int = 1,
    *,
    devices: tuple[int, ...] = (2,),
    partitions: list[list[int]] = A30,
    variants: tuple[int, ...] = (2, 2),
    load: float = 0.25,
    floor: float = 0.4,
    strict: float = 0.3,
    peak: float = 0.0,
    asleep: bool = False,
    sizes: int = 4,
    loads: int = 4,
    **more: Any,
) -> dict[str, Any]:
    """A problem after the manner of the real ones: so many `variants` a family, of which larger ones are slower, dearer
    and better.  Each family has `load` of what all devices give it; `floor` is between its worst and its best variant;
    the larger `strict`, the more rows are late.  Kinds of devices may be cut alike."""
    rng = random.Random(seed)
    slices = len(partitions[0])
    awake = [list(row) for _ in devices for row in partitions]
    kind_of = [kind for kind in range(len(devices)) for _ in partitions]
    idle_w, spare = [AWAKE_W if asleep else 0.0] * len(awake), [0.0] * len(awake)
    for kind in range(len(devices)) if asleep else ():
        for watts, wakes in ASLEEP:
            awake.append([0] * slices)
            kind_of.append(kind)
            idle_w.append(watts)
            spare.append(wakes)
    columns: dict[str, list[Any]] = {
        name: [] for name in (
            "slice_of", "lane_of", "capacity", "energy_j", "late", "family_of", "accuracy", "quality", "rate", "peak",
            "wake", "floor", "miss", "limit", "price",
        )
    }  # fmt: skip
    for family, number in enumerate(variants):
        speed, joules = rng.uniform(30.0, 60.0), rng.uniform(0.5, 1.5)
        accuracy = [rng.uniform(76.0, 80.0)]
        fastest = [0.0] * slices
        for _ in range(number):
            for s in range(slices):
                rows = speed * SPEED[slices][s] * rng.uniform(0.9, 1.1)
                fastest[s] = max(fastest[s], rows)
                own = joules * rng.uniform(0.9, 1.1)
                steep, busy = rng.uniform(0.3, 0.6), 0.2 * strict * rng.uniform(0.2, 1.2) * (1.0 - 0.2 * s / slices)
                columns["slice_of"].append(s)
                columns["lane_of"].append(len(columns["accuracy"]))
                columns["capacity"].append(rows)
                columns["energy_j"].append([
                    [own * (1.0 - steep * (step / loads) ** (1.0 + 0.1 * size)) for step in range(loads + 1)]
                    for size in range(sizes)
                ])  # fmt: skip
                columns["late"].append([
                    [min(1.0, busy * (step / loads) ** (2 + size)) for step in range(loads + 1)]
                    for size in range(sizes)
                ])  # fmt: skip
            columns["family_of"].append(family)
            columns["accuracy"].append(accuracy[-1])
            columns["quality"].append(0.02 * accuracy[-1])
            speed, joules = speed / rng.uniform(1.2, 3.0), joules * rng.uniform(1.2, 3.0)
            accuracy.append(accuracy[-1] + rng.uniform(1.0, 4.0))
        best = max(sum(n * x for n, x in zip(row, fastest, strict=True)) for row in partitions)
        rate = load * best * sum(devices) / len(variants)
        columns["rate"].append(rate)
        columns["peak"].append(peak * rate)
        columns["wake"].append(best)
        columns["floor"].append(accuracy[0] + floor * (accuracy[number - 1] - accuracy[0]))
        columns["miss"].append(0.05)
        columns["limit"].append(0.8)
        columns["price"].append(0.1 / (family + 1))
    return {
        "devices": list(devices),
        "kind_of": kind_of,
        "partitions": awake,
        "idle_w": idle_w,
        "spare": spare,
        **columns,
        "watt": 0.1 / columns["rate"][0],
        "least": 0.2,
        **more,
    }


def starts(asked: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """All devices of a kind cut alike; slices dealt to their groups in turn."""
    found = []
    parts = [[i for i, k in enumerate(asked["kind_of"]) if k == kind] for kind in range(len(asked["devices"]))]
    for chosen in itertools.islice(zip(*parts, strict=False), 4):
        used = [0] * len(asked["kind_of"])
        for at, number in zip(chosen, asked["devices"], strict=True):
            used[at] += number
        counts = [0] * len(asked["capacity"])
        for s, number in enumerate(np.array(used) @ np.array(asked["partitions"])):
            members = [j for j, where in enumerate(asked["slice_of"]) if where == s]
            for turn in range(int(number)):
                counts[members[turn % len(members)]] += 1
        found.append((counts, used))
    return found


def cuts(asked: dict[str, Any]) -> list[list[int]]:
    """Every number of devices cut in each way; of those that come to the same (slices, asleep) one is enough."""
    parts = asked["kind_of"]
    found: dict[tuple[Any, ...], list[int]] = {}
    choices: list[list[Counter[int]]] = []
    for kind, number in enumerate(asked["devices"]):
        own = [i for i, k in enumerate(parts) if k == kind]
        choices.append([Counter(chosen) for chosen in itertools.combinations_with_replacement(own, number)])
    for chosen in itertools.product(*choices):
        total: Counter[int] = sum(chosen, Counter())
        used = [total[i] for i in range(len(parts))]
        slices = tuple(np.array(used) @ np.array(asked["partitions"]))
        asleep = tuple(n for n, row in zip(used, asked["partitions"], strict=True) if not any(row))
        found.setdefault((slices, asleep), used)
    return list(found.values())


def configurations(asked: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """Every configuration of a small problem."""
    counts, used = [], []
    where = asked["slice_of"]
    for cut in cuts(asked):
        choices = []
        for s, number in enumerate(np.array(cut) @ np.array(asked["partitions"])):
            members = [j for j in range(len(where)) if where[j] == s]
            choices.append([Counter(c) for c in itertools.combinations_with_replacement(members, int(number))])
        for parts in itertools.product(*choices):
            total: Counter[int] = sum(parts, Counter())
            counts.append([total[j] for j in range(len(where))])
            used.append(cut)
    return counts, used


def read(table: Any, group: int, workers: float, load: float, asked: dict[str, Any]) -> float:
    """A table of `asked`, bilinear by numpy; load 1 is the utilisation limit."""
    rows = np.array(table[group])
    steps = np.linspace(0.0, 1.0, rows.shape[1])
    at_load = [np.interp(min(load, 1.0), steps, row) for row in rows]
    return float(np.interp(workers, [2.0**k for k in range(len(rows))], at_load))


def expected(asked: dict[str, Any], counts: list[int], used: list[int], shares: Any) -> dict[str, Any]:
    """What `judge` says of these shares, from the definition; late rows and accuracy by family."""
    value = 0.0
    late: list[float] = []
    accuracy: list[float] = []
    energy_j: list[float] = []
    capacity: list[float] = []
    room: list[float] = []
    for family, rate in enumerate(asked["rate"]):
        lanes = [v for v, f in enumerate(asked["family_of"]) if f == family]
        totals = dict.fromkeys(("late", "accuracy", "energy_j", "capacity", "room"), 0.0)
        for v in lanes:
            groups = [j for j, lane in enumerate(asked["lane_of"]) if lane == v and counts[j]]
            rows = sum(counts[j] * asked["capacity"][j] for j in groups)
            workers = sum(counts[j] for j in groups)
            totals["capacity"] += rows
            totals["room"] += min(1.0, rows * asked["limit"][family] / rate)
            if not groups:
                assert shares[v] == 0.0
                continue
            load = shares[v] * rate / rows / asked["limit"][family]
            means = [
                sum(counts[j] * asked["capacity"][j] / rows * read(table, j, workers, load, asked) for j in groups)
                for table in (asked["energy_j"], asked["late"])
            ]
            totals["energy_j"] += shares[v] * means[0]
            totals["late"] += shares[v] * means[1]
            totals["accuracy"] += shares[v] * asked["accuracy"][v]
            value += shares[v] * (asked["quality"][v] - asked["price"][family] * means[0])
        for name, found in (
            ("late", late),
            ("accuracy", accuracy),
            ("energy_j", energy_j),
            ("capacity", capacity),
            ("room", room),
        ):
            found.append(totals[name])
    value -= asked["watt"] * sum(n * w for n, w in zip(used, asked["idle_w"], strict=True))
    if "running" in asked:
        more = np.maximum(np.array(counts) - asked["running"], 0)
        value -= float(more @ np.array(asked["switching"]))
    need = sum(max(0.0, asked["peak"][f] - capacity[f]) / asked["wake"][f] for f in range(len(asked["rate"])))
    have = sum(n * x for n, x in zip(used, asked["spare"], strict=True))
    feasible = (
        min(room) >= 1.0 - 1e-9
        and need <= have + 1e-9
        and all(accuracy[f] >= asked["floor"][f] - 1e-9 for f in range(len(late)))
        and all(late[f] <= asked["miss"][f] + 1e-9 for f in range(len(late)))
    )
    return {"value": value, "feasible": feasible, "accuracy": accuracy, "energy_j": energy_j, "late": late}


def bounds(asked: dict[str, Any], counts: list[int]) -> tuple[list[float], list[float]]:
    """What each lane must and may get."""
    least, most = [], []
    for v, family in enumerate(asked["family_of"]):
        own = [counts[j] for j, lane in enumerate(asked["lane_of"]) if lane == v]
        every = sum(counts[j] for j, lane in enumerate(asked["lane_of"]) if asked["family_of"][lane] == family)
        rows = sum(n * asked["capacity"][j] for j, n in enumerate(counts) if asked["lane_of"][j] == v)
        most.append(min(1.0, asked["limit"][family] * rows / asked["rate"][family]))
        least.append(min(most[-1], asked["least"] * sum(own) / every) if 0 < sum(own) < every else 0.0)
    return least, most


def sample(asked: dict[str, Any], number: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Random configurations."""
    rng = random.Random(seed)
    every = cuts(asked)
    found = []
    for _ in range(number):
        cut = rng.choice(every)
        counts = [0] * len(asked["capacity"])
        for s, slices in enumerate(np.array(cut) @ np.array(asked["partitions"])):
            members = [j for j, where in enumerate(asked["slice_of"]) if where == s]
            some = rng.sample(members, rng.randint(1, len(members)))
            for _ in range(int(slices)):
                counts[rng.choice(some)] += 1
        found.append((counts, cut))
    return found


CASES = {
    "one": problem(1, variants=(3,)),
    "two": problem(2),
    "three": problem(3, devices=(3,), variants=(2, 1, 2)),
    "strict": problem(4, strict=1.0),
    "asleep": problem(5, asleep=True, peak=1.5, load=0.15),
    "kinds": problem(6, devices=(2, 1), asleep=True, peak=1.2, load=0.15),
    "a100": problem(7, partitions=A100, variants=(3, 2), strict=0.6),
    "coarse": problem(8, sizes=1, loads=1),
    "free": problem(9, least=0.0, floor=0.0),
    "warm": problem(10, running=[1, 0] * 6, switching=[0.02] * 12),
}


# --- what a configuration is worth ---


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_is_worth_what_the_definition_says(kernels: SimpleNamespace, name: str) -> None:
    asked = CASES[name]
    made = kernels.lanes.Problem(**asked)
    for counts, used in sample(asked, 60):
        judged = made.judge(counts, used)
        wanted = expected(asked, counts, used, judged.shares)
        assert judged.value == pytest.approx(wanted["value"], abs=1e-12)
        assert judged.feasible == wanted["feasible"]
        assert list(judged.accuracy) == pytest.approx(wanted["accuracy"])
        assert list(judged.energy_j) == pytest.approx(wanted["energy_j"])


def test_both_outcomes_are_met(compiled: SimpleNamespace) -> None:
    for name, asked in CASES.items():
        made = compiled.lanes.Problem(**asked)
        feasible, _ = made.judge_many(*zip(*sample(asked, 200), strict=True))
        assert 0 < feasible.sum() < 200, name


@pytest.mark.parametrize("name", CASES)
def test_shares_keep_their_bounds(kernels: SimpleNamespace, name: str) -> None:
    asked = CASES[name]
    made = kernels.lanes.Problem(**asked)
    for counts, used in sample(asked, 60, seed=1):
        judged = made.judge(counts, used)
        least, most = bounds(asked, counts)
        for family in range(len(asked["rate"])):
            own = [v for v, f in enumerate(asked["family_of"]) if f == family]
            room = sum(most[v] for v in own)
            assert sum(judged.shares[v] for v in own) == pytest.approx(1.0 if room > 0.0 else 0.0, abs=1e-9)
            for v in own if room >= 1.0 else ():
                assert least[v] - 1e-12 <= judged.shares[v] <= most[v] + 1e-12
            if 0.0 < room < 1.0:
                assert not judged.feasible
                assert [judged.shares[v] for v in own] == pytest.approx([most[v] / room for v in own])


def test_many_are_judged_as_one(kernels: SimpleNamespace) -> None:
    asked = CASES["kinds"]
    made = kernels.lanes.Problem(**asked)
    counts, used = (list(rows) for rows in zip(*sample(asked, 30), strict=True))
    feasible, values = made.judge_many(counts, used)
    assert (feasible.dtype, values.dtype) == (np.bool_, np.float64)
    one = [made.judge(row, cut) for row, cut in zip(counts, used, strict=True)]
    assert feasible.tolist() == [judged.feasible for judged in one]
    assert values.tolist() == [judged.value for judged in one]


# --- shares ---


def flat(
    gains: list[float], accuracy: list[float], limits: list[float], floor: float, least: float, workers: list[int]
) -> tuple[dict[str, Any], list[int], list[int]]:
    """A problem of one configuration, whose shares solve this linear program: energies know no load, no row is late."""
    lanes = range(len(gains))
    asked = {
        "devices": [1],
        "kind_of": [0],
        "partitions": [workers],
        "idle_w": [0.0],
        "spare": [0.0],
        "slice_of": list(lanes),
        "lane_of": list(lanes),
        "capacity": [limit * 100.0 / n for limit, n in zip(limits, workers, strict=True)],
        "energy_j": [[[1.0, 1.0]]] * len(gains),
        "late": [[[0.0, 0.0]]] * len(gains),
        "family_of": [0] * len(gains),
        "accuracy": accuracy,
        "quality": gains,
        "rate": [100.0],
        "peak": [0.0],
        "wake": [1.0],
        "floor": [floor],
        "miss": [0.05],
        "limit": [1.0],
        "price": [0.0],
        "watt": 0.0,
        "least": least,
    }
    return asked, workers, [1]


def vertices(gains: Any, accuracy: Any, least: Any, most: Any, floor: float) -> float:
    """The optimum of the program: all but one or two lanes are at a bound."""
    size = len(gains)
    best = -math.inf
    for free in [c for n in (1, 2) for c in itertools.combinations(range(size), n)]:
        others = [v for v in range(size) if v not in free]
        for ends in itertools.product((0, 1), repeat=len(others)):
            shares = np.zeros(size)
            shares[others] = [(least, most)[end][v] for end, v in zip(ends, others, strict=True)]
            left = 1.0 - shares.sum()
            if len(free) == 1:
                shares[free[0]] = left
            else:
                a, b = free
                if accuracy[a] == accuracy[b]:
                    continue
                missing = floor - float(shares @ accuracy) - left * accuracy[b]
                shares[a] = missing / (accuracy[a] - accuracy[b])
                shares[b] = left - shares[a]
            if (shares >= least - 1e-9).all() and (shares <= most + 1e-9).all() and shares @ accuracy >= floor - 1e-8:
                best = max(best, float(shares @ gains))
    return best


numbers = st.floats(0.0, 1.0, width=32)


@pytest.mark.slow
@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(numbers, st.one_of(numbers, st.sampled_from([0.2, 0.5])), st.floats(0.02, 1.3), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    ),
    numbers,
    st.sampled_from([0.0, 0.2, 0.9]),
)
def test_shares_are_the_optimum_of_the_linear_program(
    kernels: SimpleNamespace, rows: list[tuple[float, float, float, int]], part: float, least: float
) -> None:
    gains, accuracy, limits, workers = (list(column) for column in zip(*rows, strict=True))
    accuracy = [70.0 + 10.0 * a for a in accuracy]
    floor = min(accuracy) + part * (max(accuracy) - min(accuracy))
    asked, counts, used = flat(gains, accuracy, limits, floor, least, workers)
    low, most = (np.array(bound) for bound in bounds(asked, counts))
    judged = kernels.lanes.Problem(**asked).judge(counts, used)
    optimum = vertices(np.array(gains), np.array(accuracy), low, most, floor)
    if most.sum() < 1.0:
        assert not judged.feasible or most.sum() > 1.0 - 1e-8
        return
    shares = judged.shares
    assert shares.sum() == pytest.approx(1.0, abs=1e-9)
    assert (shares >= low - 1e-12).all()
    assert (shares <= most + 1e-12).all()
    if optimum == -math.inf:
        assert not judged.feasible or judged.accuracy[0] <= floor + 1e-7
    elif judged.feasible:
        assert judged.value == pytest.approx(optimum, abs=1e-7)
        mix = best_mix(gains, accuracy, most.tolist(), floor, low.tolist())
        if mix is not None:
            assert judged.value >= sum(s * g for s, g in zip(mix, gains, strict=True)) - 1e-7
    else:  # the floor is out of reach, or as good as
        top = vertices(np.array(accuracy), np.array(accuracy), low, most, 0.0)
        assert judged.accuracy[0] == pytest.approx(top, abs=1e-9)
        assert top <= floor + 1e-7


# --- late rows ---


def hasty(late: list[list[float]], least: float = 0.0, floor: float = 0.0) -> dict[str, Any]:
    """Two lanes, of which the first is preferred; `late` at loads 0, 1/2 and 1."""
    asked, _, _ = flat([1.0, 0.0], [80.0, 82.0], [1.0, 1.0], floor, least, [1, 1])
    asked["energy_j"] = [[[1.0] * 3]] * 2
    asked["late"] = [[row] for row in late]
    return asked


def test_late_rows_move_to_another_lane(kernels: SimpleNamespace) -> None:
    asked = hasty([[0.0, 0.04, 0.2], [0.0, 0.04, 0.2]])
    judged = kernels.lanes.Problem(**asked).judge([1, 1], [1])
    assert judged.feasible
    wanted = expected(asked, [1, 1], [1], judged.shares)
    assert 0.04 < wanted["late"][0] <= 0.05 + 1e-9
    assert 0.5 < judged.shares[0] < 1.0
    assert judged.shares.sum() == pytest.approx(1.0)


def test_what_a_lane_must_get_it_gets_however_late(kernels: SimpleNamespace) -> None:
    asked = hasty([[0.0, 0.0, 0.2], [0.3, 0.3, 0.3]], least=0.2)
    judged = kernels.lanes.Problem(**asked).judge([1, 1], [1])
    assert judged.shares[1] >= 0.1 - 1e-12
    wanted = expected(asked, [1, 1], [1], judged.shares)
    assert judged.feasible == (wanted["late"][0] <= 0.05 + 1e-9)
    asked = hasty([[0.0, 0.0, 0.02], [0.3, 0.3, 0.3]], least=0.2)
    judged = kernels.lanes.Problem(**asked).judge([1, 1], [1])
    assert judged.feasible
    assert list(judged.shares) == pytest.approx([0.9, 0.1])


def test_rows_that_are_late_at_less_load_are_late(kernels: SimpleNamespace) -> None:
    """A table from simulations is not monotone: what is held to a load at which it is on time may be late below it."""
    asked = hasty([[0.2, 0.2, 0.049], [0.2, 0.2, 0.049]])
    judged = kernels.lanes.Problem(**asked).judge([1, 1], [1])
    assert judged.feasible == (expected(asked, [1, 1], [1], judged.shares)["late"][0] <= 0.05 + 1e-9)
    asked["capacity"] = [100.0, 400.0]
    judged = kernels.lanes.Problem(**{**asked, "quality": [0.0, 1.0]}).judge([1, 1], [1])
    assert judged.feasible == (expected(asked, [1, 1], [1], judged.shares)["late"][0] <= 0.05 + 1e-9)


def test_the_floor_is_kept_when_late_rows_move(kernels: SimpleNamespace) -> None:
    asked = hasty([[0.0, 0.02, 0.06], [0.0, 0.02, 0.2]], floor=81.0)
    judged = kernels.lanes.Problem(**asked).judge([1, 1], [1])
    assert judged.feasible
    assert judged.accuracy[0] >= 81.0 - 1e-9
    asked = hasty([[0.0, 0.02, 0.06], [0.0, 0.2, 0.2]], floor=81.9)
    assert not kernels.lanes.Problem(**asked).judge([1, 1], [1]).feasible


# --- the peak, devices asleep, what runs ---


def test_the_peak_needs_devices_to_wake(kernels: SimpleNamespace) -> None:
    asked = problem(2, devices=(4,), partitions=SMALL, variants=(1,), asleep=True, load=0.3, floor=0.0, strict=0.0)
    fast = asked["capacity"][1]
    rate, wake = asked["rate"][0], asked["wake"][0]
    for peak in (0.5 * rate, 2.0 * fast, 2.0 * fast + 0.9 * wake, 2.0 * fast + 1.1 * wake, 9.0 * wake):
        made = kernels.lanes.Problem(**{**asked, "peak": [peak]})
        for parked in range(3):
            judged = made.judge([0, 2], [0, 2, parked, 2 - parked])
            assert judged.feasible == (peak <= 2.0 * fast + parked * wake + 1e-9)
            watts = 2 * AWAKE_W + parked * ASLEEP[0][0]
            joules = float(judged.energy_j[0])
            assert judged.value == pytest.approx(
                asked["quality"][0] - asked["price"][0] * joules - asked["watt"] * watts
            )


def test_nothing_awake_serves_nothing(kernels: SimpleNamespace) -> None:
    asked = problem(3, asleep=True)
    made = kernels.lanes.Problem(**asked)
    judged = made.judge([0] * len(asked["capacity"]), [0, 0, 0, 0, 1, 1])
    assert not judged.feasible
    assert not judged.shares.any()
    found = kernels.lanes.solve(made, 1, 300, [([0] * len(asked["capacity"]), [0, 0, 0, 0, 1, 1])])
    assert found.feasible


def test_only_missing_workers_cost(kernels: SimpleNamespace) -> None:
    asked = problem(1, variants=(2,))
    plain = kernels.lanes.Problem(**asked)
    (running, used), *others = sample(asked, 12)
    dear = [0.01 * (j + 1) for j in range(len(running))]
    warm = kernels.lanes.Problem(**asked, running=running, switching=dear)
    assert warm.judge(running, used).value == plain.judge(running, used).value
    for counts, cut in others:
        more = sum(c * max(0, n - r) for c, n, r in zip(dear, counts, running, strict=True))
        assert warm.judge(counts, cut).value == pytest.approx(plain.judge(counts, cut).value - more, abs=1e-12)


def test_a_warm_start_keeps_what_runs(kernels: SimpleNamespace) -> None:
    asked = problem(4, devices=(3,), variants=(2,), load=0.3)
    first = kernels.lanes.solve(kernels.lanes.Problem(**asked), 1, 800, starts(asked)).found[0]
    changed = {**asked, "price": [0.3], "running": first.counts}
    free = kernels.lanes.solve(kernels.lanes.Problem(**changed, switching=[0.0] * 6), 2, 800, starts(asked)).found[0]
    assert list(free.counts) != list(first.counts)
    warm = [*starts(asked), (first.counts, first.used)]
    kept = kernels.lanes.solve(kernels.lanes.Problem(**changed, switching=[1.0] * 6), 2, 400, warm)
    assert list(kept.found[0].counts) == list(first.counts)


# --- the search ---


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_moves_as_its_twin_does(compiled: SimpleNamespace, name: str) -> None:
    asked = CASES[name]
    ours, other = compiled.lanes.Problem(**asked), twin.Problem(**asked)
    for counts, used in sample(asked, 20, seed=2):
        one, two = ours.judge(counts, used), other.judge(counts, used)
        assert one[:2] == two[:2]
        for a, b in zip(one[2:], two[2:], strict=True):
            assert a.tolist() == b.tolist()
    for seed, restarts, keep in ((0, 1, 16), (2**64 - 1, 3, 2)):
        mine = compiled.lanes.solve(ours, seed, 900, starts(asked), restarts, keep)
        twins = twin.solve(other, seed, 900, starts(asked), restarts, keep)
        assert mine._fields == twins._fields
        assert (mine.feasible, mine.evaluations, mine.proposals) == (twins.feasible, twins.evaluations, twins.proposals)
        assert plain(mine.found) == plain(twins.found)
        assert plain([mine.nearest]) == plain([twins.nearest])


def plain(found: Any) -> list[tuple[list[int], list[int], float]]:
    return [(item.counts.tolist(), item.used.tolist(), item.value) for item in found]


@pytest.mark.parametrize("devices", [(10,), (100,), (1000,), (300, 7)], ids=str)
def test_large_fleets_move_alike(compiled: SimpleNamespace, devices: tuple[int, ...]) -> None:
    asked = problem(3, devices=devices, partitions=A100, asleep=True, peak=1.5, sizes=14)
    one = compiled.lanes.solve(compiled.lanes.Problem(**asked), 5, 600, starts(asked))
    two = twin.solve(twin.Problem(**asked), 5, 600, starts(asked))
    assert plain(one.found) == plain(two.found)
    assert one.proposals == two.proposals


@pytest.mark.parametrize(
    "asked",
    [
        problem(1, variants=(2,)),
        problem(2, load=0.3),
        problem(3, devices=(3,), variants=(3,), strict=1.5),
        problem(4, devices=(1,), partitions=A100, floor=0.7, load=0.3),
        problem(5, asleep=True, peak=1.5, load=0.25),
        problem(6, devices=(1, 1), asleep=True, peak=1.3, load=0.25),
        problem(8, strict=1.0, load=0.3),
    ],
    ids=["one", "two", "strict", "a100", "asleep", "kinds", "tight"],
)
def test_small_problems_are_solved(compiled: SimpleNamespace, asked: dict[str, Any]) -> None:
    made = compiled.lanes.Problem(**asked)
    feasible, values = made.judge_many(*configurations(asked))
    best = values[feasible].max()
    for seed in range(3):
        found = compiled.lanes.solve(made, seed, 20_000, starts(asked))
        assert found.feasible
        assert found.found[0].value == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_what_is_found_is_different_good_and_in_order(kernels: SimpleNamespace, name: str) -> None:
    asked = CASES[name]
    made = kernels.lanes.Problem(**asked)
    found = kernels.lanes.solve(made, 3, 600, starts(asked), keep=10)
    assert found.feasible == bool(found.found)
    assert found.evaluations >= 600
    values = [item.value for item in found.found]
    assert values == sorted(values, reverse=True)
    asleep = [i for i, row in enumerate(asked["partitions"]) if not any(row)]
    seen = {(*item.counts.tolist(), *item.used[asleep].tolist()) for item in found.found}
    assert len(seen) == len(values) <= 10
    for item in found.found:
        judged = made.judge(item.counts, item.used)
        assert judged.feasible
        assert judged.value == item.value


def test_the_best_seen_are_kept(kernels: SimpleNamespace) -> None:
    """With room for all, what is kept is all that is feasible of what was looked at; little is feasible here."""
    asked = problem(11, devices=(2,), partitions=SMALL, variants=(2,), load=0.5)
    made = kernels.lanes.Problem(**asked)
    feasible, values = made.judge_many(*configurations(asked))
    found = kernels.lanes.solve(made, 1, 3_000, starts(asked), keep=100)
    assert [item.value for item in found.found] == pytest.approx(sorted(values[feasible], reverse=True), abs=1e-12)


def test_cuts_that_come_to_the_same_are_one(kernels: SimpleNamespace) -> None:
    """Equal devices cut otherwise may have the same slices; the idle watts of both differ by the last bit at most."""
    asked = problem(3, devices=(5,), partitions=[[2, 0], [1, 1], [0, 2]], variants=(2,), load=0.15, floor=0.1)
    asked["idle_w"], asked["watt"] = [61.3] * 3, 0.37
    found = kernels.lanes.solve(kernels.lanes.Problem(**asked), 1, 2_000, starts(asked), keep=200)
    assert len(found.found) > 5
    assert len({tuple(item.counts.tolist()) for item in found.found}) == len(found.found)


def test_watts_do_not_pay_for_what_is_missed(kernels: SimpleNamespace) -> None:
    """Where idle devices cost far more than all gains, the search must still not end where rows find no room."""
    asked = problem(7, devices=(2,), partitions=SMALL, variants=(2,), asleep=True, load=0.45)
    asked["watt"] = 50.0 * asked["watt"]
    made = kernels.lanes.Problem(**asked)
    feasible, values = made.judge_many(*configurations(asked))
    for seed in range(3):
        found = kernels.lanes.solve(made, seed, 1_000, starts(asked)[:1])
        assert found.found[0].value == pytest.approx(values[feasible].max(), abs=1e-9)


def test_nothing_feasible_is_said(kernels: SimpleNamespace) -> None:
    for asked in (problem(2, load=3.0), problem(2, floor=1.5), problem(2, strict=80.0, load=0.7)):
        made = kernels.lanes.Problem(**asked)
        found = kernels.lanes.solve(made, 1, 300, starts(asked))
        assert not found.feasible
        assert found.found == []
        assert not made.judge(found.nearest.counts, found.nearest.used).feasible


def test_what_is_short_is_nearest_where_it_is_least_short(compiled: SimpleNamespace) -> None:
    asked = problem(2, load=2.0, variants=(2,), floor=0.0, strict=0.0)
    made = compiled.lanes.Problem(**asked)
    found = compiled.lanes.solve(made, 1, 5_000, starts(asked))
    counts, _ = configurations(asked)
    rows = [float(np.array(row) @ np.array(asked["capacity"])) for row in counts]
    assert float(found.nearest.counts @ np.array(asked["capacity"])) >= 0.95 * max(rows)


def test_a_problem_of_one_configuration(kernels: SimpleNamespace) -> None:
    asked, counts, used = flat([1.0], [80.0], [2.0], 70.0, 0.2, [1])
    found = kernels.lanes.solve(kernels.lanes.Problem(**asked), 1, 10, [(counts, used)])
    assert found.feasible
    assert plain(found.found) == [(counts, used, 1.0)]


def test_a_seed_decides_everything(kernels: SimpleNamespace) -> None:
    asked = problem(2, devices=(5,), partitions=A100)
    made = kernels.lanes.Problem(**asked)
    found = [kernels.lanes.solve(made, seed, 400, starts(asked)) for seed in (1, 1, 2)]
    assert plain(found[0].found) == plain(found[1].found)
    assert found[0].proposals == found[1].proposals
    assert plain(found[0].found) != plain(found[2].found)


def test_many_lanes(kernels: SimpleNamespace) -> None:
    asked = problem(3, partitions=SMALL, devices=(30,), variants=(16, 16, 16, 16), sizes=5, load=0.2)
    found = kernels.lanes.solve(kernels.lanes.Problem(**asked), 1, 100, starts(asked))
    assert found.evaluations >= 100
    with pytest.raises(ValueError):
        kernels.lanes.Problem(**problem(3, partitions=SMALL, devices=(30,), variants=(16, 16, 16, 17), sizes=5))


def test_what_is_given_is_copied(kernels: SimpleNamespace) -> None:
    asked = {key: np.array(value) if isinstance(value, list) else value for key, value in CASES["two"].items()}
    for value in asked.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    kept = kernels.lanes.Problem(**asked)
    counts, used = sample(CASES["two"], 1)[0]
    before = kept.judge(counts, used).value
    for key in ("partitions", "energy_j", "late"):
        asked[key].setflags(write=True)
        asked[key][:] = 0
    assert kept.judge(counts, used).value == before


# --- bad input ---


@pytest.mark.parametrize(
    "change",
    [
        {"devices": []},
        {"devices": [0]},
        {"devices": [2.5]},
        {"devices": [10**7]},
        {"devices": [2, 1]},
        {"devices": [[2]]},
        {"kind_of": [0, 0, 1, 0]},
        {"kind_of": [0, 0, -1, 0]},
        {"kind_of": [0, 0, 0]},
        {"kind_of": [0.0] * 4},
        {"partitions": []},
        {"partitions": [[4, 0, 0], [2, 1, 0], [0, 2, 0], [0, 0, -1]]},
        {"partitions": [[4, 0, 0], [2, 1, 0], [0, 2, 0], [0, 0, 10**9]]},
        {"partitions": [[4.5, 0, 0], [2, 1, 0], [0, 2, 0], [0, 0, 1]]},
        {"partitions": [4, 2, 0, 0]},
        {"partitions": [[4, 0, 0, 0], [2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1]]},
        {"idle_w": [0.0] * 3},
        {"idle_w": [-1.0] * 4},
        {"spare": [math.nan] * 4},
        {"spare": [-1.0] * 4},
        {"slice_of": [9] * 12},
        {"slice_of": [0] * 12},
        {"slice_of": [0] * 11},
        {"lane_of": [4] * 12},
        {"lane_of": [-1] * 12},
        {"capacity": []},
        {"capacity": [1.0] * 11},
        {"capacity": [0.0] * 12},
        {"capacity": [math.inf] * 12},
        {"energy_j": [[[1.0]]] * 12},
        {"energy_j": [1.0] * 12},
        {"energy_j": [[[1.0, math.nan]]] * 12},
        {"energy_j": [[[1.0, 1.0]]] * 12},
        {"late": [[[0.0, 1.5]]] * 12},
        {"late": [[[0.0] * 5] * 4] * 11},
        {"late": [[[0.0] * 4 + [1.5]] * 4] * 12},
        {"late": [[[math.nan] * 5] * 4] * 12},
        {"family_of": [1, 1, 0, 0]},
        {"family_of": [0, 0, 0, 0]},
        {"family_of": [0, 0, 2, 2]},
        {"accuracy": []},
        {"accuracy": [80.0] * 3},
        {"quality": [math.nan] * 4},
        {"rate": [0.0, 1.0]},
        {"rate": [1.0]},
        {"peak": [math.inf, 0.0]},
        {"wake": [0.0, 1.0]},
        {"floor": [math.nan, 0.0]},
        {"miss": [0.0, 0.05]},
        {"miss": [1.0, 0.05]},
        {"limit": [0.0, 0.8]},
        {"limit": [1.1, 0.8]},
        {"price": [-1.0, 0.0]},
        {"watt": -1.0},
        {"watt": math.nan},
        {"watt": math.inf},
        {"least": 1.0},
        {"least": -0.1},
        {"least": math.nan},
        {"running": [0] * 12},
        {"switching": [0.0] * 12},
        {"running": [0] * 12, "switching": [-1.0] * 12},
        {"running": [-1] * 12, "switching": [0.0] * 12},
        {"running": [0] * 11, "switching": [0.0] * 12},
    ],
)
def test_bad_problems(kernels: SimpleNamespace, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        kernels.lanes.Problem(**{**CASES["two"], **change})


def test_bad_configurations(kernels: SimpleNamespace) -> None:
    asked = CASES["kinds"]
    made = kernels.lanes.Problem(**asked)
    counts, used = sample(asked, 1)[0]
    bad: list[tuple[Any, Any]] = [
        (counts[:-1], used),
        (counts, used[:-1]),
        ([float(n) for n in counts], used),
        ([-1, *counts[1:]], used),
        ([counts[0] + 1, *counts[1:]], used),
        (counts, [0] * len(used)),
        ([counts], used),
        ([], []),
        ([0] * len(counts), [3] + [0] * (len(used) - 1)),  # three of the first kind
    ]
    for row, cut in bad:
        with pytest.raises(ValueError):
            made.judge(row, cut)
        with pytest.raises(ValueError):
            made.judge_many([counts, row], [used, cut])
        with pytest.raises(ValueError):
            kernels.lanes.solve(made, 1, 10, [(counts, used), (row, cut)])
    with pytest.raises(ValueError):
        made.judge_many([counts, counts], [used])


def test_bad_questions(kernels: SimpleNamespace) -> None:
    asked = CASES["two"]
    made = kernels.lanes.Problem(**asked)
    refused: tuple[dict[str, Any], ...] = (
        {"evaluations": 0}, {"evaluations": 10**15}, {"restarts": 0}, {"restarts": 10**9}, {"keep": 0}, {"keep": 5000},
        {"starts": []},
    )  # fmt: skip
    for bad in refused:
        with pytest.raises(ValueError):
            kernels.lanes.solve(made, **{"seed": 1, "evaluations": 10, "starts": starts(asked), **bad})
    with pytest.raises(OverflowError):
        kernels.lanes.solve(made, -1, 10, starts(asked))
