"""The take-over's connection and its file: pieces, descriptors, strangers, time limits."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.config import LedgerConfig, ListenConfig, ServerConfig
from clover.server.takeover import channel as channels
from clover.server.takeover import socket_file
from clover.server.takeover.channel import SocketChannel, TakeOverError, expect
from clover.server.takeover.messages import (
    SocketOffer,
    SuccessorReady,
    TakeOverCommitted,
    TakeOverRefused,
    decode,
    encode,
)
from clover.server.takeover.socket_file import ListeningFile

OFFER = SocketOffer(pid=1, clover="1", tcp=1, control=False, grpc_port=None, memory_bytes=0)


def pair() -> tuple[SocketChannel, SocketChannel]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return SocketChannel(one), SocketChannel(other)


def test_messages_keep_their_order_and_descriptors_arrive_close_on_exec(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = pair()
        with (tmp_path / "file").open("w+") as file:
            await one.send(OFFER, [file.fileno()])
            await one.send(TakeOverRefused(reason="x" * 4000))
            found, (number,) = await expect(other, SocketOffer, 5.0)
            assert found == OFFER
            assert not os.get_inheritable(number)
            assert os.fstat(number).st_ino == os.fstat(file.fileno()).st_ino
            os.close(number)
            with pytest.raises(TakeOverError, match="x" * 4000):
                await expect(other, TakeOverCommitted, 5.0)
        one.close()
        with pytest.raises(TakeOverError, match="the other server is gone"):
            await other.receive(5.0)
        with pytest.raises(TakeOverError, match="the other server is gone"):
            await other.send(SuccessorReady())
        other.close()
        other.close()

    asyncio.run(main())


@given(cuts=st.lists(st.integers(1, 60), max_size=8))
def test_however_it_is_cut(cuts: list[int]) -> None:
    async def main() -> None:
        raw, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = SocketChannel(sock)
        data = b"".join(struct.pack("!I", len(text)) + text for text in (encode(OFFER), encode(SuccessorReady())))
        receiving = asyncio.create_task(channel.receive(5.0))
        for size in (*cuts, len(data)):
            raw.sendall(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        assert (await receiving)[0] == OFFER
        assert (await channel.receive(5.0))[0] == SuccessorReady()
        raw.close()
        channel.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("!I", 1 << 30), "a message of 1073741824 bytes"),
        (struct.pack("!I", 2) + b"{}", "cannot be understood"),
        (struct.pack("!I", 20) + b'{"type":"Unheard Of"}', "cannot be understood"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    async def main() -> None:
        raw, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = SocketChannel(sock)
        raw.sendall(data)
        with pytest.raises(TakeOverError, match=words):
            await channel.receive(5.0)
        raw.close()
        channel.close()

    asyncio.run(main())


def test_more_descriptors_than_are_taken_are_refused_and_none_stays_open() -> None:
    async def main() -> None:
        one, other = pair()
        before = len(os.listdir("/proc/self/fd"))
        await one.send(OFFER, [0] * (channels.MOST_DESCRIPTORS + 1))
        with pytest.raises(TakeOverError, match="more descriptors than are taken"):
            await other.receive(5.0)
        other.close()
        one.close()
        assert len(os.listdir("/proc/self/fd")) == before - 2

    asyncio.run(main())


def test_a_silent_end_is_waited_for_no_longer_than_allowed_and_lives() -> None:
    async def main() -> None:
        one, other = pair()
        with pytest.raises(TakeOverError, match="did not answer within 0 s"):
            await other.receive(0.0)
        assert other.pid == os.getpid()
        assert not await other.ended(0.0)
        other.pid = (1 << 22) + 1  # beyond any process
        assert await other.ended(0.0)
        one.close()
        other.close()

    asyncio.run(main())


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(TakeOverError, match="another user's"):
        SocketChannel(one)
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
    with socket_file.connect(config(folder)) as sock:
        assert sock.getpeername()
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
    with socket_file.connect(config(tmp_path)) as sock:
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


def test_messages_come_back_as_they_went() -> None:
    for message in (OFFER, SuccessorReady(), TakeOverRefused(reason="é")):
        assert decode(encode(message)) == message
