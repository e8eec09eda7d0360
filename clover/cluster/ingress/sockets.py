"""The listening sockets of HAProxy, held beside it: if it is killed, connections wait in them until it runs again.

Without a listening socket the kernel refuses connections.  While a process holds the listening socket, the kernel
accepts connections and keeps what clients send, and a HAProxy that receives the socket finds them in its queue.
Connections that the dead HAProxy had already accepted are lost all the same.

A new HAProxy asks an old one for its sockets (`-x`), with the command `_getsocks` at a stats socket that has
`expose-fd listeners`.  The old one answers with the number of sockets, then with messages of some dozens each, every
one acknowledged by the number received so far (`sock_get_old_sockets` in HAProxy's src/sock.c, 1.8 to 3.0).  So the
ingress asks HAProxy as a new one would, and answers the one that it starts as the old one would.  For each socket a
message has the descriptor, network namespace and interface (each a byte of length, then text), and an int of options.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

_ASKED = b"_getsocks\n"
_ANSWER_S = 2.0
_MOST = 1024
_AT_ONCE = 253
"""Descriptors that one message carries at most (SCM_MAX_FD of Linux)."""
_SENT = 32
_INT = struct.Struct("i")

Held = list[tuple[bytes, int]]
"""What HAProxy says of each socket, and its descriptor."""


class HeldSockets:
    """Duplicates of the sockets at which one HAProxy takes connections over the network."""

    def __init__(self) -> None:
        self._held: Held = []

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, path: str) -> None:
        """Hold what the HAProxy whose stats socket is at `path` listens at, instead of what was held before; nothing if
        it does not give all of it.  Blocks for as long as HAProxy takes to answer."""
        before, self._held = self._held, _asked(path)
        _close(before)

    def close(self) -> None:
        """Hold nothing any more: without a HAProxy, connections are refused again."""
        held, self._held = self._held, []
        _close(held)

    @contextlib.asynccontextmanager
    async def offered(self, path: Path) -> AsyncIterator[None]:
        """Answer one HAProxy that asks for its sockets at `path`, which is there until the block ends."""
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.setblocking(False)
            answering = asyncio.create_task(self._answer(listener))
            try:
                yield
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                path.unlink(missing_ok=True)

    async def _answer(self, listener: socket.socket) -> None:
        asking, _ = await asyncio.get_running_loop().sock_accept(listener)
        with asking:
            await asyncio.to_thread(self._give, asking)

    def _give(self, asking: socket.socket) -> None:
        asking.settimeout(_ANSWER_S)
        with contextlib.suppress(OSError):  # whoever asked has ended, and says why
            if asking.recv(len(_ASKED), socket.MSG_WAITALL) != _ASKED:
                return
            asking.sendall(_INT.pack(len(self._held)))
            for at in range(0, len(self._held), _SENT):
                some = self._held[at : at + _SENT]
                socket.send_fds(asking, [b"".join(words for words, _ in some)], [number for _, number in some])
                asking.recv(_INT.size, socket.MSG_WAITALL)


def _asked(path: str) -> Held:
    """Return the sockets that a HAProxy gives, but for those of files, as its stats socket is: without a HAProxy,
    nobody shall be found there; none if it does not answer, or otherwise than this."""
    words, numbers, count = b"", list[int](), -1
    with contextlib.suppress(OSError, struct.error), socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ANSWER_S)
        asking.connect(path)
        asking.sendall(_ASKED)
        (count,) = _INT.unpack(asking.recv(_INT.size, socket.MSG_WAITALL))
        while len(numbers) < count <= _MOST:
            more, some, flags, _ = socket.recv_fds(asking, 1 << 20, _AT_ONCE)
            words += more
            for number in some:
                os.set_inheritable(number, False)  # no program that is started meanwhile shall have them
            numbers += some
            if not some or flags & socket.MSG_CTRUNC:
                break
            asking.sendall(_INT.pack(len(numbers)))
    said = split(words)
    pairs = list(zip(said, numbers, strict=False))
    if not len(said) == len(numbers) == count:
        for number in numbers:
            os.close(number)
        return []
    files = [item for item in pairs if _family(item[1]) == socket.AF_UNIX]
    _close(files)
    return [item for item in pairs if item not in files]


def split(words: bytes) -> list[bytes]:
    """Return what `words` say of each socket; empty if they are cut off."""
    found, at = [], 0
    while at < len(words):
        begin = at
        for _ in ("namespace", "interface"):
            at += 1 + words[at] if at < len(words) else 1
        at += _INT.size
        found.append(words[begin:at])
    return found if at == len(words) else []


def _family(number: int) -> int:
    own = socket.socket(fileno=number)
    try:
        return own.family
    finally:
        own.detach()


def _close(held: Held) -> None:
    for _, number in held:
        os.close(number)
