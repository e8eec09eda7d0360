"""The judge of `bench.chaos`: it has to see what went wrong, or its zeros say nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import echo
from bench.chaos import Chaos, wrong
from clover.errors import Unavailable
from clover.families import load_family

NUMBERS = np.arange(200, dtype=np.int64)
NO_FATES = np.zeros(200, np.int64)


class Server:
    """Answers as a cascade would, and spoils its answer on request."""

    def __init__(self, spoil: str = "") -> None:
        self.spoil = spoil

    async def ainfer(self, inputs: dict[str, Any]) -> Any:
        if self.spoil == "refuse":
            raise Unavailable("two workers that died")
        numbers, fates = inputs["row"].T
        sure = [echo.sureness(numbers, fates, at) >= echo.THRESHOLD for at in (0, 1)]
        ends = np.where(sure[0], 0, np.where(sure[1], 1, 2))
        answers = np.stack([numbers, echo.answer(numbers, ends)], axis=1)
        names = [echo.NAMES[at] for at in ends]
        paths = [">".join(echo.NAMES[: at + 1]) for at in ends]
        if self.spoil == "swap":
            answers[[3, 4]] = answers[[4, 3]]
        elif self.spoil == "other variant":
            answers[5, 1] = echo.answer(numbers[5:6], (ends[5] + 1) % 3)[0]
        elif self.spoil == "path":
            paths[6] = "nobody"
        elif self.spoil == "cut short":
            row = int(np.flatnonzero(ends == 2)[0])
            answers[row, 1] = echo.answer(numbers[row : row + 1], 1)[0]
            names[row], paths[row] = echo.NAMES[1], "rough>middle"
        return Found(answers, names, paths)


class Found:
    """What a client sees of an answer."""

    def __init__(self, answers: Any, names: list[str], paths: list[str]) -> None:
        self.variants = tuple(names)
        self.receipt = SimpleNamespace(path=tuple(paths))
        self._answers = answers

    def __getitem__(self, name: str) -> Any:
        return self._answers


def judged(spoil: str) -> Chaos:
    chaos = Chaos(Server(spoil), None, 0, 0, 0)  # type: ignore[arg-type]
    asyncio.run(chaos.ask(NUMBERS, NO_FATES))
    return chaos


def test_what_is_right_is_right() -> None:
    found = judged("")
    assert (found.mismatched, found.elsewhere, found.told) == (0, 0, 0)
    assert sorted(found.answered) == NUMBERS.tolist()
    assert all(found.ends[path] > 20 for path in ("rough", "rough>middle", "rough>middle>exact"))


@pytest.mark.parametrize(("spoil", "mismatched"), [("swap", 2), ("other variant", 1), ("path", 1)])
def test_what_is_wrong_is_seen(spoil: str, mismatched: int) -> None:
    assert judged(spoil).mismatched == mismatched


def test_a_row_that_was_cut_short_is_right_but_elsewhere() -> None:
    found = judged("cut short")
    assert (found.mismatched, found.elsewhere) == (0, 1)


def test_an_error_is_told_and_no_answer() -> None:
    found = judged("refuse")
    assert (found.told, len(found.answered)) == (200, 0)
    assert sum(found.failed.values()) == 200


def test_an_answer_that_comes_twice_is_seen() -> None:
    chaos = Chaos(Server(), None, 0, 0, 0)  # type: ignore[arg-type]
    for _ in range(2):
        asyncio.run(chaos.ask(NUMBERS, NO_FATES))
    assert set(chaos.answered.values()) == {2}


def test_a_row_kills_as_often_as_its_fate_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_family(echo.family(str(tmp_path)))
    died: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: died.append(number))
    for at, variant in enumerate(spec.variants):
        run = echo.load(variant, tmp_path)
        rows = np.array([[7, echo.doomed(2, 0, 1)], [8, 0]], np.int64)
        for _ in range(4):
            answers, sure = run([rows])
            assert answers[:, 0].tolist() == [7, 8]
            assert answers[:, 1].tolist() == echo.answer(rows[:, 0], at).tolist()
            assert sure[0, 0] == 0.0, "a row with a fate goes on"
        assert died == [signal.SIGKILL] * (2, 2, 3)[at]


@pytest.mark.parametrize("name", ["lost", "duplicated", "mismatched", "forbidden", "deaths by rows that kill"])
def test_a_run_that_went_wrong_says_in_what(name: str) -> None:
    well = {"lost": 0, "duplicated": 0, "mismatched": 0, "forbidden": 0, "deaths by rows that kill": 3}
    assert wrong(well) == []
    assert wrong({**well, name: 0 if well[name] else 1}) == [name]
