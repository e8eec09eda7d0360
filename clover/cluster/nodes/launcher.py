"""Starts a server that outlives the process that asked for it.

    python -m clover.cluster.nodes.launcher FOLDER DIGEST COMMAND...

The server gets a session of its own, and this process ends at once, so that the server's parent is the machine's first
process: neither a signal to the actor's process group nor Ray's cleaning up behind a worker reaches it.

A server without a record would run for ever, unknown, on the port of the server that is started in its place.  So the
new process becomes the server only once its record is written, and ends if the launcher dies before.  Only one launcher
of a folder works at a time, and it starts nothing if a server runs.  It prints the server's process id.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from clover.cluster.nodes.server_process import ServerProcess

_GO = b"1"


def main(argv: Sequence[str]) -> int:
    """Start the command with its output appended to the folder's log, unless a server of the folder runs; print the
    server's process id and return 0.  OSError if it cannot be started."""
    folder, digest, *command = argv
    process = ServerProcess(Path(folder))
    with process.alone():
        running = process.find()
        print(_launch(process, digest, command) if running is None else running.pid, flush=True)
    return 0


def _launch(process: ServerProcess, digest: str, command: Sequence[str]) -> int:
    waits, go = os.pipe()
    hears, failed = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)  # the other end is this process's alone: it is closed with it
        os.close(hears)
        _become(command, process.log, waits, failed)
    os.close(waits)
    os.close(failed)
    process.keep(pid, digest)
    os.write(go, _GO)
    with os.fdopen(hears, "rb") as said:
        if why := said.read():  # nothing once the server's program has taken the process's place
            raise OSError(why.decode())
    return pid


def _become(command: Sequence[str], log: Path, waits: int, failed: int) -> None:
    """Become the server once its record is written; end if that does not come to pass."""
    try:
        os.setsid()
        null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor, of in enumerate((null, out, out)):
            os.dup2(of, descriptor)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and its children would, too
            signal.signal(number, signal.SIG_DFL)
        if os.read(waits, 1) == _GO:
            os.execvp(command[0], list(command))
    except OSError as error:
        os.write(failed, f"{command[0]}: {error.strerror}".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
