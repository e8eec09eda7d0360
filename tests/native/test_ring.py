"""The ring: frames arrive whole, in order, once; a full ring says so; a peer that writes rubbish is refused."""

from __future__ import annotations

import math
import mmap
import os
import select
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import ring as twin

BATCH = 8
SLOTS = np.arange(BATCH, dtype=np.uint32) + 100


def pair(kernels: SimpleNamespace, max_batch: int = BATCH, lanes: int = 1) -> tuple[Any, Any, mmap.mmap]:
    """A server's and a worker's side over the same memory."""
    memory = mmap.mmap(-1, kernels.ring.RING_BYTES(max_batch))
    server = kernels.ring.Ring(memory, max_batch, create=True, lanes=lanes)
    return server, kernels.ring.Ring(memory, max_batch, lanes=lanes), memory


def poke(memory: mmap.mmap, layout: str, offset: int, value: int) -> None:
    struct.pack_into(layout, memory, offset, value)


def test_both_builds_agree_on_the_layout(kernels: SimpleNamespace) -> None:
    for max_batch in (1, 2, 7, 8, 32, 1000, 65536):
        assert kernels.ring.RING_BYTES(max_batch) == twin.RING_BYTES(max_batch)
        assert kernels.ring.RING_BYTES(max_batch) % 64 == 0


def test_a_twin_reads_what_the_kernel_wrote_and_back(kernels: SimpleNamespace) -> None:
    server, _, memory = pair(kernels)
    worker = twin.Ring(memory, BATCH)
    slots = np.zeros(BATCH, np.uint32)
    confidence = np.zeros(BATCH, np.float32)
    assert server.submit(2**64 - 1, SLOTS, 3) == 1
    assert worker.take(slots) == (2**64 - 1, 3, 0)
    assert slots[:3].tolist() == [100, 101, 102]
    assert worker.complete(5, -7, 3, 10, 20, 30, np.array([0.25, 0.5, 1.0], np.float32))
    assert server.reap(confidence) == (5, -7, 3, 10, 20, 30)
    assert confidence.tolist() == [0.25, 0.5, 1.0, 0, 0, 0, 0, 0]


def test_batches_name_their_lane(kernels: SimpleNamespace) -> None:
    server, _, memory = pair(kernels, lanes=3)
    worker, other = kernels.ring.Ring(memory, BATCH, lanes=3), twin.Ring(memory, BATCH, lanes=3)
    out = np.zeros(BATCH, np.uint32)
    assert (server.lanes, worker.lanes) == (3, 3)
    for number, lane in enumerate((2, 0, 1)):
        assert server.submit(number, SLOTS, 1, lane)
        assert worker.take(out) == other.take(out) == (number, 1, lane)
    assert server.submit(3, SLOTS, 1)
    assert worker.take(out) == (3, 1, 0)
    for lane in (-1, 3, 2**32, 2**40):
        with pytest.raises(ValueError):
            server.submit(4, SLOTS, 1, lane)
    assert worker.take(out) is None
    for lanes in (0, -1, 65537):
        with pytest.raises(ValueError):
            kernels.ring.Ring(memory, BATCH, lanes=lanes)


def test_a_worker_refuses_a_lane_that_it_does_not_have(kernels: SimpleNamespace) -> None:
    server, worker, memory = pair(kernels, lanes=2)
    server.submit(1, SLOTS, 3, 1)
    poke(memory, "=I", twin.BODY + 12, 2)
    for _ in range(2):  # and stays refused
        with pytest.raises(ValueError):
            worker.take(np.zeros(BATCH, np.uint32))
    poke(memory, "=I", twin.BODY + 12, 1)
    assert worker.take(np.zeros(BATCH, np.uint32)) == (1, 3, 1)


def test_a_full_ring_refuses_and_drains_in_order(kernels: SimpleNamespace) -> None:
    server, worker, _ = pair(kernels)
    out = np.zeros(BATCH, np.uint32)
    assert worker.take(out) is None
    assert server.reap() is None
    assert [server.submit(i, SLOTS, 1) for i in range(17)] == [1] * 16 + [0]
    assert [worker.complete(i, 0, 1, 0, 0, 0) for i in range(17)] == [True] * 16 + [False]
    assert [worker.take(out) for _ in range(17)] == [(i, 1, 0) for i in range(16)] + [None]
    assert [server.reap() for _ in range(17)] == [(i, 0, 1, 0, 0, 0) for i in range(16)] + [None]


