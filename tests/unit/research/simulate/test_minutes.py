"""Minutes row by row: the server's own router before workers that only take time."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clover.errors import ConfigError
from clover.planning.model.queueing import Service
from clover.research.cli.simulate import main
from clover.research.simulate import families, loads, replay, world
from clover.research.simulate.minutes import GUST_FROM_S, Minutes, back_s, gusty, play
from clover.research.simulate.workers import SimulatedWorker, Slice
from clover.research.simulate.world import Case, Rules, SimulatedMachine, World
from clover.types import CascadeProfile, ChainPoint
from tests.support.profiles_fixture import cpu, profile

pytestmark = pytest.mark.slow


def played(
    policy: str = "objective", load: str = "constant:0.6", *, family: str = "albert", seed: int = 0, **how: Any
) -> Minutes:
    machine = world.gpus(1)
    own = World(machine, families.load(family, machine.shapes), Rules(noise=False))
    trace = world.traces([], "", 1.0)[0]
    return play(Case(own, trace, loads.parse(load), world.scheme(policy), seed), **{"seconds": 60.0, **how})


# --- workers ----------------------------------------------------------------------------------------------------------


ROW = np.zeros(1, np.uint32)


class Time:
    """Timers by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now_s + seconds, callback))

    def run(self) -> None:
        while self.timers:
            self.timers.sort(key=lambda item: item[0])
            self.now_s, callback = self.timers.pop(0)
            callback()


def workers(time: Time, *speeds_ms: float, cv: float = 0.0) -> tuple[list[SimulatedWorker], list[tuple[int, float]]]:
    """Workers on one slice, and who was reaped when."""
    where, reaped = Slice(), []
    made = []
    for pid, ms in enumerate(speeds_ms):
        made.append(
            SimulatedWorker(
                pid,
                Service((1,), (ms,), (2.0,), cv),
                where,
                clock=lambda: round(time.now_s * 1e9),
                later=time.later,
                reap=lambda pid=pid: reaped.append((pid, time.now_s)),  # type: ignore[misc]
                rng=random.Random(1),
            )
        )
    return made, reaped


def test_a_worker_takes_its_time_batch_by_batch() -> None:
    time = Time()
    (worker,), reaped = workers(time, 10.0)
    worker.submit(7, ROW, 1)
    worker.submit(8, ROW, 1)
    assert worker.untaken() == 1
    time.run()
    assert reaped == [(0, pytest.approx(0.01)), (0, pytest.approx(0.02))]
    assert worker.ring.reap() == (7, 0, 1, 0, 10_000_000, 10_000_000)
    assert worker.ring.reap() == (8, 0, 1, 10_000_000, 20_000_000, 10_000_000)
    assert worker.ring.reap() is None
    assert worker.joules == 4.0


def test_workers_of_a_slice_take_turns() -> None:
    time = Time()
    (one, two), reaped = workers(time, 10.0, 4.0)
    one.submit(1, ROW, 1)
    one.submit(2, ROW, 1)
    two.submit(1, ROW, 1)
    time.run()
    assert reaped == [(0, pytest.approx(0.01)), (1, pytest.approx(0.014)), (0, pytest.approx(0.024))]


def test_times_spread_as_the_profile_says() -> None:
    time = Time()
    (worker,), reaped = workers(time, 10.0, cv=0.5)
    for number in range(4000):
        worker.submit(number, ROW, 1)
    time.run()
    taken = [later - before for (_, before), (_, later) in itertools.pairwise(reaped)]
    mean = sum(taken) / len(taken)
    assert mean == pytest.approx(0.01, rel=0.03)
    assert math.sqrt(sum((value - mean) ** 2 for value in taken) / len(taken)) == pytest.approx(0.005, rel=0.06)


def test_a_dead_worker_gives_nothing_back() -> None:
    time = Time()
    (one, two), reaped = workers(time, 10.0, 4.0)
    one.submit(1, ROW, 1)
    two.submit(1, ROW, 1)
    one.kill()
    time.run()
    assert [pid for pid, _ in reaped] == [1]


# --- minutes ----------------------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for() -> None:
    found = played(load="constant:40/s")
    assert found.rate == 40.0
    assert found.rows == pytest.approx(2400, rel=0.06)
    assert (found.unanswered, found.gust_rows, found.back_s) == (0, 0, 0.0)
    assert sum(second.rows for second in found.by_second) == found.rows
    assert sum(sum(second.variants.values()) for second in found.by_second) == found.rows
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_the_mix_that_is_served_is_the_mix_that_was_planned() -> None:
    """Ten minutes of a plan that mixes variants: within 0.1 points."""
    found = played("objective@0.03", "constant:0.5", family="efficientnet", seconds=600.0)
    assert len([share for share in found.planned_shares.values() if share > 0.05]) > 1, "the plan mixes"
    assert abs(found.accuracy - found.planned_accuracy) < 0.1


def test_in_a_gust_relief_keeps_rows_in_time() -> None:
    without = played("base", "constant:0.5", gust=2.5, seed=3)
    relieved = played("base", "constant:0.5", gust=2.5, seed=3, relief="auto")
    assert (relieved.rows, relieved.gust_rows) == (without.rows, without.gust_rows), "the same rows"
    assert without.gust_late > 0.3 * without.gust_rows, "those that are refused count; the others are in time"
    assert relieved.gust_late * 3 < without.gust_late
    assert relieved.back_s <= 5.0 < without.back_s
    assert relieved.reliefs >= 1
    assert 0 < relieved.relieved < relieved.rows
    assert relieved.accuracy < without.accuracy
    assert without.relieved == without.reliefs == 0


