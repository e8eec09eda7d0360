"""Bringing a cluster up and down, and speaking with its controller, for the command line.

The command ends and the cluster stays: the controller and the nodes are detached actors of Ray, the servers and the
ingress are processes of their own.  What is needed to find them again is in the cluster's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller.actor import (
    CONTROLLER,
    ControllerActor,
    RunningCluster,
    folder_of,
    ingress_of,
    namespace_of,
    recall,
    remember,
)
from clover.cluster.controller.records import ClusterLook, ClusterStatus
from clover.cluster.ingress.process import find_program
from clover.cluster.nodes.actor import placed_by
from clover.cluster.nodes.node import NodeAgent, NodeSetup
from clover.cluster.nodes.ray_support import LocalRay, connect, require_ray, use_token
from clover.errors import ClusterError
from clover.hints import program

Say = Callable[[str], None]

_ANSWER_S = 60.0
_POLL_S = 0.5


class ClusterHandle:
    """The controller of a running cluster."""

    def __init__(self, ray: Any, controller: Any) -> None:
        self._ray = ray
        self._controller = controller

    @classmethod
    def attach(cls, file: ClusterFile) -> ClusterHandle:
        """Return the controller of the cluster of `file`.  ClusterError if it is not up, or does not answer."""
        use_token(folder_of(file))
        require_ray()
        up = f"`{program()} cluster up`"
        running = recall(folder_of(file))
        if running is None:
            raise ClusterError(f"the cluster {file.cluster.name} is not up from this machine: {up} starts it")
        try:
            ray = connect(running.address, namespace_of(file.cluster.name))
        except ClusterError as error:
            raise ClusterError(
                f"{error}; nodes and ingress serve on by themselves, and {up} takes them over on a new Ray"
            ) from error
        try:
            return cls(ray, ray.get_actor(CONTROLLER, namespace=namespace_of(file.cluster.name)))
        except ValueError:
            raise ClusterError(f"the cluster {file.cluster.name} has no controller: {up} starts one") from None

    def status(self) -> ClusterStatus:
        """Return how the cluster does."""
        return msgspec.json.decode(self._call("status"), type=ClusterStatus)

    def plan(self) -> ClusterLook:
        """Return what the controller would do now."""
        return msgspec.json.decode(self._call("plan"), type=ClusterLook)

    def hold(self, node: str, hold: str) -> None:
        """Keep a node "drained" or "released", or ("") leave it to plans.  ClusterError if there is no such node."""
        if why := self._call("hold", node, hold):
            raise ClusterError(why)

    def retire(self, nodes: Sequence[str], within_s: float) -> None:
        """End nodes that the cluster file has no more.  ClusterError if one cannot be ended."""
        if why := self._call("retire", list(nodes), within_s=within_s):
            raise ClusterError(why)

    def start(self) -> None:
        """Have the controller begin.  ClusterError if it cannot."""
        if why := self._call("start"):
            raise ClusterError(why)

    def wait_ready(self, within_s: float) -> ClusterStatus:
        """Return the status once every node is ready, or released because plans do without it; or after `within_s`."""
        end_s = time.monotonic() + within_s
        while True:
            status = self.status()
            ready = any(node.phase == "ready" for node in status.nodes)
            waits = any(node.phase in ("waking", "lost") or node.hold == "awake" for node in status.nodes)
            if (ready and not waits and status.controlling) or time.monotonic() >= end_s:
                return status
            time.sleep(_POLL_S)

    def stop(self, *, keep: bool, within_s: float) -> None:
        """End nodes and ingress, or let them go on (`keep`), and end the controller."""
        try:
            self._call("stop", keep, within_s=within_s)
        finally:
            self._ray.kill(self._controller, no_restart=True)

    def _call(self, method: str, *arguments: Any, within_s: float = _ANSWER_S) -> Any:
        try:
            return self._ray.get(getattr(self._controller, method).remote(*arguments), timeout=within_s)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(f"the controller does not answer: {said[-1].strip()}") from error


def bring_up(file: ClusterFile, address: str, *, say: Say) -> ClusterHandle:
    """Start a cluster on the Ray at `address`, or on one of its own (empty), or have a running one follow `file`.
    ClusterError if Ray or HAProxy is missing, or something does not start."""
    folder = folder_of(file)
    for node in file.node:
        NodeAgent(
            NodeSetup.from_cluster(file, node.name, folder)
        )  # the paths of its sockets, before anything is started
    if not address:
        use_token(folder, make=not LocalRay(folder).address)
    require_ray()
    if file.ingress is not None:
        find_program(file.ingress.haproxy)
    before = recall(folder)
    local = not address
    if local:
        address = LocalRay(folder).start(_local_addresses(file))
    say(f"Ray at {address}")
    ray = connect(address, namespace_of(file.cluster.name))
    _check_places(file, ray, say)
    began_s = before.began_s if before is not None else time.time()
    remember(RunningCluster(file=file, began_s=began_s, address=_reach(ray, address), local=local))
    with contextlib.suppress(ValueError):
        old = ray.get_actor(CONTROLLER, namespace=namespace_of(file.cluster.name))
        ray.kill(old, no_restart=True)
        say("the controller that runs is replaced; nodes and ingress go on")
    handle = ClusterHandle(ray, _make_controller(ray, file, folder))
    handle.start()
    say("the controller runs")
    gone = (
        [node.name for node in before.file.node if node.name not in {one.name for one in file.node}] if before else []
    )
    if gone:
        handle.retire(gone, within_s=len(gone) * (file.cluster.drain_s + _ANSWER_S))
        say(f"no longer in the file, and ended: {', '.join(gone)}")
    return handle


def take_down(file: ClusterFile, *, keep: bool, say: Say) -> None:
    """End a cluster, also one whose Ray is gone: then what runs on this machine."""
    folder = folder_of(file)
    running = recall(folder)
    try:
        handle = ClusterHandle.attach(file)
        hook_s = file.cluster.hook_s if file.cluster.hook else 0.0
        # Nodes, then the ingress, may drain.
        handle.stop(keep=keep, within_s=2 * file.cluster.drain_s + hook_s + 2 * _ANSWER_S)
        say("nodes and ingress go on by themselves" if keep else "nodes and ingress were asked to end")
    except ClusterError as error:
        say(str(error))
    if not keep:  # also what its actor or Ray did not end
        asyncio.run(_end_here(file, folder))
        say("nothing of the cluster runs on this machine any more")
    if running is None or running.local:
        with contextlib.suppress(ClusterError):  # what runs is ended by its records, also without Ray
            ray = require_ray()
            if ray.is_initialized():
                ray.shutdown()
        if ended := LocalRay(folder).stop():
            say(f"{ended} Ray nodes of this machine have ended")
    if not keep:
        (folder / "cluster.json").unlink(missing_ok=True)
        # Also one that is kept elsewhere: the next `up` would find a plan for nodes that have ended.
        given = file.cluster.store.removeprefix("file:")
        Path(given or folder / "state.json").unlink(missing_ok=True)


async def _end_here(file: ClusterFile, folder: Path) -> None:
    """End the servers and the ingress that run on this machine, by their records."""
    agents = [NodeAgent(NodeSetup.from_cluster(file, node.name, folder)) for node in file.node]
    await asyncio.gather(*(agent.release() for agent in agents))
    ingress = ingress_of(file, folder)
    if ingress is not None and (folder / "ingress" / "haproxy.sock").exists():
        with contextlib.suppress(ClusterError):
            await ingress.start()
            await ingress.stop(file.cluster.drain_s)


def _make_controller(ray: Any, file: ClusterFile, folder: Path) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(ControllerActor)
        .options(
            name=CONTROLLER,
            namespace=namespace_of(file.cluster.name),
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=16,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(str(folder))
    )


def _local_addresses(file: ClusterFile) -> Sequence[str]:
    """Return the addresses at which Ray nodes are started here.  ClusterError if a node is on another machine."""
    for node in file.node:
        try:
            here = ipaddress.ip_address(node.address).is_loopback
        except ValueError:
            here = node.address == "localhost"
        if node.resource or not here:
            raise ClusterError(
                f"node {node.name} is not on this machine ({node.resource or node.address}): start Ray on all machines "
                "(ray start --head, then ray start --address=...), and give --address=HOST:PORT of its head"
            )
    return list(dict.fromkeys(node.address for node in file.node))


def _check_places(file: ClusterFile, ray: Any, say: Say) -> None:
    """Say which nodes have no place in the Ray cluster yet.  ClusterError if none has one."""
    end_s = time.monotonic() + _ANSWER_S
    wanted = {node.name: next(iter(placed_by(node))) for node in file.node}
    while missing := [name for name, resource in wanted.items() if resource not in ray.cluster_resources()]:
        if time.monotonic() > end_s or (len(missing) < len(wanted) and file.cluster.hook):
            break
        time.sleep(_POLL_S)
    if len(missing) == len(wanted):
        raise ClusterError(
            f"Ray has no place for any node: none of its nodes has {', '.join(sorted(set(wanted.values())))}; give "
            "nodes the addresses of Ray nodes, or resources that these were started with"
        )
    if missing:
        say(f"Ray has no place yet for {', '.join(missing)}: they start once their machines have joined")


def _reach(ray: Any, address: str) -> str:
    """Return HOST:PORT of the Ray cluster that `address` led to."""
    return str(ray.get_runtime_context().gcs_address) if address == "auto" else address
