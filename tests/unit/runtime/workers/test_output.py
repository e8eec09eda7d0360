"""What workers print on its way to the log: nothing is changed, too much is left out and counted, and nobody waits."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.workers import output
from clover.runtime.workers.output import (
    BURST_BYTES,
    BURST_LINES,
    BYTES_PER_S,
    LAST_BYTES,
    LAST_LINES,
    LINE_BYTES,
    LINES_PER_S,
    READ_BYTES,
    LeftOut,
    OutputLimit,
    WorkerOutput,
    write_out,
)

SECOND = 1_000_000_000


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(marks)]


# --- the limit --------------------------------------------------------------------------------------------------------


@given(text=st.binary(max_size=BURST_LINES), cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_a_little_passes_as_it_was_printed(text: bytes, cuts: list[int]) -> None:
    left_out = LeftOut()
    limit = OutputLimit(left_out, 0)
    lines: list[bytes] = []
    for piece in pieces(text, cuts):
        lines += limit.take(piece, 0)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    lines += limit.end(0)
    # A last line without an end gets one.
    assert b"".join(lines) == (text if not text or text.endswith(b"\n") else text + b"\n")
    assert (left_out.lines, left_out.bytes) == (0, 0)


CHARACTER = st.sampled_from([b"a", b"\xe2", b"\r", b" "])
LINE = st.builds(lambda char, size: char * size + b"\n", CHARACTER, st.integers(0, 9000))


@given(
    prints=st.lists(st.tuples(st.integers(0, 3 * SECOND), LINE, st.integers(1, 2000)), max_size=12),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=4),
)
def test_no_more_than_the_limit_passes_and_the_rest_is_counted(
    prints: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    left_out = LeftOut(family := LeftOut())
    limit = OutputLimit(left_out, 0)
    now_ns, printed, out = 0, 0, []
    for wait_ns, line, count in prints:
        now_ns += wait_ns
        text = line * min(count, (READ_BYTES // len(line)) or 1)
        printed += text.count(b"\n")
        for piece in pieces(text, cuts):
            before = (left_out.lines, left_out.bytes)
            out += limit.take(piece, now_ns)
            assert (left_out.lines, left_out.bytes) >= before
        assert len(out) <= BURST_LINES + LINES_PER_S * now_ns / SECOND + 1
        assert sum(map(len, out)) <= BURST_BYTES + BYTES_PER_S * now_ns / SECOND + 1
    last = limit.end(now_ns)
    assert len(last) <= LAST_LINES
    assert sum(map(len, last)) <= LAST_BYTES
    assert all(len(line) <= select.PIPE_BUF for line in out)
    assert len(out) + len(last) + left_out.lines == printed
    assert (family.lines, family.bytes) == (left_out.lines, left_out.bytes)


def test_a_long_line_is_cut_and_says_so() -> None:
    left_out = LeftOut()
    limit = OutputLimit(left_out, 0)
    for _ in range(1000):
        assert limit.take(b"x" * 1000, 0) == []
    (line,) = limit.take(b"\nnext", 0)
    assert line == b"x" * LINE_BYTES + b"... (%d bytes left out)\n" % (1_000_000 - LINE_BYTES)
    assert (left_out.lines, left_out.bytes) == (0, 1_000_000 - LINE_BYTES)
    assert limit.take(b"\n", 0) == [b"next\n"]


def test_after_a_flood_it_goes_on_at_the_rate_and_the_last_words_are_kept() -> None:
    left_out = LeftOut()
    limit = OutputLimit(left_out, 0)
    flood = b"again\n" * 1000
    assert limit.take(flood, 0) == [b"again\n"] * BURST_LINES
    assert len(limit.take(flood, SECOND)) == LINES_PER_S
    assert len(limit.take(flood, SECOND)) == 0
    traceback = [b"Traceback (most recent call last):\n", *(b"  frame %d\n" % n for n in range(20)), b"Error: why\n"]
    assert limit.take(b"".join(traceback)[:-1], SECOND) == []
    last = limit.end(SECOND)
    assert last[-len(traceback) :] == traceback
    assert len(last) == LAST_LINES
    assert left_out.lines == 3000 + len(traceback) - BURST_LINES - LINES_PER_S - LAST_LINES


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_log_that_nobody_reads_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(output, "_STDERR", writing)
    try:
        left_out = LeftOut()
        lines = [b"%05d" % n + b"x" * 100 + b"\n" for n in range(2000)]
        write_out(lines, left_out)
        got = os.read(reading, 1 << 20)
        assert got.startswith(b"".join(lines[:300]))
        assert got.count(b"\n") + left_out.lines == len(lines)
        assert len(got) + left_out.bytes == sum(map(len, lines))
        assert left_out.lines > 0
        os.close(reading)
        reading = -1
        write_out(lines[:1], left_out)  # nobody can read it any more
        assert got.count(b"\n") + left_out.lines == len(lines) + 1
    finally:
        os.close(writing)
        if reading >= 0:
            os.close(reading)


# --- on the loop ------------------------------------------------------------------------------------------------------


class Loop:
    """An event loop whose time passes by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.readers: dict[int, Callable[[], None]] = {}
        self.later: list[tuple[float, Callable[..., None], tuple[object, ...]]] = []

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_later(self, delay_s: float, call: Callable[..., None], *args: object) -> asyncio.TimerHandle:
        entry = (self.now_s + delay_s, call, args)
        self.later.append(entry)
        loop = self

        class Handle:
            def cancel(self) -> None:
                if entry in loop.later:
                    loop.later.remove(entry)

        return Handle()  # type: ignore[return-value]

    def turn(self, step_s: float) -> None:
        """Let time pass, then call who is due."""
        self.now_s += step_s
        for entry in sorted(self.later, key=lambda entry: entry[0]):
            if entry[0] <= self.now_s:
                self.later.remove(entry)
                entry[1](*entry[2])
        for fd, call in list(self.readers.items()):
            if select.select([fd], [], [], 0)[0]:
                call()


