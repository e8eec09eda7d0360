"""How long each row of a trace holds: changes of step, missing rows, and files on disk that change."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.carbon import SourceChain, build, build_source
from clover.carbon.grid import Grid
from clover.carbon.trace import TraceSource, steps_of
from clover.config import CarbonConfig
from clover.errors import CarbonError
from clover.types import Reading

HOUR = 3600.0
T0 = 1_640_995_200.0  # 2022-01-01
HEADER = "datetime_utc,carbon_intensity_gco2_per_kwh"


def file_of(rows: Sequence[tuple[float, float]]) -> str:
    lines = [f"{datetime.fromtimestamp(at_s, UTC).isoformat()},{g_per_kwh!r}" for at_s, g_per_kwh in rows]
    return "\n".join([HEADER, *lines, ""])


def read(source: TraceSource | SourceChain, grid_s: float) -> Reading:
    return asyncio.run(source.read(grid_s))


@pytest.mark.parametrize(
    ("distances", "steps"),
    [
        ([1, 1, 1, 2, 1, 1], [1, 1, 1, 1, 1, 1, 1]),  # a row is missing
        ([1, 1, 2, 2, 1, 1], [1, 1, 1, 1, 1, 1, 1]),  # two, each alone
        ([1, 1, 2, 3, 2, 1], [1, 1, 1, 1, 1, 1, 1]),  # many
        ([2, 1, 1, 1], [1, 1, 1, 1, 1]),  # the second row
        ([1, 1, 1, 2], [1, 1, 1, 1, 1]),  # the last but one
        ([1, 1, 0.5, 0.5], [1, 1, 0.5, 0.5, 0.5]),  # hourly, then half-hourly
        ([0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1, 1]),  # and the other way
        ([1, 0.5, 0.5, 0.25, 0.25, 0.25], [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]),  # one hour: too few to know
        ([0.5, 0.5, 1, 1, 1, 0.5, 0.5], [0.5, 0.5, 1, 1, 1, 0.5, 0.5, 0.5]),
        ([1, 1, 1.5, 0.5, 0.5], [1, 1, 0.5, 0.5, 0.5, 0.5]),  # missing at a change: no longer than is certain
        ([1, 1.01, 1, 0.99, 1.01], [1, 1.01, 1, 0.99, 1.01, 1.01]),  # a clock that is not exact
        ([7], [7, 7]),
    ],
)
def test_a_gap_is_told_from_a_change_of_step(distances: list[float], steps: list[float]) -> None:
    assert steps_of([0.0, *accumulate(distances)]) == pytest.approx(steps)


def test_the_time_of_one_row_alone_shows_no_step() -> None:
    with pytest.raises(ValueError, match="one row"):
        steps_of([5.0])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60))
def test_no_row_holds_beyond_the_next_one_whatever_the_distances(distances: list[int]) -> None:
    steps = steps_of([0.0, *accumulate(distances)])
    assert len(steps) == len(distances) + 1
    assert all(0 < step <= distance for step, distance in zip(steps, [*distances, 5], strict=True))
    shortest = min(distances)
    assert steps[distances.index(shortest)] == shortest


@st.composite
def changing_files(draw: st.DrawFn) -> list[tuple[float, float, bool]]:
    """Rows as (time, step, whether it is in the file) of a file that changes step.

    Up to three rows are missing at a time, within stretches of one step: not where it changes, and at least two rows
    are there in between."""
    steps = draw(
        st.lists(st.sampled_from([300.0, 900.0, 1800.0, HOUR]), min_size=1, max_size=5).filter(
            lambda found: all(a != b for a, b in pairwise(found))
        )
    )
    rows, at_s = [], T0
    for step in steps:
        gaps = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(2, 4)), max_size=3))
        kept = [True] * 4
        for missing, there in gaps:
            kept += [False] * missing + [True] * there
        for there_is in [*kept, True, True]:
            rows.append((at_s, step, there_is))
            at_s += step
    return rows


@given(changing_files(), st.data())
def test_every_value_is_right_at_every_time_of_a_file_that_changes_step(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float, bool]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("steps") / "day.csv"
    values = {at_s: 100.0 + number for number, (at_s, _, _) in enumerate(rows)}
    there = [(at_s, values[at_s]) for at_s, _, kept in rows if kept]
    path.write_text(file_of(data.draw(st.permutations(there))), encoding="utf-8")
    source = build_source(f"trace:{path}")
    assert isinstance(source, TraceSource)
    end_s = sum(rows[-1][:2])
    assert (source.missing, source.end_s) == (len(rows) - len(there), end_s)
    chain = SourceChain([source], max_age_s=0.0)

    async def walk() -> None:
        for at_s, step, kept in rows:
            for grid_s in (at_s, at_s + step / 2, at_s + step - 1.0):
                found = await chain.read(grid_s)
                if kept:
                    assert (await source.read(grid_s)).g_per_kwh == values[at_s]
                    assert (found.g_per_kwh, found.state, found.step_s) == (values[at_s], "fresh", step)
                else:
                    with pytest.raises(CarbonError, match="a gap"):
                        await source.read(grid_s)
                    assert found.state != "fresh" or grid_s == at_s  # the row before ends at that very moment
        ahead = await source.forecast(T0, end_s - T0)
        assert [(item.at_s, item.g_per_kwh) for item in ahead] == there

    asyncio.run(walk())


# --- files that change ----------------------------------------------------------------------------------------------


class Served:
    """A file on disk that leads a chain, read at `grid_s` as real seconds pass."""

    def __init__(self, path: Path, rows: list[tuple[float, float]] | None = None) -> None:
        self.path = path
        self.now_s = 0.0
        self.wrote = 0
        self.write(rows or [(T0, 100.0), (T0 + HOUR, 110.0)])
        config = CarbonConfig(source=f"trace:{path},static:300")
        self.chain, self.clock = build(config, monotonic=lambda: self.now_s, wall=lambda: T0 + 60.0 + self.now_s)
        self.chain.links[0].refresh_wait_s = 60.0  # what is read in the thread is seen, however busy the machine is

    def write(self, rows: list[tuple[float, float]] | str, *, after_s: float = 1e6) -> None:
        """Write the file, whose time is then `after_s` from now: by default one of a disk whose clock is ahead."""
        text = rows if isinstance(rows, str) else file_of(rows)
        self.path.write_text(text, encoding="utf-8")
        self.wrote += 1
        at_ns = int((T0 + 60.0 + self.now_s + after_s) * 1e9) + self.wrote * 1_000
        os.utime(self.path, ns=(at_ns, at_ns))

    def after(self, seconds: float) -> Reading:
        """The reading when so many seconds have passed."""
        self.now_s += seconds
        return asyncio.run(self.chain.read(T0 + 60.0 + self.now_s))

    @property
    def failures(self) -> int:
        return sum(self.chain.errors.values())


def test_a_file_that_changes_on_disk_is_read_again(tmp_path: Path) -> None:
    served = Served(tmp_path / "day.csv")
    assert served.after(0.0).g_per_kwh == 100.0
    served.write([(T0, 170.0), (T0 + HOUR, 180.0), (T0 + 2 * HOUR, 190.0)])
    assert served.after(4.9).g_per_kwh == 100.0  # looked at every five seconds
    assert served.after(0.1).g_per_kwh == 100.0  # it changed: it may still be written
    found = served.after(5.0)  # it was left alone
    assert (found.g_per_kwh, found.state) == (170.0, "fresh")
    assert served.after(2 * HOUR).g_per_kwh == 190.0
    assert served.failures == 0


def test_a_live_file_that_lagged_at_the_start_is_followed_once_it_has_its_next_rows(tmp_path: Path) -> None:
    past = [(T0 - 2 * HOUR, 90.0), (T0 - HOUR, 100.0)]
    served = Served(tmp_path / "day.csv", past)
    found = served.after(0.0)
    assert (found.g_per_kwh, found.state, found.replayed) == (100.0, "stale", False)
    served.write([*past, (T0, 170.0)])
    served.after(5.0)
    found = served.after(5.0)
    assert (found.g_per_kwh, found.state, found.replayed) == (170.0, "fresh", False)


def test_a_file_is_not_read_while_it_is_written(tmp_path: Path) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    whole = file_of([(T0, 170.0), (T0 + HOUR, 180.0)])
    for end in range(len(whole) - 20, len(whole) + 1):
        served.write(whole[:end])
        assert served.after(5.0).g_per_kwh == 100.0
    assert served.after(5.0).g_per_kwh == 170.0
    assert served.failures == 0


def test_a_file_that_was_left_alone_for_two_seconds_is_read_at_the_first_look(tmp_path: Path) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    for look in range(20):
        served.write([(T0, 170.0 + look), (T0 + HOUR, 180.0)], after_s=2.9)  # between all looks
        assert served.after(5.0).g_per_kwh == 170.0 + look
    served.write([(T0, 300.0), (T0 + HOUR, 180.0)], after_s=3.1)
    assert served.after(5.0).g_per_kwh == 189.0, "it may still be written"
    assert served.failures == 0


def test_a_file_that_is_written_right_before_every_look_is_read_at_each_third(tmp_path: Path) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    found = []
    for look in range(9):
        served.write([(T0, 170.0 + look), (T0 + HOUR, 180.0)], after_s=4.5)
        found.append(served.after(5.0).g_per_kwh)
    assert found == [100.0, 100.0, 172.0, 172.0, 172.0, 175.0, 175.0, 175.0, 178.0]
    assert served.failures == 0
    for look in range(6):
        served.write("a,b\n1,2\n", after_s=4.5)
        assert (served.after(5.0).g_per_kwh, served.failures) == (178.0, (look + 1) // 3)


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)

    def torn(path: Path) -> bytes:
        data = path.read_bytes()
        served.write([(T0, 190.0), (T0 + HOUR, 195.0)], after_s=0.0)
        return data

    served.write([(T0, 170.0), (T0 + HOUR, 180.0)], after_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("clover.carbon.trace.read_file", torn)
        assert served.after(5.0).g_per_kwh == 100.0
    assert served.after(5.0).g_per_kwh == 190.0
    assert served.failures == 0


def test_a_long_file_is_read_in_small_parts_so_that_the_event_loop_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    paused: list[float] = []
    monkeypatch.setattr("clover.carbon.layouts.time.sleep", paused.append)
    served.write([(T0 + n * 300.0, 100.0 + n % 7) for n in range(6_400)], after_s=0.0)
    assert served.after(5.0).g_per_kwh == 100.0
    assert set(paused) == {0}
    assert len(paused) >= 6 * 6_400 // 64 - 6, "while rows are parsed, put in order, and their steps found"


@pytest.mark.parametrize(
    "damage", [HEADER + "\n2022-01-01T00:00Z,12", HEADER + "\n2022-01-01T0", "", "a,b\n1,2\n", None]
)
def test_a_damaged_file_leaves_the_last_good_one_in_force_and_is_counted(
    tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    if damage is None:
        served.path.unlink()
    else:
        served.write(damage)
    for _ in range(5):
        assert (served.after(5.0).g_per_kwh, served.failures) in ((100.0, 0), (100.0, 1))
    assert served.failures == 1, "once for each state of the file"
    assert "what it held before stays in force" in served.chain.last_error
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    grid = Grid(served.chain, lambda: T0 + 60.0 + served.now_s)
    assert asyncio.run(grid.read()).state == "fresh"
    assert grid.trouble == served.chain.last_error, "the state says it while the last good one is in force"
    found = served.after(HOUR)
    assert (found.g_per_kwh, found.state) == (110.0, "fresh")
    served.write([(T0, 1.0), (T0 + HOUR, 2.0)])
    served.after(5.0)
    assert served.after(5.0).g_per_kwh == 2.0
    assert served.failures == 1
    assert grid.trouble == ""


def test_nobody_waits_while_a_long_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path / "day.csv")
    served.after(0.0)
    served.write([(T0, 170.0), (T0 + HOUR, 180.0)], after_s=0.0)
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> bytes:
        begun.set()
        assert go_on.wait(60.0)
        return path.read_bytes()

    monkeypatch.setattr("clover.carbon.trace.read_file", slow)
    served.chain.links[0].refresh_wait_s = 0.0

    async def story() -> None:
        served.now_s += 5.0
        grid_s = T0 + 60.0 + served.now_s
        for _ in range(3):
            assert (await served.chain.read(grid_s)).g_per_kwh == 100.0
        assert await asyncio.to_thread(begun.wait, 60.0)
        assert (await served.chain.read(grid_s)).g_per_kwh == 100.0, "the thread reads, and the chain answers"
        assert [found.g_per_kwh for found in await served.chain.forecast(grid_s, HOUR)] == [100.0, 110.0]
        go_on.set()
        task = served.chain.links[0]._refreshing
        assert task is not None
        await asyncio.wait([task])
        assert (await served.chain.read(grid_s)).g_per_kwh == 170.0

    asyncio.run(story())
