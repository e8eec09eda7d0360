"""The cluster's controller as a detached actor of Ray, with all that it sees of the world.

The actor runs on the machine on which `clover cluster up` was called, beside the ingress, whose runtime API is a socket
of that machine.  Ray starts it again if it dies.  It reads a copy of the cluster file in the cluster's folder
(`cluster.json`, mode 0600), what it knows is in its store, and what is in force is asked of nodes and ingress: so a new
controller, also on a Ray that was made anew, goes on where the last one was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clover.cache import replace_file, state_folder
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller.controller import ClusterController, in_thread
from clover.cluster.controller.demand import OriginShares
from clover.cluster.controller.dry import NoIngress
from clover.cluster.controller.memory import FileStore
from clover.cluster.controller.records import ClusterTerms
from clover.cluster.controller.region_grids import ConfiguredGrids
from clover.cluster.ingress.checked import CheckedIngress
from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.nodes.actor import RayNodes, declared
from clover.cluster.nodes.ray_support import was_restarted
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, FamilyTerms
from clover.cluster.ports import Ingress, NodeReport
from clover.errors import CloverError, ClusterError
from clover.malformed import MALFORMED
from clover.types import Record

log = logging.getLogger("clover.cluster")

_FIRST_S = 900.0
"""For a first start of nodes, which measure what they serve."""

_PATIENCE_S = 15.0
"""Beyond the drain or the hook, for a node to be released or woken."""

_CORRECT_S = 3600.0
"""At most, to make a debt of accuracy good."""
_CORRECTIONS = 10.0
"""Times within the horizon of the accuracy budget that a debt could be made good: with a slower correction, a short
budget would be over before its floor has moved."""

CONTROLLER = "controller"
"""The name of the actor within the cluster's namespace."""


class RunningCluster(Record, frozen=True, kw_only=True):
    """What `up` leaves for controllers: the cluster file, resolved, and when the cluster was brought up (Unix)."""

    file: ClusterFile
    began_s: float
    address: str = ""
    """HOST:PORT of the Ray cluster it is on."""
    local: bool = False
    """Whether that Ray is the cluster's own, which `down` ends."""


def namespace_of(name: str) -> str:
    """Return the Ray namespace of a cluster."""
    return f"clover-{name}"


def folder_of(file: ClusterFile) -> Path:
    """Return the folder of a cluster's files, on every machine the same path."""
    given = file.cluster.folder
    return Path(given) if given else state_folder("") / "cluster" / file.cluster.name


def remember(running: RunningCluster) -> None:
    """Write down, for the user alone, what controllers need.  OSError if that fails."""
    folder = folder_of(running.file)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(folder / "cluster.json", msgspec.json.encode(running))


def recall(folder: Path) -> RunningCluster | None:
    """Return what `up` left in a cluster's folder, None if nothing.  ClusterError if it cannot be read."""
    try:
        return msgspec.json.decode((folder / "cluster.json").read_bytes(), type=RunningCluster)
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        raise ClusterError(
            f"{folder / 'cluster.json'} cannot be read ({error}): run `clover cluster up` again"
        ) from error


def terms_of(file: ClusterFile) -> ClusterTerms:
    """Return the terms of a cluster for its controller."""
    cluster = file.cluster
    return ClusterTerms(
        nodes=declared(file),
        families=tuple(
            FamilyTerms(
                family=family.family,
                accuracy_floor=family.accuracy_floor,
                slo_p95_ms=family.slo_ms,
                regions=family.regions,
            )
            for family in file.family
        ),
        latency_ms={region.name: region.latency_ms for region in file.region},
        survive=cluster.survive,
        horizon_s=cluster.horizon_s,
        look_s=cluster.step_s,
        plan_s=cluster.plan_s,
        lost_s=cluster.lost_s,
        drain_s=cluster.drain_s,
        dwell_s=cluster.dwell_s,
        release_after_s=cluster.release_after_s,
        budget_s=cluster.budget_s,
        correct_s=min(_CORRECT_S, cluster.budget_s / _CORRECTIONS),
        max_changes=cluster.max_changes,
        patience_s=_PATIENCE_S + cluster.drain_s + (cluster.hook_s if cluster.hook else 0.0),
    )


