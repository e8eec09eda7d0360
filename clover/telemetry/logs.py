"""Logging for the command line: text for people, or one JSON object a line.  The library itself configures nothing.

Nothing that logs ever waits for the log.  A line is queued, and a thread writes it to standard error (`LogWriter`); if
that is not read fast enough, lines beyond `QUEUE_BYTES` are left out, counted, and reported once there is room again.

A client may provoke errors at will, so the traceback of one error at one place is written once in `SAME_AGAIN_S`, and
cut to `TRACEBACK_CHARS`.  Texts of clients and workers cannot forge a line: characters that control a terminal or end a
line are escaped, and every line of a traceback is indented.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO

from clover.config import LogConfig
from clover.hints import printable
from clover.terminal import UNWRAPPED, wrapped

QUEUE_BYTES = 1 << 20
"""Lines that wait to be written, at most."""

FLUSH_S = 1.0
"""How long the end of the process waits for a log that is not read."""

TRACEBACK_CHARS = 8000
SAME_AGAIN_S = 60.0

_PLACES = 256
"""Places of errors that are remembered."""

_CAUSE_CHARS = 200
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


# --- lines --------------------------------------------------------------------------------------------------------


class BoundedFormatter(logging.Formatter):
    """Writes the traceback of an error in full once in `SAME_AGAIN_S`, and bounds its length."""

    def __init__(self, fmt: str | None = None, datefmt: str | None = None) -> None:
        super().__init__(fmt, datefmt)
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}
        self.clock: Callable[[], float] = time.monotonic

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below unless it was written a moment ago."""
        return self.line(self._shortened(record))

    def line(self, record: logging.LogRecord) -> str:
        """Return the line of a record whose traceback, if it has one, is to be written."""
        return super().format(record)

    def formatException(  # noqa: N802
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return the traceback; of a long one the beginning and the end."""
        text = super().formatException(ei)
        if len(text) <= TRACEBACK_CHARS:
            return text
        head, tail = text[: TRACEBACK_CHARS // 4], text[-TRACEBACK_CHARS * 3 // 4 :]
        return f"{head}\n... ({len(text) - len(head) - len(tail)} characters left out)\n{tail}"

    def _shortened(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return `record`, without its traceback if the same error at the same place was just written with it."""
        kind, error, trace = record.exc_info or (None, None, None)
        if kind is None:
            return record
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (record.name, kind, trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        now_s = self.clock()
        since_s, times = self._seen.get(place, (-SAME_AGAIN_S, 0))
        if now_s - since_s >= SAME_AGAIN_S:
            self._seen.pop(place, None)
            if len(self._seen) >= _PLACES:
                del self._seen[next(iter(self._seen))]
            self._seen[place] = (now_s, 0)
            return record
        self._seen[place] = (since_s, times + 1)
        short = copy.copy(record)
        cause = f"{kind.__name__}: {error}"[:_CAUSE_CHARS]
        short.msg = f"{record.getMessage()} ({cause}; the traceback is above, {times + 1} more like it since)"
        short.args, short.exc_info, short.exc_text = (), None, None
        return short


class TextFormatter(BoundedFormatter):
    """ "12:34:56 warning fleet: message", with the traceback below, indented.  On the terminal of descriptor `terminal`
    messages are wrapped at its width, further lines indented, too."""

    def __init__(self, terminal: int | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self._terminal = terminal

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format with the level in lower case and the logger without `clover.`."""
        name = record.name.removeprefix("clover.")
        line = f"{record.asctime} {record.levelname.lower():<7} {name}: {printable(record.message)}"
        return wrapped(line, _columns(self._terminal), "    ") if self._terminal is not None else line

    def formatException(  # noqa: N802
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return the traceback, each line indented, so that none looks like a line of the log."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {printable(line.expandtabs())}" for line in lines)


class JsonFormatter(BoundedFormatter):
    """One object a line: time (ISO 8601, UTC), level, logger, message, what `extra` held, and the traceback if any."""

    def line(self, record: logging.LogRecord) -> str:
        """Return the line."""
        whole, part = divmod(record.created, 1)
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int(part * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


# --- writing ------------------------------------------------------------------------------------------------------


class LogWriter:
    """Writes whole lines to the descriptor `fd` in a thread of its own.

    `left_out` counts lines that were not written: the queue was full, or nothing can be written any more.  `notice`
    makes the line that reports how many were left out since the last one.
    """

    def __init__(self, fd: int, notice: Callable[[int], bytes]) -> None:
        self.left_out = 0
        self._fd = fd
        self._notice = notice
        self._changed = threading.Condition()
        self._queue: list[bytes] = []
        self._queued = 0
        self._reported = 0
        self._closed = False
        self._given_up = False
        self._thread: threading.Thread | None = None

    def write(self, lines: bytes) -> bool:
        """Queue whole lines and return at once; return False if they are left out."""
        with self._changed:
            if self._closed or self._queued + len(lines) > QUEUE_BYTES:
                self.left_out += lines.count(b"\n")
                return False
            self._given_up = False
            self._queue.append(lines)
            self._queued += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="clover-log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Wait at most `within_s` seconds until all is written; return whether it is."""
        with self._changed:
            flushed = self._changed.wait_for(lambda: not self._queued, within_s)
            self._given_up = not flushed
            return flushed

    def close(self) -> None:
        """Write what is queued, if that takes no longer than `FLUSH_S`, and take no more lines.  Does not wait
        again for what the last `flush` waited for in vain."""
        if not self._given_up:
            self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                data, self._queue = b"".join(self._queue), []
            written = self._written(data)
            with self._changed:
                self._queued -= len(data)
                if not written:
                    self.left_out += data.count(b"\n")
                # Reported behind all that was queued before: the lines are missing there.
                missing = self.left_out - self._reported if written and not self._queue else 0
                self._reported += missing
                self._changed.notify_all()
            if missing:
                self._written(self._notice(missing))

    def _written(self, data: bytes) -> bool:
        """Write `data`, however long that takes; return whether it could be written."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process made the terminal or the pipe that it shares non-blocking
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()
            except OSError:  # its reader is gone, or the disk is full
                return False
        return True


class WriterHandler(logging.Handler):
    """Passes what is logged to a `LogWriter` on the descriptor `fd`; to the stream `instead`, if it is set: that of a
    progress bar, which writes to the same terminal."""

    def __init__(self, fd: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LogWriter(fd, self._notice)
        self.instead: IO[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of `record`; never waits."""
        try:
            line = self.format(record) + "\n"
            if self.instead is not None:
                self.instead.write(line)
            else:
                self.writer.write(line.encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is written, at most `FLUSH_S`."""
        self.writer.flush()

    def close(self) -> None:
        """Write what is queued, at most for `FLUSH_S`."""
        self.writer.close()
        super().close()

    def _notice(self, count: int) -> bytes:
        text = "standard error was not read fast enough: %d lines of the log were left out"
        record = logging.LogRecord("clover.log", logging.WARNING, "", 0, text, (count,), None)
        return self.format(record).encode() + b"\n"


_handler: WriterHandler | None = None


def writer() -> LogWriter | None:
    """Return what writes the log of this process; None if Clover does not write it (`configure`)."""
    return _handler.writer if _handler is not None else None


def configure(config: LogConfig, stream: IO[str] | None = None) -> None:
    """Send everything from `config.level` on to `stream` (standard error).  Called once, by commands only."""
    global _handler
    fd = _descriptor(stream or sys.stderr)
    formatter = JsonFormatter() if config.json else TextFormatter(fd if fd is not None and os.isatty(fd) else None)
    handler: logging.Handler
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if old is _handler:
            old.close()
    if fd is None:
        _handler, handler = None, logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(formatter)
    else:
        _handler = handler = WriterHandler(fd, formatter)
    root.addHandler(handler)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    set_level(config.level)


def flush() -> None:
    """Write what was logged so far, before something else is written to standard error; waits at most `FLUSH_S`."""
    if _handler is not None:
        _handler.flush()


def set_level(level: str) -> None:
    """Change the level of Clover's loggers and of everything else; works while serving."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("clover").setLevel(level.upper())


def _columns(terminal: int) -> int:
    """Return the width of the terminal of a descriptor; that of a line that is not wrapped if it does not say."""
    try:
        return os.get_terminal_size(terminal).columns or UNWRAPPED
    except OSError:
        return UNWRAPPED


def _descriptor(stream: IO[str] | None) -> int | None:
    """Return the descriptor of `stream`; None for a stream in memory, or none at all."""
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
