"""What goes from a running server to its successor: budgets once, and nothing of a take-over that breaks off."""

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
from clover.control.ledger_files import LedgerFiles
from clover.control.standing import StandingCommand, standing_commands
from clover.errors import LedgerError
from clover.http.audit import AuditLog
from clover.low_priority import LowPriority
from clover.server.takeover import socket_file
from clover.server.takeover.channel import TakeOverError
from clover.server.takeover.handover import Handover, TakeOvers, container_ends, held_bytes
from clover.server.takeover.messages import VERSION, SocketOffer, TakeOverFinished, TakeOverRequest, decode, encode
from clover.server.takeover.succession import BESIDE, Succession, listening
from clover.telemetry.ledger.files import LedgerLock
from tests.support.budget_fixture import HOUR, on_a_loop, served
from tests.support.control_fixture import Rig

SETTINGS = {"accuracy_floor": 89.0, "accuracy_budget": 1.0}
OFFER = SocketOffer(pid=1, clover="1", tcp=1, control=False, grpc_port=None, memory_bytes=0)


class FakeMachine:
    """Meters, as far as a take-over asks."""

    def __init__(self) -> None:
        self.paused = self.handed = False
        self.taken: list[Any] = []

    def marks(self) -> tuple[Any, ...]:
        return ()

    def hand_over(self) -> None:
        self.handed, self.paused = True, False

    def take_over(self, marks: Any, reading: Any) -> None:
        self.taken.append(marks)
        self.paused = False


class FakeFootprint:
    charged_ns = 7
    handed_ns = 0
    began_ns = 0

    def begin(self, at_ns: int) -> None:
        self.began_ns = at_ns


def test_workers_have_longer_to_start_at_a_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    succession = Succession(None, OFFER, None, LowPriority())  # type: ignore[arg-type]
    pool = SimpleNamespace(start_s=60.0)
    succession.give_time(pool)  # type: ignore[arg-type]
    assert pool.start_s == 60.0
    monkeypatch.setattr(succession._priority, "slowdown", 3.0)
    succession.give_time(pool)  # type: ignore[arg-type]
    assert pool.start_s == 180.0


def engine_of(folder: Path, at_h: float) -> tuple[Any, Rig]:
    rig = Rig(policy="budget", family=SETTINGS)
    rig.clock.now_s = at_h * HOUR
    rig.controller.ledger_files = LedgerFiles(folder)

    async def nothing() -> None:
        return None

    engine = SimpleNamespace(
        config=ServerConfig(listen=ListenConfig(port=9000), cache_dir=str(folder.parent)),
        controller=rig.controller,
        count=nothing,
        draining=False,
        footprint=FakeFootprint(),
        frontend=object(),
        grid=SimpleNamespace(now=rig.clock, priced=nothing),
        handing=None,
        ledger=None,
        machine=FakeMachine(),
        rollouts=SimpleNamespace(trials=set),
        cluster=SimpleNamespace(name=""),
        served={},
        reloads=0,
        operators=SimpleNamespace(audit=AuditLog()),
    )
    return engine, rig


@on_a_loop
async def test_a_budget_goes_over_once_with_what_is_answered_meanwhile(tmp_path: Path) -> None:
    old_engine, old = engine_of(tmp_path / "budgets", 1000.0)
    await old.deploy()
    await served(old, 3.0, 5000.0, 91.0)
    ended: list[bool] = []
    handover = Handover(old_engine, lambda: ended.append(True), "")
    handed = decode(encode(await handover.checkpoint()))
    assert old_engine.machine.paused
    new_engine, new = engine_of(tmp_path / "budgets", 1003.0)
    await new.deploy()
    succession = Succession(None, OFFER, None, LowPriority())  # type: ignore[arg-type]
    succession._engine = new_engine
    new.controller.ledger_files = LedgerFiles()
    await succession.adopt(handed)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="another server"):
        LedgerLock(tmp_path / "budgets")  # until the running server ends for good, it may have to go on
    handover.commit()
    assert (ended, old_engine.machine.handed, new_engine.footprint.began_ns) == ([True], True, 7)
    assert new.family.ledger.rows == 5000.0
    new.controller.ledger_files = LedgerFiles(tmp_path / "budgets")  # as `complete` does from now on
    await served(old, 0.5, 300.0, 91.0)  # over connections that were open
    await served(new, 0.5, 100.0, 92.0)
    last = decode(encode(handover.finished(True)))
    assert isinstance(last, TakeOverFinished)
    succession._add(new_engine, last)
    assert new.family.ledger.rows == 5400.0
    assert new.family.ledger.accuracy_rows == pytest.approx(5300 * 91.0 + 100 * 92.0)
    assert new.family.ledger.since_s == old.family.ledger.since_s
    await new.controller.stop()
    (file,) = (tmp_path / "budgets").iterdir()
    kept = file.read_bytes()
    assert b'"rows":5400.0' in kept, "it has the lock"
    await old.controller.stop()
    assert file.read_bytes() == kept, "the running server does not write what is not its own any more"


