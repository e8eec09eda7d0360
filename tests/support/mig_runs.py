"""Runs servers on emulated GPUs in processes of their own, and hears what they say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from clover.backends import child_environment
from tests.support.forks import Forks
from tests.support.mig_server import of_session

# In a session of its own, with zygotes that need not import torch again.
BEGIN = """
import os
import sys
from tests.e2e import forked_zygote
os.setsid()
forked_zygote.adopt()
"""


def program(module: str) -> str:
    """Return the program that calls `main` of a module with its arguments."""
    return f"from {module} import main\n{BEGIN}\nmain(*sys.argv[1:])"


def environment() -> dict[str, str]:
    return {**os.environ, **child_environment()}


def run(
    scenes: Forks, cache: Path, *words: str, within_s: float = 110, module: str = "tests.support.mig_server"
) -> tuple[int, list[dict[str, Any]], str]:
    """A server process: its exit status, what it said, its errors; nothing of its session is left afterwards."""
    done = scenes.run(program(module), [str(cache), *words], environment(), within_s=within_s)
    end_s = time.monotonic() + 2.0
    while left := of_session(done.pid):
        assert time.monotonic() < end_s, f"processes {left} outlive the server"
        time.sleep(0.02)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr
