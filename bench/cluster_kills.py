"""What `bench.cluster_day` kills of its cluster, and by what each is known to be back."""

from __future__ import annotations

import contextlib
import csv
import http.client
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clover.cluster.cluster_records import ClusterFile, NodeSection
from clover.cluster.controller.records import ClusterStatus
from clover.cluster.nodes.ray_support import LocalRay
from clover.cluster.nodes.server_process import ServerProcess

Back = Callable[[ClusterStatus], bool]
_VIEW_S = 10.0
"""Most seconds in which HAProxy may let go of a server's connections, so that it can be deleted."""


@dataclass
class Kill:
    """Something that was killed: when (seconds of the load), and how long until the cluster was as before (None: not
    within the time that it had); what the controller knew before and after."""

    what: str
    at_s: float
    back_s: float | None = None
    epochs: tuple[int, int] = (0, 0)
    rows: tuple[float, float] = (0.0, 0.0)


class Killed(Protocol):
    """The cluster whose parts are killed."""

    file: ClusterFile
    folder: Path
    ports: dict[str, int]

    def busiest(self) -> str:
        """Return the node that has most rows."""

    def awake(self) -> list[str]:
        """Return the nodes that are ready."""

    def wait(self, seconds: float) -> None:
        """Watch for so long."""

    def again(self) -> None:
        """Bring the cluster up again."""


def kills(cluster: Killed) -> Iterator[tuple[str, Callable[[], Back]]]:
    """Yield what is to be killed, each with what kills it and returns by what it is known to be back."""
    yield "a node's server", lambda: kill_server(cluster)
    yield "its actor", lambda: kill_actor(cluster)
    yield "a whole node (server, actor, Ray node); its machine back after 5 s", lambda: kill_node(cluster)
    yield "the controller", lambda: kill_controller(cluster)
    yield "HAProxy's view of a node", lambda: kill_view(cluster)
    yield "HAProxy itself", lambda: kill_haproxy(cluster)
    yield "the way to a node, for longer than its lease", lambda: part(cluster)
    yield "Ray's head; `up` again after 5 s", lambda: kill_head(cluster)


def kill_server(cluster: Killed) -> Back:
    """Kill the server of the node that has most rows."""
    node = _node(cluster, cluster.busiest())
    process = ServerProcess(cluster.folder / node.name)
    old = process.find()
    _kill(*([old.pid] if old else []))
    return lambda status: (
        process.find() not in (None, old) and _ready(node.address, node.port) and settled(status, node.name)
    )


def kill_actor(cluster: Killed) -> Back:
    """Kill the actor of the node that has most rows; its server lives on."""
    before = _actors(cluster, "ray::NodeActor")
    own = _on(cluster, before, _node(cluster, cluster.busiest()))
    _kill(*own)
    return lambda status: len(_actors(cluster, "ray::NodeActor") - set(own)) >= len(before) and settled(status)


def kill_controller(cluster: Killed) -> Back:
    """Kill the controller's actor."""
    old = _actors(cluster, "ray::ControllerActor")
    _kill(*old)
    return lambda status: bool(_actors(cluster, "ray::ControllerActor") - old) and settled(status)


def kill_view(cluster: Killed) -> Back:
    """Remove the node that has most rows from every backend of HAProxy, behind the controller's back."""
    name = cluster.busiest()
    path = cluster.folder / "ingress" / "haproxy.sock"
    own = [row["# pxname"] for row in _statistics(path) if row["svname"] == name]
    for backend in own:
        end_s = time.monotonic() + _VIEW_S
        said = _haproxy(path, f"set server {backend}/{name} state maint")
        while "Server deleted" not in (said := _haproxy(path, f"del server {backend}/{name}")):
            if time.monotonic() > end_s:
                raise RuntimeError(f"HAProxy does not delete {backend}/{name}: {said.strip()}")
            time.sleep(0.02)

    def back(status: ClusterStatus) -> bool:
        up = [row["# pxname"] for row in _statistics(path) if row["svname"] == name and row["status"] == "UP"]
        return sorted(up) == sorted(own) and settled(status)

    return back


