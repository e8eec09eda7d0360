"""Servers as the manifests and units start them: without rights, on a read-only file system."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import manifests, sandbox, systemd_box, units
from tests.support.servers import ROOT, family

TOKEN = "a-token-of-the-tests"
ASKED = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own is not."""
    if why := sandbox.missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def probe(what: str, port: int, token: Path) -> bool:
    """Ask as the image's probe does."""
    words = [sys.executable, "-IS", str(ROOT / "packaging" / "probe.py"), what, str(port)]
    environment = {**os.environ, "CLOVER_TOKEN": f"file:{token}"}
    done = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=20)
    return done.returncode == 0


def ready(port: int, token: Path) -> bool:
    """Probe a server once there is one: a probe is an interpreter."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5.0):
        return probe("ready", port, token)
    return False


def wait_ready(process: subprocess.Popen[str], port: int, token: Path) -> None:
    end = time.monotonic() + 120.0
    while not ready(port, token):
        if process.poll() is not None:
            pytest.fail(f"it ended: {process.stdout.read() if process.stdout else ''}")
        assert time.monotonic() < end
        time.sleep(0.2)


def ask(port: int, path: str, token: str = TOKEN, body: object = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def end(process: subprocess.Popen[str]) -> None:
    """End what may be left of it, with all of its session."""
    with_group = process.poll() is None
    if with_group:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    if process.stdout is not None:
        process.stdout.close()


def test_the_pod_of_the_manifest_serves_and_drains_without_rights_on_a_read_only_root(place: Path) -> None:
    (deployment,) = [
        item for item in manifests.documents(manifests.FOLDER / "cpu.yaml") if item["kind"] == "Deployment"
    ]
    pod = deployment["spec"]["template"]["spec"]
    (maker,), (container,) = pod["initContainers"], pod["containers"]
    volume, token, port = place / "volume", place / "token", free_port()
    volume.mkdir()
    volume.chmod(0o777)  # as an emptyDir is
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o644)
    folders = {}
    words = " ".join(container["args"][1:])
    for mount in container["volumeMounts"]:
        if "subPath" in mount:
            own = place / mount["subPath"]
            own.mkdir()
            folders[str(own)] = volume / mount["subPath"]
            words = re.sub(rf"(?<=[=:]){mount['mountPath']}\b", str(own), words)
    words = words.replace("$(POD_NAME)", "clover-0").replace("$(NAMESPACE)", "default")
    words = words.replace("=8080", f"={port}").replace("=9000", f"={free_port()}").replace("delay-s=10", "delay-s=1")
    process = sandbox.start(
        folders,
        [sys.executable, *container["command"][1:], family("simple"), *words.split()],
        first=[word.replace("/volume", str(volume)) for word in maker["command"]],
        HOME=str(place / "tmp"),
        CLOVER_TOKEN=f"file:{token}",
        CLOVER_VARIANT="exact",  # which needs no profile
    )
    try:
        wait_ready(process, port, token)
        assert probe("live", port, token)
        assert ask(port, "/v2/models/simple/infer", body=ASKED) == 200
        assert ask(port, "/v2/models/simple/infer", token="another", body=ASKED) == 401
        assert (volume / "state" / "ledger" / "clover-0.db").exists()
        # The shell became the server: the signal is the server's.
        process.terminate()
        last = time.monotonic() + 10.0
        while probe("ready", port, token):
            assert time.monotonic() < last
        assert process.wait(timeout=30) == 0
    finally:
        end(process)
    assert {path.stat().st_uid for path in volume.rglob("*")} == {sandbox.USER}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.skipif(not units.ANALYZE, reason="systemd-analyze is not installed (Debian: systemd)")
def test_the_unit_s_command_serves_within_the_calls_and_sockets_that_it_is_allowed(place: Path) -> None:
    port, trace = free_port(), place / "cache" / "trace"
    token, config = place / "token", place / "config.toml"
    token.write_text(f"{TOKEN}\n")
    config.write_text(
        f'[[families]]\nfamily = "{family("simple")}"\nvariant = "exact"\n[listen]\nhost = "0.0.0.0"\nport = {port}\n'
    )
    folders, places = {}, {"%d": str(place), "/etc/clover": str(place)}
    for mark, name in (("%C", "cache"), ("%S", "state"), ("%t", "run")):
        kept, own = place / f"kept-{name}", place / name
        kept.mkdir(mode=0o700)
        own.mkdir()
        os.chown(kept, sandbox.USER, sandbox.USER)
        folders[str(own)] = kept
        places[f"{mark}/clover"] = str(own)
    for path in (token, config):
        path.chmod(0o644)
    command = units.command("clover.service", places)
    command[0] = sys.executable
    process = sandbox.start(
        folders,
        ["strace", "-f", "-qq", "-o", str(trace), *command],
        HOME=str(place / "state"),
        TMPDIR=str(place / "cache"),
    )
    try:
        wait_ready(process, port, token)
        assert ask(port, "/v2/models/simple/infer", body=ASKED) == 200
        traced = (place / "kept-cache" / "trace").read_text(errors="replace")
        server = int(traced.split(maxsplit=1)[0])
        os.kill(server, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        end(process)
    traced = (place / "kept-cache" / "trace").read_text(errors="replace")
    made = set(re.findall(r"^\d+ +([a-z0-9_]+)\(", traced, re.MULTILINE))
    (group,) = units.directives("clover.service")["SystemCallFilter"]
    assert len(made) > 50
    assert made - units.calls_of(group) == set()
    (allowed,) = units.directives("clover.service")["RestrictAddressFamilies"]
    assert set(re.findall(r"\bsocket(?:pair)?\((AF_\w+)", traced)) <= set(allowed.split())


def test_systemd_runs_the_units_in_their_sandbox_restarts_and_stops_them(place: Path) -> None:
    if why := systemd_box.missing():
        pytest.skip(why)
    simple = '[[families]]\nfamily = "/opt/src/tests/families/simple"\nvariant = "exact"\n'
    ports = {"config": free_port(), "north": free_port()}
    configs = {name: f'{simple}[listen]\nhost = "0.0.0.0"\nport = {port}\n' for name, port in ports.items()}
    token = place / "token"
    token.write_text(f"{TOKEN}\n")

    def wait(port: int) -> None:
        end = time.monotonic() + 90.0
        while not ready(port, token):
            assert time.monotonic() < end, box.log()
            time.sleep(0.2)

    with systemd_box.booted(place, configs, TOKEN) as box:
        for port in ports.values():
            wait(port)
            assert ask(port, "/v2/models/simple/infer", body=ASKED) == 200
            assert ask(port, "/v2/models/simple/infer", token="another", body=ASKED) == 401
        main = box.show("clover", "MainPID")["MainPID"]
        status = dict(line.split(":", 1) for line in box.run("cat", f"/proc/{main}/status").splitlines())
        assert (status["CapBnd"].strip(), status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == (
            "0" * 16,
            "1",
            "2",
        )
        box.run("systemctl", "reload", "clover")
        box.run("kill", "-9", main)
        end = time.monotonic() + 60.0
        while box.show("clover", "NRestarts")["NRestarts"] != "1":
            assert time.monotonic() < end
            time.sleep(0.2)
        wait(ports["config"])
        # The end of one takes nothing from the other.
        for unit, other in (("clover", ports["north"]), ("clover@north", None)):
            box.run("systemctl", "stop", unit)
            assert box.show(unit, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
            if other is not None:
                assert box.run("ls", "/run/clover-north").split() == ["control.sock"]
                assert ask(other, "/v2/models/simple/infer", body=ASKED) == 200
        for name in ("clover", "clover-north"):
            assert "ledger" in box.run("ls", f"/var/lib/{name}")
