"""Nodes through their actors, with a Ray that only keeps books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.cluster.cluster_file import parse
from clover.cluster.nodes import actor as ray_node
from clover.cluster.nodes.actor import NodeActor, RayNodes
from clover.cluster.nodes.node import NodeSetup
from clover.cluster.planning.records import ClusterNode, NodeTarget
from clover.cluster.ports import NodeReport, Nodes
from clover.errors import ClusterError

TEXT = """
[cluster]
hook = {hook}
hook_s = 5
[[region]]
name = "north"
[[node]]
name = "a"
region = "north"
[[node]]
name = "b"
region = "north"
port = 8082
resource = "node-b"
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
"""


class RayError(Exception):
    """What Ray raises for an actor that is gone."""


class FakeActor:
    """An actor: what it answers, or what goes wrong with it."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.gone = False
        self.hangs = False
        self.refuses = ""
        self.late = asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        async def answer(*given: Any) -> Any:
            self.calls.append((method, given))
            if self.gone:
                raise RayError("The actor died unexpectedly before finishing this task.\nmore")
            if self.hangs:
                await self.late.wait()
            if method == "report":
                node = ClusterNode(name=self.name, region="north", devices={"k": 1})
                return msgspec.json.encode(NodeReport(node=node, at_s=1.0, started_s=1.0, url="http://x"))
            return self.refuses if method in ("follow", "start") else None

        return SimpleNamespace(remote=answer)


