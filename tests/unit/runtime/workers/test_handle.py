"""The server's end of a worker that cannot be trusted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.errors import WorkerError, WorkerLostInStart, says_out_of_memory
from clover.runtime.workers.handle import WorkerChannel, WorkerProcess
from clover.worker import frames


def test_what_a_dead_worker_s_child_sends_does_not_hold_up_the_server() -> None:
    ours, theirs = frames.socket_pair()
    ours.setblocking(False)
    stopped = threading.Event()

    def flood() -> None:
        frame = frames.pack(frames.WorkerState(state="failed", text="last words"))
        with contextlib.suppress(OSError):
            while not stopped.is_set():
                theirs.send(frame)

    async def main() -> WorkerProcess:
        forgotten: list[int] = []
        output: Any = SimpleNamespace(close=lambda: None, bind=lambda loop: None)
        owner: Any = SimpleNamespace(forget=lambda worker, completed: forgotten.append(completed))
        order: Any = SimpleNamespace(variant="small", backend="eager")
        ring: Any = None
        fds = [os.eventfd(0) for _ in range(3)]
        worker = WorkerProcess(order, 1, WorkerChannel(ring, ours, *fds), output=output, started_at_ns=0, pool=owner)
        worker.bind(asyncio.get_running_loop())
        flooding = [threading.Thread(target=flood, daemon=True) for _ in range(2)]
        for thread in flooding:
            thread.start()
        worker.exited(-9)
        finishing = threading.Thread(target=worker._on_death_seen, daemon=True)
        finishing.start()
        finishing.join(10)
        hangs = finishing.is_alive()
        stopped.set()
        theirs.close()
        assert not hangs
        assert forgotten == [fds[1]]
        return worker

    assert asyncio.run(main()).state == "dead"


@pytest.mark.parametrize(("ours", "risen", "reason"), [(False, True, True), (True, True, False), (False, False, False)])
def test_a_kill_for_want_of_memory_is_told_from_others(ours: bool, risen: bool, reason: bool) -> None:
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})

    def end(worker: WorkerProcess) -> None:
        if ours:
            worker.kill()
        else:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        worker.exited(-signal.SIGKILL)

    async def main() -> str:
        control, far = frames.socket_pair()
        control.setblocking(False)
        output: Any = SimpleNamespace(close=lambda: None, bind=lambda loop: None)
        kills = SimpleNamespace(risen=lambda: risen)
        owner: Any = SimpleNamespace(forget=lambda worker, completed: None, oom_kills=kills)
        order: Any = SimpleNamespace(variant="small", backend="eager", also=())
        ring: Any = None
        fds = [os.eventfd(0) for _ in range(2)]
        channel = WorkerChannel(ring, control, *fds, os.pidfd_open(child))
        worker = WorkerProcess(order, child, channel, output=output, started_at_ns=0, pool=owner)
        worker.bind(asyncio.get_running_loop())
        end(worker)
        with pytest.raises(WorkerError) as died:
            await worker.until_ready(10.0)
        far.close()
        return str(died.value)

    said = asyncio.run(main())
    assert says_out_of_memory(said) is reason
    assert "SIGKILL" in said


def reporting(*states: frames.WorkerState, also: tuple[str, ...] = ()) -> tuple[WorkerProcess, BaseException | None]:
    """A worker that was to hold "small" and `also`, after it reported `states`; and why it did not become ready."""
    ours, theirs = frames.socket_pair()
    ours.setblocking(False)

    async def main() -> tuple[WorkerProcess, BaseException | None]:
        output: Any = SimpleNamespace(close=lambda: None, bind=lambda loop: None)
        owner: Any = SimpleNamespace(forget=lambda worker, completed: None)
        place: Any = SimpleNamespace(variant="small", backend="eager", place="cpu0:1c@0")
        place.also = tuple(frames.Resident(variant=name, backend="eager") for name in also)
        ring: Any = None
        channel = WorkerChannel(ring, ours, os.eventfd(0), os.eventfd(0), os.pidfd_open(os.getpid()))
        worker = WorkerProcess(place, 1, channel, output=output, started_at_ns=0, pool=owner)
        worker.bind(asyncio.get_running_loop())
        killed: list[int] = []
        worker.kill = lambda: killed.append(1)  # type: ignore[method-assign]
        for state in states:
            frames.send(theirs, state)
            worker._readable()
        failure: BaseException | None = None
        try:
            if not killed:
                await worker.until_ready(0.0)
        except WorkerError as error:
            failure = error
        worker.exited(0)
        worker._on_death_seen()
        return worker, failure or (WorkerError("killed") if killed else None)

    try:
        return asyncio.run(main())
    finally:
        theirs.close()


def held(*names: str) -> tuple[frames.HeldMemory, ...]:
    return tuple(frames.HeldMemory(variant=name, weights_bytes=1, peak_bytes=2) for name in names)


def ready(*names: str, **left_out: str) -> frames.WorkerState:
    return frames.WorkerState(state="ready", resident=held(*names), context_bytes=7, left_out=left_out)


def test_what_a_worker_holds_is_known_by_its_lanes() -> None:
    worker, failure = reporting(ready("small", "large", medium="too large\x1b[2J"), also=("medium", "large"))
    assert failure is None
    assert worker.resident == {"small": 0, "large": 2}
    assert (worker.held, worker.context_bytes) == (held("small", "large"), 7)
    assert worker.left_out.keys() == {"medium"}
    assert "\x1b" not in worker.left_out["medium"]
    # Later reports, of batches that were late, change nothing of it.
    late = frames.WorkerState(state="ready", batches=9, overruns=3)
    worker, _ = reporting(ready("small", "large"), late, also=("medium", "large"))
    assert (worker.resident, worker.context_bytes, worker.overruns) == ({"small": 0, "large": 2}, 7, 3)
    assert reporting(frames.WorkerState(state="ready"))[0].resident == {"small": 0}


def test_what_a_worker_says_of_recorded_launches_is_kept_of_its_own_variants() -> None:
    said = msgspec.structs.replace(ready("small", "large"), recorded={"small": "", "large": "no\x1b[2J", "other": ""})
    worker, _ = reporting(said, also=("medium", "large"))
    assert worker.recorded.keys() == {"small", "large"}
    assert worker.recorded["small"] == ""
    assert "\x1b" not in worker.recorded["large"]


def test_a_worker_that_holds_what_nobody_ordered_or_not_its_first_variant_is_ended() -> None:
    for lie in (ready("small", "other"), ready("large")):
        worker, failure = reporting(lie, also=("large",))
        assert str(failure) == "killed"
        assert worker.resident == {}


def test_a_failure_after_others_were_tried_may_be_theirs() -> None:
    failed = frames.WorkerState(state="failed", text="the GPU is broken", left_out={"large": "out of memory"})
    assert isinstance(reporting(failed, also=("large",))[1], WorkerLostInStart)
    own = frames.WorkerState(state="failed", text="no weights")
    failure = reporting(own, also=("large",))[1]
    assert isinstance(failure, WorkerError)
    assert not isinstance(failure, WorkerLostInStart)
    hung = reporting(frames.WorkerState(state="warming"), also=("large",))[1]
    assert isinstance(hung, WorkerLostInStart)
    assert hung.hung
    assert not isinstance(reporting(frames.WorkerState(state="warming"))[1], WorkerLostInStart)
