"""Starts a server that outlives whoever asked for it: `python -m clover.cluster.launcher LOG COMMAND...`.

The server gets a session of its own, and this process ends at once, so that the server's parent is the machine's first
process: neither a signal to the actor's process group nor Ray's cleaning up behind a worker reaches it.  Its process id
is printed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Start the command with its output appended to the log, print its process id, and return 0."""
    log, *command = argv
    with open(log, "ab") as out:
        process = subprocess.Popen(  # the words are the agent's own
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    print(process.pid, flush=True)
    process.returncode = 0  # it is left to itself: nothing to wait for, and no warning about it
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
