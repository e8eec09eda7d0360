"""Parts of a cluster that need neither Ray nor servers: its store, its grids, whose rows nodes answer, its operating
points, what `up` leaves for controllers."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.cluster_file import parse
from clover.cluster.controller.actor import ControllerActor, RunningCluster, folder_of, recall, remember, terms_of
from clover.cluster.controller.demand import OriginShares
from clover.cluster.controller.dry import NoIngress
from clover.cluster.controller.memory import FileStore
from clover.cluster.controller.region_grids import ConfiguredGrids
from clover.cluster.nodes import frontiers as node_frontiers
from clover.cluster.nodes import ray_support
from clover.cluster.nodes.actor import declared, placed_by
from clover.cluster.nodes.frontiers import frontiers, kept_frontiers
from clover.cluster.nodes.ray_support import LocalRay
from clover.cluster.planning.frontiers import device_frontier
from clover.cluster.planning.records import ClusterNode
from clover.cluster.ports import FamilyReport, Ingress, NodeReport, Store
from clover.cluster.running import ClusterHandle, bring_up
from clover.errors import ClusterError
from clover.types import ObjectiveConfig
from tests.support.profiles_fixture import cpu, profile

TEXT = """
[[region]]
name = "north"
carbon = { source = "trace:%s", trace_speed = 60 }
[[region]]
name = "south"
carbon = { source = "static:400" }
[[node]]
name = "a"
region = "north"
[[node]]
name = "b"
region = "south"
port = 8082
resource = "node-b"
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
"""


# --- the store --------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_found_by_the_next_controller(tmp_path: Path) -> None:
    async def story() -> None:
        store: Store = FileStore(tmp_path / "deep" / "state.json")
        assert await store.load() is None
        for state in (b"{}", b"x" * 100_000, b"last"):
            await store.save(state)
        assert await FileStore(tmp_path / "deep" / "state.json").load() == b"last"
        assert (tmp_path / "deep" / "state.json").stat().st_mode & 0o077 == 0
        (tmp_path / "folder").mkdir()
        with pytest.raises(ClusterError, match="cannot be read"):
            await FileStore(tmp_path / "folder").load()
        with pytest.raises(ClusterError, match="cannot be saved"):
            await FileStore(tmp_path / "deep" / "state.json" / "x").save(b"")

    asyncio.run(story())


# --- grids ------------------------------------------------------------------------------------------------------------


def trace(folder: Path) -> Path:
    path = folder / "north.csv"
    rows = "".join(f"2026-01-01T{hour:02d}:00:00Z,{100 + hour}\n" for hour in range(24))
    path.write_text("datetime_utc,carbon_intensity_gco2_per_kwh\n" + rows)
    return path


def test_a_trace_that_runs_faster_is_foreseen_in_seconds_of_the_wall(tmp_path: Path) -> None:
    async def story() -> None:
        file = parse(TEXT % trace(tmp_path), folder=tmp_path)
        grids = ConfiguredGrids(file)
        await grids.open()
        readings = await grids.readings(5000.0)
        assert {name: reading.g_per_kwh for name, reading in readings.items()} == {"north": 100.0, "south": 400.0}
        ahead = (await grids.forecasts(5000.0, 300.0))["north"]  # five minutes are five hours of the trace
        later = [item.at_s for item in ahead if item.at_s > 5000.0]
        assert later[0] == pytest.approx(5060.0, abs=1.0)
        assert later[1] - later[0] == pytest.approx(60.0)
        assert grids.replayed_at("north").startswith("2026-01-01T00:0")
        assert grids.replayed_at("south") == ""
        await grids.close()

    asyncio.run(story())


def test_a_controller_that_starts_later_is_at_the_same_hour_of_a_replayed_trace(tmp_path: Path) -> None:
    async def story() -> None:
        file = parse(TEXT % trace(tmp_path), folder=tmp_path)
        grids = ConfiguredGrids(file, began_s=1000.0, wall=lambda: 1000.0 + 10 * 60.0)
        await grids.open()
        assert (await grids.readings(0.0))["north"].g_per_kwh == 110.0
        assert grids.replayed_at("north").startswith("2026-01-01T10:0")
        await grids.close()

    asyncio.run(story())


# --- whose rows -------------------------------------------------------------------------------------------------------


def report(name: str, **rates: float) -> NodeReport:
    families = tuple(
        FamilyReport(family=family, rates={"north": rate}, p95_ms=1.0, rows=1, accuracy_rows=1, joules=1, grams=1)
        for family, rate in rates.items()
    )
    node = ClusterNode(name=name, region="north", devices={})
    return NodeReport(node=node, at_s=1.0, started_s=1.0, url="http://x", families=families)


def rates(reports: dict[str, NodeReport], node: str) -> dict[str, dict[str, float]]:
    return {family.family: dict(family.rates) for family in reports[node].families}


def test_rows_are_shared_out_by_the_requests_since_the_last_look() -> None:
    shares = OriginShares()
    before = {"a": report("a", toy=40.0, ocr=8.0), "b": report("b", toy=5.0)}
    assert shares.shared(before) == before  # nothing is known yet
    shares.record({"north": {"a": 10}, "south": {"a": 30}})
    assert rates(shares.shared(before), "a") == {
        "toy": {"north": 10.0, "south": 30.0},
        "ocr": {"north": 2.0, "south": 6.0},
    }
    assert rates(shares.shared(before), "b") == {"toy": {"north": 5.0}}
    shares.record({"north": {"a": 20}, "south": {"a": 30}})
    assert rates(shares.shared(before), "a")["toy"] == {"north": 40.0}
    shares.record({"north": {"a": 20}, "south": {"a": 30}})  # no request since: as before
    assert rates(shares.shared(before), "a")["toy"] == {"north": 40.0}
    shares.record({"north": {"a": 1}, "south": {"a": 3}})  # the ingress began anew
    assert rates(shares.shared(before), "a")["toy"] == {"north": 10.0, "south": 30.0}
    shares.record({})
    assert shares.shared(before) == before


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), st.integers(0, 1000)), max_size=6), st.floats(0.0, 1e6))
def test_no_row_is_lost_or_invented(looks: list[dict[str, int]], rate: float) -> None:
    shares = OriginShares()
    for look in looks:
        shares.record({origin: {"a": count} for origin, count in look.items()})
        found = rates(shares.shared({"a": report("a", toy=rate)}), "a")["toy"]
        assert sum(found.values()) == pytest.approx(rate)
        assert all(value >= 0.0 for value in found.values())


# --- operating points -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_servers_profiles_become_operating_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_frontiers, "device_frontier", functools.partial(device_frontier, rates=3))
    objective = ObjectiveConfig(form="paper", slo_ms=60.0, accuracy_floor=90.0, lam=None, reference_g_per_kwh=250.0)
    shapes = [msgspec.structs.replace(cpu(2), device=name) for name in ("cpu0", "cpu1")]
    told = {
        "devices": msgspec.to_builtins(shapes),
        "idle_w": {"cpu0": 1.5, "cpu1": 1.5},
        "models": {
            "toy": {"profile": msgspec.to_builtins(profile()), "objective": msgspec.to_builtins(objective)},
        },
    }
    (found,) = kept_frontiers(told, tmp_path / "kept")
    other = told | {"devices": told["devices"][1:]}  # a node with another of these devices
    monkeypatch.setattr(node_frontiers, "device_frontier", None)
    assert kept_frontiers(other, tmp_path / "kept") == (found,)
    monkeypatch.setattr(node_frontiers, "device_frontier", functools.partial(device_frontier, rates=3))
    assert (found.family, found.idle_w) == ("toy", 1.5)
    assert len(found.points) >= 3
    most = max(found.points, key=lambda point: point.rate)
    best = max(found.points, key=lambda point: point.accuracy)
    assert best.accuracy == pytest.approx(92.0)
    assert most.accuracy < best.accuracy
    assert most.rate > best.rate
    assert all(point.p95_ms <= 60.0 for point in found.points)
    tight = msgspec.structs.replace(objective, slo_ms=1e-3)
    told["models"] = {"toy": {"profile": msgspec.to_builtins(profile()), "objective": msgspec.to_builtins(tight)}}
    assert frontiers(told) == ()


# --- what is left for controllers -------------------------------------------------------------------------------------


def test_what_up_leaves_is_what_a_controller_finds(tmp_path: Path) -> None:
    text = f'[cluster]\nfolder = "{tmp_path}/c"\nsurvive = "region"\n' + TEXT % trace(tmp_path)
    file = parse(text, folder=tmp_path)
    assert folder_of(file) == tmp_path / "c"
    assert recall(folder_of(file)) is None
    remember(RunningCluster(file=file, began_s=5.0, address="10.0.0.1:6379"))
    found = recall(folder_of(file))
    assert found == RunningCluster(file=file, began_s=5.0, address="10.0.0.1:6379")
    assert (tmp_path / "c" / "cluster.json").stat().st_mode & 0o077 == 0
    (tmp_path / "c" / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match="cluster up"):
        recall(folder_of(file))
    terms = terms_of(file)
    assert (terms.survive, terms.look_s, [node.name for node in terms.nodes]) == ("region", 5.0, ["a", "b"])
    assert [node.state for node in declared(file)] == ["released", "released"]
    assert [placed_by(node) for node in file.node] == [{"node:127.0.0.1": 0.001}, {"node-b": 0.001}]


def test_a_short_accuracy_budget_is_corrected_within_its_own_time(tmp_path: Path) -> None:
    found = {}
    for budget_s in (600.0, 86_400.0, 1e6):
        text = f'[cluster]\nfolder = "{tmp_path}"\nbudget_s = {budget_s}\n' + TEXT % trace(tmp_path)
        found[budget_s] = terms_of(parse(text, folder=tmp_path)).correct_s
    assert found == {600.0: 60.0, 86_400.0: 3600.0, 1e6: 3600.0}


def test_a_cluster_without_an_ingress_steers_no_rows() -> None:
    async def story() -> None:
        ingress: Ingress = NoIngress()
        await ingress.admit("a", "http://x", "")
        await ingress.weigh("north", {"a": 1.0})
        await ingress.drain("a")
        assert await ingress.open_connections("a") == 0
        await ingress.remove("a")

    asyncio.run(story())


# --- without Ray ------------------------------------------------------------------------------------------------------


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = parse(f'[cluster]\nfolder = "{tmp_path}"\n' + TEXT % trace(tmp_path), folder=tmp_path)
    with pytest.raises(ClusterError, match=r'pip install "clover-inference\[ray\]"'):
        bring_up(file, "", say=print)
    with pytest.raises(ClusterError, match=r'pip install "clover-inference\[ray\]"'):
        ClusterHandle.attach(file)


def test_an_address_that_nothing_listens_at_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

    monkeypatch.setattr(ray_support, "require_ray", Ray)
    for address, why in (("127.0.0.1:1", "nothing listens"), ("elsewhere", "must read HOST:PORT"), (":x", "must read")):
        with pytest.raises(ClusterError, match=why):
            ray_support.connect(address, "n")


class Heads(LocalRay):
    """Starts programs for a head that run `script` once they are on record, with the number of the try as `tried`."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder)
        record = folder / "ray" / "head" / "server.json"
        self.tries = 0
        self._script = (
            f"import json, os, pathlib, time\nrecord = pathlib.Path({str(record)!r})\n"
            "while not record.exists() or json.loads(record.read_bytes())['pid'] != os.getpid(): time.sleep(0.01)\n"
            f"{script}"
        )

    def _command(self, *words: str) -> list[str]:
        self.tries += 1
        return [sys.executable, "-c", f"tried = {self.tries}\n{self._script}"]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_support, "require_ray", lambda: None)
    monkeypatch.setattr(ray_support, "_own_address", lambda: "127.0.0.1")