def test_the_same_seed_gives_the_same_minutes() -> None:
    assert played(seed=5) == played(seed=5)
    assert played(seed=5) != played(seed=6)


def test_gusts_come_once_a_minute() -> None:
    rate = gusty(10.0, 2.5)
    assert [rate(at_s) for at_s in (0.0, GUST_FROM_S, 31.9, 32.0, 80.0)] == [10.0, 25.0, 25.0, 10.0, 25.0]


def test_back_is_when_three_seconds_in_a_row_are_well() -> None:
    calm = [1.0] * 20
    assert back_s([*calm, 1.0, 1.0, 1.0], 2.0) == 0.0
    assert back_s([*calm, 3.0, 1.0, 3.0, 1.0, 1.0, 1.0, 3.0], 2.0) == 3.0
    assert back_s([*calm, 1.0, 3.0], 2.0) == math.inf
    assert back_s([*calm, 3.0, 1.0], 2.0) == 1.0, "of all that are left"
    assert back_s([3.0, *calm], 2.0, 1.0) == 0.0, "what was before is no matter of the gust"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["albert", "--gpus", "1", "--policies", "base", "--minutes", "1", "--gust", "2.5", "--relief", "auto"]
    assert main([*words, "--load", "constant:0.5", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "nothing was measured" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("albert")]
    assert [line[2] for line in lines] == ["none", "auto"]
    document = json.loads((tmp_path / "minutes.json").read_bytes())
    assert len(document["runs"]) == 2
    assert document["inputs"][0]["about"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gust", "2"], "give --minutes"),
        (["--relief", "auto"], "give --minutes"),
        (["--minutes", "0"], "--minutes is 0.5 to"),
        (["--minutes", "1", "--gust", "0.5"], "--gust is 1 to"),
        (["--minutes", "1", "--relief", "huge"], "no variant 'huge'"),
        (["--minutes", "1", "--load", "diurnal"], "the load is constant:U"),
        (["--minutes", "1", "--scenario", "paper"], "no --scenario"),
        (["--load", "constant:0/s"], "constant:U takes"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["albert", "--gpus", "1", *words]) == 2
    assert text in capsys.readouterr().err


def test_only_a_constant_load_is_played_row_by_row() -> None:
    with pytest.raises(ConfigError, match="constant:U"):
        played(load="bursts")


# --- cascades ---------------------------------------------------------------------------------------------------------


def with_cascade(folder: Path) -> str:
    """A profile of three variants on cores, with one chain: a fifth of the rows goes on from small to large."""
    point = ChainPoint(
        chain=("small", "large"),
        thresholds=(0.5,),
        accuracy=91.5,
        low=90.8,
        high=92.2,
        reach=(1.0, 0.2),
        ends=(94.0, 81.5),
        cut=(60.0, 81.5),
        cost=0.3,
    )
    cascade = CascadeProfile(points=(point,), quantiles={}, calibration_rows=5000, held_out_rows=5000)
    path = folder / "profile.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(profile(), cascade=cascade)))
    return str(path)


def on_cores(path: str, policy: str, **rules: Any) -> Case:
    shape = cpu()
    machine = SimulatedMachine((shape,), 4.0, "two cores")
    held = Rules(noise=False, form="floor", slo_ms=30.0, waits=False, **rules)
    own = World(machine, families.load(path, machine.shapes), held)
    return Case(own, world.traces([], "", 1.0)[0], loads.parse("constant:150/s"), world.scheme(policy), 0)


def test_a_cascade_row_by_row_is_what_was_planned(tmp_path: Path) -> None:
    path = with_cascade(tmp_path)
    rules = {"accuracy_floor": 91.0, "accuracy_margin": 0.0}
    mixed = play(on_cores(path, "objective+mix", **rules), seconds=60.0)
    chained = play(on_cores(path, "objective+cascade", **rules), seconds=60.0)
    assert chained.planned_accuracy == 91.5
    assert chained.accuracy == pytest.approx(91.5, abs=0.15)
    assert chained.shares["large"] == pytest.approx(0.2, abs=0.02)
    assert chained.active_j < 0.8 * mixed.active_j
    assert chained.unanswered == 0


def test_a_cascade_in_steps_is_what_the_profile_says(tmp_path: Path) -> None:
    """The books of a day and the rows of a minute agree."""
    path = with_cascade(tmp_path)
    rules = {"accuracy_floor": 91.0, "accuracy_margin": 0.0}
    run = replay.play(on_cores(path, "objective+cascade", **rules))
    minute = play(on_cores(path, "objective+cascade", **rules), seconds=120.0)
    step = run.steps[-1]
    assert step.accuracy == 91.5
    assert step.active_j / step.rows == pytest.approx(minute.active_j / minute.rows, rel=0.05)
    assert step.p95_ms == pytest.approx(minute.p95_ms, rel=0.1)


def test_what_has_no_profile_of_cascades_cannot_be_played_so() -> None:
    with pytest.raises(ConfigError, match="no profile of cascades"):
        played("objective+cascade")
    with pytest.raises(ConfigError, match=r"\+cascade or \+mix, not \+chain"):
        world.scheme("objective+chain")
    assert world.scheme("budget+cascade@0.1").cascade is True
