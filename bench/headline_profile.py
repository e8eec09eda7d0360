"""Where a server's CPU goes: by process, and within each by what the code belongs to.

CPU and switches are the scheduler's own counts, of every thread.  What the time within a process was spent on is
sampled by `perf record`, if it is installed: a sample belongs to the kernel (sockets, wake-ups), to the model (what
runs networks and unpacks pictures), to Python's interpreter, or to the rest, which is the server's own code and what it
links.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PARTS = ("kernel", "model", "interpreter", "rest")
_MODEL = (
    *("onnxruntime", "libtorch", "libc10", "libgomp", "libomp", "_multiarray", "openblas", "libmkl", "libdnnl"),
    *("openvino", "anon"),  # code that it makes as it runs has no file
    *("_imaging", "libjpeg", "libpng", "libz", ".wrapper.so"),
)
_ROLES = (
    # what the command line or the thread's name has, the first that fits
    ("clover.control.solver", "planner"),
    ("clover.serve", "front end"),
    ("clover-spare", "spare"),
    ("clover:", "worker"),
    ("clover.worker.zygote", "zygote"),
    ("tritonserver", "tritonserver"),
    ("haproxy", "haproxy"),
    ("raylet", "raylet"),
    ("gcs_server", "gcs_server"),
    ("ray::", "ray"),
)
_HERTZ = 1999


@dataclass(frozen=True)
class Counts:
    """What the threads of one process have used since they started."""

    role: str
    cpu_s: float
    switches: int
    """Times that one of them gave up its core or lost it."""


@dataclass
class Share:
    """What the processes of one role used while `requests` were answered."""

    role: str
    cpu_us: float
    """Microseconds of CPU a request."""
    switches: float
    """Switches a request."""
    parts: dict[str, float] = field(default_factory=dict)
    """Microseconds a request by `PARTS`; empty without perf."""


def counts(pids: Sequence[int]) -> dict[int, Counts]:
    """Return what some live processes have used so far."""
    found = {}
    for pid in pids:
        cpu, switches = 0, 0
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    place = Path(f"/proc/{pid}/task/{thread}")
                    cpu += int((place / "schedstat").read_text().split()[0])
                    lines = (place / "status").read_text().splitlines()
                    switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
            found[pid] = Counts(role_of(pid), cpu / 1e9, switches)
    return found


def role_of(pid: int) -> str:
    """Return what a process is there for: a word of `_ROLES`, or the name of its program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    # A worker keeps its zygote's command line, so that its own name goes first.
    return next((role for text in (name, command) for part, role in _ROLES if part in text), name)


def shares(before: dict[int, Counts], after: dict[int, Counts], requests: int) -> list[Share]:
    """Return what each role used between two counts, the most first."""
    found: dict[str, Share] = {}
    for pid, now in after.items():
        then = before.get(pid, Counts(now.role, 0.0, 0))
        share = found.setdefault(now.role, Share(now.role, 0.0, 0.0))
        share.cpu_us += 1e6 * (now.cpu_s - then.cpu_s) / requests
        share.switches += (now.switches - then.switches) / requests
    return sorted(found.values(), key=lambda share: -share.cpu_us)


class Sampler:
    """`perf record` over some processes, from `start` to `stop`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._data = Path(self._folder.name) / "perf.data"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, pids: Sequence[int]) -> None:
        """Begin to sample; does nothing without perf."""
        if shutil.which("perf") is None:
            return
        command = ["perf", "record", "-q", "-F", str(_HERTZ), "-e", "cpu-clock", "-o", str(self._data), "-p"]
        self._process = subprocess.Popen(
            [*command, ",".join(map(str, pids))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> dict[int, dict[str, float]]:
        """Return, by process, which part of its samples belongs to each of `PARTS`; nothing without perf."""
        if self._process is None:
            return {}
        self._process.terminate()
        self._process.wait(30)
        fields = ["perf", "script", "-i", str(self._data), "-F", "pid,ip,dso"]
        ran = subprocess.run(fields, capture_output=True, text=True)
        self._folder.cleanup()
        return parts_of(ran.stdout)


def parts_of(script: str) -> dict[int, dict[str, float]]:
    """Return the parts that `Sampler.stop` does, from lines "PID ADDRESS (DSO)" of `perf script`."""
    samples: dict[int, dict[str, int]] = {}
    for line in script.splitlines():
        pid, _, rest = line.strip().partition(" ")
        if not pid.isdigit() or "(" not in rest:
            continue
        dso = rest.rsplit("(", 1)[1].rstrip(")")
        own = samples.setdefault(int(pid), dict.fromkeys(PARTS, 0))
        own[_part(dso)] += 1
    return {
        pid: {part: count / total for part, count in own.items()}
        for pid, own in samples.items()
        if (total := sum(own.values()))
    }


def _part(dso: str) -> str:
    name = dso.rsplit("/", 1)[-1]
    if name.startswith("[") or name.endswith(".ko"):
        return "kernel"
    if any(part in name for part in _MODEL):
        return "model"
    return "interpreter" if name.startswith(("libpython", "python3")) else "rest"


def with_parts(
    found: list[Share], before: dict[int, Counts], after: dict[int, Counts], sampled: dict[int, dict[str, float]]
) -> list[Share]:
    """Add to the share of each role what its processes spent their time on."""
    for share in found:
        members = [pid for pid, now in after.items() if now.role == share.role and pid in sampled]
        used = {pid: after[pid].cpu_s - (before[pid].cpu_s if pid in before else 0.0) for pid in members}
        total = sum(used.values())
        if total > 0:
            share.parts = {
                part: share.cpu_us * sum(used[pid] * sampled[pid][part] for pid in members) / total for part in PARTS
            }
    return found
