"""The running server is killed at every step of a take-over: a server is left, and answers.

Nothing here knows what the two servers say to each other (`tests.support.killed_server` counts calls).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.forks import Forks, Program
from tests.support.mig_runs import environment, program
from tests.support.process_groups import free_ports
from tests.support.servers import family

MOST_CALLS = 30
NEVER = 1_000_000
BODY = {"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [7.0]}]}


def answers(url: str) -> bool:
    """Whether a server answers at `url`, rightly."""
    request = urllib.request.Request(f"{url}/v2/models/slow/infer", json.dumps(BODY).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [7.0]
            return True
    except OSError:
        return False


def until(condition: Callable[[], bool], what: str, log: Path) -> None:
    end_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end_s, f"{what}:\n{log.read_text()}"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_server_is_left_that_serves_wherever_the_running_one_is_killed(scenes: Forks, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    words = [
        *(family("slow"), "--port", str(port), "--variant", "fast", "--carbon", "static:300"),
        *("--energy-meter", "modelled", "--cache-dir", str(tmp_path), "--state-dir", str(tmp_path / "state")),
    ]
    ready = tmp_path / "state" / "take-over" / f"127.0.0.1-{port}"

    def begin(stack: ExitStack, name: str, *more: str) -> tuple[Program, Path]:
        log = tmp_path / f"{name}.log"
        with log.open("w") as file, open(os.devnull) as nothing:
            standard = (nothing.fileno(), file.fileno(), file.fileno())
            begun = scenes.begin(program("tests.support.killed_server"), [*more], environment(), standard)
        return stack.enter_context(begun), log

    def listens() -> int:
        """When the newest running server made its take-over socket; 0 before the first."""
        try:
            return ready.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def settled(new: Program, before: int) -> bool:
        return new.poll() is not None or listens() not in (0, before)

    with ExitStack() as stack:
        old, log = begin(stack, "first", "1", *words)
        until(lambda: bool(listens()), "no first server", log)
        for calls in range(1, MOST_CALLS):
            before = listens()
            # Once it has taken over, it is the running server of the next round, and dies one call later.
            new, log = begin(stack, f"after-{calls}", str(calls + 1), *words, "--take-over")
            try:
                ended = old.wait(60.0)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"after {calls} calls neither is there alone:\n{log.read_text()}") from None
            until(partial(settled, new, before), f"after {calls} calls", log)
            assert answers(url), f"no server is left after {calls} calls:\n{log.read_text()}"
            assert new.poll() is None
            if ended == 0:
                break
            assert ended == -9
            old = new
        assert calls > 4, "a take-over takes some calls"
        assert ended == 0, "and in the end is not disturbed any more"
