"""The control daemon of NVIDIA's MPS, asked by its own command line: `nvidia-cuda-mps-control`.

The daemon is a process without a library: commands go to the standard input of its program, one line each, and the
answer is text.  Facts that the code here depends on (docs.nvidia.com/deploy/mps, and what users measured):

 - A daemon is found by its *pipe directory* alone, and clients find it by the same (CUDA_MPS_PIPE_DIRECTORY).  Several
   daemons with a directory each may run; each starts a server process (`nvidia-cuda-mps-server`) for its first client.
 - It takes one command at a time and refuses others meanwhile, so commands wait for each other here.
 - `terminate_client` has been seen never to return, so each command has a bound, after which nothing is known.
 - `sm_partition add UUID CHUNKS` (release 13.1 and later, started with -S, Ampere and later) says
   "Partition UUID/ID created"; IDs are base64 and may have slashes of their own.
 - A number is the answer of `terminate_client`: a CUresult, of which only 0 is success.

Everything here blocks; it is called in threads that may.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from clover.cache import make_private
from clover.devices import nvml
from clover.devices.nvml import NvmlError
from clover.errors import DeviceError
from clover.types import Record

PROGRAM = ("nvidia-cuda-mps-control",)
PIPE, LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
DEFAULT_PIPE = Path("/tmp/nvidia-mps")
"""Where a daemon is that was started without a word about it."""

MOST_PATH = 88
"""Characters of a pipe directory: the daemon's sockets below it (`control_privileged`) have room for 107 in all."""

FAULT = "FAULT"
"""Status of a server in which a client made a fatal error: it takes none until all have gone."""

COMMAND_S = 10.0
"""Seconds after which an answer is given up."""

_QUITS_S = 5.0
_LOOK_S = 0.02
_ATTEMPTS = 5
_BUSY, _ABSENT = "Cannot send command", "Cannot find MPS control daemon"
_CREATED = re.compile(r"\bPartition\s+\S+?/(\S+)\s+created\b")
_PID = re.compile(r"\d+")

_one_at_a_time: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class SmPartition(Record, frozen=True, kw_only=True):
    """A static partition: the daemon's name of it, and how many chunks of multiprocessors it has."""

    name: str
    chunks: int


class SmTable(Record, frozen=True, kw_only=True):
    """The chunks of one GPU, in partitions and `free`."""

    free: int
    partitions: tuple[SmPartition, ...]

    @property
    def chunks(self) -> int:
        """All chunks of the GPU."""
        return self.free + sum(partition.chunks for partition in self.partitions)


