"""What a command shows while it runs: nothing if it is quick, lines in a pipe, one line that changes on a terminal."""

from __future__ import annotations

import sys
import time

import pytest

from clover.cli import progress
from clover.cli.progress import Progress


def test_a_quick_command_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("plan", "solving"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_slow_command_says_what_it_does(
    on_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_ON_TERMINAL_S", (0.0, 0.001))
    monkeypatch.setattr(progress, "_IN_PIPE_S", (0.0, 0.001))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    monkeypatch.setenv("COLUMNS", "36")
    shown = ""
    with Progress("simulate", "reading") as shows:
        while "reading" not in shown:
            shown += capsys.readouterr().err
            time.sleep(0.001)
        shows.note("playing a family of a long name", 3, 8)
        while "playing" not in shown:
            shown += capsys.readouterr().err
            time.sleep(0.001)
    shown += capsys.readouterr().err
    if on_terminal:
        assert "\n" not in shown
        assert shown.endswith("\r\033[K"), "the line goes when the command is done"
        assert all(len(line) < 36 for line in shown.split("\r\033[K"))
    else:
        lines = shown.splitlines()
        assert lines[0] == "clover simulate: reading, 0 s"
        assert lines[-1] == "clover simulate: playing a family of a long name (3 of 8 done), 0 s"
