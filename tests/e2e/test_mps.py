"""Servers on an emulated GPU in parts by MPS: re-parted under load, hurt by a fault of one worker, beside a daemon that
runs already."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import run

MODULE = "tests.support.mps_server"


@pytest.fixture
def short_cache(toy_profiles: Path) -> Iterator[Path]:
    """A cache folder with the profile of `toy` whose path leaves room for the daemon's sockets."""
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as found:
        shutil.copytree(toy_profiles, Path(found) / "profiles")
        yield Path(found)


def by_event(said: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in said:
        found.setdefault(line["event"], []).append(line)
    return found


@pytest.mark.slow
@pytest.mark.timeout(150, func_only=True)  # measuring `toy_profiles`, once a session, has its own time
def test_parts_are_changed_lost_and_back_and_no_client_notices(scenes: Forks, short_cache: Path) -> None:
    code, said, errors = run(scenes, short_cache, "live", module=MODULE)
    assert code == 0, errors
    events = by_event(said)
    (start,) = events["start"]
    assert start["workers"] == ["full@4of4"]
    assert start["chunks"] == [32], "128 multiprocessors"
    assert start["report"]["mps"]["daemon"] == "ours"
    halves, mixed = events["parted"]
    assert (halves["workers"], halves["chunks"]) == (["full@2of4", "half@2of4"], [16, 16])
    assert (mixed["workers"], mixed["chunks"]) == (["full@2of4", "half@1of4", "half@1of4"], [8, 8, 16])
    assert halves["clients"], "every worker is a client of the daemon, and nobody else"
    assert mixed["clients"]
    (fault,) = events["fault"]
    assert fault["workers"] == mixed["workers"], "all came back"
    assert fault["report"]["faults"] == 1
    assert "at gpu0:" in fault["report"]["last_fault"]
    assert fault["poisoned"] == 0
    (killed,) = events["killed"]
    assert killed["stayed"] == 2, "its neighbours were not touched"
    assert killed["faults"] == 1
    (end,) = events["end"]
    assert end["asked"] > 20
    assert end["failed"] == 0, [line.get("reasons") for line in said]
    assert not end["daemon"], "the daemon ended with the server"


@pytest.mark.slow
@pytest.mark.timeout(100, func_only=True)
def test_a_daemon_that_runs_already_is_used_and_left(scenes: Forks, short_cache: Path) -> None:
    code, said, errors = run(scenes, short_cache, "found", module=MODULE)
    assert code == 0, errors
    found, end = said
    assert found["report"]["daemon"] == "found"
    assert found["report"]["parts"] == "percentages"
    assert "it runs without -S" in found["report"]["why"]
    assert found["environment"]["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert found["clients"] == 2
    assert found["answered"]
    assert end["daemon"]
    assert end["clients"] == 0
