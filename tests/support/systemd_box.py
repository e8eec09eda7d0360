"""A machine of its own for the units: systemd as process 1 of new namespaces, on an overlay of this machine's files.

Nothing of this machine is changed: files go to the overlay, processes are in a control group that is ended as a whole.
It wants root, a control group of version 2 that can be written to, and a file system that an overlay may lie on.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec

from tests.support import units
from tests.support.servers import ROOT

SYSTEMD = Path("/usr/lib/systemd/systemd")
LOG = "var/log/clover.log"


def _group() -> Path | None:
    """Return the control group of version 2 that this process is in; None if there is none."""
    own = [
        line.split(":", 2)[2].strip()
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line[:3] == "0::"
    ]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if own and fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4] + own[0].rstrip("/"))
    return None


@cache
def missing() -> str:
    """Return why systemd cannot be started here; nothing if it can be tried."""
    if os.geteuid() != 0:
        return "a machine of its own is made by root"
    if not SYSTEMD.exists() or not all(map(shutil.which, ("unshare", "nsenter", "pivot_root", "systemctl"))):
        return "needs systemd and util-linux"
    group = _group()
    try:
        if group is None:
            return "there is no control group of version 2"
        probe = group / f"clover-probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"control groups cannot be made here: {error.strerror}"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in ("upper", "work", "root"):
            (Path(folder) / name).mkdir()
        options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, f"{folder}/root"],
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
    return "no overlay may lie on /var/tmp, as in containers" if tried.returncode else ""


class SystemdBox:
    """A running systemd.  `root` is what its processes see as /, from here as far as it lies in the overlay."""

    def __init__(self, pid: int, upper: Path) -> None:
        self.pid = pid
        self.upper = upper

    def run(self, *words: str) -> str:
        """Run a command in it and return what it printed; AssertionError with that if it fails."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        lines = self.run("systemctl", "show", unit, "-p", ",".join(names)).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def log(self) -> str:
        """Return what the servers logged."""
        with contextlib.suppress(OSError):
            return (self.upper / LOG).read_text(errors="replace")[-3000:]
        return ""


def _script(place: Path, files: Mapping[str, str], wanted: str) -> str:
    """Return the commands that make the machine's files and become its systemd."""
    root = shlex.quote(str(place / "root"))
    packages = str(Path(msgspec.__file__).resolve().parents[1])
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    lines = [
        "set -e",
        "mount --make-rprivate /",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {root}",
        f"cd {root}",
        "mount -t proc proc proc",
        "mount --rbind /sys sys",
        "umount -l sys/fs/cgroup",
        "mount -t cgroup2 none sys/fs/cgroup",
        "mount -t tmpfs -o mode=755 none run",
        "mount -t tmpfs -o mode=1777 none tmp",
        "mount -t tmpfs -o mode=755 none dev",
        "for n in null zero full random urandom tty; do touch dev/$n; mount --bind /dev/$n dev/$n; done",
        "mkdir dev/pts dev/shm && mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666",
        "mount -t tmpfs none dev/shm && ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd",
        "mkdir -p opt/src opt/py opt/site opt/clover/bin etc/clover var/log",
        f"mount --bind {shlex.quote(str(ROOT))} opt/src",
        f"mount --bind {shlex.quote(str(Path(sys.base_prefix).resolve()))} opt/py",
        f"mount --bind {shlex.quote(packages)} opt/site",
        f"printf '#!/bin/sh\\nexec /opt/py/bin/{python} \"$@\"\\n' > .{units.PYTHON}",
        f"chmod 755 .{units.PYTHON}",
    ]
    for path, text in files.items():
        lines.append(f"mkdir -p {shlex.quote(str(Path(path).parent))}")
        lines.append(f"printf %s {shlex.quote(text)} > {shlex.quote(path)}")
    lines += [
        "chmod 600 etc/clover/token",
        "chroot . systemd-sysusers",
        "mkdir -p .old && pivot_root . .old && umount -l /.old",
        "mount --make-rshared /",  # as systemd finds it on a machine: mounts of credentials are to be seen by units
        "export container=other",
        f"exec {SYSTEMD} --system --unit={wanted} --log-target=console --show-status=0 < /dev/null",
    ]
    return "\n".join(lines)


def _files(configs: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the files of a machine with the units, and with settings in `etc/clover` by their names."""
    # What the machine lacks is taken out of the units: the network's target, the journal.
    own = "[Unit]\nDefaultDependencies=no\nAfter=\nWants=\n[Service]\n"
    own += f"StandardOutput=append:/{LOG}\nStandardError=append:/{LOG}\n"
    found = {f"etc/systemd/system/{name}": (units.FOLDER / name).read_text(encoding="utf-8") for name in units.UNITS}
    found |= {f"etc/systemd/system/{name}.d/box.conf": own for name in units.UNITS}
    found["usr/lib/sysusers.d/clover.conf"] = (units.FOLDER / "clover.sysusers").read_text(encoding="utf-8")
    found["etc/clover/env"] = "PYTHONPATH=/opt/src:/opt/site\nLD_LIBRARY_PATH=/opt/py/lib\n"
    found["etc/clover/token"] = f"{token}\n"
    named = " ".join("clover.service" if name == "config" else f"clover@{name}.service" for name in configs)
    found["etc/systemd/system/box.target"] = f"[Unit]\nRequires={named}\nAfter={named}\nAllowIsolate=yes\n"
    return found | {f"etc/clover/{name}.toml": text for name, text in configs.items()}


@contextmanager
def booted(place: Path, configs: Mapping[str, str], token: str) -> Iterator[SystemdBox]:
    """Start systemd with a server for each of `configs`: "config" is that of clover.service, others of clover@NAME."""
    group = _group()
    assert group is not None
    own = group / f"clover-box-{os.getpid()}"
    own.mkdir()
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    enter = f"echo $$ > {own}/cgroup.procs; exec unshare -C -m -p -f -u -i sh -c {{}}"
    script = enter.format(shlex.quote(_script(place, _files(configs, token), "box.target")))
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield SystemdBox(_child(process), place / "upper")
    finally:
        (own / "cgroup.kill").write_text("1")
        process.communicate()
        for folder in sorted(own.rglob("*"), key=lambda path: -len(path.parts)):
            if folder.is_dir():
                _removed(folder)
        _removed(own)


def _child(process: subprocess.Popen[str]) -> int:
    """Return the process id of systemd as seen from here, once it is there."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"no systemd: {process.stdout.read() if process.stdout else ''}")
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return int(pid)
        time.sleep(0.05)
    raise AssertionError("systemd did not start in time")


def _removed(folder: Path) -> None:
    """Remove a control group, whose last process may still be ending."""
    end = time.monotonic() + 10.0
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
