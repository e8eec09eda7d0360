"""Frames between server, zygote and workers: the input is what one side sends, in one packet.

It is a frame whose record survives its own frame, or a WorkerError; also over a real socket, where no descriptor is
left.
"""

from __future__ import annotations

import os
from pathlib import Path

from clover.errors import WorkerError
from clover.worker import frames
from clover.worker.frames import Kind

INSTRUMENTED = ("clover.worker.frames",)
RECORDS = {kind: record for record, kind in frames._KINDS.items()}

DICTIONARY = (
    b"CLVF", b"\1\0", *(bytes([kind, 0]) for kind in Kind), b'"pid":', b'"token":', b'"order":', b'"family":',
    b'"state":',
    b'"ready"', b'"reason":', b'"cores":', b'"code":', b"-1", b"9223372036854775808", b"1e400", b"null", b"[]",
    b"{}", b'"resident":',
    b'"variant":', b'"also":', b'"left_out":', b"NaN", b"\xff", b'"\\ud800"',
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return a frame of each kind that is small."""
    said = (
        frames.Hello(pid=1, threads=1, import_ms=2.5), frames.Spawned(token=1, pid=2), frames.SpawnRefused(token=1,
        reason="no"),
        frames.Exited(pid=2, code=-9), frames.Stop(), frames.Exit(), frames.EndAsked(),
        frames.WorkerState(state="failed", text="x", device_lost=True),
        frames.WorkerState(state="ready", resident=(frames.HeldMemory(variant="a", weights_bytes=1, peak_bytes=2),)),
    )  # fmt: skip
    found = [frames.pack(record) for record in said]
    spec = b'{"name":"a","inputs":[],"outputs":[],"variants":[]}'
    order = b'{"family":%b,"variant":"a","backend":"eager","cores":[0],"max_batch":1}' % spec
    payload = b'{"token":1,"slots":4,"order":%b}' % order
    found.append(frames._HEADER.pack(frames._MAGIC, frames._VERSION, Kind.SPAWN, len(payload)) + payload)
    return found


def check(data: bytes) -> str:
    """Read one frame."""
    said = _read(data)
    if len(data) % 16 == 3:
        _over_a_socket(data)
    # Most inputs have a wrong header: the payload is read under a right one as well, of the kind that its size gives.
    kind = list(RECORDS)[len(data) % len(RECORDS)]
    payload = data[12:]
    return said + _read(frames._HEADER.pack(frames._MAGIC, frames._VERSION, kind, len(payload)) + payload)


def _read(data: bytes) -> str:
    try:
        kind, payload = frames.unpack(data)
        record = frames.decode(payload, RECORDS[kind])
    except WorkerError as error:
        return f"refused: {error}"
    again = frames.unpack(frames.pack(record))
    assert again[0] is kind
    assert frames.decode(again[1], type(record)) == record
    return repr(record)


def _over_a_socket(data: bytes) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    ours, theirs = frames.socket_pair()
    reading, writing = os.pipe()
    try:
        socket_fds = [reading, writing][: len(data) % 3]
        import socket

        socket.send_fds(theirs, [data], socket_fds) if socket_fds else theirs.send(data)
        try:
            found = frames.receive(ours, 1)
        except WorkerError:
            found = None
        frames.close_all(found[2] if found else ())
    finally:
        for fd in (reading, writing):
            os.close(fd)
        ours.close()
        theirs.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "descriptors are left open"
