"""A server as a pod or a unit has it: another user without rights, and nothing to write to but its own folders.

That is a mount namespace of its own in which the whole file system is read-only, and a user that may gain no rights
(util-linux: unshare, setpriv).  The network is the machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.support.servers import ROOT

USER = 10001
"""The user of the image."""


@cache
def missing() -> str:
    """Return why there can be no sandbox here; nothing if there can."""
    if os.geteuid() != 0:
        return "a read-only root is made by root"
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return "needs unshare and setpriv (util-linux)"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-o", "remount,bind,ro", "/"], capture_output=True, check=False, timeout=30
    )
    if tried.returncode:
        return "this machine lets no file system be mounted"
    closed = [path for path in (ROOT, *ROOT.parents) if not stat.S_IMODE(path.stat().st_mode) & stat.S_IXOTH]
    return f"{closed[-1]} lets no other user in" if closed else ""


def _opened(path: str) -> list[str]:
    """Return commands that let other users reach `path` within the namespace: a folder above it that does not is
    replaced by an empty one that holds `path` alone."""
    target = Path(path)
    closed = [one for one in target.parents if not stat.S_IMODE(one.stat().st_mode) & stat.S_IXOTH]
    if not closed:
        return []
    above = shlex.quote(str(closed[-1]))
    there = shlex.quote(path)
    return [
        f"mount --bind {there} /mnt",
        f"mount -t tmpfs -o mode=755 none {above}",
        f"mkdir -p {there}",
        f"mount --move /mnt {there}",
    ]


def start(
    folders: Mapping[str, Path], command: Sequence[str], *, first: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start `command` in the sandbox, in a session of its own.  `folders`: what it may write to, by where that is, as
    mount points that exist already; `first` runs before them, with the folders' parents still to be written to."""
    drop = f"setpriv --reuid={USER} --regid={USER} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    drop += " env -i " + " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
    lines = ["set -e", "mount --make-rprivate /", *_opened(str(Path(sys.base_prefix).resolve()))]
    lines += [f"{drop} {shlex.join(first)}"] if first else []
    lines += [f"mount --bind {shlex.quote(str(path))} {shlex.quote(place)}" for place, path in folders.items()]
    lines += ["mount -o remount,bind,ro /", "cd /", f"exec {drop} {shlex.join(command)}"]
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
