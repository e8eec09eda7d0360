"""What a damaged file gives, told from what a ledger holds.

SQLite checks the structure of a file, not its contents: a bit that flipped in a row makes a text a number, a number
nothing, or a text no UTF-8, and in the schema an error message that Python cannot read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from clover.errors import LedgerError
from clover.hints import printable

T = TypeVar("T")


@contextmanager
def as_damage() -> Iterator[None]:
    """Raise what damaged contents lead to as sqlite3.DatabaseError."""
    try:
        yield
    except (UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise sqlite3.DatabaseError("a row of it, or its schema, is damaged") from error


@contextmanager
def reading() -> Iterator[None]:
    """Raise what keeps a ledger from being read as LedgerError, without the path."""
    try:
        with as_damage():
            yield
    except (sqlite3.Error, OSError) as error:
        words = str(error)
        if isinstance(error, OSError):
            words = error.strerror or type(error).__name__
        raise LedgerError(f"the ledger cannot be read: {printable(words, 300)}") from error


def checked(kind: type[T], found: Iterable[Sequence[Any]]) -> list[T]:
    """Return the rows `found` as records; sqlite3.DatabaseError if a value is of another type than the field's."""
    record: Any = kind
    wanted = _types_of(record)
    rows = []
    for row in found:
        for value, types in zip(row, wanted, strict=True):
            if not isinstance(value, types):
                raise sqlite3.DatabaseError("a row of it is damaged")
        rows.append(kind(*row))
    return rows


@cache
def _types_of(kind: Any) -> tuple[tuple[type, ...], ...]:
    """Return the types that each field of a record takes; a float also takes a whole number."""
    return tuple(_plain(hint) for hint in get_type_hints(kind).values())


def _plain(hint: Any) -> tuple[type, ...]:
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    parts = get_args(hint) or (hint,)
    return tuple(
        kind for part in parts for kind in ((float, int) if part is float else (NoneType if part is None else part,))
    )
