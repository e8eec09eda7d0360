"""The take-over's connection and its file: descriptors, strangers, time limits."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from clover.config import LedgerConfig, ListenConfig, ServerConfig
from clover.server.takeover import channel as channels
from clover.server.takeover import socket_file
from clover.server.takeover.channel import (
    Channel,
    OtherEndedError,
    SocketOffer,
    SuccessorReady,
    TakeOverAllowed,
    TakeOverError,
    TakeOverRefused,
)
from clover.server.takeover.socket_file import ListeningFile

OFFER = SocketOffer(clover="1", grpc_port=None, memory_bytes=0)


def pair() -> tuple[Channel, Channel]:
    one, other = sockets()
    return Channel(one), Channel(other)


def sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_messages_keep_their_order_and_descriptors_arrive_close_on_exec(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = pair()
        with (tmp_path / "file").open("w+") as file:
            one.send(OFFER, [file.fileno()])
            one.send(TakeOverRefused(reason="é" + "x" * 4000))
            assert await other.expect(SocketOffer, 5.0) == OFFER
            number = other.descriptors.pop()
            assert not os.get_inheritable(number)
            assert os.fstat(number).st_ino == os.fstat(file.fileno()).st_ino
            os.close(number)
            with pytest.raises(TakeOverError, match="é" + "x" * 4000):
                await other.expect(TakeOverAllowed, 5.0)
        one.send(OFFER)
        with pytest.raises(TakeOverError, match=r"cannot be understood: .*SocketOffer"):
            await other.expect(TakeOverAllowed, 5.0)
        one.close()
        with pytest.raises(OtherEndedError, match="the other server is gone"):
            await other.expect(TakeOverAllowed, 5.0)
        with pytest.raises(OtherEndedError, match="the other server is gone"):
            other.send(SuccessorReady())
        other.close()
        other.close()

    asyncio.run(main())


def test_what_the_other_end_said_last_is_read_though_it_read_nothing_more() -> None:
    async def main() -> None:
        one, other = pair()
        other.send(SuccessorReady())
        one.send(TakeOverRefused(reason="too late"))
        one.close()
        with pytest.raises(TakeOverError, match="too late"):
            await other.expect(TakeOverAllowed, 5.0)
        assert await other.wait_ended(5.0)
        other.close()

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"{}", b'{"type":"Unheard Of"}', b"x"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    async def main() -> None:
        raw, sock = sockets()
        channel = Channel(sock)
        raw.send(data)
        with pytest.raises(TakeOverError, match="cannot be understood"):
            await channel.expect(SocketOffer, 5.0)
        raw.close()
        channel.close()

    asyncio.run(main())


def test_more_descriptors_than_are_taken_are_refused_and_none_stays_open() -> None:
    async def main() -> None:
        one, other = pair()
        before = len(os.listdir("/proc/self/fd"))
        one.send(OFFER, [0] * (channels.MOST_DESCRIPTORS + 1))
        with pytest.raises(TakeOverError, match="more descriptors than are taken"):
            await other.expect(SocketOffer, 5.0)
        other.close()
        one.close()
        assert len(os.listdir("/proc/self/fd")) == before - 2

    asyncio.run(main())


def test_a_silent_end_is_waited_for_no_longer_than_allowed() -> None:
    async def main() -> None:
        one, other = pair()
        with pytest.raises(TakeOverError, match="did not answer within 0 s"):
            await other.expect(SocketOffer, 0.0)
        assert other.pid == os.getpid()
        one.send(OFFER)
        assert not await other.wait_ended(0.01)
        asyncio.get_running_loop().call_later(0.01, one.close)
        assert await other.wait_ended(5.0)
        other.close()

    asyncio.run(main())


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = sockets()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(TakeOverError, match="another user's"):
        Channel(one)
    assert one.fileno() == -1
    other.close()


def config(folder: Path, keep: str = "on") -> ServerConfig:
    return ServerConfig(
        state_dir=str(folder) if keep == "on" else "",
        ledger=LedgerConfig(keep=keep),  # type: ignore[arg-type]
        listen=ListenConfig(port=9000),
    )


def test_the_file_is_private_found_by_its_settings_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)  # no path of a unix socket may be as long
    path = socket_file.place(config(folder))
    assert path is not None
    file = ListeningFile(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    sock, where = socket_file.connect(config(folder))
    with sock:
        assert sock.getpeername()
    assert where == path
    with pytest.raises(FileExistsError, match="another server listens there"):
        ListeningFile(path)
    file.close()
    file.close()
    assert not path.exists()
    with pytest.raises(TakeOverError, match="no server with this configuration"):
        socket_file.connect(config(folder))


def test_what_a_killed_server_left_is_replaced_and_its_successors_file_stays(tmp_path: Path) -> None:
    path = socket_file.place(config(tmp_path))
    assert path is not None
    left = ListeningFile(path)
    os.close(left.socket.detach())  # as SIGKILL leaves it: a file, and nobody who listens
    assert path.exists()
    new = ListeningFile(path)
    sock, _ = socket_file.connect(config(tmp_path))
    with sock:
        assert sock.getpeername()
    left.close()
    assert path.exists()
    new.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = socket_file.place(config(tmp_path))
    assert path is not None
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="no socket"):
        ListeningFile(path)
    assert path.read_text() == "mine"


def test_without_a_state_folder_there_is_none(tmp_path: Path) -> None:
    assert socket_file.place(config(tmp_path, keep="off")) is None
    with pytest.raises(TakeOverError, match="--state-dir"):
        socket_file.connect(config(tmp_path, keep="off"))
