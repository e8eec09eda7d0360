"""A take-over that breaks at every step there is, from either side: one server serves, and only the new one goes on
from the files."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clover.config import LimitsConfig, ListenConfig, ServerConfig
from clover.energy.marks import ClosedMeters, MeterMark
from clover.http.audit import AuditLog
from clover.low_priority import LowPriority
from clover.server.life import Life
from clover.server.takeover import handover, socket_file, succession
from clover.server.takeover.channel import Channel, TakeOverError
from clover.server.takeover.handover import TakeOvers
from clover.server.takeover.succession import Succession

MARK = MeterMark(device="cpu0", method="modelled", at_ns=5)
LEFT = ClosedMeters(at_ns=7, meters=(MARK,))


class Killed(BaseException):
    """The process was ended."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at operation `at` of one side: its process ends before or after it."""

    at: int
    how: str


@dataclass
class Process:
    """One side: its channels, of which operation `fault.at` ends it."""

    fault: Fault | None = None
    operations: int = 0
    dead: bool = False

    def channel(self, sock: socket.socket) -> Channel:
        return FaultyChannel(sock, self)


class FaultyChannel(Channel):
    def __init__(self, sock: socket.socket, process: Process) -> None:
        super().__init__(sock)
        self._process = process

    def _step(self, how: str) -> None:
        process = self._process
        if process.fault == Fault(process.operations, how):
            process.dead = True
            self.close()
            raise Killed
        process.operations += how == "killed after"

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        self._step("killed before")
        super().send(message, descriptors)
        self._step("killed after")

    async def expect(self, kind: Any, within_s: float | None) -> Any:
        self._step("killed before")
        found = await super().expect(kind, within_s)
        self._step("killed after")
        return found

    async def wait_ended(self, within_s: float) -> bool:
        self._step("killed before")
        return await super().wait_ended(within_s)


def running_parts(config: ServerConfig) -> Any:
    async def finish(families: Any) -> None:
        return None

    context = SimpleNamespace(families={})
    return SimpleNamespace(
        config=config,
        loop=asyncio.get_running_loop(),
        controller=SimpleNamespace(learner=SimpleNamespace(finish=finish), context=context),
        account=SimpleNamespace(workers=tuple),
        footprint=SimpleNamespace(charged_ns=7),
        machine=SimpleNamespace(marks=lambda: (MARK,)),
        operators=SimpleNamespace(audit=AuditLog()),
        rollouts=SimpleNamespace(trials=set),
        cluster=SimpleNamespace(name=""),
        families=SimpleNamespace(served={}),
        life=Life(),
    )


def front_of(sockets: Sequence[socket.socket]) -> Any:
    http = SimpleNamespace(sockets=lambda: SimpleNamespace(tcp=sockets, control=None))
    return SimpleNamespace(http=http, grpc_port=None)


@dataclass
class Next:
    """The successor's parts and front end, as far as a take-over asks."""

    config: ServerConfig
    breaks: str = ""
    accepts: bool = False
    left: list[Any] = field(default_factory=list)

    def front(self) -> Any:
        async def start(port: int | None) -> None:
            if self.breaks:
                raise TakeOverError(self.breaks)
            self.accepts = True

        return SimpleNamespace(open=start, own=lambda: None)

    def parts(self) -> Any:
        async def nothing() -> None:
            return None

        return SimpleNamespace(
            config=self.config,
            loop=asyncio.get_running_loop(),
            pool=SimpleNamespace(allow=lambda start_s: None),
            grid=SimpleNamespace(priced=nothing, now=lambda: 0.0),
            machine=SimpleNamespace(take_over=lambda closed, reading: self.left.append(closed)),
            footprint=SimpleNamespace(begin=self.left.append),
            ledger=None,
            controller=SimpleNamespace(
                ledger_files=SimpleNamespace(take_over=lambda families, grid_s: None),
                context=SimpleNamespace(families={}),
            ),
        )


@dataclass
class Scene:
    """Both sides, and what came of them."""

    config: ServerConfig
    old: Process
    new: Process
    successor: Next
    parts: Any = None
    take_overs: Any = None
    committed: bool = False
    said: str = ""
    alone: bool = False
    """Whether the new server starts as any other."""

    async def old_gone(self, pid: int, within_s: float) -> bool:
        return self.old.dead

    @property
    def old_serves(self) -> bool:
        return not self.old.dead and self.parts.life.handing is None


