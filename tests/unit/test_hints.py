"""A reader that stops reading ends a command quietly, any other broken pipe is an error, and long waits are named."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clover.cli import CommandParser
from clover.hints import duration, importing, named_wait, search_here, until_closed


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
        ["clover", "mig", "list"],
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the console script runs: Python does not search it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    return tmp_path


@pytest.mark.parametrize("file", ["own_thing.py", "own_thing/__init__.py"])
def test_a_module_that_is_named_is_found_in_the_present_folder(file: str, here: Path) -> None:
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_text("")
    search_here("own_thing.part")
    assert sys.path[-1] == str(here)
    search_here("own_thing")
    assert sys.path.count(str(here)) == 1


@pytest.mark.parametrize("name", ["json", "json.own", "__main__", "other", "", ".own", "a-b", "..", "own thing"])
def test_no_other_name_has_the_present_folder_searched(name: str, here: Path) -> None:
    for file in ("json.py", "own_thing.py", "a-b.py"):
        (here / file).write_text("raise SystemExit('a file that nobody named')\n")
    before = list(sys.path)
    search_here(name)
    assert sys.path == before


def test_what_is_installed_stands_before_the_present_folder(here: Path) -> None:
    for file in ("own_thing.py", "tomllib.py"):
        (here / file).write_text("")
    search_here("own_thing")
    spec = importlib.util.find_spec("tomllib")
    assert spec is not None
    assert spec.origin != str(here / "tomllib.py")


def test_a_safe_path_stays_safe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "own_thing.py").write_text("")
    monkeypatch.setattr("clover.hints.safe_path", lambda: True)
    before = list(sys.path)
    search_here("own_thing")
    assert sys.path == before


def test_a_present_folder_that_is_gone_is_not_searched(here: Path) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    before = list(sys.path)
    search_here("own_thing")
    assert sys.path == before