def ingress_of(file: ClusterFile, folder: Path) -> CheckedIngress | None:
    """Return the ingress of a cluster, not started; None if it has none."""
    given = file.ingress
    if given is None:
        return None
    origins = tuple(
        IngressOrigin(name=region.name, listen=region.listen, listen_grpc=region.listen_grpc)
        for region in file.region
        if region.listen or region.listen_grpc
    )
    return CheckedIngress(
        IngressSettings(
            folder=str(folder / "ingress"),
            origins=origins,
            families=tuple(family.family for family in file.family) if len(file.family) > 1 else (),
            haproxy=given.haproxy,
            body_bytes=given.body_bytes,
            retries=given.retries,
            tls_cert=given.tls_cert,
            ca_file=given.ca_file,
            token=given.token,
            allowed_hosts=given.allowed_hosts,
            nodes=2 * len(file.node),
        ),
        may_answer(file),
        resident(file) if len(file.family) > 1 else None,
    )


def resident(file: ClusterFile) -> dict[str, frozenset[str]]:
    """Return by origin the nodes that may have the rows of all its families; origins that may use every node are left
    out."""
    regions = frozenset(region.name for region in file.region)
    nodes_by_origin = {}
    for origin in file.region:
        allowed = regions.intersection(*(family.regions.get(origin.name, regions) for family in file.family))
        if allowed != regions:
            nodes_by_origin[origin.name] = frozenset(node.name for node in file.node if node.region in allowed)
    return nodes_by_origin


def may_answer(file: ClusterFile) -> dict[tuple[str, str], frozenset[str]]:
    """Return the nodes that may answer rows, by origin and family ("" for all families), as data residency and latency
    allow."""
    nodes_by_key: dict[tuple[str, str], frozenset[str]] = {}
    for origin in file.region:
        every = frozenset(node.name for node in file.node)
        for family in file.family:
            regions = family.regions.get(origin.name, tuple(region.name for region in file.region))
            near = {name for name in regions if origin.latency_ms.get(name, 0.0) < family.slo_ms}
            allowed = frozenset(node.name for node in file.node if node.region in near)
            nodes_by_key[origin.name, family.family] = allowed
            every &= allowed
        nodes_by_key[origin.name, ""] = every
    return nodes_by_key


