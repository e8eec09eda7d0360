"""What a running server and its successor tell each other: records as JSON, never pickle."""

from __future__ import annotations

from typing import Annotated

import msgspec

from clover.control.ledger_files import SavedBudget
from clover.control.standing import StandingCommand
from clover.energy.marks import MeterMark
from clover.types import Record

VERSION = 1
"""Raised whenever a message changes: servers of different versions do not take over from each other."""

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class TakeOverRequest(Record, frozen=True, kw_only=True, tag=True):
    """The successor asks: its version of the messages, itself, and the addresses that it is configured with."""

    version: int
    pid: int
    clover: _Text
    listen: dict[str, _Text]


class TakeOverRefused(Record, frozen=True, kw_only=True, tag=True):
    """The running server stays, for this reason: instead of any other answer."""

    reason: _Text


class SocketOffer(Record, frozen=True, kw_only=True, tag=True):
    """The running server's listening sockets, which come beside: `tcp` of them for HTTP, then the control socket if
    `control`.  `grpc_port` is bound a second time by the successor.  `memory_bytes`: what its processes hold;
    `box`: the folder of its emulated GPUs below the cache folder; `commands`: what operators changed and still holds;
    `unloaded`: the models that are not loaded.
    """

    pid: int
    clover: _Text
    tcp: int
    control: bool
    grpc_port: int | None
    memory_bytes: int
    box: _Text = ""
    commands: tuple[StandingCommand, ...] = ()
    unloaded: tuple[str, ...] = ()


class SuccessorReady(Record, frozen=True, kw_only=True, tag=True):
    """The successor has loaded and warmed everything, and waits for the state."""


class HandedState(Record, frozen=True, kw_only=True, tag=True):
    """The state: the running server counts no energy of the machine from `at_ns` (monotonic) on, nor embodied grams.
    `budgets` by family, as far as they were looked at."""

    at_ns: int
    marks: tuple[MeterMark, ...] = ()
    budgets: dict[str, SavedBudget] = {}


class SuccessorAccepting(Record, frozen=True, kw_only=True, tag=True):
    """The successor accepts connections: the commit point, once the running server has it."""


class TakeOverCommitted(Record, frozen=True, kw_only=True, tag=True):
    """The running server accepts no more, and answers what it has received."""


class LateRows(Record, frozen=True, kw_only=True):
    """What a family answered in the running server after the state was handed over."""

    rows: float
    accuracy_rows: float
    since_s: float


class TakeOverFinished(Record, frozen=True, kw_only=True, tag=True):
    """The running server has answered everything and closed its ledger.  `answered`: whether nothing was left."""

    answered: bool
    late: dict[str, LateRows] = {}


Message = (
    TakeOverRequest
    | TakeOverRefused
    | SocketOffer
    | SuccessorReady
    | HandedState
    | SuccessorAccepting
    | TakeOverCommitted
    | TakeOverFinished
)
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in `data`; ValueError if there is none."""
    return _DECODER.decode(data)
