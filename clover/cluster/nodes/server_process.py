"""A node's server as a process that outlives the agent: started apart, found again by its record, called by its socket.

The record is a file with the process id, the time the process started (in the kernel's ticks since boot), and the
boot's id.  The three together name one process uniquely.  A process id that the kernel has given to another program is
therefore never taken for the server, and never gets a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clover.cache import replace_file
from clover.errors import ClusterError
from clover.malformed import MALFORMED
from clover.types import Record
from clover.unix_http import UnixConnection

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LAUNCH_S = 60.0


class ServerRecord(Record, frozen=True, kw_only=True):
    """One process: its id, when it started (ticks since boot), of which boot, and a digest of what it was started
    with."""

    pid: int
    started_ticks: int
    boot: str
    digest: str = ""


class ServerProcess:
    """The server of one node, with its record and its log in `folder`."""

    def __init__(self, folder: Path, proc: Path = Path("/proc")) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self._record = folder / "server.json"
        self._proc = proc

    def find(self) -> ServerRecord | None:
        """Return the record of the server that runs, whichever agent started it; None if none runs."""
        record = self._read()
        return record if record is not None and self._runs(record) else None

    def _read(self) -> ServerRecord | None:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=ServerRecord)
        except (OSError, *MALFORMED):
            return None

    def keep(self, pid: int, digest: str) -> None:
        """Write the record of a process that runs.  OSError or ValueError if it does not, or if that fails."""
        record = ServerRecord(pid=pid, started_ticks=self._ticks(pid), boot=_boot(), digest=digest)
        replace_file(self._record, msgspec.json.encode(record))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process that asks for the same be at work in the folder meanwhile."""
        with (self.folder / "server.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def start(self, command: Sequence[str], environment: Mapping[str, str], digest: str = "") -> ServerRecord:
        """Start the server and return its record; blocks for as long as a small program takes.  If one of the same
        digest runs already, which another agent may have started at this moment, its record is returned.  ClusterError
        if it cannot be started."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        launcher = [sys.executable, "-m", "clover.cluster.nodes.launcher", str(self.folder), digest, *command]
        try:
            done = subprocess.run(  # the words are this module's and the configuration's
                launcher, env=dict(environment), capture_output=True, text=True, timeout=_LAUNCH_S, check=True
            )
            record = self._read()
            if record is None or (record.pid, record.digest) != (int(done.stdout), digest):
                raise ValueError("a server of other settings was started meanwhile")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().rpartition("\n")[2]
            raise ClusterError(f"the server could not be started ({said}): see {self.log}") from error
        return record

    def end(self, *, kill: bool = False) -> bool:
        """Ask the server to answer what it has and end, or end it at once (`kill`); return whether there was one."""
        record = self.find()
        if record is None:
            return False
        try:
            handle = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return False
        try:
            if not self._runs(record):  # another process has its id since: the handle is of that one
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL if kill else signal.SIGTERM)
        finally:
            os.close(handle)
        return True

    def says(self, words: str) -> bool:
        """Return whether the log has these words."""
        try:
            return words in self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False

    def last_words(self) -> str:
        """Return the last line of the server's log that says something, for a message; empty if there is none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        said = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
        return next((line for line in reversed(said) if line), "")[:300]

    def _runs(self, record: ServerRecord) -> bool:
        try:
            return record.boot == _boot() and record.started_ticks == self._ticks(record.pid)
        except (OSError, ValueError):
            return False

    def _ticks(self, pid: int) -> int:
        """Return when a process that is no zombie started, in ticks since boot; OSError or ValueError if there is
        none."""
        fields = (
            (self._proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        if fields[0] in "ZX":
            raise ValueError("it has ended")
        return int(fields[19])


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


_ANSWER_BYTES = 64 << 20


class ControlRefused(ClusterError):
    """The server answered a call, and refused it: `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ControlClient:
    """The control socket at `path`; each call has a connection of its own and takes `timeout_s` at most."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def get(self, path: str) -> Any:
        """Return the decoded answer of a GET.  Raises ControlRefused; without an answer, ClusterError."""
        return await asyncio.to_thread(self._call, "GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the decoded answer of a POST.  Raises ControlRefused; without an answer, ClusterError."""
        return await asyncio.to_thread(self._call, "POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = UnixConnection(self._path, self._timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            response = connection.getresponse()
            text = response.read(_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(f"the server does not answer at its control socket: {error}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            raise ClusterError(f"the server answered {response.status} with something that is not JSON") from None
        if response.status != 200:
            why = answer.get("error", "") if isinstance(answer, dict) else ""
            raise ControlRefused(why or f"the server answered {response.status}", response.status)
        return answer