async def play(
    folder: Path,
    old_fault: Fault | None = None,
    new_fault: Fault | None = None,
    *,
    breaks: str = "",
    while_loading: Any = None,
    take_over_s: float = 60.0,
) -> Scene:
    """Run both sides to their ends; `while_loading` is awaited, with the scene, before the successor is ready."""
    config = ServerConfig(state_dir=str(folder), listen=ListenConfig(port=9000))
    scene = Scene(config, Process(old_fault), Process(new_fault), Next(config, breaks))
    take_overs = scene.take_overs = TakeOvers(config)
    path = socket_file.place(config)
    assert path is not None
    with pytest.MonkeyPatch.context() as patch, socket.socket() as listening:
        patch.setattr(handover, "Channel", scene.old.channel)
        patch.setattr(handover, "READY_S", take_over_s)
        patch.setattr(succession, "Channel", scene.new.channel)
        patch.setattr(succession, "_wait_gone", scene.old_gone)
        scene.parts = running_parts(config)
        ended = asyncio.Event()
        take_overs.start(scene.parts, front_of([listening]), ended.set)
        while not path.exists():
            await asyncio.sleep(0)
        new = asyncio.create_task(_succeed(scene, while_loading))
        listens = take_overs._listening
        assert listens is not None
        waiting = asyncio.create_task(ended.wait())
        async with asyncio.timeout(20.0):
            await asyncio.wait((waiting, new, listens), return_when=asyncio.FIRST_COMPLETED)
            scene.committed = ended.is_set()
            if scene.committed:
                take_overs.finish()
            await new
            for _ in range(20):  # the running server sees that a connection was made, and has ended
                await asyncio.sleep(0)
            while not (scene.committed or listens.done() or (scene.old_serves and take_overs._heir is None)):
                await asyncio.sleep(0)
            if ended.is_set() and not scene.committed:
                scene.committed = True
                take_overs.finish()
        waiting.cancel()
        listens.cancel()
        await asyncio.wait((listens, waiting))
        with contextlib.suppress(BaseException):
            listens.result()
    return scene


async def _succeed(scene: Scene, while_loading: Any) -> None:
    found = None
    try:
        found = await Succession.ask(scene.config, LowPriority())
        scene.alone = found is None
        if found is not None:
            if while_loading is not None:
                await while_loading(scene)
            await found.complete(scene.successor.parts(), scene.successor.front())
            await found.settle()
            if (ending := found._ending) is not None:
                ending.result()
    except Killed:
        scene.successor.accepts = False
    except TakeOverError as error:
        scene.said = str(error)
    finally:
        if found is not None:
            found.close()


def check(found: Scene) -> None:
    """One serves if one lives, and not two; and no energy is counted twice."""
    accepts = found.successor.accepts or (found.alone and not found.new.dead)
    if not (found.old.dead and found.new.dead):
        assert found.old_serves != accepts
    if not found.old.dead and found.old_serves:
        assert found.successor.left == [], "the meters are the running server's"


def test_it_takes_over_and_goes_on_from_what_the_other_left(tmp_path: Path) -> None:
    found = asyncio.run(play(tmp_path))
    check(found)
    assert found.committed
    assert found.successor.left == [LEFT, 7]
    assert [(one.call, one.door, one.status) for one in found.parts.operators.audit.records] == [
        ("take-over", "take-over socket", 200)
    ]
    assert list((tmp_path / "meters").iterdir()) == []


HOWS = ("killed before", "killed after")


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("how", HOWS)
def test_a_running_server_that_dies_leaves_one_that_serves(at: int, how: str, tmp_path: Path) -> None:
    found = asyncio.run(play(tmp_path, Fault(at, how)))
    check(found)
    assert found.old.dead
    assert found.successor.accepts or found.alone
    if at >= 2:  # the sockets were offered
        assert found.successor.accepts
        assert found.successor.left[0] is None, "meters are read from now on"


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("how", HOWS)
def test_a_successor_that_dies_before_it_accepts_leaves_the_running_server_as_it_was(
    at: int, how: str, tmp_path: Path
) -> None:
    found = asyncio.run(play(tmp_path, None, Fault(at, how)))
    assert found.new.dead
    told = (at, how) == (4, "killed after")  # that it accepts: it dies later, as any server
    assert found.committed is told
    assert found.old_serves is not told


def test_two_faults_never_leave_two_that_serve(tmp_path: Path) -> None:
    faults = [Fault(at, how) for at, how in itertools.product(range(5), HOWS)]
    for number, (old_fault, new_fault) in enumerate(itertools.product(faults, faults)):
        found = asyncio.run(play(tmp_path / str(number), old_fault, new_fault))
        assert not (found.old_serves and found.successor.accepts)


def test_a_successor_that_cannot_accept_leaves_the_running_one_as_it_was(tmp_path: Path) -> None:
    found = asyncio.run(play(tmp_path, breaks="the port for gRPC is taken"))
    check(found)
    assert found.old_serves
    assert found.said == "the port for gRPC is taken"


def test_a_successor_that_is_not_ready_in_time_is_refused(tmp_path: Path) -> None:
    async def longer(scene: Scene) -> None:
        while scene.take_overs._heir is not None:
            await asyncio.sleep(0.001)

    found = asyncio.run(play(tmp_path, while_loading=longer, take_over_s=0.02))
    check(found)
    assert found.old_serves
    assert found.said == "the other server did not answer within 0.02 s"


