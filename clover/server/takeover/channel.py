"""The connection of a running server and its successor: messages with descriptors beside them, in order.

A message is its length (four bytes) and its bytes; descriptors travel with the first byte of that by SCM_RIGHTS.  A
control buffer that is too short would drop descriptors silently, so MSG_CTRUNC is an error.  Both ends check by
SO_PEERCRED that the other is the same user.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Protocol, TypeVar

from clover.errors import StartError
from clover.server.takeover.messages import Message, TakeOverRefused, decode, encode

_LENGTH = struct.Struct("!I")
MOST_BYTES = 16 << 20
MOST_DESCRIPTORS = 64
_PEER = struct.Struct("3i")

_M = TypeVar("_M", bound=Message)


class TakeOverError(StartError):
    """A take-over did not come about; the running server stays."""


class TakeOverChannel(Protocol):
    """One end of the connection.  Both calls raise TakeOverError if the other end is gone."""

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with copies of `descriptors`."""

    async def receive(self, within_s: float | None) -> tuple[Message, list[int]]:
        """Return the next message and its descriptors, which belong to the caller; TakeOverError if none comes within
        `within_s` seconds (None: waits as long as the other end is there)."""

    async def ended(self, within_s: float) -> bool:
        """Return whether the other end's process has ended, waiting for that up to `within_s` seconds."""

    def close(self) -> None:
        """Let go of the connection.  Idempotent."""


async def expect(channel: TakeOverChannel, kind: type[_M], within_s: float | None) -> tuple[_M, list[int]]:
    """Return the next message, which must be of `kind`; TakeOverError with the reason if the other end refuses."""
    message, descriptors = await channel.receive(within_s)
    if isinstance(message, kind):
        return message, descriptors
    for number in descriptors:
        os.close(number)
    if isinstance(message, TakeOverRefused):
        raise TakeOverError(message.reason)
    raise TakeOverError(f"the other server said {type(message).__name__} instead of {kind.__name__}")


class SocketChannel:
    """A channel over a connected unix socket, which it owns.  It works in one event loop at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self.pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():
            self.close()
            raise TakeOverError("the other end of the take-over socket is another user's")

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        data = encode(message)
        left = memoryview(_LENGTH.pack(len(data)) + data)
        beside: Sequence[int] = descriptors
        while left:
            try:
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", beside))] if beside else []
                sent = self._sock.sendmsg([left], control, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                await self._until(writable=True)
                continue
            except OSError as error:
                raise TakeOverError(f"the other server is gone: {error.strerror}") from error
            beside = ()
            left = left[sent:]

    async def receive(self, within_s: float | None) -> tuple[Message, list[int]]:
        try:
            async with asyncio.timeout(within_s):
                return await self._receive()
        except TimeoutError:
            raise TakeOverError(f"the other server did not answer within {within_s:g} s") from None

    async def _receive(self) -> tuple[Message, list[int]]:
        while True:
            if len(self._buffer) >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer)
                if size > MOST_BYTES:
                    raise TakeOverError(f"the other server sent a message of {size} bytes")
                if len(self._buffer) >= _LENGTH.size + size:
                    data = bytes(self._buffer[_LENGTH.size : _LENGTH.size + size])
                    del self._buffer[: _LENGTH.size + size]
                    descriptors, self._descriptors = self._descriptors, []
                    try:
                        return decode(data), descriptors
                    except ValueError as error:
                        for number in descriptors:
                            os.close(number)
                        raise TakeOverError(f"the other server cannot be understood: {error}") from error
            await self._read()

    async def _read(self) -> None:
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, control, flags, _ = self._sock.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            await self._until(writable=False)
            return
        except OSError as error:
            raise TakeOverError(f"the other server is gone: {error.strerror}") from error
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors += numbers
        if flags & socket.MSG_CTRUNC:
            raise TakeOverError("the other server sent more descriptors than are taken")
        if not data:
            raise TakeOverError("the other server is gone")
        self._buffer += data

    async def _until(self, *, writable: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
        add(self._sock, settle)
        try:
            await ready
        finally:
            remove(self._sock)

    async def ended(self, within_s: float) -> bool:
        try:
            process = os.pidfd_open(self.pid)
        except OSError:
            return True
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(process, gone.set)
        try:
            async with asyncio.timeout(within_s):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(process)
            os.close(process)
        return True

    def close(self) -> None:
        for number in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(number)
        self._descriptors = []
        self._sock.close()
