"""Has the report made in a process of its own: a month of a busy ledger takes seconds, during which a thread of this
process would hold up the event loop.  One is made at a time, for all that ask, and shown to all for `KEPT_S` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import msgspec

from clover.backends import child_environment
from clover.errors import LedgerError, Unavailable
from clover.telemetry.ledger.report_order import MOST_S, REFUSED, ReportOrder

KEPT_S = 60.0
COMMAND = (sys.executable, "-P", "-m", "clover.report.apart")
_TEXT_BYTES = 2000


class ReportMaker:
    """Makes the report that `order` describes by `command` (`clover.report.apart`)."""

    def __init__(self, order: Callable[[], ReportOrder], command: Sequence[str] = COMMAND) -> None:
        self._order = order
        self._command = command
        self._making: asyncio.Task[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def get(self) -> bytes:
        """Return the report as HTML: the one that is being made, or was `KEPT_S` seconds ago, else a new one.  Raises
        CloverError in the operator's words."""
        if self._making is None:
            if self._closed:
                raise Unavailable("the server is shutting down")
            self._making = asyncio.get_running_loop().create_task(asyncio.to_thread(self._make), name="clover-report")
            self._making.add_done_callback(self._keep)
        return await asyncio.shield(self._making)

    def close(self) -> None:
        """Give up the report that is being made, and make no other: a stop does not wait for it."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _keep(self, made: asyncio.Task[bytes]) -> None:
        if made.cancelled() or made.exception() is not None:
            self._forget()
        else:
            asyncio.get_running_loop().call_later(KEPT_S, self._forget)

    def _forget(self) -> None:
        self._making = None

    def _make(self) -> bytes:
        """Run the process and return what it writes.  For a thread."""
        order = msgspec.json.encode(self._order()) + b"\n"
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # open until it is done: its end tells the process that this one is gone
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                env=child_environment(),
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            self._process = process
            if self._closed:
                process.kill()
            try:
                with contextlib.suppress(BrokenPipeError):  # its exit status says more
                    process.stdin.write(order)
                page = process.stdout.read()
                code = process.wait()
            finally:
                self._process = None
                process.kill()
            said.seek(0)
            text = said.read()[-_TEXT_BYTES:].decode("utf-8", "replace").strip()
        if self._closed:
            raise Unavailable("the server is shutting down")
        if code == REFUSED:
            raise LedgerError(text.rpartition("\n")[2])
        if code == -signal.SIGALRM:
            raise LedgerError(f"it takes more than {MOST_S} s here: make it with `python -m clover report`")
        if code:
            raise RuntimeError(f"the process of the report failed ({code}): {text}")
        return page
