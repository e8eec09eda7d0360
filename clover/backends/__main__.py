"""The compiling process: `python -m clover.backends` reads one order (JSON, one line) and compiles it.

It ends with its parent: the order comes by standard input, which the parent leaves open; at its end the whole process
group (the C++ compiler included) is killed.  The reason of a failure is written to standard output as one line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

import msgspec

from clover import backends
from clover.backends.artifacts import CompileOrder, build


def _watch() -> None:
    sys.stdin.buffer.read()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Compile one order; return 0 if the artifact is complete."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=CompileOrder)
    threading.Thread(target=_watch, daemon=True).start()
    os.nice(10)
    os.environ["CUDA_VISIBLE_DEVICES"] = order.target.visible  # the slice it is for, and no other
    answers = os.dup(1)
    os.dup2(2, 1)  # compilers print on standard output
    try:
        build(backends.get(order.backend), order)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:1000]
        os.write(answers, f"{type(error).__name__}: {reason}".encode())
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the watching thread still reads standard input, which would hold up a normal exit
