"""What the benches of the kernels run: each operation as the server calls it, for a kernel or its plain-Python twin.

Nothing is imported here but NumPy: `bench.instructions` runs these under valgrind, where imports are slow.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import socket
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np

Run = Callable[[int], None]
"""Performs about that many operations."""

_DUE_NS = 1 << 60
"""A deadline that no row misses."""


def batcher(module: ModuleType, depth: int, max_batch: int, *, clients: int = 1) -> Run:
    """Return a case of a request's whole stay: pushed, dispatched in a batch, its worker's credit returned.

    `depth` rows wait, of `clients` clients at random."""
    slots = 16 * depth
    queue = module.Batcher(1, 4, slots)
    for worker in range(4):
        queue.attach(worker, 0, max_batch)
    spread = random.Random(1)
    client = [spread.randrange(clients) for _ in range(slots)]
    out = np.zeros(max_batch, np.uint32)
    stream = itertools.count(depth)
    for at in range(depth):
        queue.push(0, at, _DUE_NS, at, 0, client[at])

    def run(count: int) -> None:
        push, dispatch, credit = queue.push, queue.dispatch, queue.credit
        for _ in range(count // max_batch):
            for at in itertools.islice(stream, max_batch):
                slot = at % slots
                push(0, slot, _DUE_NS, at, 0, client[slot])
            worker, _ = dispatch(0, out)
            credit(worker)

    return run


def called_from_c(stay: Callable[..., None], module: ModuleType, depth: int, *, clients: int = 1) -> Run:
    """Return the same in batches of eight where the calls come from C (`bench.batcher_stay`), as those of the router
    do."""
    slots = 16 * depth
    queue = module.Batcher(1, 4, slots)
    for worker in range(4):
        queue.attach(worker, 0, 8)
    spread = random.Random(1)
    client = [spread.randrange(clients) for _ in range(slots)]
    out = np.zeros(8, np.uint32)
    for at in range(depth):
        queue.push(0, at, _DUE_NS, at, 0, client[at])
    due = depth

    def run(count: int) -> None:
        nonlocal due
        stay(queue, out, client, due, count, 8)
        due += count // 8 * 8

    return run


def push_many(module: ModuleType, rows: int) -> Run:
    """Return a case of a request of `rows` rows: pushed at once, dispatched as one batch."""
    queue = module.Batcher(1, 1, 4 * rows)
    queue.attach(0, 0, rows)
    slots = np.arange(rows, dtype=np.uint32)
    out = np.zeros(rows, np.uint32)

    def run(count: int) -> None:
        for at in range(count // rows):
            queue.push_many(0, slots, _DUE_NS, at)
            queue.dispatch(at, out)
            queue.credit(0)

    return run


def ring(module: ModuleType, rows: int) -> Run:
    """Return a case of a batch's whole way: submitted, taken, completed, reaped."""
    memory = bytearray(module.RING_BYTES(rows))
    server, worker = module.Ring(memory, rows, create=True), module.Ring(memory, rows)
    slots, out = np.arange(rows, dtype=np.uint32), np.zeros(rows, np.uint32)
    given, taken = np.ones(rows, np.float32), np.zeros(rows, np.float32)

    def run(count: int) -> None:
        for batch_id in range(count):
            server.submit(batch_id, slots, rows)
            worker.take(out)
            worker.complete(batch_id, 0, rows, 1, 2, 3, given)
            server.reap(taken)

    return run


def latencies_ns() -> list[int]:
    """Draw 1,000 latencies around 9 ms, spread log-normally."""
    spread = random.Random(1)
    return [int(spread.lognormvariate(16, 1)) for _ in range(1000)]