class FakeRay:
    """Actors by name, and what they were made with."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self) -> None:
        self.actors: dict[str, FakeActor] = {}
        self.lost = set[str]()
        """Actors that it does not say where they are."""
        self.options: dict[str, dict[str, Any]] = {}

    def get_actor(self, name: str, namespace: str) -> FakeActor:
        assert namespace == "ns"
        if name in self.lost:
            raise RayError("the GCS does not answer")
        if name not in self.actors:
            raise ValueError(name)
        return self.actors[name]

    def kill(self, actor: FakeActor, no_restart: bool) -> None:
        assert no_restart
        self.actors = {name: one for name, one in self.actors.items() if one is not actor}

    def remote(self, kind: type) -> Any:
        def options(**given: Any) -> Any:
            def make(*arguments: Any) -> FakeActor:
                name = given["name"]
                self.options[name] = given
                return self.actors.setdefault(name, FakeActor(name.removeprefix("node:"), *arguments))

            return SimpleNamespace(remote=make)

        return SimpleNamespace(options=options)


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, hook: str = "[]", **more: Any) -> None:
        self.ray = FakeRay()
        monkeypatch.setattr(ray_node, "require_ray", lambda: self.ray)
        monkeypatch.setattr(ray_node, "_ANSWER_S", 1.0)
        monkeypatch.setattr(ray_node, "_SILENT_S", 0.5)
        self.file = parse(TEXT.format(hook=hook))
        self.nodes = RayNodes(self.file, "ns", folder, grid_start=lambda region: f"now in {region}", **more)


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def test_a_node_is_woken_asked_given_its_target_and_released(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(monkeypatch, tmp_path)
        nodes: Nodes = scene.nodes
        assert await nodes.reports() == {}
        await nodes.wake("b")
        await nodes.wake("b")  # again: the same actor
        actor, options = scene.ray.actors["node:b"], scene.ray.options["node:b"]
        assert options["resources"] == {"node-b": 0.001}
        assert (options["lifetime"], options["max_restarts"], options["num_cpus"]) == ("detached", -1, 0)
        order = msgspec.json.decode(actor.arguments[0], type=NodeSetup)
        assert (order.node.name, order.folder, actor.arguments[1]) == ("b", str(tmp_path / "b"), "now in north")
        assert list(await nodes.reports()) == ["b"]
        target = NodeTarget(node="b", awake=True, rates={"toy": 1.0}, accuracy={"toy": 91.0})
        await nodes.follow(target, 7)
        assert actor.calls[-1] == ("follow", (msgspec.json.encode(target), 7))
        actor.refuses = "the server does not answer"
        with pytest.raises(ClusterError, match="node b does not take its target: the server does not answer"):
            await nodes.follow(target, 8)
        with pytest.raises(ClusterError, match="has no actor"):
            await nodes.follow(msgspec.structs.replace(target, node="a"), 8)
        await nodes.release("b")
        assert actor.calls[-1][0] == "release"
        assert scene.ray.actors == {}
        await nodes.release("b")  # nothing is left to do

    tell(story)


def test_nodes_that_are_gone_or_silent_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(monkeypatch, tmp_path)
        for name in ("a", "b"):
            await scene.nodes.wake(name)
        scene.ray.actors["node:a"].gone = True
        assert list(await scene.nodes.reports()) == ["b"]
        scene.ray.actors["node:a"].gone, scene.ray.actors["node:b"].hangs = False, True
        assert list(await scene.nodes.reports()) == ["a"]
        assert list(await scene.nodes.reports()) == ["a"]
        slow = scene.ray.actors["node:b"]
        assert [method for method, _ in slow.calls].count("report") == 2  # it was not asked again
        slow.hangs = False
        slow.late.set()
        await asyncio.sleep(0)
        assert sorted(await scene.nodes.reports()) == ["a", "b"]
        assert [method for method, _ in slow.calls].count("report") == 2

    tell(story)


def test_a_ray_that_does_not_say_where_one_node_is_says_it_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def story() -> None:
        scene = Scene(monkeypatch, tmp_path)
        for name in ("a", "b"):
            await scene.nodes.wake(name)
        scene.ray.lost = {"node:a"}
        assert list(await scene.nodes.reports()) == ["b"]
        scene.ray.lost = {"node:a", "node:b"}
        with pytest.raises(ClusterError, match=r"Ray does not say where node . is: the GCS does not answer"):
            await scene.nodes.reports()  # and not {}: no node is silent by that

    tell(story)


def test_a_hook_that_was_given_up_does_not_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Process:
        returncode: int | None = None
        killed = False

        async def wait(self) -> int:
            if not self.killed:
                await asyncio.Event().wait()
            self.returncode = -9
            return -9

        def kill(self) -> None:
            self.killed = True

    async def story() -> None:
        scene = Scene(monkeypatch, tmp_path, hook='["/hook"]')
        process = Process()

        async def execute(*words: str, stdin: int) -> Process:
            assert words == ("/hook", "wake", "a")
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", execute)
        waking = asyncio.ensure_future(scene.nodes.wake("a"))
        for _ in range(3):
            await asyncio.sleep(0)
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)
        assert process.killed

    tell(story)


def test_the_ingress_says_whose_rows_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story() -> None:
        asked: list[Any] = []

        async def shared(reports: Mapping[str, NodeReport]) -> Mapping[str, NodeReport]:
            asked.append(reports)
            return {}

        scene = Scene(monkeypatch, tmp_path, shared=shared)
        await scene.nodes.wake("a")
        assert await scene.nodes.reports() == {}
        assert list(asked[0]) == ["a"]

    tell(story)


@pytest.mark.slow
def test_the_autoscalers_hook_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story() -> None:
        log = tmp_path / "log"
        scene = Scene(monkeypatch, tmp_path, hook=f'["/bin/sh", "-c", "echo $0 $1 >> {log}"]')
        await scene.nodes.wake("a")
        await scene.nodes.release("a")
        assert log.read_text() == "wake a\nrelease a\n"
        scene = Scene(monkeypatch, tmp_path, hook='["/bin/false"]')
        with pytest.raises(ClusterError, match="failed with 1"):
            await scene.nodes.wake("a")
        assert scene.ray.actors == {}  # a machine that is not there gets no actor
        scene = Scene(monkeypatch, tmp_path, hook='["/no/such/hook"]')
        with pytest.raises(ClusterError, match="cannot be called"):
            await scene.nodes.wake("a")

    tell(story)


def test_all_nodes_go_on_by_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(monkeypatch, tmp_path)
        for name in ("a", "b"):
            await scene.nodes.wake(name)
        actors = dict(scene.ray.actors)
        actors["node:a"].gone = True
        await scene.nodes.leave()
        assert scene.ray.actors == {}
        assert all(actor.calls[-1][0] == "leave" for actor in actors.values())

    tell(story)


def test_a_node_whose_release_was_cut_off_can_be_woken_again_and_a_report_alone_does_not(tmp_path: Path) -> None:
    class Agent:
        def __init__(self) -> None:
            self.did: list[str] = []

        async def start(self, grid_start: str) -> bool:
            self.did.append("start")
            return False

        async def revive(self) -> None:
            pass

        async def release(self) -> None:
            self.did.append("release")

        async def report(self) -> NodeReport:
            node = ClusterNode(name="a", region="north", devices={})
            return NodeReport(node=node, at_s=1.0, started_s=1.0, url="http://x")

    async def story() -> None:
        order = NodeSetup.from_cluster(parse(TEXT.format(hook="[]")), "a", tmp_path)
        actor = NodeActor(msgspec.json.encode(order))
        agent = Agent()
        actor._agent = agent  # type: ignore[assignment]
        await actor.report()  # made anew by Ray
        await asyncio.sleep(0)
        await actor.release()
        await actor.report()  # a look that was under way
        await asyncio.sleep(0)
        assert agent.did == ["start", "release"]
        await actor.start()  # Ray did not end it
        await asyncio.sleep(0)
        assert agent.did == ["start", "release", "start"]
        await actor.release()

    tell(story)
