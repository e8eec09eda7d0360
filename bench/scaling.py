"""How the cost of a request grows: with families, workers, connections, the size of a tensor, and rows that wait.

    python -m bench.scaling [--axis families workers ...] [--turns 60] [--png FOLDER] [--json FILE]

The server's own front end, router, rings and slab in one process, driven turn by turn: connections whose transports do
nothing, and workers that answer from within this process, whose time is taken out.  What is left is what the server's
process spends on a request beyond the kernel: parsing, admission, routing, batches, completions, receipts, encoding,
buffers.  A turn is what an event loop would do: every connection's request is read, batches leave, then every family
looks at its rings until all is answered.  CPU by the process's clock, the least of five measurements (measured).

`families`     64 connections, whose requests go to one family after another
`workers`      64 connections, one family; idle workers' rings are looked at as well
`connections`  a request of each in every turn
`tensor`       bytes of one FP32 tensor, sent as they are, by one connection at a time; copied in by this bench as a
               kernel would
`depth`        so many rows wait in front of every request
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson

from bench.common import provenance, show, write_json
from clover._native.ring import RING_BYTES, Ring
from clover.accounting import Account, WorkerMeter
from clover.config import FamilyConfig, LimitsConfig, ServerConfig
from clover.http.api.routes import Routes
from clover.http.connection import Connection, Incoming
from clover.http.heads import Head
from clover.http.server_state import HttpStats, ServerState
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.router import Router
from clover.types import FamilySpec, PublishedAccuracy, Routing, TensorSpec, VariantSpec

AXES: dict[str, tuple[int, ...]] = {
    "families": (1, 3, 10, 30, 100),
    "workers": (1, 4, 16, 40, 70),
    "connections": (1, 8, 64, 256, 1000, 2000),
    "tensor": (64, 1024, 16 << 10, 256 << 10, 4 << 20, 64 << 20),
    "depth": (0, 100, 1000, 10_000, 100_000),
}
_BATCH = 32
_REPEATS = 5


class Loop:
    """What a front end and a router ask of an event loop, turned by hand."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., None], *given: Any) -> None:
        self.soon.append((callback, given))

    def call_later(self, delay_s: float, callback: Callable[..., None]) -> Loop:
        return self

    def cancel(self) -> None:
        """Do nothing: the timer never fires."""

    def turn(self) -> None:
        while self.soon:
            soon, self.soon = self.soon, []
            for callback, given in soon:
                callback(*given)


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.answers = 0

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return ("127.0.0.1", 1) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.answers += data.startswith(b"HTTP/1.1 200")

    def get_write_buffer_size(self) -> int:
        return 0


class Worker:
    """The far side of a ring, in this process."""

    pid = 1
    resident: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        memory = mmap.mmap(-1, RING_BYTES(_BATCH))
        self.ring = Ring(memory, _BATCH, create=True)
        self._far = Ring(memory, _BATCH)
        self._slots = np.zeros(_BATCH, np.uint32)

    def bell(self) -> None:
        """Do nothing: the ring is polled."""

    def serve(self) -> int:
        """Complete all batches that are there; the rows of these."""
        rows = 0
        while (taken := self._far.take(self._slots)) is not None:
            batch, count, _ = taken
            now_ns = time.monotonic_ns()
            self._far.complete(batch, 0, count, now_ns, now_ns, 1000)
            rows += count
        return rows


class Trusting:
    """Trusts everybody."""

    def judge(self, head: Head) -> None:
        head.authorised = True


class Plane:
    """A front end and its families, with workers and connections."""

    def __init__(self, families: int, workers: int, connections: int, floats: int, slots: int) -> None:
        loop: Any = Loop()
        self.loop: Loop = loop
        account = Account(pue=1.2)
        self.routers: dict[str, Any] = {}
        self.workers: list[Worker] = []
        for number in range(families):
            spec = _family(f"f{number}", floats)
            account.add_family(spec.name)
            slab = Slab.create(Layout(spec, slots))
            router = Router(spec, slab, slots, FamilyConfig(family=spec.name), None, account, loop=loop)
            entries: list[Any] = []
            for at in range(workers):
                meter = WorkerMeter(family=spec.name, variant="only", device="cpu0", placement=f"{at}", slices=1)
                entries.append((Worker(), 0, _BATCH, account.attach(meter)))
            router.route(entries, Routing(shares={"only": 1.0}))
            self.routers[spec.name] = router
            self.workers += [entry[0] for entry in entries]
        view: Any = self
        access: Any = Trusting()
        config = ServerConfig(families=(FamilyConfig(family="f0"),), limits=LimitsConfig(body_bytes=1 << 28))
        routes = Routes(view, config, loop, access)
        state = ServerState(routes.judge, config.limits, loop, HttpStats())
        opened: set[Incoming] = set()
        self.transports = [Transport() for _ in range(connections)]
        self.connections = [Connection(state, routes, opened) for _ in range(connections)]
        for connection, transport in zip(self.connections, self.transports, strict=True):
            connection.connection_made(transport)  # type: ignore[arg-type]
        self.worker_s = 0.0

    def models(self) -> dict[str, Any]:
        """Return the models, as the server's view does."""
        return self.routers

    def send(self, connection: Connection, request: bytes) -> None:
        """Send all of a request, in pieces that fit."""
        at = 0
        whole = memoryview(request)
        while at < len(whole):
            room = connection.get_buffer(-1)
            size = min(len(room), len(whole) - at)
            room[:size] = whole[at : at + size]
            connection.buffer_updated(size)
            at += size

    def complete(self, *, once: bool = False) -> None:
        """Let workers complete what they have, and the families look, until nothing more comes; or only `once`."""
        while True:
            self.loop.turn()
            began = time.process_time()
            rows = sum(worker.serve() for worker in self.workers)
            self.worker_s += time.process_time() - began
            if not rows:
                return
            for router in self.routers.values():
                router.reap()
            if once:  # two credits of a worker are as many rows as a turn brings
                self.loop.turn()
                return