OTHER_VERSION = SimpleNamespace(served={"toy": SimpleNamespace(spec=SimpleNamespace(digest="new"))})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"life": Life(reloads=1)}, "the configuration was read again"),
        ({"families": OTHER_VERSION}, "replaced by another version"),
        ({"rollouts": SimpleNamespace(trials=lambda: {"toy@2"})}, "a roll-out is under way"),
        ({"cluster": SimpleNamespace(name="demo")}, "a node of the cluster demo"),
        ({"life": Life(draining=True)}, "shutting down"),
    ],
)
def test_what_a_successor_cannot_know_of_ends_the_take_over(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    async def change(scene: Scene) -> None:
        for name, value in changed.items():
            setattr(scene.parts, name, value)

    found = asyncio.run(play(tmp_path, while_loading=change))
    check(found)
    assert found.old_serves
    assert why in found.said


def test_a_running_server_that_ends_after_a_reload_leaves_no_successor_with_what_was_taken_out(tmp_path: Path) -> None:
    async def reloaded(scene: Scene) -> None:
        scene.parts.life.reloads += 1
        await scene.take_overs.close()
        scene.take_overs.finish()

    found = asyncio.run(play(tmp_path, while_loading=reloaded))
    assert not found.successor.accepts
    assert "the configuration was read again" in found.said
    assert found.parts.life.handing is None, "it drains as any server"


@pytest.mark.parametrize("finished", [False, True], ids=["while the other drains", "once the other has ended"])
def test_a_running_server_that_is_asked_to_end_leaves_the_successor_serving(finished: bool, tmp_path: Path) -> None:
    """As by SIGTERM, while the successor loads: it has the sockets, and clients wait until it is ready."""

    async def asked_to_end(scene: Scene) -> None:
        await scene.take_overs.close()
        assert scene.parts.life.handing.is_set(), "clients that are silent are not waited for"
        end = asyncio.get_running_loop().call_later
        if finished:
            scene.take_overs.finish()
        else:
            end(0.05, scene.take_overs.finish)

    found = asyncio.run(play(tmp_path, while_loading=asked_to_end))
    check(found)
    assert found.successor.accepts
    assert found.said == ""
    assert found.successor.left == [LEFT, 7]


@pytest.mark.parametrize("gone", [True, False])
def test_a_running_server_that_ends_without_an_offer_is_waited_for(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def ended(pid: int, within_s: float) -> bool:
        waits.append(within_s)
        return gone

    async def story() -> None:
        limits = LimitsConfig(drain_s=5.0, drain_delay_s=3.0)
        config = ServerConfig(state_dir=str(tmp_path), listen=ListenConfig(port=9000), limits=limits)
        path = socket_file.place(config)
        assert path is not None
        with contextlib.closing(socket_file.ListeningFile(path)) as file:
            asking = asyncio.create_task(Succession.ask(config, LowPriority()))
            sock, _ = await asyncio.get_running_loop().sock_accept(file.socket)
            sock.close()
            if gone:
                assert await asking is None
            else:
                with pytest.raises(TakeOverError, match="is ending and offers no sockets"):
                    await asking

    monkeypatch.setattr(succession, "_wait_gone", ended)
    asyncio.run(story())
    assert waits == [3.0 + 2 * 5.0 + succession.STEP_S]


def test_the_end_of_a_process_is_seen() -> None:
    async def story() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        assert not await succession._wait_gone(process.pid, 0.0)
        process.kill()
        assert await succession._wait_gone(process.pid, 20.0)
        await process.wait()
        assert await succession._wait_gone(process.pid, 0.0)

    asyncio.run(story())


def test_a_take_over_that_fails_in_an_unforeseen_way_is_logged_and_another_one_may_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        config = ServerConfig(state_dir=str(tmp_path), listen=ListenConfig(port=9000))
        take_overs = TakeOvers(config)
        faults = [RuntimeError("a bug"), None]

        async def finish(families: Any) -> None:
            if (fault := faults.pop(0)) is not None:
                raise fault

        with socket.socket() as listening:
            parts = running_parts(config)
            parts.controller.learner.finish = finish
            take_overs.start(parts, front_of([listening]), lambda: None)
            path = socket_file.place(config)
            assert path is not None
            while not path.exists():
                await asyncio.sleep(0)
            with pytest.raises(TakeOverError, match="unforeseen way: the log of the running server"):
                await Succession.ask(config, LowPriority())
            found = await Succession.ask(config, LowPriority())
            assert found is not None
            found.close()
            assert take_overs._listening is not None
            assert not take_overs._listening.done()
            await take_overs.close()
            take_overs.finish()

    asyncio.run(story())
    assert "a bug" in caplog.text


def test_a_connection_that_cannot_be_accepted_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_ACCEPT_AGAIN_S", 0.0)
    with socket.socket() as sock:
        answers: list[Any] = [OSError(24, "Too many open files"), (sock, "")]

        async def accept(listening: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        loop: Any = SimpleNamespace(sock_accept=accept)
        assert asyncio.run(handover._accept(loop, sock)) is sock
