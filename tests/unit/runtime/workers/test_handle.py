"""The server's end of a worker that cannot be trusted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from types import SimpleNamespace
from typing import Any

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
        finishing = threading.Thread(target=worker._died, daemon=True)
        finishing.start()
        finishing.join(10)
        hangs = finishing.is_alive()
        stopped.set()
        theirs.close()
        assert not hangs
        assert forgotten == [fds[1]]
        return worker

    assert asyncio.run(main()).state == "dead"
