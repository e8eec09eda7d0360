"""Messages between server, zygote and workers: fixed frames on SEQPACKET sockets, never pickle.

A frame is one packet: a header (magic, version, kind, payload bytes) and a payload, which is one record as JSON with
unknown fields refused.  Packets keep their boundaries, so nothing has to be reassembled and a short or long one is an
error.  Descriptors are passed beside a frame by SCM_RIGHTS.  The receiver states how many it expects; a control buffer
that is too short would drop the rest silently, so MSG_CTRUNC is an error.  Descriptors arrive close-on-exec.

    server -> zygote   SPAWN (order; seven descriptors)   STOP
    zygote -> spare    SPAWN (the same)
    zygote -> server   HELLO (once)   SPAWNED (pid; a pidfd)   REFUSED (reason)   EXITED (pid, status)
    worker -> server   STATE (loading, warming, ready, failed)   END_ASKED
    server -> worker   EXIT
"""

from __future__ import annotations

import array
import os
import socket
import struct
from enum import IntEnum
from typing import Annotated, Literal, TypeVar

import msgspec

from clover.errors import WorkerError
from clover.malformed import MALFORMED
from clover.types import FamilySpec, Record, SandboxOrder, TensorSpec

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]


class Kind(IntEnum):
    """The kind of message in a frame."""

    HELLO = 1
    SPAWN = 2
    SPAWNED = 3
    REFUSED = 4
    EXITED = 5
    STOP = 6
    STATE = 7
    EXIT = 8
    END_ASKED = 9


MAX_PAYLOAD_BYTES = 128 << 10
"""Largest payload; a packet has to fit a socket's buffer."""

SPAWN_FDS = 7
"""Descriptors beside SPAWN, in this order: control socket, slab, ring, doorbell, completions, lifeline, output."""

_SPAWN_BYTES = 256  # of a SPAWN frame, beside its order
_HEADER = struct.Struct("<IHHI")
_MAGIC = 0x46564C43  # "CLVF" in memory order
_VERSION = 1

_R = TypeVar("_R", bound=Record)


class EmulatedSlice(Record, frozen=True, kw_only=True):
    """The emulated slice of a worker: the emulator's library, its state file, the instance's UUID there; by batch size
    from 1, the milliseconds of a batch and its watts above idle; the slice's memory."""

    library: str
    state: str
    uuid: str
    pace_ms: tuple[float, ...]
    watts: tuple[float, ...]
    memory_bytes: int


Recording = Literal["check", "trust", "skip"]
"""What a worker on a GPU does about the launches of a variant: record them and compare each replay with the model,
record them only, as profiling compared them, or neither, as profiling found that they may not be replayed."""


class Resident(Record, frozen=True, kw_only=True):
    """A further variant that a worker is to hold beside the first of its order: what to load, with how many threads,
    and, on an emulated slice, its pace and its watts by batch size from 1 (see `EmulatedSlice`)."""

    variant: str
    backend: str
    artifact_dir: str = ""
    threads: int = 1
    recording: Recording = "check"
    pace_ms: tuple[float, ...] = ()
    watts: tuple[float, ...] = ()


class HeldMemory(Record, frozen=True, kw_only=True):
    """What one resident variant holds on its slice, bytes: its weights, and the most that its batches needed on top."""

    variant: str
    weights_bytes: _Count
    peak_bytes: _Count


