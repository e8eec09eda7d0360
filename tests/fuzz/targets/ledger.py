"""Ledger files that are damaged: each four bytes of the input change one place of a good file.

Three bytes are the place (from the end of the file's first page if the first bit is set, where rows lie),
the last one is
XORed there; FF cuts the file off at the place.  Whatever the file is then, it is read, written, folded,
or refused with a
LedgerError or sqlite3.Error; a reader's text names no path, and nothing is read of another kind than it says.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from clover.errors import LedgerError
from clover.telemetry.ledger.rows import EventRow
from clover.telemetry.ledger.store import LedgerBatch, LedgerReader, LedgerWriter, RunStart
from tests.fuzz import engine
from tests.support.ledgers import LedgerScene, write_ledger

INSTRUMENTED = ("clover.telemetry.ledger",)
_FOLDER = engine.scratch("ledger")
PATH = Path(_FOLDER.name) / "ledger.sqlite"
DICTIONARY = (
    b"\0\0\0\1",
    b"\0\0\x12\xff",
    b"\0\0\x64\1",
    b"\x80\0\0\x80",
    b"\x80\1\0\x40",
    b"\0\0\x3c\1",
    b"\0\0\x44\1",
)


def _good() -> bytes:
    path = Path(_FOLDER.name) / "good.sqlite"
    write_ledger(path, LedgerScene(days=0.02, models=("a",), tenants=("",), slices=("1c@0",)))
    return path.read_bytes()


GOOD = _good()


def seeds() -> list[bytes]:
    """Return changes of the header, of the schema, and of rows all over the file."""
    found = [b"", b"\0\0\0\xff", b"\0\0\0\x01"]
    found += [bytes([0, 0, at, 1]) for at in (16, 18, 19, 24, 28, 44, 56, 60, 68, 92, 96, 100, 103, 105)]
    found += [bytes([0x80, at >> 8, at & 255, 0x10]) for at in range(0, 65536, 3999)]
    return found


def damaged(data: bytes) -> bytes:
    """Return the file that an input stands for."""
    made = bytearray(GOOD)
    for at in range(0, len(data) - 3, 4):
        high, middle, low, change = data[at : at + 4]
        place = (high & 0x7F) << 16 | middle << 8 | low
        place = (4096 if high & 0x80 else 0) + place
        if not made:
            break
        place %= len(made)
        if change == 0xFF:
            del made[place:]
        else:
            made[place] ^= change
    return bytes(made)


def check(data: bytes) -> str:
    """Read and write one damaged file."""
    for path in Path(_FOLDER.name).glob("ledger.sqlite*"):
        path.unlink()
    PATH.write_bytes(damaged(data))
    found = _read()
    try:
        writer = LedgerWriter(PATH)
    except (LedgerError, sqlite3.Error) as error:
        return f"{found}; not opened: {type(error).__name__}"
    try:
        writer.check()
        writer.begin(RunStart(at_s=2e9, version="1", host="h", pid=1, digest="d", configuration="{}", facts="{}"))
        writer.add(LedgerBatch(1, 2e9, events=[EventRow(2e9, "start", "", "s", "{}", 0)]))
        writer.fold(2_000_000_000, 2_000_000_000)
        writer.forget(1_000_000_000)
        writer.lifetime()
        writer.end(2e9)
    except (LedgerError, sqlite3.Error) as error:
        return f"{found}; not written: {type(error).__name__}"
    finally:
        writer.close()
    return f"{found}; written"


def _read() -> str:
    try:
        with LedgerReader(PATH) as reader:
            rows = [
                *reader.usage(step_s=3600), *reader.lines(), *reader.grid(), *reader.quality(step_s=86400),
                *reader.saved(),
                *reader.events(), *reader.runs(), *reader.profiles(),
            ]  # fmt: skip
            reader.sums()
            reader.bounds()
    except LedgerError as error:
        text = str(error)
        assert _FOLDER.name not in text, text
        assert text.isprintable(), repr(text)
        return "not read"
    for row in rows:
        msgspec.convert(msgspec.to_builtins(row), type(row))  # each figure is of the kind that the row says
    return f"{len(rows)} rows"
