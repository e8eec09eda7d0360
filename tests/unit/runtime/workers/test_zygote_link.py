"""The server's end of a zygote that ends before it was ready."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import pytest

from clover.errors import WorkerError
from clover.runtime.workers.zygote_link import ZygoteLink

RESETS = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); os.read(0, 1); s.close()"
"""Ends, with a frame unread, once its standard input ends: the other end then reads a reset."""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_zygote_that_is_stopped_before_it_was_ready_is_no_error(
    stopped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    argv = [sys.executable, "-c", RESETS, str(theirs.fileno())]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE)
    theirs.close()

    async def main() -> None:
        link = ZygoteLink(process, ours)
        link.bind(asyncio.get_running_loop(), lambda pid, code: None)
        assert process.stdin is not None
        if stopped:
            asyncio.get_running_loop().call_soon(process.stdin.close)
            await link.stop(10.0)
        else:
            ours.send(b"unread")
            process.stdin.close()
            with pytest.raises(WorkerError, match="the zygote ended"):
                await link.ready(10.0)
        assert link.dead

    asyncio.run(main())
    assert ("the zygote" in caplog.text) is not stopped


def test_a_zygote_that_imports_too_slowly_is_ended_and_the_setting_that_allows_more_is_named() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])

    async def main() -> None:
        link = ZygoteLink(process, ours)
        link.bind(asyncio.get_running_loop(), lambda pid, code: None)
        with pytest.raises(WorkerError, match=r"did not import torch within 0 s \(--start-s 0 allows more\)"):
            await link.ready(0.0)
        await link.stop(10.0)

    asyncio.run(main())
    theirs.close()
    assert process.wait(10) == -signal.SIGKILL


def test_a_zygote_that_no_signal_ends_does_not_hold_up_a_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one in a call of a driver that never returns."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    argv = [sys.executable, "-c", RESETS, str(theirs.fileno())]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE)
    theirs.close()

    async def main() -> None:
        link = ZygoteLink(process, ours)
        link.bind(asyncio.get_running_loop(), lambda pid, code: None)
        with monkeypatch.context() as patch:
            patch.setattr(process, "kill", lambda: None)
            await link.stop(0.01)
        assert not link.dead
        process.kill()
        await link.wait_ended(20.0)

    asyncio.run(main())
    assert process.stdin is not None
    process.stdin.close()
    assert "was killed and has not ended within 0.01 s" in caplog.text
