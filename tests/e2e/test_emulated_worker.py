"""Real workers on slices of an emulated box: what they hold, answer, draw and may use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clover.emulation import emulated
from clover.errors import DeviceError
from tests.support.emulated_worker import PACE_MS
from tests.support.forks import Forks
from tests.support.mig_runs import BEGIN, environment

# As strict as pytest about warnings.
STRICT = (
    BEGIN
    + """
import warnings
warnings.simplefilter("error")
"""
)
SCENARIO = STRICT + "from tests.support.emulated_worker import main\nmain(*sys.argv[1:])"
COMMAND = (
    STRICT
    + """
from clover.__main__ import main
from clover.cli import profile
from tests.support.servers import SHORT
profile.QUICK = SHORT
sys.exit(main(sys.argv[1:]))
"""
)


def scenario(scenes: Forks, folder: Path, name: str) -> dict[str, Any]:
    done = scenes.run(SCENARIO, [str(folder), name], environment())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_library_is_built() -> None:
    try:
        assert emulated.library().is_file()
    except DeviceError as error:  # a build that failed shall not look like tests that pass
        pytest.fail(str(error))


def test_a_worker_holds_its_slice_until_it_is_gone(scenes: Forks, tmp_path: Path) -> None:
    found = scenario(scenes, tmp_path, "holds")
    assert "in use" in found["held"]
    assert found["quarantined"] == ["gpu0:1g.5gb@6"]
    assert "in use" in found["held by one"], "the other worker of the swap still holds it"
    assert found["after kill -9"] == ""
    assert found["left"] == ["gpu0:3g.20gb@0"]
    assert "MIG-none" in found["no such slice"]


@pytest.mark.alone
def test_answers_are_the_cpus_and_times_and_watts_the_slices(scenes: Forks, tmp_path: Path) -> None:
    found = scenario(scenes, tmp_path, "answers")
    assert found["same"]
    assert found["visible"] == "", "no GPU of this machine is touched"
    assert found["paced"] == pytest.approx(PACE_MS)
    eight, again, one = found["ms"]
    assert min(eight, again) >= PACE_MS[7]
    assert one >= PACE_MS[0]
    assert max(found["cpu_ms"]) < PACE_MS[0], "sleeping is not computing"
    # The board draws 100 W while batches run, whatever the profile expects, and nothing in between.
    assert found["joules"] == pytest.approx(sum(found["ms"]) / 1e3 * 100.0, rel=0.2)
    assert found["idle joules"] == pytest.approx(0.0, abs=0.1)
    # A worker that holds two variants runs each at its own pace and power.
    assert found["resident"] == {"full": 0, "half": 1}
    slow, fast, again = found["lanes"]
    assert min(slow, again) >= 2 * PACE_MS[7]
    assert PACE_MS[7] <= fast < 2 * PACE_MS[7]
    assert found["joules of lanes"] == pytest.approx((slow + again) / 1e3 * 200.0 + fast / 1e3 * 100.0, rel=0.2)


def test_memory_pace_and_a_lost_gpu_bound_a_worker(scenes: Forks, tmp_path: Path) -> None:
    found = scenario(scenes, tmp_path, "bounds")
    assert 4 << 30 < found["memory"] < 5 << 30
    assert "heavy does not fit into gpu0:1g.5gb@0, which has 128 MiB of memory" in found["misfit"]
    resident, reason = found["left out"]
    assert resident == {"late": 0}
    assert "memory" in reason.lower()
    late, of, least_ms = found["overruns"]
    assert 1 <= late == of
    assert least_ms >= 20.0, "a slow CPU is reported as it was"
    reason, device_lost, completion = found["lost"]
    assert "gpu0:1g.5gb@0 is gone" in reason
    assert "GPU_IS_LOST" in reason
    assert device_lost
    assert completion is None, "what was computed for a lost GPU is not handed over"


def profiled(scenes: Forks, folder: Path, *flags: str) -> tuple[str, list[dict[str, Any]]]:
    saved = folder / "profile.json"
    where = ["--device", "emulated:a100-40gb:2", "--cache-dir", str(folder / "cache"), "--backends", "eager"]
    words = ["profile", "tests/families/toy", "--quick", *where, "--json", str(saved), *flags]
    done = scenes.run(COMMAND, words, environment())
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(saved.read_text())


def test_the_command_shows_the_calculated_table_and_says_so(scenes: Forks, tmp_path: Path) -> None:
    text, (profile,) = profiled(scenes, tmp_path)
    assert "2 x NVIDIA A100-SXM4-40GB, emulated" in text
    assert "times and energy of slices are analytical: nothing of them was measured on a GPU" in text
    assert "BASE: full with eager on 2 x 7g.40gb at 60 % load" in text
    assert {m["profile"] for m in profile["latency"]} == {"1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"}
    assert {m["energy_method"] for m in profile["latency"]} == {"analytical"}
    assert all(item["method"] == "measured" and item["samples"] for item in profile["accuracy"])
    _, (same,) = profiled(scenes, tmp_path)
    assert same == profile, "neither measured nor calculated to anything else a second time"
    rows = [
        {"family": "toy", "variant": name, "profile": "7g.40gb", "batch": 8, "ms": ms, "watts": 60.0}
        for name, ms in (("half", 5.0), ("full", 9.0))
    ]
    path = tmp_path / "pace.json"
    path.write_text(json.dumps({"method": "published", "source": "a data sheet", "rows": rows}))
    text, (paced,) = profiled(scenes, tmp_path, "--pace", str(path))
    assert "a data sheet" in text
    assert [(m["variant"], m["profile"], m["mean_ms"], m["energy_method"]) for m in paced["latency"]] == [
        ("half", "7g.40gb", 5.0, "published"),
        ("full", "7g.40gb", 9.0, "published"),
    ]
    assert paced["accuracy"] == profile["accuracy"]
    assert paced["key"] != profile["key"]
