"""A worker whose model reaches for what its user may reach, confined and not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from clover import families
from clover.backends import child_environment
from clover.backends.artifacts import CompileOrder
from clover.errors import WorkerError
from clover.profiling.evaluation_process import EvaluationProcess
from clover.runtime.memory.slab import Layout, Slab
from clover.types import SandboxOrder
from clover.worker import landlock, sandbox
from tests.support import breakout_family
from tests.support.worker_pools import client_of, order, run, slab_of, started

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason=f"this kernel has no {sandbox.missing()}")

REFUSED, ALLOWED = breakout_family.names()
REFUSALS = {errno.EPERM, errno.EACCES}
ANYBODY = {
    *("use io_uring", "type for the user", "trace the zygote", "hold memory in a secret file"),
    *("run before all others", "raise its priority", "raise a limit of its own", "hold a capability"),
}
"""What the kernel, a container, the lack of a terminal or of privileges may refuse to a worker that is not confined as
well."""


@contextlib.contextmanager
def segment() -> Iterator[int]:
    """A segment of shared memory (System V) that this user has, as a database has one."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.shmget(0, ctypes.c_size_t(4096), 0o600)
    assert number >= 0
    try:
        yield number
    finally:
        libc.shmctl(number, 0, None)  # IPC_RMID


