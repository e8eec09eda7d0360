"""The server of a soak: started under everything that its faults need, watched, asked, replaced.

Faults that need rights which are not there (mounting a small disk, a control group, a C compiler) are left out, and
`Server.missing` says which and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.common import ROOT, free_port, tree

GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
"""Where a control group with memory may be made: version 2, else version 1."""
DISK_BYTES = 6 << 20
SLO_MS = 500.0
WORKER = "clover:"
"""How the names of workers begin."""


class Provider:
    """A provider of carbon intensity on the loopback, as the Carbon Aware SDK answers; `mode` spoils its answers."""

    def __init__(self) -> None:
        self.mode = "well"
        self.asked = 0
        outer = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if outer.mode == "hang":
                    time.sleep(20.0)
                if outer.mode in ("hang", "reset"):
                    self.close_connection = True
                    return
                now_s = time.time() // 300.0 * 300.0
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now_s))
                found = [{"time": stamp, "rating": 300.0 + now_s / 300.0 % 97, "location": "here"}]
                text = b"<html>" if outer.mode == "nonsense" else json.dumps(found).encode()
                self.send_response(503 if outer.mode == "refuse" else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, form: str, *values: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Server:
    """The server under test; `folder` is its own.  `process` changes with each take-over."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.port = free_port()
        self.provider = Provider()
        self.missing: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self._shared: set[str] = set()
        self._workers: set[int] = set()
        self.state = folder / "state"
        self.state.mkdir()
        self.disk = self._mount()
        self.group = self._make_group()
        self._clock = folder / "clock"
        self._preload = self._compile()

    # --- what faults need ---------------------------------------------------------------------------------------------

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(self.state)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            self.missing["full disk"] = "no right to mount a small disk"
        return not done.returncode

    def _make_group(self) -> Path | None:
        for root in GROUPS:
            group = root / f"clover-soak-{os.getpid()}"
            try:
                group.mkdir()
            except OSError:
                continue
            if any((group / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
                return group
            group.rmdir()
        self.missing["memory pressure"] = "no right to make a control group with memory"
        return None

    def _compile(self) -> Path | None:
        library = self.folder / "clock.so"
        source = Path(__file__).with_name("soak_clock.c")
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            self.missing["clock"] = "no C compiler"
            return None
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        self.step_clock(0.0)
        return library

    def step_clock(self, seconds: float) -> None:
        """Put the server's wall clock that far off."""
        if not self._clock.exists():
            self._clock.write_bytes(bytes(8))
        with self._clock.open("r+b") as file:
            file.write(struct.pack("<q", int(seconds * 1e9)))

    def limit_memory(self, headroom: int | None) -> None:
        """Limit the memory of the server's group to what it has plus `headroom` bytes; None lifts the limit."""
        assert self.group is not None
        if (self.group / "memory.max").exists():
            held = int((self.group / "memory.current").read_text())
            (self.group / "memory.max").write_text("max" if headroom is None else str(held + headroom))
        else:
            held = int((self.group / "memory.usage_in_bytes").read_text())
            (self.group / "memory.limit_in_bytes").write_text("-1" if headroom is None else str(held + headroom))

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, *more: str) -> None:
        """Start a server, or with `--take-over` the successor of the one that runs; return once it is ready."""
        process, log = await self.launch(*more)
        end_s = time.monotonic() + 300.0
        ready = b"Clover     "
        while ready not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end_s:
                process.kill()  # `stop` does not know it yet
                process.wait()
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
            await asyncio.sleep(0.1)
        old, self.process = self.process, process
        if old is not None:
            while old.poll() is None:
                await asyncio.sleep(0.05)
            if old.returncode:
                raise RuntimeError(f"the server that was taken over ended with {old.returncode}")

    async def launch(self, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Launch a server, and return its process and its log at once."""
        self.number += 1
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if self._preload is not None:
            environment |= {"LD_PRELOAD": str(self._preload), "SOAK_CLOCK_FILE": str(self._clock)}
        provider = json.dumps([{"name": "carbon-aware-sdk", "url": self.provider.url}])
        joining = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.group)] if self.group else []
        command = [
            *(*joining, sys.executable, "-m", "clover.serve", "bench.echo:SOAK", "--port", str(self.port)),
            *("--carbon", "carbon-aware-sdk:here?signal=average", "--carbon-provider", provider),
            *("--cache-dir", str(self.cache), "--state-dir", str(self.state), "--ledger", "on"),
            *("--slo-ms", str(SLO_MS), "--accuracy-floor", "80", "--silent-s", "2"),
            *("--energy-meter", "modelled", *more),
        ]
        log = self.folder / f"server-{self.number}.log"
        with log.open("wb") as sink:
            process = await asyncio.to_thread(
                subprocess.Popen, command, stdout=sink, stderr=sink, cwd=ROOT, env=environment
            )
        return process, log

    async def stop(self) -> int | None:
        """End the server in order and clean up; its exit code."""
        code = None
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            for _ in range(600):
                if (code := self.process.poll()) is not None:
                    break
                await asyncio.sleep(0.1)
            else:
                self.process.kill()
                self.process.wait()
        self.provider.close()
        if self.disk:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(self.state)], check=False)
        if self.group is not None:
            with contextlib.suppress(OSError):
                self.group.rmdir()
        return code

    # --- what it is asked ---------------------------------------------------------------------------------------------

    def _get(self, path: str, document: dict[str, Any] | None = None) -> Any:
        data = json.dumps(document).encode() if document is not None else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return json.loads(answer.read())

    async def ask(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """Return the JSON of a path, by POST with a `document`; raises OSError."""
        return await asyncio.to_thread(self._get, path, document)

    async def workers(self) -> list[dict[str, Any]]:
        """Return the workers as the server's state describes them."""
        found: list[dict[str, Any]] = (await self.ask("/v2/clover/state"))["totals"]["models"]["echo"]["workers"]
        self._workers = {item["pid"] for item in found if item["pid"] is not None}
        return found

    async def worker_pids(self) -> list[int]:
        """Return the processes of workers, those included whose zygote has died: they are nobody's children."""
        await self.workers()
        return sorted(pid for pid in self._workers if os.path.exists(f"/proc/{pid}"))

    async def strong(self) -> bool:
        """Return whether the server is ready and every worker that it shall have is."""
        try:
            ready = (await self.ask("/v2/health/ready"))["ready"]
            workers = await self.workers()
        except (OSError, urllib.error.URLError, ValueError):
            return False
        return bool(ready and workers and all(item["state"] == "ready" for item in workers))

    # --- its processes ------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def named(self, start: str) -> list[int]:
        """Return the processes of the server's tree whose name begins with `start`, or whose command line has it, but
        for workers: they have that of the zygote."""
        found = []
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                if pid != self.pid and (name.startswith(start) or (start in line and not name.startswith(WORKER))):
                    found.append(pid)
        return found

    def note_shared_memory(self) -> None:
        """Leave out of `usage` what is in /dev/shm now."""
        self._shared = set(os.listdir("/dev/shm"))

    def _new_shared(self) -> int:
        """Return the entries of /dev/shm that are new and that no process beside the server's has open or mapped."""
        new = {one for one in set(os.listdir("/dev/shm")) - self._shared if os.path.isfile(f"/dev/shm/{one}")}
        if not new:
            return 0
        own = set(tree(self.pid))
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) not in own:
                with contextlib.suppress(OSError):
                    mapped = Path(f"/proc/{name}/maps").read_text()
                    opened = " ".join(os.readlink(f"/proc/{name}/fd/{n}") for n in os.listdir(f"/proc/{name}/fd"))
                    new = {one for one in new if f"/dev/shm/{one}" not in mapped and f"/dev/shm/{one}" not in opened}
        return len(new)

    def usage(self) -> dict[str, int]:
        """Return what the server's processes hold now."""
        known = {pid for pid in self._workers if os.path.exists(f"/proc/{pid}")}
        pids, pages, fds, zombies = sorted({*tree(self.pid), *known}), 0, 0, 0
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                zombies += stat[0] == "Z"
                held = Path(f"/proc/{pid}/statm").read_text().split()
                pages += int(held[1]) - (int(held[2]) if pid != self.pid else 0)
                fds += len(os.listdir(f"/proc/{pid}/fd"))
        size = os.sysconf("SC_PAGE_SIZE")
        return {
            "rss_bytes": pages * size,
            "fds": fds,
            "shm": self._new_shared(),
            "zombies": zombies,
            "processes": len(pids) - zombies,
        }
