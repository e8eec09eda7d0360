"""What workers print goes to the log, at a bounded rate; lines that are left out are counted.

Standard output and error of a worker are a pipe that the server reads.  A token bucket admits a burst of lines, then so
many lines and bytes a second; what comes beyond is left out.  The log says how much, at most once in `REPORT_S`, and
long lines are cut.  The last lines that were left out are kept: if the worker ends, they may say why, and are written.

Printing never waits for the log.  The pipe is read whether or not anything of it may be written, in pieces of
`READ_BYTES` that come `PAUSE_S` apart: a worker that prints faster than that is slowed down by the full pipe, for
milliseconds, and the event loop spends next to nothing on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import time
from collections.abc import Callable

from clover.telemetry import logs

_log = logging.getLogger("clover.pool")

LINES_PER_S = 50
BYTES_PER_S = 16 << 10
BURST_LINES = 500
BURST_BYTES = 128 << 10
LINE_BYTES = 4000
"""Longer lines are cut; with the notice that says so they fit `_PIECE`."""

LAST_LINES = 100
LAST_BYTES = 16 << 10

READ_BYTES = 64 << 10
"""What a pipe holds."""

PAUSE_S = 0.005
REPORT_S = 10.0

_PIECE = select.PIPE_BUF
"""As much as a pipe takes at once if it is writable at all."""

_LAST_READS = 16  # a child of the worker may have the pipe still, and keep printing
_SECOND_NS = 1_000_000_000
_STDERR = 2


class LeftOut:
    """Counts what was printed and not logged: `lines`, and `bytes` of these and of lines that were cut.  What is added
    to the count of a worker is added to that of its family (`within`) too."""

    __slots__ = ("bytes", "lines", "within")

    def __init__(self, within: LeftOut | None = None) -> None:
        self.lines = 0
        self.bytes = 0
        self.within = within

    def add(self, lines: int, size: int) -> None:
        """Add `lines` lines of `size` bytes."""
        self.lines += lines
        self.bytes += size
        if self.within is not None:
            self.within.add(lines, size)


class OutputLimit:
    """Splits what one worker prints into lines and decides which of them are logged; the others are added to
    `left_out`.  Reads no clock."""

    def __init__(self, left_out: LeftOut, now_ns: int) -> None:
        self._left_out = left_out
        self._filled_ns = now_ns
        self._lines = float(BURST_LINES)
        self._bytes = float(BURST_BYTES)
        self._begun = b""  # of a line that has not ended
        self._cut = 0  # bytes of that line that are too many
        self._last = b""  # lines that were not admitted, nor any after them; not counted yet

    def take(self, data: bytes, now_ns: int) -> list[bytes]:
        """Return the lines to log, of those that end in `data`."""
        self._refill(now_ns)
        out: list[bytes] = []
        pos = 0
        while (end := data.find(b"\n", pos) + 1) > 0:
            line = self._whole(data[pos:end])
            if not self._admit(line):
                # Leave out the rest too, without splitting it into lines: a flood must cost little.
                whole = data.rfind(b"\n") + 1
                self._keep(line + data[end:whole])
                pos = whole
                break
            out.append(line)
            pos = end
        self._begin(data[pos:])
        return out

    def end(self, now_ns: int) -> list[bytes]:
        """Return what to log now that the worker has ended: its last lines, admitted or not."""
        out = self.take(b"\n", now_ns) if self._begun else []
        last = [line + b"\n" for line in self._last.split(b"\n")[:-1]]
        self._last = b""
        spare = last[:-LAST_LINES]
        self._left_out.add(len(spare), sum(map(len, spare)))
        return out + last[-LAST_LINES:]

    def _refill(self, now_ns: int) -> None:
        passed_s = max(0, now_ns - self._filled_ns) / _SECOND_NS
        self._filled_ns = now_ns
        self._lines = min(self._lines + passed_s * LINES_PER_S, BURST_LINES)
        self._bytes = min(self._bytes + passed_s * BYTES_PER_S, BURST_BYTES)

    def _admit(self, line: bytes) -> bool:
        if self._lines < 1.0 or self._bytes < len(line):
            return False
        self._lines -= 1.0
        self._bytes -= len(line)
        if self._last:
            self._count(self._last)
            self._last = b""
        return True

    def _begin(self, data: bytes) -> None:
        """Keep the beginning of a line that has not ended."""
        room = LINE_BYTES - len(self._begun)
        self._begun += data[:room]
        self._cut += len(data) - min(room, len(data))

    def _whole(self, ending: bytes) -> bytes:
        """Return the line that `ending` ends, cut to `LINE_BYTES`."""
        self._begin(ending[:-1])
        line, cut = self._begun, self._cut
        self._begun, self._cut = b"", 0
        if not cut:
            return line + b"\n"
        self._left_out.add(0, cut)
        return line + b"... (%d bytes left out)\n" % cut

    def _keep(self, lines: bytes) -> None:
        """Leave whole lines out, but for the last ones, which may still be written at the end."""
        last = self._last + lines
        if len(last) > LAST_BYTES:
            start = last.find(b"\n", len(last) - LAST_BYTES - 1) + 1
            self._count(last[:start])
            last = last[start:]
        self._last = last

    def _count(self, lines: bytes) -> None:
        self._left_out.add(lines.count(b"\n"), len(lines))


def write_out(lines: list[bytes], left_out: LeftOut) -> None:
    """Write whole lines to standard error, or leave them out if its reader does not keep up: logging must not hold up
    serving."""
    at = 0
    while at < len(lines):
        size, end = len(lines[at]), at + 1
        while end < len(lines) and size + len(lines[end]) <= _PIECE:
            size += len(lines[end])
            end += 1
        piece = b"".join(lines[at:end])
        if not _write(piece):
            left_out.add(end - at, size)
        at = end


def _write(piece: bytes) -> bool:
    if (writer := logs.writer()) is not None:
        return writer.write(piece)
    poller = select.poll()
    poller.register(_STDERR, select.POLLOUT)
    with contextlib.suppress(OSError):
        return bool(poller.poll(0)) and os.write(_STDERR, piece) > 0
    return False


class WorkerOutput:
    """Reads what the worker `name` prints from the pipe `fd`, which it owns, on an event loop.  What is left out counts
    in `left_out` too."""

    def __init__(
        self,
        fd: int,
        name: str,
        left_out: LeftOut | None,
        *,
        write: Callable[[list[bytes], LeftOut], None] = write_out,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._name = name
        self._own = LeftOut(left_out)
        self._reported = (0, 0)
        self._limit = OutputLimit(self._own, clock())
        self._write = write
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._report: asyncio.TimerHandle | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read it on `loop`."""
        self._loop = loop
        loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Read and write what is left, report, and close the pipe: the worker is dead."""
        for handle in (self._pause, self._report):
            if handle is not None:
                handle.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        for _ in range(_LAST_READS):
            data = self._read()
            if not data:
                break
            self._log(self._limit.take(data, self._clock()))
        os.close(self._fd)
        self._log(self._limit.end(self._clock()))
        self._report_left_out()

    def _readable(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._fd)
        data = self._read()
        if data == b"":
            return  # the pipe was closed by all writers
        self._pause = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._fd, self._readable)
        if data:
            self._log(self._limit.take(data, self._clock()))
        if self._report is None and self._reported != (self._own.lines, self._own.bytes):
            self._report = self._loop.call_later(REPORT_S, self._report_left_out)

    def _read(self) -> bytes | None:
        """Return what it printed; b"" at the end of the pipe, None if there is nothing now."""
        try:
            return os.read(self._fd, READ_BYTES)
        except OSError:
            return None

    def _log(self, lines: list[bytes]) -> None:
        if lines:
            self._write(lines, self._own)

    def _report_left_out(self) -> None:
        """Report what was left out since the last time."""
        self._report = None
        lines, size = self._own.lines - self._reported[0], self._own.bytes - self._reported[1]
        self._reported = (self._own.lines, self._own.bytes)
        if size:
            _log.warning("%s prints more than the log takes: %d lines, %d bytes left out", self._name, lines, size)