class MpsControl:
    """A daemon, running or not, by its directory `pipe`; it logs to `log`.  `program` asks it, with `environment`
    beside this process's own."""

    def __init__(
        self,
        pipe: Path,
        log: Path,
        *,
        program: tuple[str, ...] = PROGRAM,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.pipe = pipe
        self.log = log
        self.program = program
        self._environment = {**(environment or {}), PIPE: str(pipe), LOG: str(log)}
        self._timeout_s = timeout_s
        self._sleep = sleep

    def ask(self, command: str) -> str:
        """Return the daemon's answer to `command`.  Raises NvmlError: it does not run, or does not answer in time."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._sleep(_LOOK_S)
            with _one_at_a_time[str(self.pipe)]:
                status, said = self._run((), f"{command}\n")
            if _BUSY not in said:  # somebody else asks it at this moment
                break
        if status or _BUSY in said or _ABSENT in said:
            raise NvmlError(f"the MPS daemon at {self.pipe} does not answer {command!r}: {said}", nvml.UNKNOWN)
        return said

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def runs(self) -> bool:
        """Return whether the daemon answers."""
        if not self.pipe.is_dir():
            return False
        try:
            self.ask("get_server_list")
        except DeviceError:
            return False
        return True

    def start(self, uuid: str, *, static: bool) -> None:
        """Start the daemon for the GPU `uuid` alone, with static partitions if `static`.  Raises DeviceError."""
        if len(str(self.pipe)) > MOST_PATH:
            raise DeviceError(
                f"{self.pipe} has {len(str(self.pipe))} characters, and the sockets of an MPS daemon take a directory "
                f"of {MOST_PATH} at most: give a shorter --cache-dir"
            )
        try:
            for folder in (self.pipe, self.log):
                make_private(folder)
        except OSError as error:
            raise DeviceError(f"the folders of an MPS daemon cannot be made: {error}; see --cache-dir") from error
        words = ("-d", "-S") if static else ("-d",)
        status, said = self._run(words, "", CUDA_VISIBLE_DEVICES=uuid)
        if status or not self.runs():
            raise DeviceError(f"{self.program[0]} {' '.join(words)} does not start: {said or f'see {self.log}'}")

    def quit(self) -> bool:
        """End the daemon and its server; return whether it is gone.  Its clients must have ended."""
        with contextlib.suppress(DeviceError):
            self.ask("quit")
        waited_s = 0.0
        while self.runs():
            if waited_s >= _QUITS_S:
                return False
            self._sleep(_LOOK_S)
            waited_s += _LOOK_S
        return True

    # --- servers and clients ------------------------------------------------------------------------------------------

    def servers(self) -> tuple[int, ...]:
        """Return the process ids of the daemon's servers; none before the first client."""
        return tuple(map(int, _PID.findall(self.ask("get_server_list"))))

    def clients(self) -> dict[int, int]:
        """Return the server of each client, by process id."""
        found = {}
        for server in self.servers():
            found.update(dict.fromkeys(map(int, _PID.findall(self.ask(f"get_client_list {server}"))), server))
        return found

    def faulted(self) -> bool:
        """Return whether a server waits for its clients to go after a fault of one."""
        return any(FAULT in self.ask(f"get_server_status {server}") for server in self.servers())

    def terminate(self, pid: int) -> str:
        """End the work of the client `pid` on the GPU; return "" or why that did not come about."""
        try:
            server = self.clients().get(pid)
            if server is None:
                return ""  # it has none there
            said = self.ask(f"terminate_client {server} {pid}")
        except DeviceError as error:
            return str(error)
        return "" if said == "0" else f"terminate_client answers {said!r}"

    # --- static partitions --------------------------------------------------------------------------------------------

    def table(self, uuid: str) -> SmTable | None:
        """Return the chunks of the GPU `uuid`; None if the daemon has no static partitions."""
        return parsed(self.ask("lspart"), uuid)

    def add(self, uuid: str, chunks: int) -> str:
        """Make a partition of so many chunks and return its name.  Raises NvmlError."""
        said = self.ask(f"sm_partition add {uuid} {chunks}")
        found = _CREATED.search(said)
        if found is None:
            text = f"the MPS daemon makes no partition of {chunks} chunks: {said}"
            raise NvmlError(text, nvml.INSUFFICIENT_RESOURCES)
        return found[1]

    def remove(self, uuid: str, name: str) -> None:
        """Remove a partition; nothing happens if there is none such.  Raises NvmlError (IN_USE) if it stays."""
        said = self.ask(f"sm_partition rm {uuid} {name}")
        table = self.table(uuid)
        if table is not None and any(partition.name == name for partition in table.partitions):
            raise NvmlError(f"the MPS daemon does not remove a partition: {said}", nvml.IN_USE)

    def _run(self, words: tuple[str, ...], given: str, **environment: str) -> tuple[int, str]:
        """Run the program; return its status and what it said.  Raises NvmlError if it cannot be run or takes too
        long, and is killed then: it is only the messenger."""
        known = {**os.environ, **self._environment, **environment}
        try:
            done = subprocess.run(
                [*self.program, *words],
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._timeout_s,
                env=known,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"the MPS daemon at {self.pipe} did not answer {given.strip()!r} within {self._timeout_s:g} s"
            raise NvmlError(said, nvml.TIMEOUT) from None
        except OSError as error:
            raise NvmlError(
                f"{self.program[0]} cannot be run ({error.strerror}): it comes with the NVIDIA driver (in containers, "
                "the driver capability `compute`)",
                nvml.LIBRARY_NOT_FOUND,
            ) from error
        return done.returncode, (done.stdout + done.stderr).strip()


def parsed(said: str, uuid: str) -> SmTable | None:
    """Return what `lspart` says of the GPU `uuid`, of which it shows the beginning; None if it says nothing.

    A row is of the GPU (free and used chunks, then multiprocessors) or of a partition (used chunks, multiprocessors,
    and whether clients use it); "-" may stand for what a row does not have.
    """
    free: int | None = None
    partitions = []
    for line in said.splitlines():
        device, *rest = line.split() or [""]
        if not device.startswith("GPU-") or not uuid.startswith(device):
            continue
        if rest and rest[-1].lower() in ("yes", "no"):
            numbers = [int(word) for word in rest[1:-1] if word.isdecimal()]
            partitions.append(SmPartition(name=rest[0], chunks=numbers[0]))
        else:
            free = next((int(word) for word in rest if word.isdecimal()), free)
    return None if free is None else SmTable(free=free, partitions=tuple(partitions))
