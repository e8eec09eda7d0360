"""The agent of a node: servers that are started, found again, started again and ended; reports and targets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from clover.cluster.cluster_file import parse
from clover.cluster.nodes.node import LONGEST_WAIT_S, NodeAgent, NodeSetup
from clover.cluster.nodes.server_process import ControlRefused, ServerRecord
from clover.cluster.planning.records import DeviceFrontier, NodeTarget
from clover.errors import ClusterError

TEXT = """
[cluster]
name = "demo"
lease_s = 20
[[region]]
name = "north"
carbon = { source = "static:100" }
[[node]]
name = "a"
region = "north"
port = 8081
grpc_port = 9001
awake_w = 40
arguments = ["--cores", "0"]
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
"""
FILE = parse(TEXT)


class FakeProcess:
    """A server's process that only keeps books."""

    def __init__(self) -> None:
        self.record: ServerRecord | None = None
        self.started: list[tuple[list[str], dict[str, str]]] = []
        self.ended: list[str] = []
        self.stubborn = False
        self.fails = ""

    def find(self) -> ServerRecord | None:
        return self.record

    def start(self, command: list[str], environment: dict[str, str], digest: str = "") -> ServerRecord:
        if self.fails:
            raise ClusterError(self.fails)
        self.started.append((command, environment))
        self.record = ServerRecord(pid=7, started_ticks=len(self.started), boot="b", digest=digest)
        return self.record

    def end(self, *, kill: bool = False) -> bool:
        self.ended.append("kill" if kill else "term")
        there = self.record is not None
        if kill or not self.stubborn:
            self.record = None
        return there

    def last_words(self) -> str:
        return "port 8081 is taken"


class FakeControl:
    """A server's control socket."""

    def __init__(self) -> None:
        self.ready = True
        self.silent = False
        self.status: dict[str, Any] = {"following": True, "epoch": 4, "started_s": 50.0, "models": {"toy": MODEL}}
        self.posted: list[dict[str, Any]] = []
        self.refuses: ControlRefused | None = None

    async def get(self, path: str) -> Any:
        if not self.ready:
            raise ControlRefused("not ready", 503)
        return {"ready": True}

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        if self.silent:
            raise ClusterError("the server does not answer")
        self.posted.append(body)
        if body["action"] == "follow" and self.refuses is not None:
            raise self.refuses
        if body["action"] == "profiles":
            shape = {
                "device": "cpu0",
                "kind": "cpu",
                "layouts": [],
                "slices": 2,
                "overlap": True,
                "label": "2 cores, some CPU",
            }
            return {"devices": [shape, shape | {"device": "cpu1"}], "models": {}}
        return self.status


MODEL = {
    "rate": 12.5,
    "p95_ms": None,
    "rows": 40,
    "accuracy_rows": 3700.0,
    "joules": 30.0,
    "grams": 2.0,
    "correction": 1.25,
}


