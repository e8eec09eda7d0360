"""How far a measurement is: lines that are rare and say how long, and a bar that fits a terminal."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re

import pytest
from rich.console import Console

from clover.profiling import bar
from clover.profiling.estimate import TimeLeft
from clover.profiling.progress import ProgressLines, progress_bar, progress_or_bar
from clover.profiling.rig import ProgressSteps
from clover.telemetry.logs import TextFormatter, WriterHandler


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_time_left_follows_from_the_steps_done() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.left_s(0, 10) is None, "nothing is known yet"
    clock.now_s += 6
    assert left.left_s(2, 10) == pytest.approx(24.0)
    assert left.text(2, 10) == "2 of 10 steps, about 24 s left"
    assert left.left_s(2, 4) == pytest.approx(6.0), "a total that was estimated wrongly is corrected"


def test_after_the_first_worker_it_is_said_once_how_long_all_will_take() -> None:
    clock, said = Clock(), list[str]()
    steps = ProgressSteps(None, announce=said.append, clock=clock)
    steps.total = 45
    for _ in range(3):
        steps.begin("a worker")
        assert len(said) == (clock.now_s > 100.0)
        clock.now_s += 8.0
    assert said == ["the first of 45 steps took 8.0 s: measuring takes about 6 min, once"]


def test_the_time_left_is_steady_though_steps_are_not_alike() -> None:
    clock = Clock()
    time_left = TimeLeft(clock)
    steps = [6, 2, 2, 7, 2, 2, 8, 3, 3, 9, 3, 3, *[1, 3, 1, 1] * 12, 5]
    found, truth = list[float](), list[float]()
    for done, seconds in enumerate(steps):
        if (left_s := time_left.left_s(done, len(steps))) is not None:
            found.append(left_s)
            truth.append(sum(steps[done:]))
        clock.now_s += seconds
    assert max(after - before for before, after in itertools.pairwise(found)) < 10.0  # 49 by the mean step alone
    assert found[-1] == pytest.approx(truth[-1], abs=5.0)


def test_compiling_and_measuring_are_estimated_apart() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.left_s(0, 2)
    clock.now_s += 50
    assert left.left_s(1, 2) == pytest.approx(50.0)
    assert left.left_s(0, 20) is None
    clock.now_s += 2
    assert left.left_s(1, 20) == pytest.approx(38.0), "seconds of compiling say nothing of measuring"


def test_lines_are_rare_and_say_how_long() -> None:
    clock, lines = Clock(), list[str]()
    note = ProgressLines("toy", lines.append, clock)
    for step in range(30):
        note(f"step {step}", step, 30)
        clock.now_s += 1
    assert lines == [
        "measuring toy: 10 of 30 steps, about 20 s left after 10 s (step 10)",
        "measuring toy: 20 of 30 steps, about 10 s left after 20 s (step 20)",
    ]


def test_no_terminal_means_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("toy") as tell:
        tell("something", 1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "clover: measuring toy on this machine (about a minute for a small family) ...\n"


def test_a_server_without_a_terminal_logs_its_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "clover.profiling")
    clock = Clock()
    monkeypatch.setattr("clover.profiling.progress.ProgressLines.__init__.__defaults__", (clock,))
    with progress_or_bar("toy", None) as tell:
        clock.now_s += 20
        tell("something", 1, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "measuring toy: 1 of 2 steps, about 20 s left after 20 s (something)"
    ]


def test_the_bar_fits_eighty_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    with bar.shown("fashion", console) as show:
        show("a step that is named at length, so that it does not fit the terminal by far", 3, 17)
    last = [line for line in out.getvalue().splitlines() if "3 of 17" in line]
    assert last, out.getvalue()
    assert all(len(line) <= 80 + len("\x1b[2K\x1b[1A\r") for line in last)
    assert "about" in last[-1]
    assert "measuring fashion: a step that is named at length" in out.getvalue()


def test_log_lines_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    handler, root = logging.StreamHandler(out), logging.getLogger()
    root.addHandler(handler)
    try:
        with bar.shown("toy", Console(file=out, force_terminal=True, width=80, color_system=None)) as show:
            show("something", 1, 2)
            logging.getLogger("clover.profiling").warning("a backend is not used")
        assert handler.stream is out
    finally:
        root.removeHandler(handler)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip() for line in re.split(r"[\r\n]", out.getvalue())]
    assert "a backend is not used" in lines, "a line of its own"


def test_lines_of_the_log_that_a_command_writes_stand_above_the_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    reading, writing = os.pipe()
    handler, root = WriterHandler(writing, TextFormatter()), logging.getLogger()
    root.addHandler(handler)
    try:
        with bar.shown("toy", Console(file=out, force_terminal=True, width=80, color_system=None)) as show:
            show("something", 1, 2)
            logging.getLogger("clover.profiling").warning("a backend is not used")
        logging.getLogger("clover.profiling").warning("the bar is gone")
    finally:
        root.removeHandler(handler)
        handler.close()
        os.close(writing)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip() for line in re.split(r"[\r\n]", out.getvalue())]
    assert any(line.endswith("warning profiling: a backend is not used") for line in lines), "a line of its own"
    with os.fdopen(reading) as behind:
        assert behind.read().endswith("warning profiling: the bar is gone\n")
