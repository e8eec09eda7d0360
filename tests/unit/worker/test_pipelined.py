"""A worker's loop with two batches in flight: order, accounting, failures, and what wakes it."""

from __future__ import annotations

import itertools
import mmap
import os
import queue
import select
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from clover._native.ring import RING_BYTES, Ring
from clover.errors import DeviceLost, WorkerError
from clover.runtime.memory.slab import NO_MEMORY
from clover.worker import frames, pipelined
from clover.worker.loop import MODEL_FAILED, ParentGone, ResidentLane, ServerChannel
from clover.worker.pipelined import PipelinedLoop

WAIT_S = 20.0


class Side:
    """Gathers the slots themselves, and keeps what was scattered to them."""

    def __init__(self, log):
        self.log = log

    def gather(self, slots):
        return [slots.copy()]

    def scatter(self, slots, answers, first=None):
        if first is not None:
            first()
        self.log.append(("scatter", slots.tolist(), answers))


class Clock:
    def __init__(self):
        self.now_ns = self.cpu_ns = 0

    def monotonic_ns(self):
        return self.now_ns

    def process_time_ns(self):
        return self.cpu_ns


class Flight:
    def __init__(self, device, inputs, end_ns):
        self.device, self.inputs, self.end_ns = device, inputs, end_ns

    def ready(self):
        return self.device.clock.now_ns >= self.end_ns


class Device:
    """Computes a batch in `ns` after the one before it, and takes this process 2 ns to begin and 1 ns to finish one."""

    def __init__(self, clock, log, ns=100):
        self.clock, self.log, self.ns, self.free_ns = clock, log, ns, 0
        self.fails = {}

    def begin(self, inputs):
        self.clock.cpu_ns += 2
        first = int(inputs[0][0])
        self.log.append(("begin", first))
        if first in self.fails:
            raise self.fails[first]
        self.free_ns = max(self.free_ns, self.clock.now_ns) + self.ns
        return Flight(self, inputs, self.free_ns)

    def finish(self, flight):
        self.clock.cpu_ns += 1
        self.clock.now_ns = max(self.clock.now_ns, flight.end_ns)
        self.log.append(("finish", int(flight.inputs[0][0])))
        return ["answers"]


class Batches:
    """A ring that is filled by the test."""

    def __init__(self):
        self.waiting, self.completed = [], []

    def take(self, slots):
        if not self.waiting:
            return None
        batch, numbers, lane = self.waiting.pop(0)
        slots[: len(numbers)] = numbers
        return batch, len(numbers), lane

    def complete(self, *what):
        self.completed.append(what)
        return True


class Scene:
    def __init__(self, monkeypatch, lanes=None):
        self.clock, self.log, self.ring = Clock(), [], Batches()
        monkeypatch.setattr(pipelined, "time", self.clock)
        self.device = Device(self.clock, self.log)
        self.completions = os.eventfd(0)
        made = lanes(self) if lanes else [ResidentLane(run=lambda inputs: ["alone"], overlap=self.device)]
        channel = ServerChannel(None, self.ring, -1, self.completions)
        self.loop = PipelinedLoop(channel, (Side(self.log), Side(self.log)), made, 4, None)

    def close(self):
        os.close(self.completions)


@pytest.fixture
def scene(monkeypatch):
    made = Scene(monkeypatch)
    yield made
    made.close()


def test_the_next_batch_begins_before_the_one_before_ends_and_times_are_counted_once(scene):
    scene.ring.waiting = [(n, [n], 0) for n in (1, 2)]
    assert scene.loop._step()
    assert scene.loop._step()
    assert [what[:2] for what in scene.log] == [("begin", 1), ("begin", 2)], "before either is finished"
    scene.ring.waiting = [(3, [3], 0)]
    assert scene.loop._step(), "two are in flight: the older one is waited for"
    assert scene.clock.now_ns == 100
    while scene.loop._step():
        pass
    assert [what[1] for what in scene.log if what[0] == "begin"] == [1, 2, 3]
    scene.clock.now_ns = 1000  # the last one is long done
    while scene.loop._step():
        pass
    assert [done[:3] for done in scene.ring.completed] == [(1, 0, 1), (2, 0, 1), (3, 0, 1)]
    spans = [(done[3], done[4]) for done in scene.ring.completed]
    assert spans[:2] == [(0, 100), (100, 200)], "from the end of the one before, not from its own begin at 0"
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert sum(done[5] for done in scene.ring.completed) == scene.clock.cpu_ns == 9


def test_one_batch_is_completed_once_it_is_done(scene):
    scene.ring.waiting = [(1, [5, 6], 0)]
    assert scene.loop._step()
    assert not scene.loop._step(), "it computes, and there is nothing to take"
    scene.clock.now_ns = 100
    assert scene.loop._step()
    assert scene.ring.completed == [(1, 0, 2, 0, 100, 3)]
    assert ("scatter", [5, 6], ["answers"]) in scene.log
    assert not scene.loop._step()


def test_a_batch_that_fails_to_begin_completes_in_its_turn(scene):
    scene.device.fails = {2: ValueError("no"), 4: WorkerError("gone")}
    scene.ring.waiting = [(n, [n], 0) for n in (1, 2, 3)]
    for _ in range(20):
        scene.loop._step()
    scene.clock.now_ns = 1000
    scene.loop._step()
    assert [done[:2] for done in scene.ring.completed] == [(1, 0), (2, MODEL_FAILED), (3, 0)]
    scene.ring.waiting = [(4, [4], 0)]
    with pytest.raises(WorkerError):
        scene.loop._step()
    assert len(scene.ring.completed) == 3, "the server sees a death, not a model that failed"


