"""A family whose model tries, row by row, what a process may do to others of its user: each answer is an errno."""

from __future__ import annotations

import json
from pathlib import Path

DECLARATION = """\
name = "breakout"
max_batch = 4

[[inputs]]
name = "INPUT0"
datatype = "INT32"
shape = [1]

[[outputs]]
name = "OUTPUT0"
datatype = "INT32"
shape = [1]

[[variants]]
name = "tries"
kind = "python"
loader = "model:load"
accuracy = { value = 100.0, metric = "exact", source = "by construction" }
"""

MODEL = '''\
"""The number in a row chooses an attempt; the answer is 0 if it worked, else why it did not."""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import threading

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    found = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def write(path):
    with open(path, "ab") as file:
        file.write(b"x")


def change_mode(path):
    if libc.chmod(path.encode(), 0o600):  # `os.chmod` does nothing while a family is compiled
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def connect(path):
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(path)


def datagram():
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def pair():
    for end in socket.socketpair():
        end.close()


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def thread():
    one = threading.Thread(target=int)
    one.start()
    one.join()


def trace(pid):
    call(101 if os.uname().machine == "x86_64" else 117, 16, pid, 0, 0)  # PTRACE_ATTACH
    os.waitpid(pid, 0)
    call(101 if os.uname().machine == "x86_64" else 117, 17, pid, 0, 0)


def attach(segment):
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(segment, None, 0)
    if at == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    libc.shmdt(ctypes.c_void_p(at))


def own_signals():
    own, other = os.pipe()
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())


def inject():
    fcntl.ioctl(0, 0x5412, b"x")


def command(path, number, argument):
    own = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(own, number, argument)
    finally:
        os.close(own)


def pipe_of(size):
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, size)
    finally:
        for end in ends:
            os.close(end)


def watch(path):
    own = libc.inotify_init1(0)
    try:
        if own < 0 or libc.inotify_add_watch(own, path.encode(), 0x100) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        if own >= 0:
            os.close(own)


def memory_file(size):
    own = os.memfd_create("scratch")
    try:
        os.ftruncate(own, size)
    finally:
        os.close(own)


def capability():
    with open("/proc/self/status") as file:
        held = dict(line.split(":\t") for line in file if line.startswith("Cap"))
    if not any(int(held[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")):
        raise PermissionError(errno.EPERM, "none")


def raise_limit():
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
    except ValueError as error:
        raise PermissionError(errno.EPERM, "raised") from error


def load(variant, folder):
    at = json.loads((folder / "targets.json").read_text())
    server, zygote = at["server"], os.getppid()
    x86 = os.uname().machine == "x86_64"
    attempts = {
        "read the token": lambda: read(at["token"]),
        "read the token by another way": lambda: read("/proc/self/root" + at["token"]),
        "read the ledger": lambda: read(at["ledger"]),
        "list the home folder": lambda: os.listdir(at["home"]),
        "read the server's environment": lambda: read(f"/proc/{server}/environ"),
        "read the server's memory": lambda: os.close(os.open(f"/proc/{server}/mem", os.O_RDONLY)),
        "write in the cache": lambda: write(at["cache"] + "/artifact"),
        "make a file in the cache": lambda: write(at["cache"] + "/other"),
        "remove a file of the cache": lambda: os.unlink(at["cache"] + "/removable"),
        "write in its own folder": lambda: write(folder / "model.py"),
        "write in /tmp": lambda: write(at["tmp"] + "/other"),
        "change a mode": lambda: change_mode(at["token"]),
        "truncate a file": lambda: os.truncate(at["cache"] + "/artifact", 0),
        "open a socket": lambda: socket.socket().close(),
        "connect to the control socket": lambda: connect(at["control"]),
        "make sockets for any address": datagram,
        "use io_uring": lambda: call(425, 1, 0),
        "signal the server": lambda: os.kill(server, 0),
        "signal the zygote": lambda: os.kill(zygote, 0),
        "signal everybody": lambda: os.kill(0, 0),
        "open the server's pidfd": lambda: os.close(os.pidfd_open(server)),
        "trace the zygote": lambda: trace(zygote),
        "change the server's limits": lambda: resource.prlimit(server, resource.RLIMIT_CORE),
        "move the server to a core": lambda: os.sched_setaffinity(server, os.sched_getaffinity(server)),
        "change the server's priority": lambda: os.setpriority(os.PRIO_PROCESS, server, os.getpriority(0, server)),
        "have others signalled": own_signals,
        "type for the user": inject,
        "reach shared memory of another program": lambda: attach(at["segment"]),
        "remove shared memory of another program": lambda: call(31 if x86 else 195, at["segment"], 0, 0),
        "lease its own file": lambda: command(folder / "data.py", 1024, fcntl.F_WRLCK),
        "be signalled as a folder changes": lambda: command(folder, 1026, 4),
        "take more memory for a pipe": lambda: pipe_of(1 << 20),
        "watch the home folder": lambda: watch(at["home"]),
        "hold memory in a file": lambda: memory_file(3 << 30),
        "hold memory in a secret file": lambda: os.close(call(447, 0)),
        "move itself to a core": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "choose a policy": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        "run before all others": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "raise its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1),
        "raise a limit of its own": raise_limit,
        "hold a capability": capability,
        "fork": fork,
        "enter another namespace": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0),
    }
    allowed = {
        "read its own folder": lambda: read(folder / "model.py"),
        "read what is installed": lambda: read(os.__file__),
        "read about itself": lambda: read("/proc/self/status"),
        "read about the machine": lambda: read("/proc/meminfo"),
        "write nowhere": lambda: write("/dev/null"),
        "start a thread": thread,
        "make a pair of sockets": pair,
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "lower its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)),
        "ask for its cores": lambda: os.sched_getaffinity(0),
    }
    every = [*attempts.values(), *allowed.values()]

    def run(inputs):
        found = []
        for row in inputs[0].ravel().tolist():
            try:
                every[row]()
                found.append(0)
            except OSError as error:
                found.append(error.errno)
        answer = inputs[0].copy()
        answer.ravel()[:] = found
        return [answer]

    run.names = [*attempts, *allowed]
    return run
'''


DATA = '''\
"""Evaluation rows whose labels are what the attempts came to, and a metric that is an attempt a row."""

import numpy as np

from . import model


def load(folder, split):
    numbers = np.arange(len(model.load(None, folder).names), dtype=np.int32)[:, None]
    return [numbers], model.load(None, folder)([numbers])[0].ravel()


def judge(outputs, labels):
    from pathlib import Path

    return model.load(None, Path(__file__).parent)([labels])[0].ravel() / 1000
'''

EVALUATION = """
[evaluation]
loader = "data:load"
metric = "data:judge"
"""


def names() -> tuple[list[str], list[str]]:
    """Return what the model tries by its number in a row: what it may not do, then what it may."""
    refused, allowed = (
        [line.split('"')[1] for line in part.splitlines() if line.startswith('        "')]
        for part in MODEL.partition("attempts = {")[2].split("allowed = {")
    )
    return refused, allowed


def write(folder: Path, **targets: str | int) -> str:
    """Write the family into `folder`, with what it is to reach for; return what names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "family.toml").write_text(DECLARATION + EVALUATION)
    (folder / "data.py").write_text(DATA)
    (folder / "model.py").write_text(MODEL)
    (folder / "targets.json").write_text(json.dumps(targets))
    return str(folder)
