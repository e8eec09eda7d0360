from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import uvloop

from clover.control.solver.client import SolverClient
from clover.control.solver.process import serve
from clover.control.solver.protocol import HEAD, LONGEST_FRAME, SolverAnswer, SolverOrder, length_of, pack, unpack
from clover.errors import PlanError, PolicyFault
from clover.policies import build
from clover.types import GroupCount
from tests.support.profiles_fixture import state
from tests.support.servers import children

pytestmark = pytest.mark.slow


class Sleeper:
    """A policy that never ends."""

    name = "sleeper"

    def propose(self, state: object) -> object:
        time.sleep(3600)
        raise AssertionError


class Chatty:
    """A policy that prints and raises."""

    name = "chatty"

    def propose(self, state: object) -> object:
        print("hello")
        raise ZeroDivisionError("oops")


def test_frames() -> None:
    order = SolverOrder(
        id=7, policy="objective", state=state(), configuration=(GroupCount(variant="a", profile="1c", count=1),)
    )
    frame = pack(order)
    assert length_of(frame[: HEAD.size]) == len(frame) - HEAD.size
    assert unpack(frame[HEAD.size :], SolverOrder) == order
    with pytest.raises(ValueError, match="exceeds"):
        length_of(HEAD.pack(LONGEST_FRAME + 1))
    with pytest.raises(ValueError, match="not a SolverAnswer"):
        unpack(b"{}", SolverAnswer)
    with pytest.raises(ValueError, match="exceeds"):
        pack(SolverAnswer(id=1, error="x" * LONGEST_FRAME))


def test_serving_until_the_orders_end() -> None:
    now = state()
    orders = io.BytesIO(
        pack(SolverOrder(id=1, policy="objective", state=now))
        + pack(SolverOrder(id=2, policy="nonsense", state=now))
        + b"\0\0"
    )
    answers = io.BytesIO()
    serve(orders, answers)
    answers.seek(0)
    first = unpack(answers.read(length_of(answers.read(HEAD.size))), SolverAnswer)
    second = unpack(answers.read(length_of(answers.read(HEAD.size))), SolverAnswer)
    assert first.plan is not None
    assert first.plan.seconds > 0.0
    assert (second.id, second.plan) == (2, None)
    assert "unknown policy" in second.error


def test_the_process_plans_survives_errors_and_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        solver = SolverClient()
        now = state()
        plan = await solver.propose(now, "objective")
        assert msgspec.structs.replace(plan, seconds=0.0) == build("objective").propose(now)
        fixed = (GroupCount(variant="small", profile="2c", count=1),)
        assert (await solver.propose(now, "objective", fixed)).configuration == fixed
        with pytest.raises(PlanError, match="unknown policy"):
            await solver.propose(now, "nonsense")
        for _ in range(3):
            with pytest.raises(PolicyFault, match=r"ZeroDivisionError: oops \(a fault of the policy's own\)"):
                await solver.propose(now, f"{__name__}:Chatty")
        (said,) = (record.getMessage() for record in caplog.records if "oops" in record.getMessage())
        assert "in propose" in said, "with the traceback"
        assert solver.starts == 1
        pid = solver.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert (await solver.propose(now, "base")).policy == "base"
        assert solver.starts == 2
        solver.limit_s = 1.0
        with pytest.raises(PlanError, match="within 1 s"):
            await solver.propose(now, f"{__name__}:Sleeper")
        assert solver.pid is None
        solver.limit_s = 30.0
        assert (await solver.propose(now, "base")).policy == "base"
        await solver.close()
        assert solver.pid is None

    asyncio.run(story())


def test_a_process_that_cannot_be_started_is_told_as_a_plan_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def story() -> None:
        solver = SolverClient()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "create_subprocess_exec", refuse)
            with pytest.raises(PlanError, match="Too many open files"):
                await solver.propose(state(), "base")
        assert (await solver.propose(state(), "base")).policy == "base"
        await solver.close()

    asyncio.run(story())


def test_a_process_whose_start_is_cancelled_ends() -> None:
    """A process that starts while the server stops: nobody else would end it."""

    async def story(turns: int) -> None:
        solver = SolverClient()
        asking = asyncio.ensure_future(solver.propose(state(), "objective"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert solver.pid is None
        assert [pid for pid in children() if _is_solver(pid)] == []

    for turns in range(2, 12):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(story(turns))


def _is_solver(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"clover.control.solver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_the_process_ends_with_its_input_and_never_loads_torch() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clover.control.solver.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert process.stdout is not None
    process.stdout.close()
    code = "import clover.control.solver.process, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