def test_rows_without_confidence_carry_nan(kernels: SimpleNamespace) -> None:
    server, worker, _ = pair(kernels)
    out = np.ones(BATCH, np.float32)
    worker.complete(1, 0, 2, 1, 2, 3, np.array([0.5, 0.75], np.float32))
    worker.complete(2, 0, 2, 1, 2, 3)
    server.reap(out)
    assert out[:2].tolist() == [0.5, 0.75]
    server.reap(out)
    assert all(math.isnan(value) for value in out[:2].tolist())
    assert out[2:].tolist() == [1] * 6


def test_untaken_batches_are_counted(kernels: SimpleNamespace) -> None:
    server, worker, memory = pair(kernels)
    out = np.zeros(BATCH, np.uint32)
    assert server.untaken() == 0
    for number in range(3):
        server.submit(number, SLOTS, 1)
    worker.take(out)
    assert server.untaken() == 2
    poke(memory, "=Q", twin.SUBMIT_TAIL, 99)
    with pytest.raises(ValueError, match="range"):
        server.untaken()


def test_a_sleeper_is_rung_once(kernels: SimpleNamespace) -> None:
    server, worker, _ = pair(kernels)
    out = np.zeros(BATCH, np.uint32)
    assert worker.sleep()
    assert server.submit(1, SLOTS, 1) == 2
    assert server.submit(2, SLOTS, 1) == 1  # the bell has been rung
    assert not worker.sleep()  # something is there
    assert server.submit(3, SLOTS, 1) == 1
    for _ in range(3):
        worker.take(out)
    assert worker.sleep()
    worker.wake()
    assert server.submit(4, SLOTS, 1) == 1


def test_the_header_must_match(kernels: SimpleNamespace) -> None:
    _, _, memory = pair(kernels)
    with pytest.raises(ValueError):
        kernels.ring.Ring(memory, BATCH - 1)
    with pytest.raises(ValueError):
        kernels.ring.Ring(memory, 1000)  # larger than the memory
    with pytest.raises(ValueError):
        kernels.ring.Ring(mmap.mmap(-1, len(memory)), BATCH)  # nobody laid it out
    for offset in (0, 8, 12, 16, 20):  # magic, version, max_batch, frames, header size
        _, _, spoilt = pair(kernels)
        poke(spoilt, "=I", offset, 77)
        with pytest.raises(ValueError):
            kernels.ring.Ring(spoilt, BATCH)
    with pytest.raises(BufferError):
        kernels.ring.Ring(bytes(len(memory)), BATCH, create=True)
    for bad in (0, -1, 65537):
        with pytest.raises(ValueError):
            kernels.ring.RING_BYTES(bad)
        with pytest.raises(ValueError):
            kernels.ring.Ring(memory, bad)


def test_bad_arguments_send_nothing(kernels: SimpleNamespace) -> None:
    server, worker, _ = pair(kernels)
    for n in (0, -1, BATCH + 1):
        with pytest.raises(ValueError):
            server.submit(1, np.zeros(64, np.uint32), n)
    with pytest.raises(ValueError):
        server.submit(1, SLOTS[:2], 3)
    for arguments in ((0, -1, 1, 2, 3), (0, BATCH + 1, 1, 2, 3), (0, 1, 2, 1, 3), (0, 1, -1, 2, 3), (0, 1, 1, 2, -3)):
        with pytest.raises(ValueError):
            worker.complete(1, *arguments)
    for arguments in ((2**31, 1, 1, 2, 3), (0, 1, 1, 2**63, 3), (0, 1, 1, 2, 2**63)):
        with pytest.raises(ValueError):
            worker.complete(1, *arguments)
    with pytest.raises(ValueError):
        worker.complete(1, 0, 3, 1, 2, 3, np.zeros(2, np.float32))
    assert server.reap() is None
    assert worker.take(np.zeros(BATCH, np.uint32)) is None


def test_a_short_output_loses_nothing(kernels: SimpleNamespace) -> None:
    server, worker, _ = pair(kernels)
    server.submit(1, SLOTS, 3)
    with pytest.raises(ValueError):
        worker.take(np.zeros(2, np.uint32))
    assert worker.take(np.zeros(3, np.uint32)) == (1, 3, 0)
    worker.complete(1, 0, 3, 1, 2, 3)
    with pytest.raises(ValueError):
        server.reap(np.zeros(2, np.float32))
    assert server.reap(np.zeros(3, np.float32)) == (1, 0, 3, 1, 2, 3)


COMPLETIONS = twin.BODY + twin.FRAMES * twin.submission_bytes(BATCH)