class WorkerOrder(Record, frozen=True, kw_only=True):
    """Everything a worker needs: what to load, where to run, how large batches get.

    `cores` are core numbers; `memory_bytes` 0 sets no limit to memory; `visible_devices` becomes
    CUDA_VISIBLE_DEVICES before anything runs ("" hides every GPU from a CPU worker); `place` is for messages.
    """

    family: FamilySpec
    variant: str
    backend: str
    artifact_dir: str = ""
    cores: tuple[int, ...]
    threads: int = 1
    recording: Recording = "check"
    max_batch: int
    memory_bytes: int = 0
    visible_devices: str = ""
    place: str = ""
    emulated: EmulatedSlice | None = None
    also: tuple[Resident, ...] = ()
    """Variants that the worker holds beside `variant`, as many of the first of them as fit `resident_bytes`."""
    resident_bytes: int = 0
    """Bytes of the slice that all variants together may hold; 0 sets no limit."""
    also_s: float = 0.0
    """Seconds after which the worker begins to load no further variant of `also`; 0 sets no limit."""
    sandbox: SandboxOrder | None = None
    """None: the worker is not confined beyond its limits."""

    @property
    def lanes(self) -> int:
        """How many lanes its ring has."""
        return 1 + len(self.also)

    def fitting(self) -> WorkerOrder:
        """Return the order without the last of `also` if a frame could not take it otherwise."""
        order = self
        while order.also and len(msgspec.json.encode(order.trimmed())) > MAX_PAYLOAD_BYTES - _SPAWN_BYTES:
            order = msgspec.structs.replace(order, also=order.also[:-1])
        return order

    def trimmed(self) -> WorkerOrder:
        """Return the order without labels and descriptions, which no worker reads, to keep frames small."""

        def bare(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(msgspec.structs.replace(tensor, labels=()) for tensor in tensors)

        names = (self.variant, *(resident.variant for resident in self.also))
        family = msgspec.structs.replace(
            self.family,
            inputs=bare(self.family.inputs),
            outputs=bare(self.family.outputs),
            variants=tuple(
                msgspec.structs.replace(variant, outputs=bare(variant.outputs))
                for variant in map(self.family.variant, names)
            ),
            description="",
        )
        return msgspec.structs.replace(self, family=family)


class Hello(Record, frozen=True, kw_only=True):
    """The zygote is ready to fork: its pid, how many threads it has (one), and how long its imports took."""

    pid: int
    threads: int
    import_ms: float


class Spawn(Record, frozen=True, kw_only=True):
    """Make a worker.  `token` names the answer; `slots` is the size of the slab passed along; `begun_ns` is when the
    zygote began with it (monotonic), as it tells its spare."""

    token: int
    slots: int
    order: WorkerOrder
    begun_ns: int = 0


class Spawned(Record, frozen=True, kw_only=True):
    """A worker was made; its pidfd comes along, opened by its parent, so that it can never name another process."""

    token: int
    pid: int


class SpawnRefused(Record, frozen=True, kw_only=True):
    """A worker was not made, and why."""

    token: int
    reason: str


class Exited(Record, frozen=True, kw_only=True):
    """A worker ended.  `code` is its exit status, or minus the number of the signal that ended it."""

    pid: int
    code: int


class Stop(Record, frozen=True, kw_only=True):
    """End: the zygote ends its workers, then itself."""


class Exit(Record, frozen=True, kw_only=True):
    """End when idle: a worker answers what is in its ring first."""


class EndAsked(Record, frozen=True, kw_only=True):
    """A process other than the server asked a worker to end; it keeps serving until the server says EXIT."""


class WorkerState(Record, frozen=True, kw_only=True):
    """What a worker is doing.  `text` is the reason of "failed", `device_lost` that its GPU is gone and no batch is to
    blame; the durations are filled as they become known.  A worker on an emulated slice says "ready" again when batches
    took longer than the slice would: `overruns` of `batches` so far.

    `sandbox`, from "loading" on, says by what the worker is confined: empty if it is not to be, "none" if the kernel
    cannot.

    "ready" names the variants that are `resident`, each with the ring's lane of its place in the order (0:
    `WorkerOrder.variant`, i: `WorkerOrder.also[i - 1]`), what the process holds beside them (`context_bytes`), why
    each variant that is not resident was `left_out`, and which variants' launches were recorded and compared: "" if
    they are replayed, else why not."""

    state: Literal["loading", "warming", "ready", "failed"]
    text: str = ""
    fork_ms: _Milliseconds = 0.0
    load_ms: _Milliseconds = 0.0
    warm_ms: _Milliseconds = 0.0
    device_lost: bool = False
    sandbox: str = ""
    batches: _Count = 0
    overruns: _Count = 0
    resident: tuple[HeldMemory, ...] = ()
    context_bytes: _Count = 0
    left_out: dict[str, str] = {}
    recorded: dict[str, str] = {}


_KINDS: dict[type[Record], Kind] = {
    Hello: Kind.HELLO,
    Spawn: Kind.SPAWN,
    Spawned: Kind.SPAWNED,
    SpawnRefused: Kind.REFUSED,
    Exited: Kind.EXITED,
    Stop: Kind.STOP,
    WorkerState: Kind.STATE,
    Exit: Kind.EXIT,
    EndAsked: Kind.END_ASKED,
}


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected SEQPACKET sockets, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def pack(record: Record) -> bytes:
    """Return the frame of a record; raises WorkerError if it is too large to send."""
    payload = msgspec.json.encode(record)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise WorkerError(
            f"a message of {len(payload)} bytes is more than the {MAX_PAYLOAD_BYTES} a worker takes: "
            "shorten the family's declaration (variant parameters, tensor lists)"
        )
    return _HEADER.pack(_MAGIC, _VERSION, _KINDS[type(record)], len(payload)) + payload


def unpack(frame: bytes) -> tuple[Kind, bytes]:
    """Return kind and payload of a frame; raises WorkerError if it is not one."""
    if len(frame) < _HEADER.size:
        raise WorkerError(f"a frame of {len(frame)} bytes is too short")
    magic, version, kind, length = _HEADER.unpack_from(frame)
    if magic != _MAGIC or version != _VERSION:
        raise WorkerError(f"not a frame of this version (magic {magic:#x}, version {version})")
    if length != len(frame) - _HEADER.size or length > MAX_PAYLOAD_BYTES:
        raise WorkerError(f"a frame of {len(frame)} bytes says its payload has {length}")
    try:
        return Kind(kind), frame[_HEADER.size :]
    except ValueError as error:
        raise WorkerError(f"unknown frame kind {kind}") from error


def decode(payload: bytes, record: type[_R]) -> _R:
    """Return the record of a payload; raises WorkerError if it does not fit."""
    try:
        return msgspec.json.decode(payload, type=record)
    except MALFORMED as error:
        raise WorkerError(f"a malformed {record.__name__} frame: {error}") from error


def send(sock: socket.socket, record: Record, fds: tuple[int, ...] = ()) -> None:
    """Send one frame with its descriptors.  OSError as the socket gives it (BlockingIOError on a full one)."""
    frame = pack(record)
    if fds:
        socket.send_fds(sock, [frame], list(fds))
    else:
        sock.send(frame)


def receive(sock: socket.socket, most_fds: int = 0) -> tuple[Kind, bytes, tuple[int, ...]] | None:
    """Return the next frame and its descriptors (the caller owns them); None at the end of the stream.

    Raises WorkerError for a malformed or cut frame and if more than `most_fds` descriptors came along: none stays
    open then.  BlockingIOError on a non-blocking socket with nothing to read.
    """
    size = array.array("i").itemsize
    room = socket.CMSG_SPACE(most_fds * size) if most_fds else 0
    frame, control, flags, _ = sock.recvmsg(_HEADER.size + MAX_PAYLOAD_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % size])
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise WorkerError("a frame or its descriptors were cut off")
        if not frame and not control:
            return None
        what, payload = unpack(frame)
    except WorkerError:
        close_all(fds)
        raise
    return what, payload, tuple(fds)


def close_all(fds: tuple[int, ...] | list[int] | array.array[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