class ControllerActor:
    """What runs in the actor.  Methods take and give JSON."""

    def __init__(self, folder: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        running = recall(Path(folder))
        if running is None:
            raise ClusterError(f"nothing was brought up in {folder}")
        self._file = running.file
        self._folder = Path(folder)
        self._grids = ConfiguredGrids(running.file, began_s=running.began_s)
        self._shares = OriginShares()
        self._haproxy = ingress_of(running.file, self._folder)
        self._nodes = RayNodes(
            running.file,
            namespace_of(running.file.cluster.name),
            self._folder,
            grid_start=self._grids.replayed_at,
            shared=self._share_out,
        )
        self._controller = ClusterController(
            terms_of(running.file),
            self._nodes,
            self._ingress(),
            self._store(),
            self._grids,
            in_thread(self._plan),
        )
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._began_s = time.time()
        self._trouble = ""
        self._coming_back: asyncio.Task[None] | None = None
        if was_restarted():  # nobody may ask for long, and HAProxy may have died with the one before
            self._coming_back = asyncio.get_running_loop().create_task(self._resume())

    def _plan(self, problem: ClusterProblem) -> ClusterPlan:
        """Return a plan; keep a problem that none could be made for, so that it can be looked into."""
        try:
            return plan_cluster(problem)
        except Exception:
            path = self._folder / "unplanned.json"
            replace_file(path, msgspec.json.encode(problem))
            log.error("no plan could be made: the problem is kept in %s", path)
            raise

    async def start(self) -> str:
        """Begin to control; return why it cannot, empty if it does."""
        async with self._starting:
            if self._task is None:
                try:
                    await self._grids.open()
                    if self._haproxy is not None:
                        await self._haproxy.start()
                except CloverError as error:
                    self._trouble = str(error)
                    return self._trouble
                self._trouble = ""
                self._task = asyncio.get_running_loop().create_task(self._run())
        return ""

    async def _resume(self) -> None:
        """Begin to control again, however often that takes."""
        while True:
            try:
                why = await self.start()
            except Exception as error:  # nobody looks at this task
                log.exception("the controller could not be started again")
                why = self._trouble = repr(error)
            if not why:
                return
            log.warning("the controller could not be started again, and will be tried once more: %s", why)
            await asyncio.sleep(self._file.cluster.step_s)

    async def _run(self) -> None:
        first = False
        with contextlib.suppress(ClusterError):
            first = await self._store().load() is None
        if first:
            await self._wake_all()
        settling = asyncio.create_task(self._let_go())
        try:
            await self._controller.run()
            if self._haproxy is not None:  # another controller is in charge: what this one wanted is not kept up
                await self._haproxy.close()
        finally:
            settling.cancel()

    async def _wake_all(self) -> None:
        """Start every node whose devices the cluster file does not say: nothing is known of this cluster, and no plan
        can be made with a node that has not reported what it has.  Each is held awake until it has."""

        async def wake(name: str) -> None:
            self._controller.hold(name, "awake")
            try:
                await self._nodes.wake(name)
            except CloverError as error:
                log.warning("node %s: %s", name, error)

        await asyncio.gather(*(wake(node.name) for node in self._file.node if not node.devices))

    async def _let_go(self) -> None:
        """Return nodes that are held awake to the plans, once they are ready or have had long enough."""
        end_s = time.monotonic() + _FIRST_S
        while True:
            await asyncio.sleep(self._file.cluster.step_s)
            held = [node for node in self._controller.status().nodes if node.hold == "awake"]
            for node in held:
                if node.phase == "ready" or time.monotonic() > end_s:
                    self._controller.hold(node.name, None)

    async def status(self) -> bytes:
        """Return the `ClusterStatus`."""
        await self.start()
        status = self._controller.status()
        if self._trouble:
            troubles = (f"the controller cannot begin: {self._trouble}", *status.troubles)
            status = msgspec.structs.replace(status, troubles=troubles)
        return msgspec.json.encode(status)

    async def plan(self) -> bytes:
        """Return the `ClusterLook` of a dry run."""
        await self.start()
        return msgspec.json.encode(await self._controller.step(dry=True))

    async def hold(self, name: str, hold: str) -> str:
        """Keep a node as an operator wants it ("drained", "released", "awake", or "" to leave it to plans); return why
        it cannot be, empty if it can."""
        try:
            self._controller.hold(name, hold or None)  # type: ignore[arg-type]  # the command line checks the word
        except CloverError as error:
            return str(error)
        return ""

    async def retire(self, names: list[str]) -> str:
        """Drain, end and forget nodes that the cluster file has no more; return what went wrong, empty if nothing."""
        troubles = []
        for name in names:
            try:
                if self._haproxy is not None and name in await self._haproxy.nodes():
                    await self._haproxy.drain(name)
                    end_s = time.monotonic() + self._file.cluster.drain_s
                    while await self._haproxy.open_connections(name) and time.monotonic() < end_s:
                        await asyncio.sleep(0.2)
                await self._nodes.release(name)
                if self._haproxy is not None and name in await self._haproxy.nodes():
                    await self._haproxy.remove(name)
            except CloverError as error:
                troubles.append(f"node {name}: {error}")
        return "; ".join(troubles)

    async def facts(self) -> dict[str, Any]:
        """Return the actor's process id and since when it runs."""
        return {"pid": os.getpid(), "since_s": self._began_s, "trouble": self._trouble}

    async def stop(self, keep: bool) -> None:
        """End the nodes and the ingress; with `keep`, let both go on by themselves."""
        tasks = [task for task in (self._coming_back, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if keep:
            await self._nodes.leave()
        else:
            await asyncio.gather(*(self._release(node.name) for node in self._file.node))
        if self._haproxy is not None:
            await (self._haproxy.close() if keep else self._haproxy.stop(self._file.cluster.drain_s))
        await self._grids.close()

    async def _release(self, name: str) -> None:
        try:
            await self._nodes.release(name)
        except CloverError as error:
            log.warning("node %s: %s", name, error)

    async def _share_out(self, reports: Mapping[str, NodeReport]) -> Mapping[str, NodeReport]:
        if self._haproxy is not None:
            try:
                self._shares.record(await self._haproxy.origin_requests())
            except ClusterError as error:
                log.warning("HAProxy did not say whose rows each node answers, the last shares hold: %s", error)
        return self._shares.shared(reports)

    def _ingress(self) -> Ingress:
        return self._haproxy if self._haproxy is not None else NoIngress()

    def _store(self) -> FileStore:
        given = self._file.cluster.store.removeprefix("file:")
        return FileStore(Path(given) if given else self._folder / "state.json")