@pytest.mark.parametrize(
    ("layout", "offset", "value"),
    [
        ("=I", COMPLETIONS + 12, BATCH + 1),  # n
        ("=I", COMPLETIONS + 12, 2**32 - 1),
        ("=Q", COMPLETIONS + 16, 21),  # start after end
        ("=Q", COMPLETIONS + 24, 2**63),  # end beyond signed 64 bits
        ("=Q", COMPLETIONS + 32, 2**64 - 1),  # CPU time likewise
        ("=Q", twin.COMPLETE_HEAD, 18),  # more frames than the ring has
        ("=Q", twin.COMPLETE_HEAD, 2**64 - 1),  # behind the tail
    ],
)
def test_a_corrupt_completion_is_refused(kernels: SimpleNamespace, layout: str, offset: int, value: int) -> None:
    server, worker, memory = pair(kernels)
    worker.complete(1, 0, 3, 10, 20, 30)
    poke(memory, layout, offset, value)
    for _ in range(2):  # and stays refused
        with pytest.raises(ValueError):
            server.reap(np.zeros(64, np.float32))


@pytest.mark.parametrize(
    ("layout", "offset", "value"),
    [
        ("=I", twin.BODY + 8, 0),
        ("=I", twin.BODY + 8, BATCH + 1),
        ("=I", twin.BODY + 8, 2**32 - 1),
        ("=I", twin.BODY + 12, 1),  # the lane, of one
        ("=I", twin.BODY + 12, 2**32 - 1),
        ("=Q", twin.SUBMIT_HEAD, 17),
        ("=Q", twin.SUBMIT_HEAD, 2**64 - 1),
    ],
)
def test_a_corrupt_submission_is_refused(kernels: SimpleNamespace, layout: str, offset: int, value: int) -> None:
    server, worker, memory = pair(kernels)
    server.submit(1, SLOTS, 3)
    poke(memory, layout, offset, value)
    with pytest.raises(ValueError):
        worker.take(np.zeros(64, np.uint32))


def test_a_peers_tail_is_not_believed_either(kernels: SimpleNamespace) -> None:
    server, worker, memory = pair(kernels)
    poke(memory, "=Q", twin.SUBMIT_TAIL, 1)  # ahead of the head
    poke(memory, "=Q", twin.COMPLETE_TAIL, 1)
    with pytest.raises(ValueError):
        server.submit(1, SLOTS, 1)
    with pytest.raises(ValueError):
        worker.complete(1, 0, 1, 1, 2, 3)


def test_a_side_keeps_its_own_index(kernels: SimpleNamespace) -> None:
    server, worker, memory = pair(kernels)
    out = np.zeros(BATCH, np.uint32)
    server.submit(1, SLOTS, 1)
    assert worker.take(out) == (1, 1, 0)
    poke(memory, "=Q", twin.SUBMIT_HEAD, 0)  # a worker rewinding the server's head misleads only itself
    assert server.submit(2, SLOTS, 2) == 1
    assert worker.take(out) == (2, 2, 0)


@given(st.binary(min_size=64 * 8, max_size=64 * 8), st.integers(0, 2**64 - 1))
def test_no_rubbish_gets_past_the_bounds(kernels: SimpleNamespace, rubbish: bytes, head: int) -> None:
    server, worker, memory = pair(kernels)
    memory[twin.BODY : twin.BODY + len(rubbish)] = rubbish
    memory[COMPLETIONS : COMPLETIONS + len(rubbish)] = rubbish
    poke(memory, "=Q", twin.SUBMIT_HEAD, head)
    poke(memory, "=Q", twin.COMPLETE_HEAD, head)
    slots, confidence = np.zeros(BATCH, np.uint32), np.zeros(BATCH, np.float32)
    for side, out in ((worker.take, slots), (server.reap, confidence)):
        for _ in range(20):
            try:
                frame = side(out)
            except ValueError:
                break
            if frame is None:
                break
            assert frame[2 if side == server.reap else 1] <= BATCH


