"""The connection of a running server and its successor: messages as JSON, never pickle, with descriptors beside them.

It is a unix socket that keeps messages apart (SOCK_SEQPACKET).  A control buffer that is too short would drop
descriptors silently, so MSG_CTRUNC is an error.  Both ends check by SO_PEERCRED that the other is the same user.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from clover.errors import StartError
from clover.types import Record

VERSION = 2
"""Raised whenever a message changes: servers of different versions do not take over from each other."""
MOST_DESCRIPTORS = 64
_MOST_BYTES = 1 << 16
_PEER = struct.Struct("3i")
_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class TakeOverError(StartError):
    """A take-over did not come about; the running server stays."""


class OtherEndedError(TakeOverError):
    """The other server has ended."""


class TakeOverRequest(Record, frozen=True, kw_only=True, tag=True):
    """The successor asks: its version of the messages, its release, and the addresses that it is configured with."""

    version: int
    clover: _Text
    listen: dict[str, _Text]


class TakeOverRefused(Record, frozen=True, kw_only=True, tag=True):
    """The running server stays, for this reason: instead of any other answer."""

    reason: _Text


class SocketOffer(Record, frozen=True, kw_only=True, tag=True):
    """The running server's listening sockets, which come beside: those for HTTP, and the control socket if any.

    `grpc_port` is bound a second time by the successor.  `memory_bytes`: what the server's processes hold; `box`: the
    folder of its emulated GPUs below the cache folder.
    """

    clover: _Text
    grpc_port: int | None
    memory_bytes: int
    box: _Text = ""


class SuccessorReady(Record, frozen=True, kw_only=True, tag=True):
    """The successor has loaded and warmed everything, and asks whether it may accept connections."""


class TakeOverAllowed(Record, frozen=True, kw_only=True, tag=True):
    """It may."""


class SuccessorAccepting(Record, frozen=True, kw_only=True, tag=True):
    """It does."""


_M = TypeVar("_M", bound=Record)


class Channel:
    """One end of the connection, over a connected socket, which it owns.  It works in one event loop at a time.

    `pid` is the other process.  `descriptors` are those that came: a user of one removes it from the list.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.descriptors: list[int] = []
        self.pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():
            self.close()
            raise TakeOverError("the other end of the take-over socket is another user's")

    def send(self, message: Record, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with copies of `descriptors`; OtherEndedError if the other end is gone."""
        try:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            self._sock.sendmsg([msgspec.json.encode(message)], control, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise OtherEndedError(f"the other server is gone: {error.strerror}") from error

    async def expect(self, kind: type[_M], within_s: float | None) -> _M:
        """Return the next message, which must be of `kind`.

        Raises OtherEndedError if the other end is gone, and TakeOverError with the reason if it refuses, says something
        else, or says nothing for `within_s` seconds (None: waits as long as it is there).
        """
        try:
            async with asyncio.timeout(within_s):
                data = await self._receive()
        except TimeoutError:
            raise TakeOverError(f"the other server did not answer within {within_s:g} s") from None
        if not data:
            raise OtherEndedError("the other server is gone")
        try:
            message: _M | TakeOverRefused = msgspec.json.decode(data, type=kind | TakeOverRefused)
        except ValueError as error:
            raise TakeOverError(f"the other server cannot be understood: {error}") from error
        if isinstance(message, TakeOverRefused):
            raise TakeOverError(message.reason)
        return message

    async def wait_ended(self, within_s: float) -> bool:
        """Wait until the other end is gone, whatever it says meanwhile; return whether it is within `within_s`
        seconds."""
        try:
            async with asyncio.timeout(within_s):
                while await self._receive():
                    pass
        except TimeoutError:
            return False
        return True

    async def _receive(self) -> bytes:
        """Return the next message; nothing if the other end is gone."""
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        while True:
            try:
                data, control, flags, _ = self._sock.recvmsg(_MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
                break
            except (BlockingIOError, InterruptedError):
                await self._readable()
            except ConnectionResetError:
                pass  # it did not read all before it closed: what it said last is still to be read
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self.descriptors += numbers
        if flags & socket.MSG_CTRUNC:
            raise TakeOverError("the other server sent more descriptors than are taken")
        return data

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._sock, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._sock)

    def close(self) -> None:
        """Close the connection, and the descriptors that nobody took.  Idempotent."""
        while self.descriptors:
            os.close(self.descriptors.pop())
        self._sock.close()