def kill_haproxy(cluster: Killed) -> Back:
    """Kill HAProxy, with the requests that it has."""
    old = _programs(f"{cluster.folder}/ingress/")
    _kill(*old)
    ports = list(cluster.ports.values())
    return lambda status: (
        bool(_programs(f"{cluster.folder}/ingress/") - old) and all(_ready("127.0.0.1", port) for port in ports)
    )


def kill_node(cluster: Killed) -> Back:
    """Kill everything of the node that has most rows, and have its machine come back after five seconds."""
    node = _node(cluster, cluster.busiest())
    process = ServerProcess(cluster.folder / node.name)
    ray, record = ServerProcess(cluster.folder / "ray" / node.address).find(), process.find()
    # The server first, as the death of a machine gives nobody the time to drain it.
    _kill(*([record.pid] if record else []), *(_below(ray.pid) if ray else ()), *([ray.pid] if ray else []))
    cluster.wait(5.0)
    LocalRay(cluster.folder).start([one.address for one in cluster.file.node])
    return lambda status: (
        settled(status, node.name) and _ready(node.address, node.port) and process.find() not in (None, record)
    )


def part(cluster: Killed) -> Back:
    """Stop the actor of the node that has most rows for longer than its lease: nobody but its clients reaches it."""
    name = cluster.busiest()
    actors = _on(cluster, _actors(cluster, "ray::NodeActor"), _node(cluster, name))
    for pid in actors:
        os.kill(pid, signal.SIGSTOP)
    try:
        cluster.wait(cluster.file.cluster.lease_s + 4.0)
    finally:
        for pid in actors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return lambda status: settled(status, name)


def kill_head(cluster: Killed) -> Back:
    """Kill Ray's head with all of Ray that is below it, and bring the cluster up again on a new Ray."""
    import ray

    awake = cluster.awake()
    head = ServerProcess(cluster.folder / "ray" / "head").find()
    if head is not None:
        _kill(*_below(head.pid), head.pid)
    cluster.wait(5.0)
    ray.shutdown()
    cluster.again()
    return lambda status: settled(status, *awake)


def settled(status: ClusterStatus, *names: str) -> bool:
    """Return whether a controller is in charge, no node is lost, and none of `names` is on its way; others may be, as
    the grids go on."""
    lost = any(node.phase in ("lost", "partitioned") for node in status.nodes)
    waking = any(node.phase == "waking" and node.name in names for node in status.nodes)
    return status.controlling and not lost and not waking


def process_word(node: NodeSection) -> str:
    """Return the word with which the ids begin that the server of a node makes; empty if it does not answer."""
    connection = http.client.HTTPConnection(node.address, node.port, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/live")
        return (connection.getresponse().headers.get("x-request-id") or "").partition("-")[0]
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _node(cluster: Killed, name: str) -> NodeSection:
    return next(node for node in cluster.file.node if node.name == name)


def _actors(cluster: Killed, kind: str) -> set[int]:
    """Return the processes of actors of a kind, of the bench's own Ray."""
    found = (ServerProcess(path).find() for path in (cluster.folder / "ray").iterdir() if path.is_dir())
    own = {pid for record in found if record is not None for pid in _below(record.pid)}
    return _programs(kind) & own


def _on(cluster: Killed, actors: set[int], node: NodeSection) -> list[int]:
    """Return those of the actors that the Ray node of a node runs."""
    ray = ServerProcess(cluster.folder / "ray" / node.address).find()
    return sorted(actors & _below(ray.pid)) if ray is not None else []


def _ready(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=2.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _statistics(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(_haproxy(path, "show stat").splitlines()))
    except OSError:
        return []


def _haproxy(path: Path, command: str) -> str:
    """Return what HAProxy answers to a command at its socket.  OSError if nobody listens there."""
    with socket.socket(socket.AF_UNIX) as own:
        own.settimeout(5.0)
        own.connect(str(path))
        own.sendall(command.encode() + b"\n")
        parts = []
        while part := own.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _programs(word: str) -> set[int]:
    """Return the processes of this machine whose command line has `word`, but for this one."""
    return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != os.getpid() and _has(pid, word)}


def _has(pid: int, word: str) -> bool:
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return False


def _below(pid: int) -> set[int]:
    """Return the processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found, waiting = set[int](), [pid]
    while waiting:
        above = waiting.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found.update(below)
        waiting += below
    return found