class Scene:
    """What a process of this user may reach, and a hostile family that tries (`spec`)."""

    def __init__(self, folder: Path, segment: int) -> None:
        self.folder = folder
        places = {name: folder / name for name in ("token", "ledger", "home", "cache", "tmp")}
        for name in ("home", "cache", "tmp"):
            places[name].mkdir()
        self.removable = places["cache"] / "removable"
        for path in (places["token"], places["ledger"], places["cache"] / "artifact", self.removable):
            path.write_text("secret")
        targets = {name: str(path) for name, path in places.items()} | {"control": str(folder / "control")}
        own = breakout_family.write(folder / "breakout", **targets, server=os.getpid(), segment=segment)
        self.spec = families.load_family(own)

    def check(self, found: Mapping[str, int], confined: bool, granted: Collection[str] = ()) -> None:
        """Check what came of the attempts, by name; `granted`: what is refused to workers, and not here."""
        assert {name: found[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, 0)
        assert set(found) == {*REFUSED, *ALLOWED}
        if confined:
            assert {name for name in REFUSED if found[name] not in REFUSALS} == set(granted)
            assert self.removable.exists()
        else:
            assert {name for name in REFUSED if found[name]} <= ANYBODY, "what is refused anyway proves nothing"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with socket.socket(socket.AF_UNIX) as listener, segment() as shared:
        listener.bind(str(tmp_path / "control"))
        listener.listen(8)
        yield Scene(tmp_path, shared)


@pytest.mark.usefixtures("forked_zygotes")
@pytest.mark.parametrize("confined", [True, False])
def test_it_reaches_nothing_of_the_server(scene: Scene, confined: bool) -> None:
    found: dict[str, int] = {}

    async def main() -> None:
        spec = scene.spec
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool, client_of(pool) as client:
            wanted = SandboxOrder(required=True) if confined else None
            worker = await pool.spawn(order(spec, sandbox=wanted), slab)
            assert worker.sandbox == (f"landlock {landlock.abi()}, seccomp" if confined else "")
            for number, name in enumerate((*REFUSED, *ALLOWED)):
                slab.input(0)[0] = number
                assert await client.infer(worker, 0) == 0, name
                found[name] = int(slab.output(0)[0, 0])
            await worker.drain_and_exit()
        slab.close()

    run(main())
    scene.check(found, confined)


def test_its_evaluation_rows_and_its_metric_reach_nothing_of_the_server(scene: Scene) -> None:
    """Both run while a server measures the family, and did so in the server."""
    with EvaluationProcess(scene.spec, SandboxOrder(required=True)) as process:
        (numbers,), came_to = process.rows("held_out")
        names = (*REFUSED, *ALLOWED)
        assert len(numbers) == len(names)
        scene.check(dict(zip(names, came_to.tolist(), strict=True)), confined=True)
        scores = process.judge({"OUTPUT0": numbers}, numbers)
        scene.check(dict(zip(names, (1000 * scores).round().astype(int).tolist(), strict=True)), confined=True)


@pytest.mark.parametrize("confined", [True, False])
def test_it_reaches_nothing_of_the_server_while_it_is_compiled(scene: Scene, confined: bool) -> None:
    """But that it may start programs, as compilers are."""
    artifact = scene.folder / "artifacts" / "artifact"
    asked = CompileOrder(
        family=scene.spec,
        variant="tries",
        backend="tries",
        folder=str(artifact),
        threads=1,
        sandbox=SandboxOrder(required=True) if confined else None,
    )
    caches = scene.folder / "inductor"
    caches.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.support.breakout_compiler"],
        input=msgspec.json.encode(asked),
        env=child_environment() | {"TORCHINDUCTOR_CACHE_DIR": str(caches)},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = msgspec.json.decode((artifact / "found.json").read_bytes(), type=dict[str, int])
    scene.check(found, confined, granted=("signal everybody", "fork"))  # "everybody" is its own group, itself in it
    held = (artifact / "held").read_text()
    assert held == "/memfd:reason (deleted)", "not the locks, which it could drop"
    left = int((artifact / "left").read_text())
    with pytest.raises(ProcessLookupError):  # a program that it started in a session of its own
        os.kill(left, 0)


@pytest.mark.usefixtures("forked_zygotes")
def test_what_the_configuration_allows_it_may(tmp_path: Path) -> None:
    token, scratch = tmp_path / "token", tmp_path / "scratch"
    token.write_text("secret")
    scratch.mkdir()
    targets = dict.fromkeys(("ledger", "home", "cache", "control", "segment"), "/nowhere")
    targets |= {"token": str(token), "tmp": str(scratch)}
    spec = families.load_family(breakout_family.write(tmp_path / "breakout", **targets, server=os.getpid()))
    found: dict[str, int] = {}

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        wanted = SandboxOrder(required=True, read=(str(token),), write=(str(scratch),), processes=True)
        async with started() as pool, client_of(pool) as client:
            worker = await pool.spawn(order(spec, sandbox=wanted), slab)
            for name in ("read the token", "write in /tmp", "fork", "signal the server", "open a socket"):
                slab.input(0)[0] = REFUSED.index(name)
                assert await client.infer(worker, 0) == 0
                found[name] = int(slab.output(0)[0, 0])
        slab.close()

    run(main())
    assert [bool(code) for code in found.values()] == [False, False, False, True, True], found


@pytest.mark.usefixtures("forked_zygotes")
def test_a_loader_that_is_refused_says_what_allows_it(tmp_path: Path) -> None:
    folder = Path(breakout_family.write(tmp_path / "breakout"))
    secret = tmp_path / "weights"
    secret.write_text("far away")
    (folder / "model.py").write_text(f"def load(variant, folder):\n    return open({str(secret)!r})\n")
    spec = families.load_family(str(folder))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool:
            with pytest.raises(WorkerError, match=r"PermissionError.*workers\.sandbox_read"):
                await pool.spawn(order(spec, sandbox=SandboxOrder()), slab)
        slab.close()

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_shipped_family_serves_as_before() -> None:
    async def main() -> None:
        async with started() as pool, client_of(pool) as client:
            with slab_of("fashion") as (spec, slab):
                slab.input(0)[...] = 0.5
                answers = []
                for wanted in (None, SandboxOrder(required=True)):
                    worker = await pool.spawn(order(spec, sandbox=wanted), slab)
                    assert await client.infer(worker, 0, 1) == 0
                    answers.append(slab.output(0)[0].copy())
                    await worker.drain_and_exit()
                assert (answers[0] == answers[1]).all()

    run(main())
