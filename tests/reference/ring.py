"""Twin of `clover._native.ring`: the same bytes in memory, written with `struct`.

It leans on the processor for the order of its stores, so it stands for one process, or two on x86-64.
"""

from __future__ import annotations

import math
import struct
from typing import Any

FRAMES, LINE, VERSION, MAX_BATCH, MAX_LANES = 16, 64, 2, 65536, 65536
SUBMIT_HEAD, SUBMIT_TAIL, SLEEPING, COMPLETE_HEAD, COMPLETE_TAIL, BODY = (line * LINE for line in range(1, 7))
MAGIC = b"CLVRING1"
HEADER = struct.Struct("=8sIIII")  # magic, version, max_batch, frames, header_bytes
SUBMISSION = struct.Struct("=QII")  # batch_id, n, lane; then uint32 slots[max_batch]
COMPLETION = struct.Struct("=QiIQQQ")  # batch_id, status, n, start_ns, end_ns, cpu_ns; then float confidence[max_batch]


def lines(size: int) -> int:
    return math.ceil(size / LINE) * LINE


def submission_bytes(max_batch: int) -> int:
    return lines(SUBMISSION.size + 4 * max_batch)


def completion_bytes(max_batch: int) -> int:
    return lines(COMPLETION.size + 4 * max_batch)


def RING_BYTES(max_batch: int) -> int:
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError("max_batch")
    return BODY + FRAMES * (submission_bytes(max_batch) + completion_bytes(max_batch))


class Ring:
    def __init__(self, buffer: Any, max_batch: int, *, create: bool = False, lanes: int = 1) -> None:
        needed = RING_BYTES(max_batch)
        view = memoryview(buffer)
        if view.readonly:
            raise BufferError("the memory of a ring must be writable")
        self._memory = view.cast("B")
        if len(self._memory) < needed:
            raise ValueError("too small")
        if not 1 <= lanes <= MAX_LANES:
            raise ValueError("lanes")
        self.max_batch = max_batch
        self.lanes = lanes
        self._submissions = BODY
        self._completions = BODY + FRAMES * submission_bytes(max_batch)
        if create:
            self._memory[:needed] = bytes(needed)
            HEADER.pack_into(self._memory, 0, MAGIC, VERSION, max_batch, FRAMES, BODY)
        if HEADER.unpack_from(self._memory) != (MAGIC, VERSION, max_batch, FRAMES, BODY):
            raise ValueError("not this ring")
        self._submit_head = self._load(SUBMIT_HEAD)
        self._submit_tail = self._load(SUBMIT_TAIL)
        self._complete_head = self._load(COMPLETE_HEAD)
        self._complete_tail = self._load(COMPLETE_TAIL)

    def _load(self, offset: int) -> int:
        return int(struct.unpack_from("=Q", self._memory, offset)[0])

    def _store(self, offset: int, value: int) -> None:
        struct.pack_into("=Q", self._memory, offset, value)

    def _between(self, head: int, tail: int) -> int:
        frames = (head - tail) % 2**64
        if frames > FRAMES:
            raise ValueError("an index of the peer is out of range")
        return frames

    # --- server ---

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int:
        if not 1 <= n <= min(self.max_batch, len(slots)):
            raise ValueError("n")
        if not 0 <= lane < self.lanes:
            raise ValueError("lane")
        if self._between(self._submit_head, self._load(SUBMIT_TAIL)) == FRAMES:
            return 0
        at = self._submissions + self._submit_head % FRAMES * submission_bytes(self.max_batch)
        SUBMISSION.pack_into(self._memory, at, batch_id, n, lane)
        struct.pack_into(f"={n}I", self._memory, at + SUBMISSION.size, *(int(slot) for slot in slots[:n]))
        self._submit_head = (self._submit_head + 1) % 2**64
        self._store(SUBMIT_HEAD, self._submit_head)
        sleeping = struct.unpack_from("=I", self._memory, SLEEPING)[0]
        self.wake()
        return 2 if sleeping else 1

    def untaken(self) -> int:
        return self._between(self._submit_head, self._load(SUBMIT_TAIL))

    def reap(self, confidence_out: Any = None) -> tuple[int, int, int, int, int, int] | None:
        if self._between(self._load(COMPLETE_HEAD), self._complete_tail) == 0:
            return None
        at = self._completions + self._complete_tail % FRAMES * completion_bytes(self.max_batch)
        batch_id, status, n, start_ns, end_ns, cpu_ns = COMPLETION.unpack_from(self._memory, at)
        if n > self.max_batch or not start_ns <= end_ns < 2**63 or cpu_ns >= 2**63:
            raise ValueError("a corrupt completion")
        if confidence_out is not None:
            if len(confidence_out) < n:
                raise ValueError("confidence_out is too short")
            confidence_out[:n] = struct.unpack_from(f"={n}f", self._memory, at + COMPLETION.size)
        self._complete_tail = (self._complete_tail + 1) % 2**64
        self._store(COMPLETE_TAIL, self._complete_tail)
        return batch_id, status, n, start_ns, end_ns, cpu_ns

    # --- worker ---

    def take(self, slots_out: Any) -> tuple[int, int, int] | None:
        if self._between(self._load(SUBMIT_HEAD), self._submit_tail) == 0:
            return None
        at = self._submissions + self._submit_tail % FRAMES * submission_bytes(self.max_batch)
        batch_id, n, lane = SUBMISSION.unpack_from(self._memory, at)
        if not 1 <= n <= min(self.max_batch, len(slots_out)):
            raise ValueError("a corrupt submission, or slots_out is too short")
        if lane >= self.lanes:
            raise ValueError("a corrupt lane")
        slots_out[:n] = struct.unpack_from(f"={n}I", self._memory, at + SUBMISSION.size)
        self._submit_tail = (self._submit_tail + 1) % 2**64
        self._store(SUBMIT_TAIL, self._submit_tail)
        return batch_id, n, lane

    def complete(
        self, batch_id: int, status: int, n: int, start_ns: int, end_ns: int, cpu_ns: int, confidence: Any = None
    ) -> bool:
        if not 0 <= n <= self.max_batch or not 0 <= start_ns <= end_ns < 2**63 or not 0 <= cpu_ns < 2**63:
            raise ValueError("n or times")
        if not -(2**31) <= status < 2**31:
            raise ValueError("status")
        if confidence is not None and len(confidence) < n:
            raise ValueError("confidence is too short")
        if self._between(self._complete_head, self._load(COMPLETE_TAIL)) == FRAMES:
            return False
        at = self._completions + self._complete_head % FRAMES * completion_bytes(self.max_batch)
        COMPLETION.pack_into(self._memory, at, batch_id, status, n, start_ns, end_ns, cpu_ns)
        values = [math.nan] * n if confidence is None else [float(value) for value in confidence[:n]]
        struct.pack_into(f"={n}f", self._memory, at + COMPLETION.size, *values)
        self._complete_head = (self._complete_head + 1) % 2**64
        self._store(COMPLETE_HEAD, self._complete_head)
        return True

    def sleep(self) -> bool:
        struct.pack_into("=I", self._memory, SLEEPING, 1)
        if self._load(SUBMIT_HEAD) != self._submit_tail:
            self.wake()
            return False
        return True

    def wake(self) -> None:
        struct.pack_into("=I", self._memory, SLEEPING, 0)
