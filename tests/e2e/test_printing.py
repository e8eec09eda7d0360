"""A model that prints without end: the log stays small, the answers come, and last words are kept."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import orjson
import pytest

from clover.runtime.workers.output import BURST_BYTES, BYTES_PER_S
from tests.support.forks import Forks
from tests.support.mig_runs import BEGIN, environment
from tests.support.servers import family

SCRIPT = """
import logging
import clover
logging.basicConfig(level="INFO")
server = clover.Server(sys.argv[1], variant="always", port=0, carbon="static:300", cache_dir=sys.argv[2], cores="0")
sys.exit(server.run(on_ready=lambda server: print(server.url, flush=True)))
"""


@pytest.mark.alone
def test_a_worker_that_prints_without_end_neither_fills_the_log_nor_holds_anybody_up(
    scenes: Forks, tmp_path: Path
) -> None:
    log, words = tmp_path / "log", [family("chatty"), str(tmp_path)]

    def ask(number: int) -> int:
        row = {"name": "INPUT0", "shape": [1, 1], "datatype": "INT32", "data": [number]}
        request = urllib.request.Request(f"{url}/v2/models/chatty/infer", orjson.dumps({"inputs": [row]}))
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def dropped() -> float:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith('clover_log_dropped_lines_total{model="chatty"')]
        return float(line.rsplit(" ", 1)[1])

    with (
        log.open("wb") as errors,
        scenes.talk(BEGIN + SCRIPT, words, environment(), errors.fileno()) as (process, _, prints),
    ):
        url = prints.readline().strip()
        begun_s = time.monotonic()
        took_s = []
        while (passed_s := time.monotonic() - begun_s) < 3.0:
            asked_s = time.monotonic()
            assert ask(1) == 200
            took_s.append(time.monotonic() - asked_s)
        left_out = dropped()
        print(f"{len(took_s)} answers, {left_out:.0f} lines left out, {log.stat().st_size} bytes of log")
        assert left_out > 10 * len(log.read_bytes().splitlines())
        assert log.stat().st_size < BURST_BYTES + BYTES_PER_S * (passed_s + 1) + 4096
        assert sorted(took_s)[len(took_s) // 2] < 0.05
        assert b"\nline 0 of a flood\nline 1 of a flood\nline 2 of a flood\n" in log.read_bytes()
        assert b"last words" not in log.read_bytes()
        # It kills the second worker that it meets, too: both burst again, and both have last words.
        assert ask(2) == 503
        lines = log.read_bytes().splitlines()
        assert lines.count(b"last words") >= 2
        assert any(b"killed by SIGKILL" in line for line in lines)
        assert any(b"prints more than the log takes: " in line for line in lines)
        process.terminate()
        assert process.wait(20) == 0
