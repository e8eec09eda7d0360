"""Messages between the server and its solver process: frames of four bytes of length and a JSON record.

A frame's length is checked before the frame is read, and its record is validated as it is decoded.  Nothing is pickled.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from clover.malformed import MALFORMED
from clover.planning.budget.counterfactual import Fixed
from clover.types import Configuration, Plan, Record, Routing, State

LONGEST_FRAME = 16 << 20
ALTERNATIVES = "alternatives"
FEWEST = "fewest cores"
ROUTING = "routing"
HEAD = struct.Struct(">I")

R = TypeVar("R", bound=msgspec.Struct)


class SolverOrder(Record, frozen=True, kw_only=True):
    """An order to plan `state` by `policy`, or to plan exactly `configuration` if that is given.  Some values of
    `policy` ask for something else than a plan: `ALTERNATIVES` for the best fixed mixes at the load, `FEWEST` for how
    few cores would do, `ROUTING` for how rows go best to the workers of `configuration`, which need not fill the
    devices."""

    id: int
    policy: str
    state: State
    configuration: Configuration | None = None


class SolverAnswer(Record, frozen=True, kw_only=True):
    """The answer to the order of that id: a plan, fixed mixes, a number of cores (null: all of them are too few) or a
    routing (null: none keeps the targets), or the `error` that says why there is none.  `traceback`: where a policy
    raised an exception, if that is the error."""

    id: int
    plan: Plan | None = None
    alternatives: tuple[Fixed, ...] | None = None
    cores: int | None = None
    routing: Routing | None = None
    error: str = ""
    traceback: str = ""


def pack(record: msgspec.Struct) -> bytes:
    """Return `record` as one frame; ValueError if it is too long."""
    body = msgspec.json.encode(record)
    if len(body) > LONGEST_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes exceeds the limit of {LONGEST_FRAME}")
    return HEAD.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return the length a frame's head announces; ValueError if it is too long."""
    (length,) = HEAD.unpack(head)
    if length > LONGEST_FRAME:
        raise ValueError(f"a frame of {length} bytes exceeds the limit of {LONGEST_FRAME}")
    return int(length)


def unpack(body: bytes, kind: type[R]) -> R:
    """Return the record in a frame's body; ValueError if it is malformed."""
    try:
        return msgspec.json.decode(body, type=kind)
    except MALFORMED as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
