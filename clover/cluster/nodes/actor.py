"""A node as an actor of Ray, and all nodes of a cluster through their actors.

The actor is one process that runs the node's agent (`clover.cluster.nodes.node`) on the node's machine.  Ray places it
by the machine's address or by a custom resource, and starts it again when it dies; the server that it looks after is
no child of it and runs on.  What goes to an actor and comes back is text (JSON), so that both sides check it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clover.cluster.cluster_records import ClusterFile, NodeSection
from clover.cluster.nodes.frontiers import kept_frontiers
from clover.cluster.nodes.node import NodeAgent, NodeSetup
from clover.cluster.nodes.ray_support import require_ray
from clover.cluster.planning.records import ClusterNode, NodeTarget
from clover.cluster.ports import NodeReport
from clover.errors import CloverError, ClusterError
from clover.malformed import MALFORMED

log = logging.getLogger("clover.cluster")

T = TypeVar("T")

_LOOK_S = 1.0
_ANSWER_S = 8.0
_SILENT_S = 1.0
_LATE_S = 30.0
"""After which a node that was asked for a report is asked anew."""
_END_S = 30.0
"""Beyond the drain, for a node to be released."""


class NodeActor:
    """What runs in the actor: an agent that looks after its server every second.  Methods take and give JSON."""

    def __init__(self, order: bytes, grid_start: str = "") -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        given = msgspec.json.decode(order, type=NodeSetup)
        kept = Path(given.folder).parent / "frontiers"
        self._agent = NodeAgent(given, frontiers=lambda told: kept_frontiers(told, kept))
        self._grid_start = grid_start
        self._task: asyncio.Task[None] | None = None
        self._failed = ""

    async def start(self) -> str:
        """Have the server run and be looked after from now on; return why it cannot be started, if so."""
        if self._task is None or self._task.done():  # done: it was to be released, and is wanted again
            self._failed = ""
            self._task = asyncio.get_running_loop().create_task(self._keep())
        return self._failed

    async def report(self) -> bytes:
        """Return the node's report."""
        if self._task is None:  # Ray has made this actor anew, without being asked
            await self.start()
        return msgspec.json.encode(await self._agent.report())

    async def follow(self, target: bytes, epoch: int) -> str:
        """Hand the server its target; return why it did not take it, empty if it did."""
        try:
            await self._agent.follow(msgspec.json.decode(target, type=NodeTarget), epoch)
        except CloverError as error:
            return str(error)
        return ""

    async def release(self) -> None:
        """End the server, once it has answered what it has."""
        await self._stop()
        await self._agent.release()

    async def leave(self) -> None:
        """Have the server follow its own policy, and look after it no more."""
        await self._stop()
        await self._agent.leave()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        try:
            await self._agent.start(self._grid_start)
        except CloverError as error:
            self._failed = str(error)
            log.error("%s", error)
        while True:
            try:
                await self._agent.revive()
            except Exception:
                log.exception("a look at the node's server failed")
            await asyncio.sleep(_LOOK_S)


def actor_name(node: str) -> str:
    """Return the name of a node's actor within the cluster's namespace."""
    return f"node:{node}"


