"""Two variants that do not fit into a slice together: swapped by exchange, with the loss that the plan said."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Forks
from tests.support.mig_runs import run


def scene(scenes: Forks, folder: Path, what: str) -> dict[str, Any]:
    code, (found,), errors = run(scenes, folder, what, within_s=150, module="tests.support.memory_full")
    assert code == 0, errors
    return found


def exchanged(found: dict[str, Any], slices: int) -> None:
    """Both swaps were exchanges: at each place a process had ended before the next one began, and no row failed."""
    for swap in found["swaps"]:
        assert (swap["error"], swap["action"]) == ("", "applied")
        assert "does not fit beside" in swap["memory"]
    places = defaultdict(list)
    for life in found["lives"]:
        places[life["place"]].append(life)
    assert len(places) == slices
    for lives in places.values():
        assert [life["variant"] for life in lives] == ["light", "bulk", "light"]
        for old, new in itertools.pairwise(lives):
            assert old["ended_s"] <= new["began_s"]
    assert set(found["ends"]) <= {"light", "bulk"}, found["ends"]  # neither 500 nor any other status
    assert all(found["ends"][name] > 0 for name in ("light", "bulk"))


@pytest.mark.timeout(200)
def test_a_core_whose_memory_holds_one_of_them_is_without_a_worker_for_as_long_as_was_said(
    scenes: Forks, tmp_path: Path
) -> None:
    found = scene(scenes, tmp_path, "cpu")
    exchanged(found, 1)
    there, back = found["swaps"]
    for swap in (there, back):
        assert swap["lowest_capacity"] == 0.0
        assert swap["loses_s"] > 0.0
    assert there["loses_how"] == "estimated"
    assert back["loses_how"] == "measured"  # the start of light, and the drain of the swap before
    # Rows waited, for about as long as was said (the machine may be busy with other tests).
    assert found["slowest_s"] < max(there["loses_s"], back["loses_s"]) + 2.0

    # With less memory `bulk` does not fit alone: it is tried once, what ran comes back, and it is never tried again.
    first, second = found["misfits"]
    assert first["tried"] == ["bulk", "light"]
    assert first["action"] == "rolled back"
    assert "bulk is refused on 1c until the devices or the profile change" in first["error"]
    assert second["tried"] == []
    assert second["action"] == "failed"
    assert "bulk is refused on 1c" in second["error"]
    assert found["tried_at_all"] == ["light", "bulk", "light", "bulk", "light"]
    assert [(item["variant"], item["profile"]) for item in found["refused"]] == [("bulk", "1c")]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_emulated_slices_are_exchanged_while_others_serve(scenes: Forks, tmp_path: Path) -> None:
    found = scene(scenes, tmp_path, "emulated")
    exchanged(found, 7)
    for swap in found["swaps"]:
        assert swap["lowest_capacity"] > 0.0
    moments = sorted(life[key] for life in found["lives"] for key in ("ended_s", "ready_s") if life[key])
    start, end = (max(life["ready_s"] for life in lives) for lives in (found["lives"][:7], found["lives"]))
    least = min(
        sum(life["ready_s"] <= moment < (life["ended_s"] or moment + 1.0) for life in found["lives"])
        for moment in moments
        if start <= moment <= end
    )
    assert least >= 1