@given(st.lists(st.integers(0, 3), max_size=300), st.data())
def test_frames_survive_any_interleaving(kernels: SimpleNamespace, turns: list[int], data: st.DataObject) -> None:
    server, worker, _ = pair(kernels, lanes=3)
    out, confidence = np.zeros(BATCH, np.uint32), np.zeros(BATCH, np.float32)
    sent: list[tuple[int, list[int], int]] = []
    running: list[tuple[int, int]] = []
    done: list[tuple[int, int]] = []
    batch_id = taken = reaped = 0
    for turn in turns:
        if turn == 0:
            n = data.draw(st.integers(1, BATCH))
            slots = np.arange(batch_id, batch_id + n, dtype=np.uint32)
            lane = batch_id % 3
            if server.submit(batch_id, slots, n, lane):
                sent.append((batch_id, slots.tolist(), lane))
                batch_id += 1
            else:
                assert len(sent) - taken == 16
        elif turn == 1:
            frame = worker.take(out)
            assert (frame is None) == (taken == len(sent))
            if frame is not None:
                assert (frame[0], out[: frame[1]].tolist(), frame[2]) == sent[taken]
                taken += 1
                running.append(frame[:2])
        elif turn == 2 and running:
            index, n = running[0]
            if worker.complete(index, 0, n, index, index + 1, 1, np.full(n, index, np.float32)):
                done.append(running.pop(0))
            else:
                assert len(done) - reaped == 16
        elif turn == 3:
            completion = server.reap(confidence)
            assert (completion is None) == (reaped == len(done))
            if completion is not None:
                assert (completion[0], completion[2]) == done[reaped]
                assert set(confidence[: completion[2]].tolist()) == {float(completion[0])}
                reaped += 1


def test_the_indices_wrap(kernels: SimpleNamespace) -> None:
    memory = mmap.mmap(-1, kernels.ring.RING_BYTES(BATCH))
    kernels.ring.Ring(memory, BATCH, create=True)
    for offset in (twin.SUBMIT_HEAD, twin.SUBMIT_TAIL, twin.COMPLETE_HEAD, twin.COMPLETE_TAIL):
        poke(memory, "=Q", offset, 2**64 - 5)
    server, worker = kernels.ring.Ring(memory, BATCH), kernels.ring.Ring(memory, BATCH)
    out = np.zeros(BATCH, np.uint32)
    assert [server.submit(i, SLOTS, 1) for i in range(17)] == [1] * 16 + [0]
    for i in range(16):
        assert worker.take(out) == (i, 1, 0)
        assert worker.complete(i, 0, 1, 1, 2, 3)
    assert not worker.complete(16, 0, 1, 1, 2, 3)
    assert [server.reap() for _ in range(17)] == [(i, 0, 1, 1, 2, 3) for i in range(16)] + [None]


FRAMES_TO_MOVE = 100_000


def echo(compiled: SimpleNamespace, memory: mmap.mmap, bell: int, done: int) -> None:
    """A worker that answers every batch with the sum of its slots, sleeping whenever there is nothing to take."""
    worker = compiled.ring.Ring(memory, BATCH)
    out = np.zeros(BATCH, np.uint32)
    left = FRAMES_TO_MOVE
    while left:
        frame = worker.take(out)
        if frame is None:
            if worker.sleep():
                os.eventfd_read(bell)
                worker.wake()
            continue
        batch_id, n, _ = frame
        total = int(out[:n].sum())
        while not worker.complete(batch_id, 0, n, total, total, 0):
            os.sched_yield()
        left -= 1
        os.eventfd_write(done, 1)


@pytest.mark.slow
def test_two_processes_lose_nothing(compiled: SimpleNamespace) -> None:
    memory = mmap.mmap(-1, compiled.ring.RING_BYTES(BATCH))  # MAP_SHARED: a fork writes to the same pages
    server = compiled.ring.Ring(memory, BATCH, create=True)
    bell, done = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            echo(compiled, memory, bell, done)
            status = 0
        finally:
            os._exit(status)
    slots = np.zeros(BATCH, np.uint32)
    submitted = reaped = 0
    try:
        while reaped < FRAMES_TO_MOVE:
            while submitted < FRAMES_TO_MOVE:
                n = submitted % BATCH + 1
                slots[:n] = submitted
                outcome = server.submit(submitted, slots, n)
                if outcome == 0:
                    break
                submitted += 1
                if outcome == 2:
                    os.eventfd_write(bell, 1)
            while (completion := server.reap()) is not None:
                n = reaped % BATCH + 1
                assert completion == (reaped, 0, n, reaped * n, reaped * n, 0)
                reaped += 1
            if reaped < submitted:
                assert select.select([done], [], [], 30)[0], f"nothing for 30 s after {reaped} frames"
                os.eventfd_read(done)
    except BaseException:
        os.kill(child, 9)
        raise
    finally:
        _, status = os.waitpid(child, 0)
        os.close(bell)
        os.close(done)
    assert status == 0
    assert server.reap() is None