def _family(name: str, floats: int) -> FamilySpec:
    accuracy = PublishedAccuracy(value=90.0, metric="top1", source="none: a bench")
    return FamilySpec(
        name=name,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(floats,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(16,)),),
        variants=(VariantSpec(name="only", loader="m:f", accuracy=accuracy),),
        max_batch=_BATCH,
    )


def request_of(family: str, number: int, floats: int, *, binary: bool = False) -> bytes:
    """Return a request of one row."""
    row = np.random.default_rng(number).standard_normal(floats, np.float32)
    tensor: dict[str, Any] = {"name": "x", "shape": [1, floats], "datatype": "FP32"}
    tail, fields = b"", b""
    if binary:
        tail = row.tobytes()
        tensor["parameters"] = {"binary_data_size": len(tail)}
    else:
        tensor["data"] = [round(float(value), 4) for value in row]
    head = orjson.dumps({"id": f"r{number}", "inputs": [tensor]})
    if binary:
        fields = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    return (
        (
            b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: bench\r\nAccept: */*\r\n%b"
            b"Content-Length: %d\r\n\r\n" % (family.encode(), fields, len(head) + len(tail))
        )
        + head
        + tail
    )


def cost_us(plane: Plane, turn: Callable[[], int], turns: int) -> float:
    """Return microseconds of a request: the least of several measurements."""
    turn()
    found = []
    for _ in range(_REPEATS):
        plane.worker_s, requests = 0.0, 0
        began = time.process_time()
        for _ in range(turns):
            requests += turn()
        found.append((time.process_time() - began - plane.worker_s) / requests * 1e6)
    return min(found)


def measured(axis: str, value: int, turns: int) -> float:
    """Return microseconds of a request at one place of an axis."""
    families = value if axis == "families" else 1
    workers = value if axis == "workers" else 1
    connections = {"connections": value, "tensor": 1}.get(axis, 64)
    floats = value // 4 if axis == "tensor" else 16
    slots = {"tensor": 16, "depth": value + 256}.get(axis, 4096)  # a server has four batches of them at least
    plane = Plane(families, workers, connections, floats, slots)
    names = list(plane.routers)
    kinds = 1 if axis == "tensor" else 512
    requests = [request_of(names[at % families], at, floats, binary=axis == "tensor") for at in range(kinds)]
    following = 0

    def turn() -> int:
        nonlocal following
        for connection in plane.connections:
            plane.send(connection, requests[following % kinds])
            following += 1
        plane.complete(once=axis == "depth")
        return len(plane.connections)

    if axis == "depth":
        router = plane.routers[names[0]]
        for _ in range(value):
            ticket = router.open(1)
            router.submit(ticket, router.close, timeout_ns=3_600_000_000_000)
    most = min(turns * 8, (1 << 28) // value) if axis == "tensor" else turns * 64 // max(64, connections)
    turns = max(2, most)
    found = cost_us(plane, turn, turns)
    answered = sum(transport.answers for transport in plane.transports)
    if axis != "depth" and answered != following:
        raise RuntimeError(f"{answered} of {following} requests were answered with 200")
    return found


def draw(folder: Path, figures: dict[str, list[tuple[int, float]]]) -> None:
    """Draw one PNG for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    where = provenance()
    for axis, points in figures.items():
        figure, plot = pyplot.subplots(figsize=(6.4, 4.0))
        plot.plot([max(value, 1) for value, _ in points], [us for _, us in points], marker="o")
        plot.set_xscale("log")
        plot.set_yscale("log" if axis == "tensor" else "linear")
        if axis != "tensor":
            plot.set_ylim(bottom=0.0)
        plot.set_xlabel("bytes of a tensor" if axis == "tensor" else axis)
        plot.set_ylabel("CPU of a request in the server, us (measured)")
        plot.set_title(f"{where['processor']}, {where['date']}", fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"scaling-{axis}.png", dpi=120)
        pyplot.close(figure)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--turns", type=int, default=60, help="turns of a measurement [60]")
    parser.add_argument("--png", default="", help="also draw a chart an axis into this folder")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, list[tuple[int, float]]] = {}
    table: list[list[object]] = []
    for axis in options.axis:
        for value in AXES[axis]:
            us = measured(axis, value, options.turns)
            figures.setdefault(axis, []).append((value, us))
            first = figures[axis][0][1]
            table.append([axis, value, f"{us:.2f}", f"{us / first:.2f}"])
    title = "CPU of a request in the server's process, beyond the kernel (measured)"
    show(title, ("", "", "us", "of the first"), table)
    if options.png:
        draw(Path(options.png), figures)
    write_json(options.json, {"figures": figures})


if __name__ == "__main__":
    main()
