"""Starts a server on emulated GPUs in a process of its own, and hears what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clover.backends import child_environment
from tests.support.mig_server import of_session

ROOT = Path(__file__).parents[2]


def run(
    cache: Path, what: str, within_s: float = 110, module: str = "tests.support.mig_server"
) -> tuple[int, list[dict[str, Any]], str]:
    """A server process: its exit status, what it said, its errors; nothing of its session is left afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", module, str(cache), what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **child_environment()},
        start_new_session=True,
    ) as process:
        out, errors = process.communicate(timeout=within_s)
    end_s = time.monotonic() + 2.0
    while left := of_session(process.pid):
        assert time.monotonic() < end_s, f"processes {left} outlive the server"
        time.sleep(0.02)
    return process.returncode, [json.loads(line) for line in out.splitlines()], errors
