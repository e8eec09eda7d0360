"""A reader that stops reading ends a command quietly, any other broken pipe is an error, and long waits are named."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clover.cli import CommandParser
from clover.hints import duration, importing, named_wait, until_closed


class Clock(threading.Timer):
    """A timer whose time passes when a test says so."""

    made: list[Clock] = []

    def start(self) -> None:
        self.made.append(self)

    def pass_s(self, seconds: float) -> None:
        if seconds >= self.interval and not self.finished.is_set():
            self.function(*self.args, **self.kwargs)


def test_a_wait_is_named_within_five_seconds_and_only_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Timer", Clock)
    said: list[str] = []
    for seconds, expected in ((1.0, []), (5.0, ["waiting for the carbon source"])):
        with named_wait("the carbon source", said.append):
            Clock.made[-1].pass_s(seconds)
        assert said == expected
    with pytest.raises(OSError, match="gone"), named_wait("nothing", said.append):
        raise OSError("gone")
    Clock.made[-1].pass_s(60.0)
    assert said == ["waiting for the carbon source"]


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["clover", "profile"],
        ["clover", "simulate"],
        ["clover", "ctl", "set"],
        ["clover", "mig", "plan"],
        ["clover.serve"],
    ],
)
def test_a_reader_that_has_seen_enough(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        until_closed(command)


def test_the_exit_code_is_the_command_s() -> None:
    assert until_closed(lambda: 3) == 3


def test_a_standard_output_that_was_closed_is_no_error() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m clover --version >&-', sys.executable],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_durations_are_rough_or_to_the_second() -> None:
    seconds = (0.2, 25.4, 100, 3540, 4800)
    assert [duration(each, rough=True) for each in seconds] == ["1 s", "25 s", "2 min", "59 min", "1 h 20 min"]
    assert [duration(each) for each in seconds] == ["0 s", "25 s", "1 min 40 s", "59 min 0 s", "1 h 20 min"]


def test_nothing_is_collected_while_modules_are_imported() -> None:
    assert gc.isenabled()
    enabled = list[bool]()

    def failing() -> None:
        with importing():
            enabled.append(gc.isenabled())
            raise ModuleNotFoundError

    with pytest.raises(ModuleNotFoundError):
        failing()
    assert [*enabled, gc.isenabled()] == [False, True]
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled(), "what was off stays off"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "there is no 'lst' (did you mean list?)"),
        (["--", "lst"], "there is no 'lst' (did you mean list?)"),
        (["--frob", "lst"], "unrecognised arguments: --frob"),
    ],
)
def test_what_a_wrong_choice_is_called(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("how", choices=["list", "rest"])
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert said in capsys.readouterr().err
