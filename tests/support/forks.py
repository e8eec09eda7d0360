"""Programs that run in forks of one process, which has imported what they need: as fresh as in an interpreter of their
own, which takes a quarter of a second to begin, for a hundredth of it.

    python -m tests.support.forks FD MODULE...    the process that forks

A program that is run within such a process may itself be one that forks (`Forks(within=...)`, `Forks.here`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

ROOT = Path(__file__).parents[2]
WITHIN = "import sys\nfrom tests.support.forks import main\nmain(0, sys.argv[1:])"
"""A program that forks, whose standard input is its line."""


class Waited(Protocol):
    """A process that can be waited for."""

    def wait(self, timeout: float) -> int: ...


class Forks:
    """A process that has imported `modules` in `environ` (None: this process's), and has no NVML, and forks.

    `within`: it is itself a fork of that one, and has what that imported, too.
    """

    def __init__(self, *modules: str, environ: Mapping[str, str] | None = None, within: Forks | None = None) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: Waited
        with theirs:
            if within is not None:
                environ = os.environ if environ is None else environ
                self._process = within.begin(WITHIN, modules, environ, (theirs.fileno(), 2, 2))
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environ,
            )

    @classmethod
    def here(cls) -> Forks:
        """Fork this process, which has one thread, into one that forks and has what this one has imported by now."""
        made = cls.__new__(cls)
        made._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                made._line.close()
                serve(theirs)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        made._process = _Child(pid)
        return made

    def begin(
        self, code: str, argv: Sequence[str], environ: Mapping[str, str], standard: tuple[int, int, int]
    ) -> Program:
        """Begin `code` as `start` does."""
        return Program(self, self.start(code, argv, environ, standard))

    @contextlib.contextmanager
    def talk(
        self, code: str, argv: Sequence[str], environ: Mapping[str, str], errors: int = 2
    ) -> Iterator[tuple[Program, TextIO, TextIO]]:
        """Begin `code`, for a while, with its standard error at the descriptor `errors`; yield the process, what it
        reads and what it prints."""
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        with open(ours_out, "w") as reads, open(ours_in) as prints:
            try:
                program = self.begin(code, argv, environ, (theirs_in, theirs_out, errors))
            finally:
                os.close(theirs_in)
                os.close(theirs_out)
            with program:
                yield program, reads, prints

    def start(self, code: str, argv: Sequence[str], environ: Mapping[str, str], standard: tuple[int, int, int]) -> int:
        """Begin `code` with these arguments, environment and standard streams (descriptors); its process id."""
        with tempfile.TemporaryFile("w+") as order:
            json.dump([code, ["-c", *argv], dict(environ)], order)
            order.flush()
            socket.send_fds(self._line, [b"start"], [order.fileno(), *standard])
        return int(self._line.recv(16))

    def wait(self, pid: int) -> int:
        """Wait for the end of a process of `start`; its exit code, negative if a signal ended it."""
        self._line.send(f"{pid}".encode())
        return int(self._line.recv(16))

    def run(
        self,
        code: str,
        argv: Sequence[str],
        environ: Mapping[str, str],
        given: bytes = b"",
        within_s: float = 110.0,
    ) -> Ended:
        """Run `code` to its end, with `given` as its input.  subprocess.TimeoutExpired, and it is killed, if that takes
        longer than `within_s`."""
        with tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            into.write(given)
            into.seek(0)
            with self.begin(code, argv, environ, (into.fileno(), out.fileno(), errors.fileno())) as program:
                status = program.wait(within_s)
            texts = []
            for stream in (out, errors):
                stream.seek(0)
                texts.append(stream.read().decode())
        return Ended(program.pid, argv, status, *texts)

    def close(self) -> None:
        self._line.close()
        assert self._process.wait(20) == 0


class Ended(subprocess.CompletedProcess[str]):
    """What a process that was run to its end left."""

    def __init__(self, pid: int, argv: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        super().__init__(argv, returncode, stdout, stderr)
        self.pid = pid


class Program:
    """A process that was forked by `Forks`.  As a context, it is killed and reaped at the end if it still runs."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return its exit code, negative if a signal ended it; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end, `timeout` seconds at most, and return its exit code; subprocess.TimeoutExpired."""
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if not ended.poll(timeout * 1e3):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._forks.wait(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it was waited for."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.wait(20)


class _Child:
    """A child of this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def wait(self, timeout: float) -> int:
        """Wait for its end, which has been brought about."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def main(fd: int, modules: Sequence[str]) -> None:
    """Import `modules`, and obey orders that come by a socket until their sender is gone."""
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # or the first collection of each fork would look through all of it, and copy it
    gc.enable()
    serve(socket.socket(fileno=fd))


def serve(line: socket.socket) -> None:
    """Obey orders until their sender is gone."""
    while True:
        message, fds, _, _ = socket.recv_fds(line, 16, 4)
        if not message:
            return
        if message != b"start":
            line.send(str(os.waitstatus_to_exitcode(os.waitpid(int(message), 0)[1])).encode())
            continue
        pid = os.fork()
        if not pid:
            line.close()
            _become(*fds)
        line.send(str(pid).encode())
        for each in fds:
            os.close(each)


def _become(order: int, *standard: int) -> None:
    """Run an order, and end."""
    with open(order) as file:
        file.seek(0)
        code, argv, environ = json.load(file)
    for at, each in enumerate(standard):
        os.dup2(each, at)
        os.close(each)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = argv
    status = 1
    try:
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
