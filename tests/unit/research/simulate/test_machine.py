"""`simulate --machine`: what a whole machine emits a day, boundary by boundary."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clover.cli import profile as profiling
from clover.emulation.emulated import STATE
from clover.energy.cpu_power import CpuPower
from clover.errors import ConfigError
from clover.planning.model.queueing import TURNS, WAKE_S, cold
from clover.research.cli.simulate import main
from clover.research.simulate import families, loads, machine, world
from clover.research.simulate.fleet import Serving
from clover.research.simulate.machine import FrontEnd, MachineDay
from clover.research.simulate.world import Case, Rules, Scheme, World
from clover.types import FamilyProfile, GroupCount, Routing
from tests.support.nvml_child import ROOT
from tests.support.profiles_fixture import cpu, profile

BASE = MachineDay("BASE", 200.0, active_g=6.0, front_end_g=2.0, idle_g=32.0, accuracy=93.5, p95_ms=1.0)
OURS = MachineDay("default", 200.0, active_g=4.5, front_end_g=2.5, idle_g=32.0, accuracy=93.0, p95_ms=2.0)


def with_turns(turn_j: float = 1e-3) -> FamilyProfile:
    sizes = {place.size for layout in world.cpu().shapes[0].layouts for place in layout}
    return msgspec.structs.replace(profile(tuple(sorted(sizes))), turn_j=turn_j)


def written(folder: Path, measured: FamilyProfile) -> str:
    path = folder / f"{measured.family}-0123456789abcdef.json"
    path.write_bytes(msgspec.json.encode(measured))
    return str(path)


def test_the_boundaries_and_what_is_saved_within_each() -> None:
    assert OURS.boundaries == (4.5, 7.0, 39.0)
    assert OURS.saved(BASE) == pytest.approx((0.25, 0.125, 0.025))


def test_the_machines_part_lies_between_the_ends_of_the_watts() -> None:
    power = CpuPower(idle_w=0.2, core_w=1.0, idle_range=(0.5, 2.0), core_range=(0.9, 1.6), why="")
    least, most = OURS.between(BASE, power)
    assert least == pytest.approx(1.0 - (7.0 * 0.9 + 64.0) / (8.0 * 0.9 + 64.0))
    assert most == pytest.approx(1.0 - (7.0 * 1.6 + 16.0) / (8.0 * 1.6 + 16.0))


def test_the_front_end_by_hand() -> None:
    """One row reads and answers in two turns; rows that waited share two turns beside; turns in a row cost less."""
    measured = msgspec.structs.replace(profile((2,)), turn_j=1e-3)
    own = World(world.SimulatedMachine((cpu(2),), 1.0, "toy"), known(measured), Rules())
    (trace,) = world.traces(["static:100"], "", 1.0)
    front = FrontEnd(Case(own, trace, loads.parse("constant:5/s"), Scheme("BASE", "base"), 0), 30.0)
    workers = (GroupCount(variant="large", profile="2c", count=1),)
    each_j = 1e-3 * cold(1.0 / (TURNS * 5.0), WAKE_S)
    alone = Serving(workers, Routing(shares={"large": 1.0}), 5.0, 100.0)
    assert front.watts(alone) == pytest.approx(5.0 * 2 * each_j, rel=0.02)
    waited = Serving(workers, Routing(shares={"large": 1.0}, wait_ms={"large": 400.0}), 5.0, 100.0)
    rows = own.model(30.0).flow(waited.configuration, waited.routing, 5.0).work[0].batch
    assert rows == 3
    assert front.watts(waited) == pytest.approx(5.0 * (1 + 2 / rows) * each_j, rel=0.15)
    assert front.watts(waited) < front.watts(alone)
    assert machine.turn_j(measured, 1e5) == pytest.approx(0.1 * machine.turn_j(measured, 200.0))


def known(measured: FamilyProfile) -> families.Known:
    return families.Known(profile=measured, source="", digest="", request="1 row", metric="top1", method="modelled")


def test_a_day_of_base_by_hand(tmp_path: Path) -> None:
    measured = with_turns()
    own_machine = world.cpu()
    own = World(own_machine, families.load(written(tmp_path, measured), own_machine.shapes), Rules(noise=False))
    (trace,) = world.traces(["static:100"], "", 2.0)
    (load,) = machine.loads_of(own, 5.0)
    base, ours = machine.days(own, trace, load, None)
    grams_a_w = 86_400.0 * 100.0 * 1.5 / 3.6e6
    place = own.known.profile.base.profile
    a_row = next(m for m in measured.latency if (m.variant, m.profile, m.batch) == ("large", place, 1))
    assert base.active_g == pytest.approx(5.0 * a_row.energy_j_per_row * grams_a_w, rel=0.02)
    assert (base.idle_g, ours.idle_g) == pytest.approx((own_machine.idle_w * grams_a_w,) * 2)
    assert base.front_end_g == pytest.approx(5.0 * 2 * machine.turn_j(measured, 5.0) * grams_a_w, rel=0.02)
    assert ours.active_g < base.active_g
    assert base.accuracy == 92.0
    assert 91.4 < ours.accuracy < 91.6


def test_three_loads_and_those_that_base_cannot_serve(tmp_path: Path) -> None:
    own_machine = world.cpu()
    own = World(own_machine, families.load(written(tmp_path, with_turns()), own_machine.shapes), Rules())
    assert [load.name for load in machine.loads_of(own, None)] == ["constant:20/s", "constant:200/s", "constant:0.6"]
    slow = profile((1, 2), {"small": (88.0, 10.0), "large": (92.0, 50.0)})
    heavy = World(world.SimulatedMachine((cpu(2),), 1.0, "toy"), known(slow), Rules())
    assert heavy.capacity < 200.0
    assert [load.name for load in machine.loads_of(heavy, None)] == ["constant:20/s", f"constant:{loads.BASE_LOAD}"]
    with pytest.raises(ConfigError, match="below BASE's capacity"):
        machine.loads_of(heavy, 200.0)


def test_the_table_sums_and_says_that_it_is_modelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, with_turns())
    words = [path, "--machine", "--rate", "20", "--hours", "1", "--traces", "static:100", "--slo-ms", "200"]
    assert main(words) == 0
    text = capsys.readouterr().out
    heads = next(line for line in text.splitlines() if "setting" in line)
    assert heads.count("(modelled)") == 3
    assert "cores for workers" in text
    settings = ("BASE", "default", "--slo-ms 200")
    lines = {name: line for line in text.splitlines() for name in settings if re.match(rf"\s*(20 )?\s*{name} ", line)}
    assert set(lines) == set(settings)
    assert "%," not in lines["BASE"]
    assert lines["default"].count("%") == 6, "three boundaries, both ends of the watts, the part of idle power"
    grams = [float(found) for found in re.findall(r"([\d.]+) g", lines["BASE"])]
    assert grams == sorted(grams)
    assert len(grams) == 3


def test_an_emulated_box_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["efficientnet", "--machine", "--device", "emulated:a100-40gb", "--rate", "4", "--hours", "1"]
    words += ["--confidence", "none"]
    # Apart, as a process has one emulated machine, and keeps it.
    environ = {key: value for key, value in os.environ.items() if key != STATE} | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "clover", "simulate", *words]
    found = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    text = found.stdout
    assert "W idle each with a process on it, analytical" in text
    heads = next(line for line in text.splitlines() if "setting" in line)
    assert "between" not in heads, "no range of its watts is known"
    assert "the front end was not profiled, and counts as nothing" in text
    assert main(["efficientnet", "--machine", "--device", "nvidia", "--rate", "4"]) == 2
    assert "--device is cpu or emulated:NAME[:COUNT]" in capsys.readouterr().err


def test_a_family_without_a_profile_is_measured_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[list[str]] = []

    def measure(argv: list[str]) -> int:
        asked.append(argv)
        print("measured")
        folder = tmp_path / "clover" / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        if argv[0] == "toy":
            written(folder, with_turns())
        return 0 if argv[0] == "toy" else 2

    monkeypatch.setattr(profiling, "main", measure)
    assert main(["toy", "--machine", "--rate", "20", "--hours", "1"]) == 0
    printed = capsys.readouterr()
    assert asked == [["toy", "--quick", "--device", "cpu"]]
    assert "measured" in printed.err
    assert "measured\n" not in printed.out
    assert main(["toy", "--machine", "--rate", "20", "--hours", "1"]) == 0
    assert len(asked) == 1, "it is kept"
    assert main(["other", "--machine"]) == 2
    assert "other has no profile, and none could be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["albert", "--rate", "5"], "--rate is for --machine"),
        (["--machine"], "--machine needs a FAMILY"),
        (["albert", "--machine", "-o", "here"], "--machine prints a table"),
        (["albert", "--machine", "--minutes", "2"], "--machine prints a table"),
        (["albert", "--machine"], "known on A100 slices only"),
        (["albert", "--machine", "--traces", "static:1", "static:2"], "plays one grid, not 2"),
        (["nobody", "--machine", "--gpus", "1"], "there is no family 'nobody'"),
    ],
)
def test_what_cannot_be_shown_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
