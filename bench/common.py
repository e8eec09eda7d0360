"""What the benches share: a server of their own, what its process tree uses, request bodies, tables."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.load import Body
from clover import families

ROOT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """Return what every figure needs beside it: cores, processor, date and command."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]]) if "-m" in sys.orig_argv else " ".join(sys.argv),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=int(os.environ.get("COLUMNS", "150"))).print(table)


def write_json(path: str, document: dict[str, Any]) -> None:
    """Write `document` with its provenance to `path`; nothing if `path` is empty."""
    if path:
        Path(path).write_text(json.dumps({"provenance": provenance(), **document}, indent=1) + "\n")


# --- request bodies ---------------------------------------------------------------------------------------------------


def fashion_rows(split: str = "held_out") -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images [n, 1, 28, 28] FP32 and labels [n] of the default family."""
    inputs, labels = families.load_evaluation(families.load_family("fashion"), split)
    return inputs[0], labels


def binary_bodies(images: NDArray[Any], count: int) -> list[Body]:
    """Return one-image requests in the binary tensor form, each with an id of its own."""
    bodies = []
    for row in range(min(count, len(images))):
        tensor = np.ascontiguousarray(images[row : row + 1], dtype="<f4").tobytes()
        head = json.dumps(
            {
                "id": f"row-{row}",
                "inputs": [
                    {
                        "name": "image",
                        "shape": [1, *images.shape[1:]],
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": len(tensor)},
                    }
                ],
            }
        ).encode()
        header = b"Inference-Header-Content-Length: %d\r\nContent-Type: application/octet-stream\r\n" % len(head)
        bodies.append(Body(head + tensor, f"row-{row}", row, header))
    return bodies


def json_bodies(images: NDArray[Any], count: int) -> list[Body]:
    """Return the same requests as JSON."""
    bodies = []
    for row in range(min(count, len(images))):
        data = np.round(images[row].reshape(-1).astype(float), 6).tolist()
        document = {
            "id": f"row-{row}",
            "inputs": [{"name": "image", "shape": [1, *images.shape[1:]], "datatype": "FP32", "data": data}],
        }
        header = b"Content-Type: application/json\r\n"
        bodies.append(Body(json.dumps(document).encode(), f"row-{row}", row, header))
    return bodies


# --- a server of our own ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ServerProcess:
    """A launched `python -m clover.serve` and where it answers."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> Any:
        """Fetch a JSON document by GET."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, document: dict[str, Any]) -> Any:
        """Send a JSON document by POST and return the answer's."""
        request = urllib.request.Request(
            self.url + path, json.dumps(document).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def metrics(self) -> dict[str, float]:
        """Return the samples of /metrics by their full name with labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(
    arguments: Sequence[str],
    *,
    log: Path,
    start_s: float = 180.0,
    python: str = sys.executable,
    group: Path | None = None,
) -> Iterator[ServerProcess]:
    """Run `python -m clover.serve ARGUMENTS` on a free port until the block ends; ready when it is entered.  `group`:
    the folder of a control group to run it in."""
    port = free_port()
    ledger = () if "--ledger" in arguments else ("--ledger", "off")
    joining = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)] if group is not None else []
    with open(log, "ab") as sink:
        process = subprocess.Popen(
            [*joining, python, "-m", "clover.serve", *arguments, *ledger, "--port", str(port)],
            stdout=sink,
            stderr=sink,
            cwd=ROOT,
        )
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_ready(server, start_s)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(server: ServerProcess, seconds: float) -> None:
    """Return once the server says it is ready; RuntimeError with the end of its log otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError, ValueError):
            if server.get("/v2/health/ready").get("ready"):
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")


# --- what a process tree uses -----------------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """Return `pid` and all its live descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parent = int(stat.rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        if Path(f"/proc/{current}").exists():
            found.append(current)
        queue.extend(children.get(current, []))
    return found


def pss_bytes(pids: Sequence[int]) -> int:
    """Return proportional set size of some processes together, in bytes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return CPU seconds that some live processes have used together, from the scheduler's nanosecond counters."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def busy_seconds() -> float:
    """Return CPU seconds used on this machine so far."""
    with open("/proc/stat") as lines:
        words = next(iter(lines)).split()
    ticks = sum(map(int, words[1:4])) + sum(map(int, words[6:8]))  # user, nice, system, irq, softirq
    return ticks / os.sysconf("SC_CLK_TCK")


def open_fds(pids: Sequence[int]) -> int:
    """Open file descriptors of some processes together."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))
    return total


def shm_entries() -> int:
    """Return entries of /dev/shm."""
    return len(os.listdir("/dev/shm"))