@pytest.mark.slow
def test_a_flood_is_read_slowly_reported_and_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    loop, written, family = Loop(), list[bytes](), LeftOut()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    found = WorkerOutput(
        reading,
        "worker 7 (small at cpu0/1c@0)",
        family,
        write=lambda lines, _: written.extend(lines),
        clock=lambda: int(loop.now_s * SECOND),
    )
    found.bind(loop)  # type: ignore[arg-type]
    line, sent = b"x" * 63 + b"\n", 0
    with caplog.at_level(logging.WARNING, "clover.pool"):
        while loop.now_s < 25.0:
            while True:  # until the pipe is full
                try:
                    sent += os.write(writing, line * 64) // 64
                except BlockingIOError:
                    break
            loop.turn(0.005)
        reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 2
    assert "worker 7 (small at cpu0/1c@0) prints more than the log takes: " in reports[0]
    assert sent > 1000 * len(written)
    assert len(written) <= BURST_LINES + LINES_PER_S * 25 + 1
    os.close(writing)
    found.close()
    assert len(written) + family.lines == sent
    assert not loop.readers
    assert not loop.later
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_what_is_left_in_the_pipe_is_written_at_the_end() -> None:
    loop, written = Loop(), list[bytes]()
    reading, writing = os.pipe()
    found = WorkerOutput(reading, "worker 7", None, write=lambda lines, _: written.extend(lines), clock=lambda: 0)
    found.bind(loop)  # type: ignore[arg-type]
    os.write(writing, b"first\nsec")
    loop.turn(0.0)
    assert written == [b"first\n"]
    os.write(writing, b"ond\nlast words")
    found.close()  # though a child of the worker's has the other end still
    assert written == [b"first\n", b"second\n", b"last words\n"]
    os.close(writing)