class Scene:
    def __init__(self, folder: Path) -> None:
        self.now_s = 1000.0
        self.process, self.control = FakeProcess(), FakeControl()
        self.asked: list[Any] = []
        self.folder = folder

    def agent(self, text_of: Any = FILE) -> NodeAgent:
        def frontiers(told: Any) -> tuple[DeviceFrontier, ...]:
            self.asked.append(told)
            return (DeviceFrontier(kind="k", family="toy", points=(), idle_w=1.0),)

        return NodeAgent(
            NodeSetup.from_cluster(text_of, "a", self.folder),
            frontiers=frontiers,
            process=self.process,  # type: ignore[arg-type]  # what the agent asks of a process, and no more
            client=self.control,  # type: ignore[arg-type]
            environ={"PATH": "/bin"},
            wall=lambda: self.now_s,
            monotonic=lambda: self.now_s,
        )


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def test_the_command_has_what_the_cluster_file_says(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        assert not await scene.agent().start("2026-01-05T10:00:00+00:00")
        ((command, environment),) = scene.process.started
        assert command[1:4] == ["-m", "clover.serve", "toy"]
        text = " ".join(command)
        for words in (
            "--host 127.0.0.1 --port 8081",
            f"--control unix:{tmp_path}/a/control.sock",
            "--grpc-port 9001",
            f"--state-dir {tmp_path}/a/state",
            "--cores 0",
        ):
            assert words in text
        assert environment == {
            "PATH": "/bin",
            "CLOVER_CARBON": "static:100",
            "CLOVER_TRACE_START": "2026-01-05T10:00:00+00:00",
        }

    tell(story)


def test_a_new_agent_takes_the_running_server_over(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        await scene.agent().start()
        again = scene.agent()
        assert await again.start()
        assert len(scene.process.started) == 1
        assert (await again.report()).node.state == "ready"

    tell(story)


def test_a_server_of_other_settings_is_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        await scene.agent().start()
        other = parse(TEXT.replace('"--cores", "0"', '"--cores", "1"'))
        assert not await scene.agent(other).start()
        assert scene.process.ended == ["term"]
        assert "1" in scene.process.started[1][0]

    tell(story)


def test_a_report_has_counters_devices_and_operating_points(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        before = await agent.report()
        assert (before.node.state, before.families, before.healthy) == ("released", (), False)
        await agent.start()
        await agent.report()
        await agent.wait_learned()
        report = await agent.report()
        assert report.node.devices == {"2-cores-some-cpu": 2}
        assert (report.node.state, report.node.awake_w, report.node.correction) == ("ready", 40.0, {"toy": 1.25})
        assert (report.url, report.grpc_url) == ("http://127.0.0.1:8081", "127.0.0.1:9001")
        (family,) = report.families
        assert (family.rates, family.rows, family.accuracy_rows, family.p95_ms) == ({"north": 12.5}, 40, 3700.0, 0.0)
        assert (report.target_epoch, report.started_s, report.at_s) == (4, 50.0, 1000.0)
        assert report.newest_epoch == 0  # those were orders of another cluster
        assert report.frontiers[0].kind == "k"
        await agent.report()
        assert len(scene.asked) == 1  # profiles are asked for once a server
        scene.control.status = scene.control.status | {"started_s": 60.0, "following": False}
        scene.control.status |= {"cluster": "demo"}
        report = await agent.report()
        assert (report.target_epoch, report.newest_epoch) == (0, 4)  # its lease ended; it takes none below 4
        await agent.wait_learned()
        assert len(scene.asked) == 2

    tell(story)


def test_a_server_that_does_not_answer_or_is_not_ready_is_said_to_be_starting(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        await agent.start()
        scene.control.ready = False
        report = await agent.report()
        assert (report.node.state, report.healthy, report.why) == ("starting", False, "no worker is ready")
        scene.control.silent = True
        assert (await agent.report()).node.state == "starting"
        scene.control.silent, scene.control.ready = False, True
        assert (await agent.report()).node.state == "ready"

    tell(story)


def test_a_dead_server_is_started_again_with_growing_waits(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        await agent.start()
        scene.now_s += 120.0
        scene.process.record = None
        await agent.revive()
        assert len(scene.process.started) == 2  # it had run for long: at once
        assert agent.restarts == 1
        starts, waits = 2, list[float]()
        died_s = scene.now_s
        for _ in range(4000):
            scene.process.record = None
            await agent.revive()
            if len(scene.process.started) > starts:
                starts = len(scene.process.started)
                waits.append(scene.now_s - died_s)
                died_s = scene.now_s
            scene.now_s += 0.1
        assert waits == sorted(waits)
        assert waits[-1] == pytest.approx(LONGEST_WAIT_S, abs=0.5)
        assert "taken" in (await agent.report()).why or (await agent.report()).healthy

    tell(story)


def test_a_released_node_stays_released(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        await agent.start()
        await agent.release()
        await agent.revive()
        assert len(scene.process.started) == 1
        assert (await agent.report()).node.state == "released"

    tell(story)


def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        await agent.start()
        scene.process.stubborn = True

        async def passing(seconds: float) -> None:
            scene.now_s += 5.0

        monkeypatch.setattr("clover.cluster.nodes.node.asyncio.sleep", passing)
        await agent.release()
        assert scene.process.ended == ["term", "kill"]

    tell(story)


def test_targets_become_orders_and_older_ones_are_ignored(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(tmp_path)
        agent = scene.agent()
        await agent.start()
        target = NodeTarget(
            node="a", awake=True, rates={"toy": 5.0, "other": 1.0}, accuracy={"toy": 91.0, "other": 1.0}
        )
        await agent.follow(target, 6)
        assert scene.control.posted[-1] == {
            "action": "follow",
            "cluster": "demo",
            "node": "a",
            "epoch": 6,
            "lease_s": 20.0,
            "models": {"toy": {"rate": 5.0, "accuracy": 91.0}},
        }
        scene.control.refuses = ControlRefused("an order of epoch 6 is older than that of epoch 8", 409)
        await agent.follow(target, 6)
        scene.control.refuses = ControlRefused("this server follows the cluster other", 409)
        with pytest.raises(ClusterError, match="other"):
            await agent.follow(target, 6)
        scene.control.silent = True
        with pytest.raises(ClusterError, match="does not answer"):
            await agent.follow(target, 6)
        await agent.leave()

    tell(story)


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster\.folder"):
        Scene(tmp_path / ("x" * 100)).agent()
