"""How cores idle: the kernel's idle states where there are any, else /proc/stat."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from clover.devices.core_idle import LEAST_S, LOOK_S, WINDOW_S, CoreIdle

STATES = {0: ("POLL", 0), 1: ("C1", 2), 2: ("C1E", 20), 3: ("C6", 600)}


class Machine:
    """Counters of cores 1 and 2 in files, and a clock."""

    def __init__(self, root: Path, *, cpuidle: bool = True) -> None:
        self.root, self.now_s = root, 100.0
        self.spent: dict[tuple[int, int], tuple[int, int]] = {}
        self.ticks = {1: 0, 2: 0}
        self.cpuidle = cpuidle
        self.write()

    def clock(self) -> float:
        return self.now_s

    def write(self) -> None:
        lines = ["cpu  0 0 0 0 0 0 0 0 0 0", "cpu0 9 9 9 9 9 9 9 9 0 0"]
        lines += [f"cpu{core} 5 0 5 {ticks} 0 0 0 0 0 0" for core, ticks in self.ticks.items()]
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/stat").write_text("\n".join([*lines, "intr 1 2 3"]) + "\n")
        if not self.cpuidle:
            return
        for core in self.ticks:
            for number, (name, residency) in STATES.items():
                folder = self.root / f"sys/devices/system/cpu/cpu{core}/cpuidle/state{number}"
                folder.mkdir(parents=True, exist_ok=True)
                us, times = self.spent.get((core, number), (0, 0))
                for leaf, text in (("name", name), ("residency", residency), ("time", us), ("usage", times)):
                    (folder / leaf).write_text(f"{text}\n")

    def after(self, seconds: float) -> None:
        self.now_s += seconds
        self.write()


def looked(idle: CoreIdle) -> dict[str, Any] | None:
    idle.poll()
    return idle.report()


def test_deep_states_are_told_from_shallow_ones_and_polling_is_no_rest(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    idle = CoreIdle((1, 2), tmp_path, machine.clock)
    machine.spent = {(1, 0): (900_000, 7), (1, 1): (4_000_000, 400), (1, 3): (5_000_000, 100), (2, 3): (9_900_000, 20)}
    machine.after(10.0)
    report = looked(idle)
    assert report is not None
    assert report["source"] == "cpuidle"
    assert report["seconds"] == pytest.approx(10.0)
    busy, asleep = report["cores"]
    assert busy == {"core": 1, "idle": pytest.approx(0.9), "deep": pytest.approx(0.5), "wakes_per_s": 50.0}
    assert asleep == {"core": 2, "idle": pytest.approx(0.99), "deep": pytest.approx(0.99), "wakes_per_s": 2.0}


def test_where_the_kernel_drives_no_states_how_deep_is_not_known(tmp_path: Path) -> None:
    machine = Machine(tmp_path, cpuidle=False)
    idle = CoreIdle((1, 2), tmp_path, machine.clock)
    machine.ticks = {1: 250, 2: 1001}
    machine.after(10.0)
    report = looked(idle)
    assert report is not None
    assert report["source"] == "/proc/stat"
    assert [(each["core"], each["idle"], each["deep"], each["wakes_per_s"]) for each in report["cores"]] == [
        (1, pytest.approx(0.25), None, None),
        (2, 1.0, None, None),
    ]


def test_the_window_is_about_a_minute_and_answers_are_kept_for_a_second(tmp_path: Path) -> None:
    machine = Machine(tmp_path, cpuidle=False)
    idle = CoreIdle((1,), tmp_path, machine.clock)
    assert looked(idle) is None, "too early"
    machine.ticks[1] = 3_000
    machine.after(WINDOW_S)
    first = looked(idle)
    machine.after(0.5)
    assert looked(idle) is first
    machine.ticks[1] = 3_500
    machine.after(4.5)
    later = looked(idle)
    assert later is not None
    assert later["seconds"] == pytest.approx(5.0)
    assert later["cores"][0]["idle"] == 1.0


def test_nothing_is_made_up_where_nothing_can_be_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, cpuidle=False)
    (tmp_path / "proc/stat").unlink()
    idle = CoreIdle((1,), tmp_path, machine.clock)
    machine.now_s += 10.0
    assert looked(idle) is None
    machine.write()
    machine.now_s += 10.0
    assert looked(idle) is None, "there is nothing to compare with"


def test_a_report_reads_no_file_and_looks_are_due_every_ten_seconds(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    idle = CoreIdle((1, 2), tmp_path, machine.clock)
    assert not idle.due
    machine.after(LEAST_S)
    assert idle.due
    assert idle.report() is None, "nothing looked yet"
    report = looked(idle)
    assert report is not None
    shutil.rmtree(tmp_path / "sys")
    machine.now_s += LOOK_S - 0.5
    assert not idle.due
    assert idle.report() is report
    machine.now_s += 0.5
    assert idle.due
