"""What a cluster needs of Ray: the import, with an error that says what to install, and a local Ray.

A local Ray is a head and one Ray node for each address of the cluster file.  They are separate programs that outlive
the command (`clover.cluster.nodes.server_process`).  They run only actors, so they have small object stores and no
dashboard.  Their files are in a private folder: other Ray clusters of the machine are not touched, and `down` ends only
these programs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clover.cache import replace_file
from clover.cluster.nodes.server_process import ServerProcess
from clover.errors import ClusterError

_STORE_BYTES = 80_000_000
"""The least that Ray takes without a warning: 75 MiB."""
_STOP_S = 30.0
_ATTEMPTS = 2
_START_S = 300.0  # seconds of one; on a machine with other work it takes a minute
_JOINED = "will now block forever"
"""What `ray start --block` prints once its node has joined."""
_QUIET = {
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def require_ray() -> Any:
    """Return the module `ray`.  ClusterError, which says what to install, if it is missing."""
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ClusterError(
            f"a cluster needs Ray, which is not installed for {sys.executable}: "
            'pip install "clover-inference[ray]" (or pip install ray)'
        ) from error


def connect(address: str, namespace: str) -> Any:
    """Return `ray`, connected to the cluster at `address` (HOST:PORT or auto).  ClusterError if nothing answers."""
    ray = require_ray()
    if ray.is_initialized():
        return ray
    if address != "auto":
        _check_port(address)
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ClusterError(f"no Ray cluster answers at {address}: {first}") from error
    return ray


def was_restarted() -> bool:
    """Return whether the actor that this process is was there before, so that Ray, and nobody who waits for it, has
    started it."""
    context = require_ray().get_runtime_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks an API of Ray's own that Ray deprecates
        return bool(context.was_current_actor_reconstructed)


def use_token(folder: Path, *, make: bool = False) -> None:
    """Have this process, and the Ray programs that it starts, use the token of the local Ray whose records are in
    `folder`, if it has one (`make`: make one).  Ray listens at the machine's address and takes code from whoever
    connects.  An environment that has Ray's own settings for it (RAY_AUTH_MODE) stays as it is.  To be called before
    `ray` is imported."""
    path = folder / "ray" / "token"
    if "RAY_AUTH_MODE" in os.environ:
        return
    if make and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, secrets.token_hex(32).encode())
    if path.exists():
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})


class LocalRay:
    """Ray nodes on this machine, whose records are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "ray"

    @property
    def address(self) -> str:
        """HOST:PORT of its head; empty if none was started, or it is gone."""
        try:
            address = (self._folder / "address").read_text(encoding="ascii").strip()
        except OSError:
            return ""
        return address if ServerProcess(self._folder / "head").find() is not None else ""

    def start(self, addresses: Sequence[str]) -> str:
        """Start what does not run yet: a head, and a Ray node at each of `addresses`; return the head's HOST:PORT.
        ClusterError if one does not start."""
        require_ray()
        address = self.address
        if not address:
            self.stop()
            address = self._start_head()
        for node_address in addresses:
            self._start_node(address, node_address)
        return address

    def _start_node(self, address: str, one: str) -> None:
        """Start a Ray node at an address, and wait until it has joined: several at once hinder each other."""
        process = ServerProcess(self._folder / one)
        command = self._command(f"--address={address}", f"--node-ip-address={one}")
        for _ in range(_ATTEMPTS):
            if process.find() is None:
                process.log.unlink(missing_ok=True)
                process.start(command, self._environment())
            if _joins(process):
                return
        raise ClusterError(f"the Ray node at {one} does not start ({process.last_words()}): see {process.log}")

    def stop(self) -> int:
        """End every Ray program that was started here, and return how many there were."""
        if not self._folder.is_dir():
            return 0
        # The head last: a Ray node that loses it first takes a minute to end.
        folders = sorted(self._folder.iterdir(), key=lambda folder: folder.name == "head")
        processes = [ServerProcess(folder) for folder in folders if folder.is_dir()]
        ended = sum(process.end() for process in processes)
        end_s = time.monotonic() + _STOP_S
        for process in processes:
            while process.find() is not None:
                if time.monotonic() > end_s:
                    process.end(kill=True)
                time.sleep(0.05)
        with contextlib.suppress(OSError):
            (self._folder / "address").unlink()
        return ended

    def _start_head(self) -> str:
        """Start a head, and wait until it is whole: its address answers before, and it may still end."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        head = ServerProcess(self._folder / "head")
        for _ in range(_ATTEMPTS):
            host, port = _own_address(), _free_port()
            # Ray binds sockets below this folder, and a socket's path has at most 107 bytes: so use a short folder.
            folder = tempfile.mkdtemp(prefix="clover-ray-")
            command = self._command("--head", f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={folder}")
            command += [f"--ray-client-server-port={_free_port()}", "--include-dashboard=false"]
            head.log.unlink(missing_ok=True)
            head.start(command, self._environment())
            if _joins(head):
                (self._folder / "address").write_text(f"{host}:{port}", encoding="ascii")
                return f"{host}:{port}"
        raise ClusterError(f"Ray's head does not start ({head.last_words()}): see {head.log}")

    def _command(self, *words: str) -> list[str]:
        return [
            *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words, "--block"),
            *("--num-cpus=1", "--num-gpus=0", f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats"),
        ]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **_QUIET}


def _joins(process: ServerProcess) -> bool:
    """Wait until a Ray program has joined; return False if it ended before, or was ended as it took too long."""
    end_s = time.monotonic() + _START_S
    while process.find() is not None:
        if process.says(_JOINED):
            return True
        if time.monotonic() > end_s:
            process.end(kill=True)
        time.sleep(0.1)
    return False


def _own_address() -> str:
    """Return the address of this machine as Ray has it, which it takes a loopback address for."""
    ray = require_ray()
    return str(ray.util.get_node_ip_address())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def _check_port(address: str) -> None:
    """Raise ClusterError if nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"--address {address!r} must read HOST:PORT, or auto for the Ray cluster of this machine")
    if not _answers(host.strip("[]"), int(port)):
        raise ClusterError(f"nothing listens at {address}: start Ray there (ray start --head), or leave --address out")
