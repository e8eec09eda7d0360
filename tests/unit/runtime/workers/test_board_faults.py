"""Workers that share a GPU by MPS: the order in which one is ended, and what a fault of one ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from clover.devices.nvml import NvmlError
from clover.runtime.workers.board_faults import BoardFaults
from clover.worker.frames import MpsPart


def part(name: str, pipe: str = "/pipe") -> MpsPart:
    return MpsPart(
        part=name,
        program=("nvidia-cuda-mps-control",),
        control={},
        environment={"CUDA_MPS_PIPE_DIRECTORY": pipe, "CUDA_MPS_LOG_DIRECTORY": "/log"},
    )


class FakeWorker:
    """A worker process, of which it is noted what happens to it."""

    def __init__(self, story: list[str], pid: int, mps: MpsPart | None) -> None:
        self.story = story
        self.pid = pid
        self.order: Any = type("Order", (), {"mps": mps})()
        self.device_lost = False
        self.state = "ready"

    def kill_now(self) -> None:
        self.story.append(f"kill {self.pid}")
        self.state = "dead"

    async def dead(self, within_s: float) -> bool:
        return self.state == "dead"


class FakeControl:
    """A daemon whose status is FAULT as often as `faulted` says."""

    def __init__(self, story: list[str], faulted: int = 0, refuses: str = "") -> None:
        self.story = story
        self.left = faulted
        self.refuses = refuses
        self.silent = False

    def terminate(self, pid: int) -> str:
        self.story.append(f"terminate {pid}")
        return self.refuses

    def faulted(self) -> bool:
        if self.silent:
            raise NvmlError("the MPS daemon did not answer", 10)
        self.left -= 1
        return self.left >= 0


class Board:
    def __init__(self, **options: Any) -> None:
        self.story: list[str] = []
        self.daemon = FakeControl(self.story, **options)
        places = {1: part("gpu0:1of4@0"), 2: part("gpu0:1of4@1"), 3: part("gpu1:4of4@0", "/other"), 4: None}
        self.workers = {pid: FakeWorker(self.story, pid, mps) for pid, mps in places.items()}
        control: Any = lambda _: self.daemon  # noqa: E731
        self.faults: BoardFaults[Any] = BoardFaults(set(self.workers.values()), control=control)
        self.told: list[tuple[str, str]] = []
        self.faults.on_fault = lambda pipe, why: self.told.append((pipe, why))


def test_work_on_the_gpu_ends_before_the_process() -> None:
    async def main() -> list[str]:
        board = Board()
        board.faults.end(board.workers[1])
        board.faults.end(board.workers[1])
        await board.faults.settled()
        await board.faults.settled()
        return board.story

    assert asyncio.run(main()) == ["terminate 1", "kill 1"]


def test_a_daemon_that_does_not_end_work_is_not_waited_for_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[str]:
        board = Board(refuses="the MPS daemon at /pipe did not answer 'terminate_client 7 1' within 4 s")
        board.faults.end(board.workers[1])
        await board.faults.settled()
        return board.story

    with caplog.at_level(logging.WARNING, "clover.pool"):
        assert asyncio.run(main()) == ["terminate 1", "kill 1"]
    assert "worker 1 at gpu0:1of4@0 is killed, though the MPS daemon" in caplog.text


@pytest.mark.parametrize("known", [True, False])
def test_a_fault_of_one_ends_all_of_its_gpu_and_suspects_none(known: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Board:
        board = Board(faulted=0 if known else 2)
        first = board.workers[1]
        first.state, first.device_lost = "dead", known
        board.faults._workers.discard(first)
        board.faults.died(first, "CUDA error 719")
        board.faults.died(first, "CUDA error 719")
        mps = first.order.mps
        await board.faults.over(mps)
        await board.faults.over(mps)
        return board

    board = asyncio.run(main())
    assert board.story == ["terminate 2", "kill 2"]
    assert board.workers[2].device_lost, "its rows are not suspected"
    assert not board.workers[3].device_lost, "another GPU has another daemon"
    assert board.told == [("/pipe", "worker 1 at gpu0:1of4@0: CUDA error 719")]
    assert "a fatal error ended all workers that share it by MPS" in caplog.text


def test_a_fault_is_known_by_a_later_death_though_the_daemon_is_well_again_when_it_answers() -> None:
    async def main() -> Board:
        board = Board()
        first, second = board.workers[1], board.workers[2]
        board.faults.died(first, "exited with status 1")  # before its report was read
        asking = board.daemon.faulted

        def slow() -> bool:
            second.state, second.device_lost = "dead", True
            board.faults._workers.discard(second)
            board.faults.died(second, "CUDA error 719")
            return asking()

        board.daemon.faulted = slow  # type: ignore[method-assign]
        await board.faults.over(first.order.mps)
        return board

    board = asyncio.run(main())
    assert [pipe for pipe, _ in board.told] == ["/pipe"]
    assert not board.faults._lost


def test_a_death_that_was_no_fault_touches_nobody() -> None:
    async def main() -> Board:
        board = Board()
        board.faults.died(board.workers[1], "exited with status 1")
        await board.faults.over(board.workers[1].order.mps)
        return board

    board = asyncio.run(main())
    assert (board.story, board.told) == ([], [])


def test_one_that_we_ended_is_no_fault_by_what_it_says_of_that() -> None:
    async def main() -> Board:
        board = Board()
        worker = board.workers[1]
        board.faults.end(worker)
        worker.device_lost = True  # "MPS client has been terminated"
        board.faults.died(worker, "CUDA error 810")
        await board.faults.over(worker.order.mps)
        await board.faults.settled()
        return board

    board = asyncio.run(main())
    assert (board.story, board.told) == (["terminate 1", "kill 1"], [])


def test_a_daemon_that_does_not_say_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Board:
        board = Board()
        board.daemon.silent = True
        board.faults.died(board.workers[1], "killed by SIGKILL")
        await board.faults.over(board.workers[1].order.mps)
        return board

    board = asyncio.run(main())
    assert board.told == [("/pipe", "the MPS daemon did not answer")], "the device looks after it"
    assert "whether a fault ended worker 1 is not known" in caplog.text