@on_a_loop
async def test_the_budget_of_a_server_that_ended_before_it_handed_it_over_is_that_of_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "budgets" / "127.0.0.1-9000"
    _, old = engine_of(folder, 1000.0)
    await old.deploy()
    await served(old, 3.0, 5000.0, 91.0)
    await old.controller.stop()
    engine, new = engine_of(folder, 1003.0)
    engine.config = ServerConfig(listen=ListenConfig(port=9000), cache_dir=str(tmp_path))
    new.controller.ledger_files = LedgerFiles()
    await new.deploy()
    succession = Succession(None, OFFER, None, LowPriority())  # type: ignore[arg-type]
    succession._engine = engine
    await succession.adopt(None)
    assert new.family.ledger.rows == 5000.0
    assert engine.machine.taken == [()], "meters are read from now on"
    assert engine.footprint.began_ns > 0
    await new.controller.stop()


@on_a_loop
async def test_what_is_being_written_of_a_budget_is_written_before_it_is_handed_over(tmp_path: Path) -> None:
    engine, rig = engine_of(tmp_path / "budgets", 1000.0)
    await rig.deploy()
    await served(rig, 3.0, 5000.0, 91.0)
    files, slow = rig.controller.ledger_files, asyncio.Event()

    async def write() -> None:
        await slow.wait()

    files._task = asyncio.get_running_loop().create_task(write())
    handing = asyncio.get_running_loop().create_task(Handover(engine, lambda: None, "").checkpoint())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not handing.done()
    slow.set()
    await handing
    await rig.controller.stop()


@on_a_loop
async def test_one_that_is_reverted_goes_on_as_it_was(tmp_path: Path) -> None:
    engine, rig = engine_of(tmp_path / "budgets", 1000.0)
    await rig.deploy()
    await served(rig, 3.0, 5000.0, 91.0)
    handover = Handover(engine, lambda: None, "")
    files = rig.controller.ledger_files
    await handover.checkpoint()
    assert rig.controller.ledger_files.folder is None
    handover.revert()
    assert (engine.machine.paused, engine.machine.handed, engine.handing) == (False, False, None)
    assert rig.controller.ledger_files is files
    await served(rig, 1.0, 10.0, 91.0)
    assert rig.family.ledger.rows == 5010.0
    await rig.controller.stop()
    assert len(list((tmp_path / "budgets").iterdir())) == 1


@on_a_loop
async def test_what_operators_changed_holds_in_the_successor(tmp_path: Path) -> None:
    old_engine, old = engine_of(tmp_path / "budgets", 1000.0)
    new_engine, new = engine_of(tmp_path / "budgets", 1000.0)
    await old.deploy()
    await new.deploy()
    assert standing_commands(old.controller.context) == ()
    name = old.family.name
    variant = old.family.profile.accuracy[0].variant
    for verb, arguments in (
        ("set", {"model": name, "slo_ms": 77.0, "accuracy_floor": 1.0, "lambda": 0.25, "force": True}),
        ("pin", {"model": name, "variant": variant, "force": True}),
        ("freeze", {"model": name, "on": True}),
        ("freeze", {"on": True}),
    ):
        await old.controller.command(verb, arguments, "somebody")
    commands = standing_commands(old.controller.context)
    assert [command.verb for command in commands] == ["set", "pin", "freeze", "freeze"]
    offer = decode(encode(msgspec.structs.replace(OFFER, commands=commands)))
    assert isinstance(offer, SocketOffer)
    succession = Succession(None, offer, None, LowPriority())  # type: ignore[arg-type]
    await succession._repeat_commands(new_engine)
    assert standing_commands(new.controller.context) == commands
    assert new.family.pin is not None
    assert (new.family.targets.slo_ms, new.family.pin.policy) == (77.0, f"static:{variant}")
    for name_of_it in ("base", "lifted"):
        change: dict[str, Any] = {"model": name} if name_of_it == "base" else {"model": name, "variant": None}
        for on in (False, True):
            await old.controller.command("freeze", {"on": on, "model": name}, "")
            if not on:
                await old.controller.command("freeze", {"on": False}, "")
                await old.controller.command("base" if name_of_it == "base" else "pin", change, "")
        verbs = [command.verb for command in standing_commands(old.controller.context)]
        assert verbs == (["set", "base", "freeze"] if name_of_it == "base" else ["set", "freeze"])
    unknown = StandingCommand(verb="pin", arguments={"model": name, "variant": "gone"})
    bad = msgspec.structs.replace(OFFER, commands=(unknown,))
    with pytest.raises(TakeOverError, match=r"pin .*unknown variant 'gone'.*undo it there first"):
        await Succession(None, bad, None, LowPriority())._repeat_commands(new_engine)  # type: ignore[arg-type]
    handover = Handover(old_engine, lambda: None, "")
    with pytest.raises(TakeOverError, match="an operator has changed something since the take-over began"):
        await handover.checkpoint()