def test_a_batch_without_memory_is_no_failure_of_the_model(scene):
    finish = scene.device.finish

    def short(flight):
        if int(flight.inputs[0][0]) == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return finish(flight)

    scene.device.fails, scene.device.finish = {2: MemoryError()}, short
    scene.ring.waiting = [(n, [n], 0) for n in (1, 2, 3)]
    for _ in range(20):
        scene.loop._step()
        scene.clock.now_ns += 100
    assert [done[:2] for done in scene.ring.completed] == [(1, 0), (2, NO_MEMORY), (3, NO_MEMORY)]


@pytest.mark.parametrize("error", [WorkerError("gone"), DeviceLost("gone")])
def test_a_gpu_that_fails_meanwhile_ends_the_worker(scene, monkeypatch, error):
    def finish(flight):
        raise error

    scene.device.finish = finish
    scene.ring.waiting = [(n, [n], 0) for n in (1, 2)]
    assert scene.loop._step()
    assert scene.loop._step()
    with pytest.raises(type(error)):
        scene.loop._step()
    assert scene.ring.completed == []


def test_a_lane_that_cannot_overlap_runs_alone_and_lanes_take_turns(monkeypatch):
    def lanes(scene):
        def run(inputs):
            scene.log.append(("run", int(inputs[0][0])))
            return ["alone"]

        other = Device(scene.clock, scene.log)
        return [
            ResidentLane(run=run, overlap=scene.device),
            ResidentLane(run=run),
            ResidentLane(run=run, overlap=other),
            None,
        ]

    scene = Scene(monkeypatch, lanes)
    scene.ring.waiting = [(1, [1], 0), (2, [2], 1), (3, [3], 2), (4, [4], 0), (5, [5], 3)]
    for _ in range(5):
        scene.loop._step()
    assert [what[:2] for what in scene.log if what[0] != "scatter"] == [
        ("begin", 1), ("finish", 1), ("run", 2), ("begin", 3), ("begin", 4), ("finish", 3)
    ]  # fmt: skip
    scene.clock.now_ns = 1000
    with pytest.raises(ValueError, match="a batch names lane 3"):
        scene.loop._step()
    scene.close()


class Gate:
    """The end of a batch on the device, which the test brings about."""

    def __init__(self):
        self._passed = threading.Event()

    def synchronize(self):
        assert self._passed.wait(WAIT_S)

    def ready(self):
        return self._passed.is_set()

    def open(self):
        self._passed.set()


class GatedDevice:
    def __init__(self):
        self.begun = queue.SimpleQueue()

    def begin(self, inputs):
        gate = Gate()
        flight = SimpleNamespace(done=gate, ready=gate.ready, inputs=inputs)
        self.begun.put(flight)
        return flight

    def finish(self, flight):
        flight.done.synchronize()
        return ["answers"]


def test_a_batch_that_comes_while_one_computes_is_begun_at_once_and_exit_answers_all():
    device, log = GatedDevice(), []
    shared = mmap.mmap(-1, RING_BYTES(4))
    ring, served = Ring(shared, 4, create=True), Ring(shared, 4)
    doorbell, bell = os.pipe2(os.O_NONBLOCK)
    completions = os.eventfd(0, os.EFD_NONBLOCK)
    mine, its = frames.socket_pair()
    channel = ServerChannel(its, served, doorbell, completions)
    lanes = [ResidentLane(run=lambda inputs: ["alone"], overlap=device)]
    loop = PipelinedLoop(channel, (Side(log), Side(log)), lanes, 4, None)
    thread = threading.Thread(target=loop.run)
    thread.start()

    def submit(batch):
        slots = np.array([batch], np.uint32)
        if ring.submit(batch, slots, 1) == 2:
            os.write(bell, b"x")

    def reaped():
        while (done := ring.reap()) is None:
            ready, _, _ = select.select([completions], [], [], WAIT_S)
            assert ready
            os.eventfd_read(completions)
        return done[0]

    try:
        submit(1)
        first = device.begun.get(timeout=WAIT_S)
        submit(2)  # while the loop waits for the end of the first
        second = device.begun.get(timeout=WAIT_S)
        assert not first.done.ready()
        second.done.open()
        first.done.open()
        assert [reaped(), reaped()] == [1, 2]
        submit(3)
        third = device.begun.get(timeout=WAIT_S)
        third.done.open()
        assert reaped() == 3, "nothing came after it: its end alone wakes the loop"
        submit(4)
        last = device.begun.get(timeout=WAIT_S)
        frames.send(mine, frames.Exit())
        last.done.open()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert reaped() == 4
        assert [what[1] for what in log] == [[1], [2], [3], [4]]
    finally:
        for fd in (doorbell, bell, completions):
            os.close(fd)
        mine.close()
        its.close()


def test_a_server_that_ends_ends_the_loop():
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ring = Ring(mmap.mmap(-1, RING_BYTES(4)), 4, create=True)
    doorbell, bell = os.pipe2(os.O_NONBLOCK)
    loop = PipelinedLoop(ServerChannel(its, ring, doorbell, -1), (Side([]), Side([])), [None], 4, None)
    mine.close()
    with pytest.raises(ParentGone):
        loop.run()
    its.close()
    os.close(doorbell)
    os.close(bell)
