"""The log of the server: it holds nobody up, repeats no traceback, and texts of others forge no line of it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import termios
import threading
from typing import Any

import pytest

from clover.config import LogConfig
from clover.telemetry import logs
from clover.telemetry.logs import QUEUE_BYTES, SAME_AGAIN_S, TRACEBACK_CHARS, JsonFormatter, LogWriter, TextFormatter

log = logging.getLogger("clover.http")


@pytest.fixture
def root() -> logging.Logger:
    """The root logger, whose handlers `conftest` puts back."""
    return logging.getLogger()


def failure(text: str) -> None:
    raise ValueError(text)


def provoke(text: str = "provoked") -> None:
    """Log an error as the front end does for a client's request."""
    try:
        failure(text)
    except ValueError:
        log.exception("an answer failed")


def in_time(call: Any) -> bool:
    """Whether `call` returns though nothing reads the log (else it is left behind)."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_a_standard_error_that_nobody_reads_holds_nothing_up(root: logging.Logger) -> None:
    reading, writing = os.pipe()
    lines = 20_000
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb", 0) as reader:
        logs.configure(LogConfig(), stream)

        def flood() -> None:
            for number in range(lines):
                log.warning("line %d %s", number, "x" * 100)
                if number % 20 == 0:
                    provoke()

        blocked = not in_time(flood)
        assert not blocked
        own = logs.writer()
        assert own is not None
        assert own.left_out > 0
        # Once somebody reads, all that was queued comes, and a line that says how many are missing.
        text = b""
        while not text.endswith(b"lines of the log were left out\n"):
            text += reader.read(1 << 16)
        assert own.flush(10)
        found = text.decode()
        reported = re.search(r"warning log: standard error was not read fast enough: (\d+) lines", found)
        assert reported is not None
        assert int(reported[1]) == own.left_out
        assert len(text) < QUEUE_BYTES + (1 << 17)
        logs.configure(LogConfig(), io.StringIO())


def test_without_a_reader_lines_are_counted_and_nothing_is_raised() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    own = LogWriter(writing, lambda count: b"%d\n" % count)
    assert own.write(b"one\ntwo\n")
    assert own.flush(10)
    own.close()
    assert own.left_out == 2
    assert not own.write(b"late\n")
    os.close(writing)


def test_the_end_waits_once_for_a_reader_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    own = LogWriter(writing, lambda count: b"%d\n" % count)
    assert own.write(b"x" * 200_000 + b"\n")  # more than a pipe holds
    assert not own.flush(0.01)
    waits: list[float] = []
    monkeypatch.setattr(own, "flush", lambda *within_s: waits.append(1.0))
    own.close()
    assert waits == []
    os.close(reading)
    # Until the thread has seen that, it may still write: not to what gets the number of this descriptor next.
    assert LogWriter.flush(own, 10)
    os.close(writing)


def test_a_descriptor_that_others_made_non_blocking_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    own = LogWriter(writing, lambda count: b"%d\n" % count)
    data = b"x" * 1023 + b"\n"
    for _ in range(200):  # more than a pipe holds
        assert own.write(data)
    got = b""
    while len(got) < 200 * len(data):
        got += os.read(reading, 1 << 16)
    own.close()
    assert got == data * 200
    assert own.left_out == 0
    os.close(reading)
    os.close(writing)


def test_one_traceback_a_minute_for_one_error_at_one_place(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(LogConfig(), stream)
    formatter: Any = root.handlers[0].formatter
    now_s = 0.0
    formatter.clock = lambda: now_s
    for _ in range(110):
        provoke()
    text = stream.getvalue()
    assert text.count("Traceback") == 1
    assert text.count("an answer failed") == 110
    assert "(ValueError: provoked; the traceback is above, 109 more like it since)" in text
    try:
        raise ValueError("elsewhere")
    except ValueError:
        log.exception("another place")
    now_s = SAME_AGAIN_S
    provoke()
    assert stream.getvalue().count("Traceback") == 3


def test_many_places_are_not_remembered_for_ever() -> None:
    formatter = TextFormatter()
    for number in range(1000):
        kind = type(f"Error{number}", (ValueError,), {})
        record = logging.makeLogRecord({"name": "clover.http", "msg": "m", "exc_info": (kind, kind("x"), None)})
        assert f"Error{number}: x" in formatter.format(record)
    assert len(formatter._seen) <= 256


def test_lines_are_wrapped_on_a_terminal_and_no_text_makes_one_that_looks_like_another() -> None:
    message = "others used 60% of the cores meanwhile, 12:00:00 error fleet: forged"
    record = logging.makeLogRecord({"name": "clover.profiling", "levelname": "WARNING", "msg": message})
    whole = TextFormatter().format(record)
    assert "\n" not in whole, "a file has a line a message"
    ours, theirs = os.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 40))
        lines = TextFormatter(theirs).format(record).split("\n")
        assert max(map(len, lines)) <= 40
        assert [line.startswith("    ") for line in lines] == [False] + [True] * (len(lines) - 1)
        assert " ".join(" ".join(lines).split()) == " ".join(whole.split())
        termios.tcsetwinsize(theirs, (24, 200))
        assert TextFormatter(theirs).format(record) == whole
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_traceback_is_bounded(root: logging.Logger) -> None:
    for as_json in (False, True):
        stream = io.StringIO()
        logs.configure(LogConfig(json=as_json), stream)
        provoke("x" * 1_000_000)
        text = stream.getvalue()
        assert len(text) < TRACEBACK_CHARS + 1000
        assert "characters left out" in text


def test_texts_of_others_forge_no_line(root: logging.Logger) -> None:
    forged = "gone\n12:00:00 info    server: all is well\r\x1b[2K\x9b1A\u2028next\u202eover"
    stream = io.StringIO()
    logs.configure(LogConfig(), stream)
    log.warning("worker 7: %s", forged)
    provoke(forged)
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    assert "gone\\n12:00:00 info    server: all is well\\r\\x1b[2K\\x9b1A\\u2028next\\u202eover" in lines[0]
    assert all(line.startswith("    ") for line in lines[1:] if "all is well" in line)
    assert all(character.isprintable() for line in lines for character in line)
    stream = io.StringIO()
    logs.configure(LogConfig(json=True), stream)
    log.warning("worker 7: %s", forged)
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()[:1]] == [f"worker 7: {forged}"]


def test_json_lines_of_repeated_errors(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(LogConfig(json=True), stream)
    provoke()
    provoke()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert "traceback" in first
    assert "traceback" not in second
    assert isinstance(root.handlers[0].formatter, JsonFormatter)
