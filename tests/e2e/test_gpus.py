"""Servers on emulated GPUs: those that the load does not need are parked, and families share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import run


def played(scenes: Forks, cache: Path, story: str) -> dict[str, Any]:
    code, said, errors = run(scenes, cache, story, within_s=180, module="tests.support.gpu_server")
    assert code == 0, errors
    return said[-1]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_gpus_without_load_are_parked_and_one_wakes_when_another_is_lost(scenes: Forks, toy_cache: Path) -> None:
    found = played(scenes, toy_cache, "parked")
    assert found["awake_at_first"] == 3
    assert found["gone"] > 0, "no process of a parked GPU is left"
    asleep = {name for name, item in found["state"].items() if item["parked"]}
    assert len(asleep) == 2
    assert all(not found["standing"][name] for name in asleep), "nor an instance"
    assert all(found["state"][name]["spared_w"] > 0.0 for name in asleep)
    assert "is parked, which spares" in found["detail"]
    metrics = [line for line in found["metrics"] if line.startswith("clover_device_parked{")]
    assert sorted(line.split()[-1] for line in metrics) == ["0.0", "1.0", "1.0"]
    assert found["woken"]
    assert set(found["woken"]) <= asleep
    assert found["failed_before"] == 0, found["reasons"]
    assert found["failed"] == 0, found["reasons"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_families_share_one_gpu_and_a_change_of_one_does_not_touch_the_other(
    scenes: Forks, toy_cache: Path
) -> None:
    found = played(scenes, toy_cache, "shared")
    (device,) = found["state"].values()
    assert device["family"] == "one, two"
    owners: dict[str, set[int]] = {}
    for item in device["layout"]:
        owners.setdefault(item["family"], set()).add(int(item["placement"].partition("@")[2]))
    assert max(owners["one"]) < min(owners["two"])
    theirs = {item["placement"] for item in device["layout"] if item["family"] == "two"}
    assert [sorted(set(here) - theirs) for here in found["changes"]] == [
        ["gpu0:2g.12gb@0"],
        ["gpu0:1g.6gb@0", "gpu0:1g.6gb@1"],
    ]
    assert all(theirs <= set(here) for here in found["changes"])
    assert found["untouched"], "the same processes"
    assert found["answered"]
    assert found["failed"] == 0, found["reasons"]
