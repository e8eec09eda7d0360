"""The judge of `bench.soak` and `bench.upgrade`: they have to see what went wrong, or their zeros say nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import echo, soak, soak_server, upgrade
from bench.load import Body, Result, Sample
from bench.soak import Answers, FaultRecord, Soak

BASE = {"rss_bytes": 100 << 20, "fds": 60, "shm": 1, "zombies": 0, "processes": 5}


def answered(answers: Answers, spoil: str = "") -> Sample:
    body = answers.body(0.0)
    number = 7 if spoil == "another's number" else body.row
    variant = "middle"
    value = int(echo.answer(np.array([number]), 2 if spoil == "another variant" else 1)[0])
    sample = Sample(0, 1, 503 if spoil == "refused" else 200, body.row, "nobody" if spoil == "no variant" else variant)
    if sample.status == 200:
        answer = json.dumps({"outputs": [{"name": "answer", "data": [number, value]}]}).encode()
        answers.check(body, sample, answer)
    if spoil != "lost":
        answers.note(sample)
    if spoil == "twice":
        answers.note(sample)
    return sample


def judged(answers: Answers, faults: tuple[FaultRecord, ...] = (), lost: int = 0, **after: int) -> dict[str, Any]:
    run = Soak(SimpleNamespace(missing={}), argparse.Namespace(seed=0), Path())  # type: ignore[arg-type]
    run.answers, run.faults = answers, list(faults)
    return run._figures(lost, BASE, {**BASE, **after})


def test_what_is_right_is_right() -> None:
    answers = Answers()
    for spoil in ("", "", "refused"):
        answered(answers, spoil)
    found = judged(answers, faults=(FaultRecord("swap", 0.0, strong_s=4.9),), rss_bytes=150 << 20, fds=62)
    assert not found["failed"]
    assert found["statuses"] == {"200": 2, "503": 1}


@pytest.mark.parametrize(
    ("spoil", "figure"),
    [
        ("another's number", "mismatched"),
        ("another variant", "mismatched"),
        ("no variant", "mismatched"),
        ("twice", "duplicated"),
        ("lost", "without any end"),
    ],
)
def test_what_is_wrong_is_seen(spoil: str, figure: str) -> None:
    answers = Answers()
    answered(answers)
    answered(answers, spoil)
    found = judged(answers)
    assert found[figure] == 1
    assert found["failed"]


def test_statuses_losses_weak_servers_and_leaks_fail() -> None:
    answers = Answers()
    answers.body(0.0)
    answers.note(Sample(0, 1, 500, 0))
    assert judged(answers)["forbidden statuses"] == {"500": 1}
    answers.codes.clear()
    answers.waiting.add(5)
    assert judged(answers, lost=1)["failed"]
    answers.waiting.clear()
    for strong_s in (5.1, float("nan")):
        found = judged(answers, faults=(FaultRecord("swap", 0.0, strong_s=strong_s),))
        assert found["failed"]
        assert len(found["longer than 5 s"]) == 1
    for name, value in (("rss_bytes", 200 << 20), ("fds", 70), ("shm", 2), ("zombies", 1), ("processes", 6)):
        assert judged(answers, (), 0, **{name: value})["above the base line"] == [name]


def test_faults_and_charts_are_written(tmp_path: Path) -> None:
    run = Soak(SimpleNamespace(missing={}), argparse.Namespace(seed=0), tmp_path)  # type: ignore[arg-type]
    run.faults = [FaultRecord("swap", 1.0, "pinned", 3.0, 0.5)]
    run.rows = [dict.fromkeys(soak.COLUMNS, 1.0) | {"fault": ""}]
    run.write()
    assert (tmp_path / "faults.csv").read_text().splitlines()[1] == "swap,1.0,3.0,0.50,pinned"
    assert "<h1>Soak</h1>" in (tmp_path / "soak.html").read_text()


def test_a_server_that_does_not_start_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("measuring")
    server = soak_server.Server.__new__(soak_server.Server)
    late = iter([0.0, 301.0])
    with subprocess.Popen(["sleep", "60"]) as process:

        async def launch(*more: str) -> tuple[subprocess.Popen[bytes], Path]:
            return process, log

        monkeypatch.setattr(server, "launch", launch)
        monkeypatch.setattr(soak_server, "time", SimpleNamespace(monotonic=lambda: next(late)))
        with pytest.raises(RuntimeError, match="did not start:\nmeasuring"):
            asyncio.run(server.start())
        assert process.poll() is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_wall_clock_is_stepped_and_no_other(tmp_path: Path) -> None:
    library, file = tmp_path / "clock.so", tmp_path / "clock"
    source = Path(soak_server.__file__).with_name("soak_clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    script = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"

    def clocks(offset_s: float) -> list[float]:
        file.write_bytes(struct.pack("<q", int(offset_s * 1e9)))
        environment = {"LD_PRELOAD": str(library), "SOAK_CLOCK_FILE": str(file)}
        done = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, check=True)
        return [float(word) for word in done.stdout.split()]

    plain, ahead, behind = clocks(0.0), clocks(3600.5), clocks(-3600.5)
    assert ahead[0] - plain[0] == pytest.approx(3600.5, abs=30.0)
    assert behind[0] - plain[0] == pytest.approx(-3600.5, abs=30.0)
    for found in (ahead, behind):
        assert found[1:] == pytest.approx(plain[1:], abs=30.0)


def test_a_take_over_that_fails_requests_is_seen() -> None:
    one = upgrade.Round(10, 20, 30, code=0)
    ups = upgrade.Upgrades(1, Path(), (), rounds=[one])
    kept = Result([Sample(15, 16, 200, 0, mismatch=True), Sample(5, 6, 200, 0), Sample(40, 50, 502, 0)], sent=4, lost=1)
    short = upgrade.ShortConnections(1, [], 1.0, upgrade.Answers())
    found = upgrade.figures(ups, kept, short, 1.0, 1)
    assert found["failed over kept connections"] == "2 (502: 1, lost: 1)"
    assert found["mismatched"] == 1
    assert found["exit codes other than 0"] == 1
    assert found["p99 during, ms"] == pytest.approx(1e-6)


def test_an_answer_of_another_variant_or_with_other_numbers_is_a_mismatch() -> None:
    answers = upgrade.Answers()
    body = Body(b"", "row-1", 1)

    def check(data: list[float], variant: str = upgrade.VARIANT) -> bool:
        sample = Sample(0, 1, 200, 1, variant)
        answers.check(body, sample, json.dumps({"outputs": [{"datatype": "FP32", "data": data}]}).encode())
        return sample.mismatch

    assert not check([1.0, 2.0])
    assert not check([1.0, 2.0 + 1e-5])
    assert check([1.0, 2.1])
    assert check([1.0])
    assert check([1.0, 2.0], "large")
