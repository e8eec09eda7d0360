"""When a take-over is refused, what a container ends with, and what a successor has of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.config import ListenConfig, ServerConfig
from clover.http.audit import AuditLog
from clover.low_priority import LowPriority
from clover.server.life import Life
from clover.server.takeover import socket_file
from clover.server.takeover.channel import VERSION, SocketOffer, TakeOverRequest
from clover.server.takeover.handover import TakeOvers, container_ends, held_bytes, refusal
from clover.server.takeover.succession import BESIDE, Succession, listening
from tests.support.budget_fixture import on_a_loop

OFFER = SocketOffer(clover="1", grpc_port=None, memory_bytes=0)


def succession_of(offer: SocketOffer) -> Succession:
    return Succession(None, offer, None, LowPriority(), Path())  # type: ignore[arg-type]


def test_workers_have_longer_to_start_at_a_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    succession = succession_of(OFFER)
    assert succession.start_s(60.0) == 60.0
    monkeypatch.setattr(succession._priority, "slowdown", 3.0)
    assert succession.start_s(60.0) == 180.0


def running_parts() -> Any:
    return SimpleNamespace(
        config=ServerConfig(listen=ListenConfig(port=9000)),
        life=Life(),
        rollouts=SimpleNamespace(trials=set),
        cluster=SimpleNamespace(name=""),
        operators=SimpleNamespace(audit=AuditLog()),
    )


def request(**changed: Any) -> TakeOverRequest:
    listen = listening(ServerConfig(listen=ListenConfig(port=9000)))
    return TakeOverRequest(**{"version": VERSION, "clover": "9.9", "listen": listen, **changed})


def test_when_it_is_refused() -> None:
    parts = running_parts()
    front: Any = object()
    assert refusal(parts, front, request()) == ""
    assert "9.9 do not take over from each other" in refusal(parts, front, request(version=VERSION + 1))
    theirs = {**listening(parts.config), "port": "9001"}
    assert "port '9001', and the running server with port '9000'" in refusal(parts, front, request(listen=theirs))
    parts.rollouts = SimpleNamespace(trials=lambda: {"fashion@2"})
    assert "a roll-out is under way (fashion@2)" in refusal(parts, front, request())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        assert "container of the running server ends with it" in refusal(parts, front, request())
    parts.rollouts, parts.cluster.name = SimpleNamespace(trials=set), "demo"
    assert "a node of the cluster demo" in refusal(parts, front, request())
    parts.cluster.name = ""
    assert "no front end" in refusal(parts, None, request())
    parts.life.draining = True
    assert "shutting down" in refusal(parts, front, request())


@pytest.mark.parametrize(
    ("pid", "parent", "first", "ends"),
    [
        (1, 0, "python", True),
        (7, 1, "tini", True),
        (7, 1, "docker-init", True),
        (30, 0, "pause", True),
        (7, 1, "systemd", False),
        (9, 8, "tini", False),
        (40, 0, "sh", False),  # docker exec
    ],
)
def test_what_ends_with_a_container(
    pid: int, parent: int, first: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/comm").write_text(f"{first}\n")
    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    assert container_ends(tmp_path) is ends


@on_a_loop
async def test_a_process_that_the_server_started_gets_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a hostile model in a worker would ask: it is the same user."""
    parts = running_parts()
    parts.loop = asyncio.get_running_loop()
    config = ServerConfig(state_dir=str(tmp_path), listen=ListenConfig(port=9000))
    take_overs = TakeOvers(config)
    take_overs.start(parts, None, lambda: None)
    path = socket_file.place(config)
    assert path is not None
    while not path.exists():
        await asyncio.sleep(0)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", CHILD, path.name), cwd=path.parent, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    out, _ = await child.communicate()
    assert out == b"b''"
    assert "which this server has started, asked for its sockets: refused" in caplog.text
    (record,) = parts.operators.audit.records
    assert (record.who, record.door, record.status) == (f"process {child.pid}", "take-over socket", 403)
    await take_overs.close()
    assert not path.exists()


CHILD = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect(sys.argv[1])
    print(sock.recv(100), end="")
"""


def test_every_other_server_has_the_other_box(tmp_path: Path) -> None:
    offers = [OFFER, msgspec.structs.replace(OFFER, box=BESIDE)]
    found = [succession_of(offer).boxes(tmp_path) for offer in offers]
    assert found == [tmp_path / BESIDE, tmp_path]


def test_held_memory_counts_what_workers_do_not_share(tmp_path: Path) -> None:
    for pid, text in ((os.getpid(), "100 50 20 0 0 0 0"), (7, "100 30 10 0 0 0 0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(text)
    assert held_bytes([7, 7, 8], tmp_path) == 70 * os.sysconf("SC_PAGE_SIZE")