@on_a_loop
async def test_what_a_successor_cannot_know_of_ends_the_take_over(tmp_path: Path) -> None:
    engine, _ = engine_of(tmp_path / "budgets", 1000.0)
    model = SimpleNamespace(state="READY", spec=SimpleNamespace(digest="old"))
    engine.served = {"toy": model}

    async def changed(why: str, target: Any, name: str, value: Any) -> None:
        handover = Handover(engine, lambda: None, "")
        handover._offered = handover._offerable()
        before = getattr(target, name)
        setattr(target, name, value)
        with pytest.raises(TakeOverError, match=why):
            await handover.checkpoint()
        assert not engine.machine.paused
        setattr(target, name, before)
        await handover.checkpoint()
        handover.revert()

    await changed("its configuration was read again .SIGHUP.*: start it again", engine, "reloads", 1)
    await changed("loaded, unloaded or replaced by another version", model, "state", "UNAVAILABLE")
    await changed("loaded, unloaded or replaced by another version", model.spec, "digest", "new")
    await changed("a roll-out is under way", engine, "rollouts", SimpleNamespace(trials=lambda: {"toy@2"}))
    await changed("a node of the cluster demo", engine.cluster, "name", "demo")
    await changed("shutting down", engine, "draining", True)


@on_a_loop
async def test_a_model_that_is_not_loaded_is_unloaded_in_the_successor(tmp_path: Path) -> None:
    engine, _ = engine_of(tmp_path / "budgets", 1000.0)
    engine.served = {"toy": None, "other": None}
    ended: list[str] = []

    async def unload(name: str) -> None:
        ended.append(name)

    engine.unload = unload
    offer = msgspec.structs.replace(OFFER, unloaded=("toy", "gone"))  # the new one need not have it at all
    await Succession(None, offer, None, LowPriority())._repeat_commands(engine)  # type: ignore[arg-type]
    assert ended == ["toy"]


def request(**changed: Any) -> TakeOverRequest:
    listen = listening(ServerConfig(listen=ListenConfig(port=9000)))
    return TakeOverRequest(**{"version": VERSION, "pid": 5, "clover": "9.9", "listen": listen, **changed})


@on_a_loop
async def test_when_it_is_refused(tmp_path: Path) -> None:
    engine, _ = engine_of(tmp_path / "budgets", 1000.0)
    handover = Handover(engine, lambda: None, "")
    assert handover.refusal(request()) == ""
    assert "9.9 do not take over from each other" in handover.refusal(request(version=VERSION + 1))
    theirs = {**listening(engine.config), "port": "9001"}
    assert "port '9001', and the running server with port '9000'" in handover.refusal(request(listen=theirs))
    engine.rollouts = SimpleNamespace(trials=lambda: {"fashion@2"})
    assert "a roll-out is under way (fashion@2)" in handover.refusal(request())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        assert "container of the running server ends with it" in handover.refusal(request())
    engine.rollouts, engine.cluster.name = SimpleNamespace(trials=set), "demo"
    assert "a node of the cluster demo" in handover.refusal(request())
    engine.cluster.name, engine.frontend = "", None
    assert "no front end" in handover.refusal(request())
    engine.draining = True
    assert "shutting down" in handover.refusal(request())


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
    engine, _ = engine_of(tmp_path / "budgets", 1000.0)
    engine.loop = asyncio.get_running_loop()
    config = ServerConfig(state_dir=str(tmp_path), listen=ListenConfig(port=9000))
    take_overs = TakeOvers(config)
    take_overs.start(engine, lambda: None)
    path = socket_file.place(config)
    assert path is not None
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", CHILD, path.name), cwd=path.parent, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    out, _ = await child.communicate()
    assert out == b"b''"
    assert "which this server has started, asked for its sockets: refused" in caplog.text
    (record,) = engine.operators.audit.records
    assert (record.who, record.door, record.status) == (f"process {child.pid}", "take-over socket", 403)
    await take_overs.close()
    assert not path.exists()


CHILD = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    sock.connect(sys.argv[1])
    print(sock.recv(100), end="")
"""


def test_every_other_server_has_the_other_box(tmp_path: Path) -> None:
    offers = [OFFER, msgspec.structs.replace(OFFER, box=BESIDE)]
    found = [Succession(None, offer, None, LowPriority()).boxes(tmp_path) for offer in offers]  # type: ignore[arg-type]
    assert found == [tmp_path / BESIDE, tmp_path]


def test_held_memory_counts_what_workers_do_not_share(tmp_path: Path) -> None:
    for pid, text in ((os.getpid(), "100 50 20 0 0 0 0"), (7, "100 30 10 0 0 0 0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(text)
    assert held_bytes([7, 7, 8], tmp_path) == 70 * os.sysconf("SC_PAGE_SIZE")
