"""Programs that run in forks of one process, which has imported what they need: as fresh as in an interpreter of their
own, which takes a quarter of a second to begin, for a hundredth of it.

    python -m tests.support.forks FD MODULE...    the process that forks
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Forks:
    """A process that has imported `modules` in `environ` (None: this process's), and has no NVML, and forks."""

    def __init__(self, *modules: str, environ: Mapping[str, str] | None = None) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environ,
            )

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
        self, code: str, argv: Sequence[str], environ: Mapping[str, str], given: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run `code` to its end, with `given` as its input."""
        with tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            into.write(given)
            into.seek(0)
            status = self.wait(self.start(code, argv, environ, (into.fileno(), out.fileno(), errors.fileno())))
            texts = []
            for stream in (out, errors):
                stream.seek(0)
                texts.append(stream.read().decode())
        return subprocess.CompletedProcess(argv, status, *texts)

    def close(self) -> None:
        self._line.close()
        assert self._process.wait(20) == 0


def main(fd: int, modules: Sequence[str]) -> None:
    """Obey orders until their sender is gone."""
    for name in modules:
        importlib.import_module(name)
    line = socket.socket(fileno=fd)
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
