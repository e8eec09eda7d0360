"""Instructions an operation of the compiled kernels, counted by valgrind: a figure that no neighbour on the box moves.

One interpreter runs under callgrind.  For each case it forks twice, and the children run the same bench at two lengths;
each count begins at the interpreter's start, so their difference is that of the lengths alone, but for some 30,000
instructions of the second fork (a thousandth at most).  What Python spends on the calls is in it, as in the times.
Valgrind shows the kernels a processor of its own making (no AVX-512), so another path of NumPy's may be taken.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.kernel_cases import CASES

_ROOT = Path(__file__).resolve().parent.parent
_SHORT, _LONG = 10, 2
"""The two lengths, as parts of a round in which time is taken; even the shorter one warms the interpreter up."""


def missing() -> str:
    """Return why instructions cannot be counted here, or nothing."""
    return "" if shutil.which("valgrind") else "no instructions are counted: valgrind is not installed"


def counted() -> list[float]:
    """Return instructions an operation of each case's kernel, in their order."""
    with tempfile.TemporaryDirectory() as name:
        command = [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={name}/%p"),
            *(sys.executable, "-m", "bench.instructions"),
        ]
        # One seed for all hashes, and no threads of a library's own.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
        ran = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"the kernels did not run under valgrind:\n{ran.stderr[-2000:]}")
        runs = [json.loads(line) for line in ran.stdout.splitlines()]
        return [
            (collected_by(Path(name, str(long))) - collected_by(Path(name, str(short)))) / operations
            for short, long, operations in runs
        ]


def collected_by(log: Path) -> int:
    """Return the instructions that valgrind counted of the process that wrote this log."""
    found = re.search(r"Collected : (\d+)", log.read_text())
    if found is None:
        raise RuntimeError(f"valgrind counted nothing:\n{log.read_text()[-2000:]}")
    return int(found[1])


def forked() -> Iterator[tuple[int, int, int]]:
    """Yield, for each case, the pids of its short and its long run, and how many operations lie between them."""
    for _, kernel, make, many, _ in CASES:
        run = make(importlib.import_module(f"clover._native.{kernel}"))
        pids = []
        for count in (many // _SHORT, many // _LONG):
            pid = os.fork()
            if not pid:
                run(count)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if status:
                raise RuntimeError(f"a run of {kernel} ended with {status}")
            pids.append(pid)
        yield pids[0], pids[1], many // _LONG - many // _SHORT


if __name__ == "__main__":
    for line in forked():
        print(json.dumps(line), flush=True)