class RayNodes:
    """Implements `clover.cluster.ports.Nodes` by actors of Ray in the namespace of the cluster.

    `folder`: where nodes keep their files, the same path on every machine.  `grid_start` gives the time that a region's
    replayed trace is at now.  `shared` gives reports with rates by the clients' regions, if the ingress knows them."""

    def __init__(
        self,
        file: ClusterFile,
        namespace: str,
        folder: Path,
        *,
        grid_start: Callable[[str], str] = lambda region: "",
        shared: Callable[[Mapping[str, NodeReport]], Awaitable[Mapping[str, NodeReport]]] | None = None,
    ) -> None:
        self._ray = require_ray()
        self._file = file
        self._namespace = namespace
        self._folder = folder
        self._grid_start = grid_start
        self._shared = shared
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        """Reports that nodes were asked for at an earlier look and have not given yet; those are not waited for as
        long."""
        self._nodes = {node.name: node for node in file.node}

    async def reports(self) -> Mapping[str, NodeReport]:
        """See `clover.cluster.ports.Nodes.reports`.  ClusterError if Ray knows nothing of any of them."""
        by_node = dict[str, NodeReport]()
        unknown: list[ClusterError] = []

        async def ask(name: str) -> None:
            try:
                actor = await asyncio.to_thread(self._find, name)
            except ClusterError as error:
                unknown.append(error)
                return
            if actor is None:
                self._asked.pop(name, None)
                return
            # A slow node's answer is taken at a later look: to ask anew each time would only make it slower.
            slow = name in self._asked
            asked = self._asked.pop(name, None) or asyncio.ensure_future(self._answer(actor.report.remote(), _LATE_S))
            await asyncio.wait({asked}, timeout=_SILENT_S if slow else _ANSWER_S)
            if not asked.done():
                self._asked[name] = asked
                log.warning("node %s gives no report yet", name)
                return
            try:
                by_node[name] = msgspec.json.decode(asked.result(), type=NodeReport)
            except (ClusterError, *MALFORMED) as error:
                log.warning("node %s gives no report: %s", name, error)

        await asyncio.gather(*map(ask, self._nodes))
        if unknown and len(unknown) == len(self._nodes):
            raise unknown[0]
        for error in unknown:
            log.warning("%s", error)
        return await self._shared(by_node) if self._shared is not None else by_node

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        """See `clover.cluster.ports.Nodes.follow`."""
        actor = await self._known(target.node)
        why = await self._answer(actor.follow.remote(msgspec.json.encode(target), epoch), _ANSWER_S)
        if why:
            raise ClusterError(f"node {target.node} does not take its target: {why}")

    async def wake(self, name: str) -> None:
        """See `clover.cluster.ports.Nodes.wake`."""
        await self._hook("wake", name)
        actor = await asyncio.to_thread(self._make, name)
        why = await self._answer(actor.start.remote(), _END_S)
        if why:
            raise ClusterError(f"node {name} does not start: {why}")

    async def release(self, name: str) -> None:
        """See `clover.cluster.ports.Nodes.release`."""
        actor = await asyncio.to_thread(self._find, name)
        if actor is not None:
            await self._answer(actor.release.remote(), self._file.cluster.drain_s + _END_S)
            await asyncio.to_thread(self._ray.kill, actor, no_restart=True)
        await self._hook("release", name)

    async def leave(self) -> None:
        """Have every node's server go on by itself, and end the actors."""
        for name in self._nodes:
            actor = await asyncio.to_thread(self._find, name)
            if actor is not None:
                with contextlib.suppress(ClusterError):
                    await self._answer(actor.leave.remote(), _ANSWER_S)
                await asyncio.to_thread(self._ray.kill, actor, no_restart=True)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Any:
        """Return a node's actor, None if there is none.  ClusterError if Ray does not say."""
        try:
            return self._ray.get_actor(actor_name(name), namespace=self._namespace)
        except ValueError:
            return None
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterError(f"Ray does not say where node {name} is: {error}") from error

    async def _known(self, name: str) -> Any:
        actor = await asyncio.to_thread(self._find, name)
        if actor is None:
            raise ClusterError(f"node {name} has no actor: it is released, or Ray cannot place it")
        return actor

    def _make(self, name: str) -> Any:
        """Return a node's actor, made if there is none; Ray starts it once its machine is there."""
        node = self._nodes[name]
        order = NodeSetup.from_cluster(self._file, name, self._folder)
        return (
            self._ray.remote(NodeActor)
            .options(
                name=actor_name(name),
                namespace=self._namespace,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_concurrency=64,
                num_cpus=0,
                resources=placed_by(node),
            )
            .remote(msgspec.json.encode(order), self._grid_start(node.region))
        )

    async def _answer(self, reference: Awaitable[T], within_s: float) -> T:
        """Wait for an actor's answer; ClusterError if it dies or takes too long."""
        try:
            async with asyncio.timeout(within_s):
                return await reference
        except TimeoutError:
            raise ClusterError(f"no answer within {within_s:g} s") from None
        except self._ray.exceptions.RayError as error:
            raise ClusterError(str(error).strip().partition("\n")[0]) from error

    async def _hook(self, verb: str, name: str) -> None:
        """Call the autoscaler's hook, if there is one.  ClusterError if it fails."""
        hook = self._file.cluster.hook
        if not hook:
            return
        try:
            process = await asyncio.create_subprocess_exec(*hook, verb, name, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            raise ClusterError(f"the hook {hook[0]} cannot be called: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._file.cluster.hook_s):
                code = await process.wait()
        except TimeoutError:
            raise ClusterError(f"the hook {hook[0]} {verb} {name} took too long, and was ended") from None
        finally:  # also if the order was given up: it is given again, and two hooks must not run at once
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code:
            raise ClusterError(f"the hook {hook[0]} {verb} {name} failed with {code}")


def placed_by(node: NodeSection) -> dict[str, float]:
    """Return the custom resources that place a node's actor: the one it names, or the Ray node of its address."""
    return {node.resource or f"node:{node.address}": 0.001}


def declared(file: ClusterFile) -> tuple[ClusterNode, ...]:
    """Return what is known of the nodes before their first report."""
    return tuple(
        ClusterNode(
            name=node.name,
            region=node.region,
            devices=node.devices,
            state="released",
            awake_w=node.awake_w,
            wake_s=node.wake_s,
            wake_j=node.wake_j,
        )
        for node in file.node
    )
