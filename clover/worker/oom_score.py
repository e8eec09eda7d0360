"""Which process the kernel ends if memory runs out: workers and spares, which are forked again, before zygote and
server.

The kernel chooses by what a process holds, in thousandths of all memory (of its control group), plus the score that
it has in /proc/PID/oom_score_adj.  A forked worker seems to hold what it shares with the zygote.
"""

from __future__ import annotations

import contextlib
import os

ADDED = 500
"""What a worker's score is above the zygote's: half of all memory."""
MOST = 1000


def volunteer(proc: str = "/proc") -> None:
    """Have the kernel end this child of the zygote before the zygote and the server.  It may be called again; where
    the kernel refuses, nothing changes."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{proc}/{os.getppid()}/oom_score_adj") as file:
            score = min(int(file.read()) + ADDED, MOST)
        with open(f"{proc}/self/oom_score_adj", "w") as file:
            file.write(str(score))
