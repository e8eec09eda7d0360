"""The agent of a node: has one Clover server run on its machine, says how it does, and hands it the cluster's targets.

The server is a process of its own that outlives the agent (`clover.cluster.nodes.server_process`): whatever becomes of
the agent, of Ray and of the controller, requests are answered.  A new agent finds the server that runs and goes on with
it.  A server that died although it should run is started again, after a growing wait if it dies again at once.

A target reaches the server as an order with a lease (`clover.server.cluster_follower`).  If the server hears nothing
for too long, it returns to its own policy by itself, whether the controller, the agent or the network has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from clover.cluster.cluster_file import render_carbon
from clover.cluster.cluster_records import ClusterFile, NodeSection
from clover.cluster.nodes.server_process import ControlClient, ControlRefused, ServerProcess
from clover.cluster.planning.records import ClusterNode, DeviceFrontier, NodeState, NodeTarget
from clover.cluster.ports import FamilyReport, NodeReport
from clover.errors import ClusterError
from clover.types import DeviceShape, Record

log = logging.getLogger("clover.cluster")

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
STAYED_S = 60.0
"""A server that ran so long did not die at once: the wait before it is started again begins anew."""
_SOCKET_PATH_BYTES = 107

Frontiers = Callable[[Mapping[str, Any]], tuple[DeviceFrontier, ...]]
"""From what a server says of its profiles and devices to the operating points of its devices."""


class NodeSetup(Record, frozen=True, kw_only=True):
    """All that the agent of a node has to know, as it goes to the machine: its section of the cluster file, the
    environment of its server, and where its files are."""

    cluster: str
    node: NodeSection
    models: tuple[str, ...]
    sources: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    folder: str = ""
    lease_s: float = 30.0
    drain_s: float = 30.0

    @classmethod
    def from_cluster(cls, file: ClusterFile, name: str, folder: Path) -> NodeSetup:
        """Return the order for a node of a cluster, whose files are below `folder`; KeyError if there is none."""
        node = {item.name: item for item in file.node}[name]
        return cls(
            cluster=file.cluster.name,
            node=node,
            models=tuple(family.family for family in file.family),
            sources=tuple(family.source or family.family for family in file.family),
            environment=render_carbon(file.region_of(name).carbon),
            folder=str(folder / node.name),
            lease_s=file.cluster.lease_s,
            drain_s=file.cluster.drain_s,
        )

    @property
    def url(self) -> str:
        """Where its server takes HTTP."""
        return f"{'https' if self.node.tls else 'http'}://{_bracket(self.node.address)}:{self.node.port}"

    @property
    def grpc_url(self) -> str:
        """Where its server takes gRPC, HOST:PORT; empty if it does not."""
        return f"{_bracket(self.node.address)}:{self.node.grpc_port}" if self.node.grpc_port else ""

    @property
    def control(self) -> str:
        """The path of its server's control socket."""
        return os.path.join(self.folder, "control.sock")

    def command(self) -> list[str]:
        """Return the words that start its server."""
        node = self.node
        words = [sys.executable, "-m", "clover.serve", *([node.config] if node.config else self.sources)]
        words += ["--host", node.address, "--port", str(node.port), "--control", f"unix:{self.control}"]
        words += ["--grpc-port", str(node.grpc_port)] if node.grpc_port else []
        # Its ledger bears its name, which `clover report --cluster` shows.
        words += ["--state-dir", os.path.join(self.folder, "state"), "--ledger-name", node.name]
        # Its targets are made of profiles: it is ready once it has them.
        return [*words, "--profile", "wait", *node.arguments]


