"""Servers on emulated GPUs as the field has them: held by monitors, lost in several ways, for one process only, asleep
and without any sensor of power."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import run


def events(said: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in said if line["event"] == name]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_monitors_and_lost_gpus_cost_no_client_an_answer(scenes: Forks, toy_cache: Path) -> None:
    code, said, errors = run(scenes, toy_cache, "mig", module="tests.support.hostile_gpus")
    assert code == 0, errors
    (held,) = events(said, "monitor")
    assert "rolled back: destroy" in held["outcome"]
    assert "nv-hostengine (process " in held["outcome"]
    assert "may hold it: systemctl stop nvidia-dcgm" in held["outcome"]
    assert held["instances"] == held["deployment"] == ["gpu0:7g.40gb@0", "gpu1:7g.40gb@0"]
    (stopped,) = events(said, "monitor stopped")
    assert stopped["instances"] == stopped["deployment"]
    assert len(stopped["instances"]) == 5
    ways = events(said, "lost")
    assert [line["how"] for line in ways] == ["GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND", "UNKNOWN", "Xid 95"]
    for line in ways:
        assert line["deployment"] == ["gpu0:7g.40gb@0"], line
    (end,) = events(said, "end")
    assert end["deployment"] == ["gpu0:7g.40gb@0", "gpu1:7g.40gb@0"]
    assert end["asked"] > 0
    assert end["failed"] == 0, end
    assert "holds GPU instances" not in errors


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_exclusive_gpu_is_handed_over_and_a_prohibited_one_refused(scenes: Forks, toy_cache: Path) -> None:
    code, said, errors = run(scenes, toy_cache, "exclusive", module="tests.support.hostile_gpus")
    assert code == 0, errors
    (line,) = events(said, "exclusive")
    assert line == {
        "event": "exclusive",
        "outcomes": ["", "half", "", "full"],
        "one_process": True,
        "standbys": [],
    }
    (end,) = events(said, "end")
    assert end["asked"] > end["failed"]
    # Between the end of one worker and the start of the next nothing serves; nothing else may fail.
    assert set(end["reasons"]) <= {"no worker of this model is ready"}, end
    (refused,) = events(said, "prohibited")
    assert "gpu0 is in compute mode PROHIBITED" in refused["refused"]
    assert "nvidia-smi -i 0 -c DEFAULT" in refused["refused"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_laptop_s_gpu_is_woken_and_its_energy_modelled(scenes: Forks, toy_cache: Path) -> None:
    code, said, errors = run(scenes, toy_cache, "laptop", module="tests.support.hostile_gpus")
    assert code == 0, errors
    (line,) = events(said, "laptop")
    assert line["asked"] > 30
    assert line["failed"] == 0
    assert "NVML shows neither its energy nor its power" in line["meter"]
    assert "13.8 W idle to 115 W busy (the data sheet of NVIDIA GeForce RTX 4060 Laptop GPU), -50%" in line["meter"]
    assert 0.0 < line["line"]["active_j"] < line["line"]["measured_j"]
    assert line["line"]["uncertainty_low"] == -0.5
