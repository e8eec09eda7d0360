"""The energy of a server on one emulated GPU that draws and counts as real ones do: 52 W bare, 35 W more with a
context, a counter that moves every tenth of a second, and a stranger on the board."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clover import devices
from clover.accounting.devices import LINES
from tests.support.forks import Forks
from tests.support.gpu_energy_server import DEVICE
from tests.support.mig_runs import environment, program
from tests.support.nvml_child import Child

BARE_W, CONTEXT_W, MOST_W, GRAIN_S = 52.0, 35.0, 400.0, 0.1

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def found(scenes: Forks, toy_profiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What one server found, and the process that was on its board."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "profiles").symlink_to(toy_profiles)
    with tempfile.TemporaryFile("w+") as errors:
        code = program("tests.support.gpu_energy_server")
        with scenes.talk(code, [str(cache)], environment(), errors.fileno()) as (process, orders, said):

            def line() -> dict[str, Any]:
                """Return what it says next; AssertionError with what it complained of if that is nothing."""
                text = said.readline()
                errors.seek(0)
                assert text, errors.read()
                return dict(json.loads(text))

            first = line()
            with Child(devices.box_path(devices.parse(DEVICE), cache)) as stranger:
                stranger.run(f"a = attach({first['slice']!r}); a.draw(60)")
                print("go", file=orders, flush=True)
                last = line()
                assert process.wait(20) == 0
            yield {
                **last,
                "stranger": stranger.pid,
                "kept": [json.loads(path.read_text()) for path in (cache / "energy").glob("GPU-*.json")],
            }


def both_idles_are_measured_and_kept(found: dict[str, Any]) -> None:
    rested = found["rested"]
    assert (rested["idle_w"], rested["awake_w"], rested["resident_w"]) == (BARE_W, CONTEXT_W, BARE_W + CONTEXT_W)
    assert (rested["idle_known"], rested["resident_known"]) == ("start", "rest")
    assert "idle 52 W at start; 87 W with a context, measured at rest" in rested["meter"]
    assert found["kept"] == [{"bare_w": BARE_W, "resident_w": BARE_W + CONTEXT_W}]


def what_being_awake_costs_is_no_active_energy(found: dict[str, Any]) -> None:
    before, after = found["rested"], found["worked"]
    awake_j = after["awake_j"] - before["awake_j"]
    seconds = sum(after[line] - before[line] for line in ("idle_j", "idle_no_request_j", "unowned_j")) / BARE_W
    assert seconds > 0.9
    assert awake_j == pytest.approx(CONTEXT_W * seconds, rel=1e-6)


def the_lines_sum_to_the_counter_within_its_grain(found: dict[str, Any]) -> None:
    end = found["end"]
    assert sum(end[f"{name}_j"] for name in LINES) == pytest.approx(end["measured_j"], rel=1e-9)
    # The box is as old as the server: what its counter shows beyond the account was drawn before the meter was made,
    # and since it was last read.
    assert 0.0 <= found["counter_j"] - end["measured_j"] <= MOST_W * (GRAIN_S + 5.0)
    assert end["method"] == "emulated"


def receipts_and_what_none_billed_sum_to_what_the_model_used(found: dict[str, Any]) -> None:
    totals = found["totals"]
    parts = ("receipts_j", "idle_no_request_j", "unbilled_j", "control_j")
    assert sum(totals[part] for part in parts) == pytest.approx(totals["energy_j"], rel=1e-9)
    assert totals["receipts_j"] > 0.0 < totals["idle_no_request_j"]
    assert totals["idle_j"] > found["end"]["awake_j"]  # being awake is a part of it
    assert (found["asked"] > 20, found["failed"]) == (True, 0)


def a_stranger_on_the_board_is_named(found: dict[str, Any]) -> None:
    shared = found["shared"]
    assert f"({found['stranger']})" in shared["shared"]
    assert "shared with" in shared["meter"]
    assert found["rested"]["shared"] == found["worked"]["shared"] == ""
    assert found["end"]["shared_s"] > 0.0
    assert found["end"]["active_uncertainty_low"] < -0.1


def test_the_energy_of_a_server_on_a_board_that_is_like_a_real_one(found: dict[str, Any]) -> None:
    """In one test, so that parallel runs start one server."""
    both_idles_are_measured_and_kept(found)
    what_being_awake_costs_is_no_active_energy(found)
    the_lines_sum_to_the_counter_within_its_grain(found)
    receipts_and_what_none_billed_sum_to_what_the_model_used(found)
    a_stranger_on_the_board_is_named(found)
