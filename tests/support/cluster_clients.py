"""Clients of a cluster: open-loop requests to the ingress, counted, and the programs that a cluster runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}]}
).encode()


class OpenLoop:
    """Requests to `ports` in turn, `per_s` of them a second whatever becomes of those before; `failed` lists the
    others' times and what happened."""

    def __init__(self, ports: list[int], per_s: float) -> None:
        self.answered: Counter[int] = Counter()
        self.failed: list[tuple[float, str]] = []
        self._ports, self._per_s = ports, per_s
        self._ended = threading.Event()
        self._asking: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OpenLoop:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for thread in list(self._asking):
            thread.join()

    def _run(self) -> None:
        number, began_s = 0, time.monotonic()
        while not self._ended.wait(max(0.0, began_s + number / self._per_s - time.monotonic())):
            thread = threading.Thread(target=self._ask, args=(self._ports[number % len(self._ports)],))
            self._asking.add(thread)
            thread.start()
            number += 1

    def _ask(self, port: int) -> None:
        try:
            status = ask(port)
            self.answered[port] += status == 200
            if status != 200:
                self.failed.append((time.monotonic(), str(status)))
        except (OSError, http.client.HTTPException) as error:
            self.failed.append((time.monotonic(), type(error).__name__))
        self._asking.discard(threading.current_thread())


def ask(port: int, model: str = "toy") -> int:
    """Return the status of one inference."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def below(pid: int) -> set[int]:
    """Return the processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found, waiting = set[int](), [pid]
    while waiting:
        above = waiting.pop()
        children = [child for child, parent in parents.items() if parent == above]
        found.update(children)
        waiting.extend(children)
    return found


def programs(word: str) -> list[int]:
    """Return the processes whose command line has `word`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(int(entry))
    return found
