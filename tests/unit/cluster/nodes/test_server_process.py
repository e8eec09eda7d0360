"""Processes that outlive whoever started them, and are never taken for another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from clover.cluster.nodes.server_process import ServerProcess, ServerRecord
from clover.errors import ClusterError

SLEEPER = [sys.executable, "-S", "-c", "import time; print('I sleep', flush=True); time.sleep(600)"]


def gone(process: ServerProcess) -> bool:
    end_s = time.monotonic() + 20.0
    while process.find() is not None:
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
def test_a_server_lives_on_and_is_found_by_another(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "node")
    record = first.start(SLEEPER, dict(os.environ), "digest")
    try:
        assert ServerProcess(tmp_path / "node").find() == record
        assert os.getsid(record.pid) == record.pid
        parent = int(Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent != os.getpid()
        end_s = time.monotonic() + 20.0
        while first.last_words() != "I sleep":
            assert time.monotonic() < end_s
            time.sleep(0.01)
        assert first.end()
        assert gone(first)
        assert not first.end()
    finally:
        first.end(kill=True)


@pytest.mark.parametrize("dies", ["before its record", "after its record"])
def test_a_launcher_that_dies_leaves_no_server_that_nobody_knows(tmp_path: Path, dies: str) -> None:
    made = tmp_path / "made"
    before = "os._exit(9)" if dies == "before its record" else "real(*given), os._exit(9)"
    code = (
        "import os, sys; from clover.cluster.nodes import launcher; own = launcher.ServerProcess; real = own.keep; "
        f"own.keep = lambda *given: ({before}); launcher.main(sys.argv[1:])"
    )
    folder, command = tmp_path / "node", ["/bin/sh", "-c", f"touch {made}"]
    folder.mkdir()
    reads, writes = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "digest", *command], pass_fds=(writes,), check=False, timeout=60
    )
    assert done.returncode == 9
    os.close(writes)
    with os.fdopen(reads, "rb") as all_ended:
        assert all_ended.read() == b""
    assert not made.exists()
    assert ServerProcess(folder).find() is None


@pytest.mark.slow
def test_two_agents_at_once_start_one_server(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "node")
    try:
        with ThreadPoolExecutor() as agents:
            asked = [agents.submit(process.start, SLEEPER, dict(os.environ), "digest") for _ in range(2)]
            first, second = (one.result() for one in asked)
        assert first == second == process.find()
        with pytest.raises(ClusterError, match="a server of other settings was started meanwhile"):
            process.start(SLEEPER, dict(os.environ), "another digest")
    finally:
        process.end(kill=True)
    assert gone(process)


def test_a_process_of_the_same_id_is_not_taken_for_the_server(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = ServerRecord(pid=os.getpid(), started_ticks=int(fields[19]), boot=boot)
    for record, found in (
        (own, True),
        (msgspec.structs.replace(own, started_ticks=own.started_ticks + 1), False),
        (msgspec.structs.replace(own, boot="another"), False),
        (msgspec.structs.replace(own, pid=2**22 + 1), False),
    ):
        (tmp_path / "server.json").write_bytes(msgspec.json.encode(record))
        assert (process.find() is not None) == found
        if not found:
            assert not process.end(kill=True)


@pytest.mark.parametrize("text", [b"", b"{", b'{"pid": "x"}', b'{"pid": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_no_server(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "server.json").write_bytes(text)
    assert ServerProcess(tmp_path).find() is None


def test_a_zombie_is_no_server(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "9").mkdir(parents=True)
    process = ServerProcess(tmp_path, proc)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "server.json").write_bytes(msgspec.json.encode(ServerRecord(pid=9, started_ticks=77, boot=boot)))
    for state, found in (("S", True), ("Z", False)):
        (proc / "9" / "stat").write_text(f"9 (a) b) {state} " + " ".join(["0"] * 18) + " 77 0")
        assert (process.find() is not None) == found


@pytest.mark.slow
def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="could not be started"):
        ServerProcess(tmp_path / "node").start(["/no/such/program"], dict(os.environ))