@pytest.mark.usefixtures("without_ray")
def test_a_head_that_ends_while_it_starts_is_started_once_more(tmp_path: Path) -> None:
    """A head answers before it is whole: on a machine with other work it may still end, and nodes would wait for it."""
    local = Heads(tmp_path, "if tried > 1: print('it will now block forever', flush=True); time.sleep(60)")
    try:
        address = local.start([])
        assert address.startswith("127.0.0.1:")
        assert (local.address, local.tries) == (address, 2)
    finally:
        local.stop()
    assert local.address == ""


@pytest.mark.usefixtures("without_ray")
def test_a_head_that_never_starts_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    local = Heads(tmp_path, "print('no room')")
    with pytest.raises(ClusterError, match=r"head does not start \(no room\)"):
        local.start([])
    assert local.tries == 2


@pytest.mark.usefixtures("without_ray")
def test_a_head_that_neither_starts_nor_ends_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_support, "_START_S", 0.2)
    local = Heads(tmp_path, "print('still looking', flush=True); time.sleep(600)")
    with pytest.raises(ClusterError, match="head does not start"):
        local.start([])
    assert (local.tries, local.address) == (2, "")


def test_nodes_of_other_machines_need_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clover.cluster.running.require_ray", lambda: Any)
    file = parse(f'[cluster]\nfolder = "{tmp_path}"\n' + TEXT % trace(tmp_path), folder=tmp_path)
    with pytest.raises(ClusterError, match=r"node b is not on this machine .*--address"):
        bring_up(file, "", say=print)


def test_a_controller_that_was_replaced_lets_go_of_its_ingress(tmp_path: Path) -> None:
    """It would give HAProxy back what it wanted itself, again and again, beside the one that is in charge."""
    done: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self) -> None:
            done.append(f"{self.name} returns")

        async def close(self) -> None:
            done.append(f"{self.name} is let go of")

    (tmp_path / "state.json").write_bytes(b"{}")
    actor = object.__new__(ControllerActor)
    actor._file, actor._folder = parse(TEXT % "somewhere"), tmp_path
    actor._controller, actor._haproxy = Part("controller"), Part("ingress")  # type: ignore[assignment]
    asyncio.run(actor._run())
    assert done == ["controller returns", "ingress is let go of"]