class NodeAgent:
    """The agent of one node.  `wall` and `monotonic` are the clocks, `frontiers` works out operating points."""

    def __init__(
        self,
        order: NodeSetup,
        *,
        frontiers: Frontiers | None = None,
        process: ServerProcess | None = None,
        client: ControlClient | None = None,
        environ: Mapping[str, str] | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(order.control.encode()) > _SOCKET_PATH_BYTES:
            raise ClusterError(
                f"{order.control} is too long for the path of a socket: set cluster.folder to a shorter one"
            )
        self.order = order
        self._process = process or ServerProcess(Path(order.folder))
        self._client = client or ControlClient(order.control)
        self._frontiers_of = frontiers
        self._frontiers: tuple[DeviceFrontier, ...] = ()
        self._devices: dict[str, int] = dict(order.node.devices)
        self._profiled_s = 0.0
        """When the server that the profiles are of was started, as it says."""
        self._environ = dict(os.environ if environ is None else environ)
        self._wall, self._monotonic = wall, monotonic
        self._state: NodeState = "released"
        self._grid_start = ""
        self._learning: asyncio.Task[None] | None = None
        self._wait_s = FIRST_WAIT_S
        self._started_s = -float("inf")
        self._again_s = -float("inf")
        self.restarts = 0
        """How often a server that had died was started again."""
        self._why = ""

    # --- the server ---------------------------------------------------------------------------------------------------

    async def start(self, grid_start: str = "") -> bool:
        """Have the server run; return whether one ran already, which is taken over.  `grid_start`: the time in a
        replayed trace at which its grid is now (ISO 8601), so that all nodes are at the same hour.  ClusterError if it
        cannot be started."""
        self._grid_start = grid_start
        record = await asyncio.to_thread(self._process.find)
        if record is not None and record.digest == self._digest():
            if self._state in ("released", "draining"):
                self._state = "starting"
            log.info("node %s: its server runs already and is kept", self.order.node.name)
            return True
        if record is not None:
            log.warning("node %s: a server with other settings runs; it is stopped first", self.order.node.name)
            await self.release()
        self._state = "starting"
        await self._start()
        return False

    async def _start(self) -> None:
        self._started_s = self._monotonic()
        self._why = ""
        environment = {**self._environ, **self.order.environment}
        if self._grid_start:
            environment["CLOVER_TRACE_START"] = self._grid_start
        await asyncio.to_thread(self._process.start, self.order.command(), environment, self._digest())

    def _digest(self) -> str:
        """Return a digest of what the server is started with, which a server that is taken over has to have."""
        words = msgspec.json.encode((self.order.command(), sorted(self.order.environment.items())))
        return hashlib.sha256(words).hexdigest()

    async def revive(self) -> None:
        """Start a server again that should run and does not; called every second or so."""
        if self._state not in ("starting", "ready") or await asyncio.to_thread(self._process.find) is not None:
            return
        now_s = self._monotonic()
        if now_s < self._again_s:
            return
        if self._again_s < self._started_s:  # it has died since it was started last: wait first
            self._wait_s = FIRST_WAIT_S if now_s - self._started_s > STAYED_S else min(2 * self._wait_s, LONGEST_WAIT_S)
            self._again_s = now_s + self._wait_s
            self._state = "starting"
            self._why = self._process.last_words()
            log.warning("node %s: its server died (%s)", self.order.node.name, self._why or "its log says nothing")
            if self._wait_s > FIRST_WAIT_S:
                return
        self.restarts += 1
        try:
            await self._start()
        except ClusterError as error:
            self._why = str(error)
            log.error("node %s: %s", self.order.node.name, error)

    async def release(self) -> None:
        """Have the server answer what it has and end; killed if it takes longer than `drain_s` and a few seconds.
        Returns once it is gone; nothing happens without one."""
        self._state = "draining"
        end_s = self._monotonic() + self.order.drain_s + 10.0
        if await asyncio.to_thread(self._process.end):
            while await asyncio.to_thread(self._process.find) is not None:
                if self._monotonic() >= end_s:
                    log.warning("node %s: its server did not stop in time and is killed", self.order.node.name)
                    await asyncio.to_thread(lambda: self._process.end(kill=True))
                    end_s = float("inf")
                await asyncio.sleep(0.1)
        self._state = "released"
        self._devices = dict(self.order.node.devices)
        self._profiled_s = 0.0

    # --- what it says and does ----------------------------------------------------------------------------------------

    async def report(self) -> NodeReport:
        """Return how the node does now."""
        told: dict[str, Any] = {}
        ready = False
        if self._state in ("starting", "ready", "draining"):
            try:
                # The controller asks: the order that the server follows holds for another lease.
                asking = {"action": "status", "cluster": self.order.cluster, "lease_s": self.order.lease_s}
                told = await self._client.post("/v2/clover/cluster", asking)
                ready = await self._ready()
                if ready and told["started_s"] != self._profiled_s:
                    await self._learn(told["started_s"])
                if self._state != "draining":
                    self._state = "ready" if ready else "starting"
                self._why = "" if ready else "no worker is ready"
            except ClusterError as error:
                if self._state == "ready":
                    self._state = "starting"
                self._why = self._why or str(error)
        models = told.get("models", {})
        return NodeReport(
            node=self._node(models),
            at_s=self._wall(),
            started_s=told.get("started_s", 0.0),
            url=self.order.url,
            grpc_url=self.order.grpc_url,
            families=tuple(self._family(name, model) for name, model in models.items() if name in self.order.models),
            frontiers=self._frontiers,
            target_epoch=told["epoch"] if told.get("following") else 0,
            newest_epoch=told["epoch"] if told.get("cluster") == self.order.cluster else 0,
            healthy=ready,
            why=self._why,
        )

    async def _ready(self) -> bool:
        try:
            await self._client.get("/v2/health/ready")
        except ControlRefused as error:
            if error.status == 503:
                return False
            raise
        return True

    async def _learn(self, started_s: float) -> None:
        """Take note of the devices and operating points of a server that is new."""
        told = await self._client.post("/v2/clover/cluster", {"action": "profiles"})
        shapes = [msgspec.convert(item, DeviceShape) for item in told["devices"]]
        self._devices = dict(self.order.node.devices) or dict(Counter(kind_of(shape) for shape in shapes))
        self._profiled_s = started_s
        if self._frontiers_of is not None:
            if self._learning is not None:
                self._learning.cancel()
            self._learning = asyncio.get_running_loop().create_task(self._work_out(self._frontiers_of, told))

    async def _work_out(self, frontiers_of: Frontiers, told: Mapping[str, Any]) -> None:
        """Find the operating points of a server's devices; reports go without them, or with those of before, until
        they are there."""
        began_s = self._monotonic()
        try:
            self._frontiers = await asyncio.to_thread(frontiers_of, told)
        except Exception:
            log.exception("node %s: the operating points of its devices could not be worked out", self.order.node.name)
        else:
            seconds = self._monotonic() - began_s
            log.info("node %s: operating points worked out in %.1f s", self.order.node.name, seconds)

    async def wait_learned(self) -> None:
        """Wait for the operating points of the server's devices, if they are being worked out."""
        if self._learning is not None:
            await self._learning

    def _node(self, models: Mapping[str, Any]) -> ClusterNode:
        section = self.order.node
        return ClusterNode(
            name=section.name,
            region=section.region,
            devices=self._devices,
            state=self._state,
            awake_w=section.awake_w,
            wake_s=section.wake_s,
            wake_j=section.wake_j,
            correction={name: model["correction"] for name, model in models.items() if name in self.order.models},
        )

    def _family(self, name: str, model: Mapping[str, Any]) -> FamilyReport:
        """Return what a model did.  Its rows are put down to the node's own region here: the ingress knows better, if
        there is one (`clover.cluster.controller.demand`)."""
        return FamilyReport(
            family=name,
            rates={self.order.node.region: model["rate"]},
            p95_ms=model["p95_ms"] or 0.0,
            rows=model["rows"],
            accuracy_rows=model["accuracy_rows"],
            joules=model["joules"],
            grams=model["grams"],
        )

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        """Hand the server its target.  ClusterError if it does not take it; an older one than it has is ignored."""
        models = {
            family: {"rate": max(0.0, target.rates.get(family, 0.0)), "accuracy": accuracy}
            for family, accuracy in target.accuracy.items()
            if family in self.order.models
        }
        body = {"action": "follow", "cluster": self.order.cluster, "node": self.order.node.name, "epoch": epoch}
        try:
            await self._client.post("/v2/clover/cluster", {**body, "lease_s": self.order.lease_s, "models": models})
        except ControlRefused as error:
            if error.status != 409 or "older" not in str(error):
                raise
            log.info("node %s: %s", self.order.node.name, error)

    async def leave(self) -> None:
        """Have the server follow its own policy again, if it answers."""
        with contextlib.suppress(ClusterError):
            await self._client.post("/v2/clover/cluster", {"action": "leave"})


def kind_of(shape: DeviceShape) -> str:
    """Return the kind of a device, which nodes with the same hardware have in common: by its label, and the size of
    core-sets."""
    name = "-".join("".join(c if c.isalnum() or c == "." else " " for c in shape.label.lower()).split())
    return name or f"{shape.kind}-{shape.slices}"


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address