def histogram_record(module: ModuleType) -> Run:
    """Return a case that records one latency."""
    counts, values = module.Histogram(), latencies_ns()

    def run(count: int) -> None:
        record = counts.record
        for _ in range(count // len(values)):
            for value in values:
                record(value)

    return run


def histogram_quantile(module: ModuleType) -> Run:
    """Return a case that asks for the 99th percentile of 1,000 recorded latencies."""
    counts = module.Histogram()
    for value in latencies_ns():
        counts.record(value)

    def run(count: int) -> None:
        for _ in range(count):
            counts.quantile(0.99)

    return run


def histogram_merge(module: ModuleType) -> Run:
    """Return a case that adds a histogram of 1,000 latencies to another."""
    total, part = module.Histogram(), module.Histogram()
    for value in latencies_ns():
        part.record(value)

    def run(count: int) -> None:
        for _ in range(count):
            total.merge(part)

    return run


def quota(module: ModuleType) -> Run:
    """Return a case that routes one row among five lanes."""
    lanes = module.Quota(5)
    lanes.set_shares([5, 4, 3, 2, 1])

    def run(count: int) -> None:
        choose = lanes.choose
        for _ in range(count):
            choose(0b11111)

    return run


def quota_many(module: ModuleType) -> Run:
    """Return a case that routes rows 64 at a time."""
    lanes = module.Quota(5)
    lanes.set_shares([5, 4, 3, 2, 1])
    out = np.zeros(64, np.uint32)

    def run(count: int) -> None:
        for _ in range(count // 64):
            lanes.choose_many(0b11111, 64, out)

    return run


def infer(module: ModuleType, numbers: int) -> Run:
    """Return a case that reads one plain JSON body of `numbers` numbers."""
    out = np.zeros(numbers, np.float32)
    plain = module.Plain("x", (numbers,), out)
    data = [round(random.Random(1).uniform(-2.0, 2.0), 3 + at % 6) for at in range(numbers)]
    tensor = {"name": "x", "shape": [1, numbers], "datatype": "FP32", "data": data}
    body = json.dumps({"id": "r-17", "inputs": [tensor]}).encode()

    def run(count: int) -> None:
        parse = plain.parse
        for _ in range(count):
            parse(body)

    return run


def between(module: ModuleType) -> Run:
    """Return a case that finds the id in the JSON of a binary request that differs from one before in the id alone."""
    tensor = {"name": "x", "shape": [1, 784], "datatype": "FP32", "parameters": {"binary_data_size": 3136}}
    text = json.dumps({"id": "r-17", "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head, tail = text.split(b"r-17")
    body = text + bytes(3136)

    def run(count: int) -> None:
        found, size = module.between, len(text)
        for _ in range(count):
            found(body, size, head, tail)

    return run


def receipt_line(module: ModuleType) -> Run:
    """Return a case that writes the header line of a receipt whose joules and grams are those of no other."""
    start = b'Clover-Receipt: variant="medium", accuracy=91.3, '
    end = b", method=measured, intensity=412.0\r\n"
    spread = random.Random(1)
    amounts = [(spread.uniform(1e-4, 1e-2), spread.uniform(1e-5, 1e-3)) for _ in range(100)]

    def run(count: int) -> None:
        line = module.receipt_line
        for _ in range(count // len(amounts)):
            for energy_j, carbon_mg in amounts:
                line(start, end, energy_j, carbon_mg)

    return run


def scores(module: ModuleType, kind: str, rows: int, classes: int) -> Run:
    """Return a case that scores rows of logits, so many at once; an operation is a row."""
    logits = np.random.default_rng(1).normal(0.0, 3.0, (rows, classes)).astype(np.float32)
    found = np.zeros(rows, np.float32)
    built = module.Scores(kind, True, 0.01)

    def run(count: int) -> None:
        score = built.score
        for _ in range(count // rows):
            score(logits, found)

    return run


def doorbell(module: ModuleType) -> Run:
    """Return a case of a doorbell that is rung and heard by a wait that need not sleep."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ends = socket.socketpair()  # both, as one whose other end is closed would be heard as well

    def run(count: int) -> None:
        ring_bell, wait, control = module.ring_bell, module.wait, ends[1].fileno()
        for _ in range(count):
            ring_bell(write)
            wait(read, control)

    return run


def completion(module: ModuleType) -> Run:
    """Return a case of a completion that is signalled and taken, one of four workers' that are watched."""
    events = select.epoll()
    watched = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
    for eventfd in watched:
        events.register(eventfd, select.EPOLLIN | select.EPOLLET)

    def run(count: int) -> None:
        signal, take, epoll = module.signal, module.take_events, events.fileno()
        for _ in range(count // len(watched)):
            for eventfd in watched:
                signal(eventfd)
                take(epoll)

    return run


# name, kernel, what makes it, operations a round of the kernel and of its twin
CASES: tuple[tuple[str, str, Callable[[ModuleType], Run], int, int], ...] = (
    ("request, depth 32, batch 8", "batcher", partial(batcher, depth=32, max_batch=8), 80_000, 400),
    ("request, depth 256, batch 8", "batcher", partial(batcher, depth=256, max_batch=8), 80_000, 40),
    (
        "  of 64 clients, depth 32",
        "batcher",
        partial(batcher, depth=32, max_batch=8, clients=64),
        80_000,
        400,
    ),
    (
        "  of 64 clients, depth 256",
        "batcher",
        partial(batcher, depth=256, max_batch=8, clients=64),
        80_000,
        40,
    ),
    ("request, depth 256, batch 1", "batcher", partial(batcher, depth=256, max_batch=1), 80_000, 10),
    ("row of a 32-row request", "batcher", partial(push_many, rows=32), 320_000, 320),
    ("batch of 8, there and back", "ring", partial(ring, rows=8), 80_000, 4_000),
    ("batch of 32, there and back", "ring", partial(ring, rows=32), 80_000, 2_000),
    ("record", "histogram", histogram_record, 200_000, 20_000),
    ("quantile", "histogram", histogram_quantile, 20_000, 200),
    ("merge", "histogram", histogram_merge, 20_000, 200),
    ("choose among 5", "route", quota, 200_000, 20_000),
    ("row of 64 chosen at once", "route", quota_many, 640_000, 19_200),
    ("body of 64 numbers", "infer", partial(infer, numbers=64), 80_000, 400),
    ("id in JSON that is known", "infer", between, 200_000, 20_000),
    ("header line of a receipt", "wire", receipt_line, 200_000, 20_000),
    ("lone row of 10 logits, top", "scores", partial(scores, kind="top", rows=1, classes=10), 200_000, 4_000),
    ("row of 1,000 logits, top", "scores", partial(scores, kind="top", rows=32, classes=1000), 64_000, 320),
    ("row of 1,000 logits, margin", "scores", partial(scores, kind="margin", rows=32, classes=1000), 64_000, 320),
    ("row of 1,000 logits, entropy", "scores", partial(scores, kind="entropy", rows=32, classes=1000), 64_000, 320),
    ("doorbell rung and heard", "wakeups", doorbell, 80_000, 8_000),
    ("completion signalled and taken", "wakeups", completion, 80_000, 8_000),
)
