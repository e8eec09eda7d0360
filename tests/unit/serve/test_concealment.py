"""A server with a token shows it to no other process of its user."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-the-tests"

# What a worker would read, and what this process still knows.
SCRIPT = """
import ctypes, os, sys
from clover.serve import command

class Server:
    def __init__(self, config):
        self.config = config

    def run(self, **hooks):
        seen = open("/proc/self/environ", "rb").read() + open("/proc/self/cmdline", "rb").read()
        dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
        inside = f"{os.environ.get('CLOVER_TOKEN')} {sys.argv}".count("a-token-of-the-tests")
        print(seen.count(b"a-token-of-the-tests"), seen.count(b"CLOVER_TOKEN="), dumpable, inside)
        print(self.config.listen.token)
        return 0

command.Server = Server
sys.exit(command.main())
"""


def told(folder: Path, *arguments: str, **environment: str) -> list[str]:
    script = folder / "script.py"  # as an argument, it would be seen itself
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), "fashion", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_token_is_not_shown_in_proc(tmp_path: Path) -> None:
    assert told(tmp_path, CLOVER_TOKEN=TOKEN) == ["0", "1", "0", "1", TOKEN]
    assert told(tmp_path, "--token", TOKEN) == ["0", "0", "0", "1", TOKEN]
    assert told(tmp_path, f"--token={TOKEN}") == ["0", "0", "0", "1", TOKEN]


@pytest.mark.slow
def test_without_a_secret_a_process_stays_as_it_is(tmp_path: Path) -> None:
    assert told(tmp_path) == ["0", "0", "1", "0"]


@pytest.mark.slow
def test_nobody_traces_a_server_with_tenants(tmp_path: Path) -> None:
    file = tmp_path / "clover.toml"
    file.write_text(f'[[tenant]]\nname = "acme"\ntoken = "{TOKEN}"\n')
    assert told(tmp_path, str(file))[:3] == ["0", "0", "0"]
    file.write_text(f'[[tenant]]\nname = "acme"\ntoken_sha256 = "{sha256(TOKEN.encode()).hexdigest()}"\n')
    assert told(tmp_path, str(file))[:3] == ["0", "0", "0"]


@pytest.mark.slow
def test_nobody_traces_a_server_with_a_collector(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    assert told(tmp_path, "--otel", "http://127.0.0.1:9")[:3] == ["0", "0", "0"]
