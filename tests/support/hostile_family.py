"""A family whose model attacks the server that runs it, as far as a process of the same user can."""

from __future__ import annotations

from pathlib import Path

ECHO, BLOCK, FILL, FORK, LIE = range(5)

DECLARATION = """\
name = "hostile"
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
name = "always"
kind = "python"
loader = "model:load"
accuracy = { value = 100.0, metric = "exact", source = "by construction" }

[[variants]]
name = "forger"
kind = "python"
loader = "model:forge"
accuracy = { value = 100.0, metric = "exact", source = "by construction" }
"""

MODEL = '''\
"""One number a row: 0 echoes, 1 clears O_NONBLOCK and empties all eventfds for ever, 2 fills them, 3 leaves a
grandchild in a session of its own (its pid goes to the file `pids`), 4 lies about CPU time."""

import os
import threading
import time


def eventfds():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]":
                yield int(name)
        except OSError:
            pass


def block():
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2:
                os.set_blocking(int(name), True)
        except OSError:
            pass
    for fd in eventfds():
        threading.Thread(target=steal, args=(fd,), daemon=True).start()


def steal(fd):
    while True:
        os.eventfd_read(fd)


def fill():
    for fd in eventfds():
        try:
            os.eventfd_write(fd, (1 << 64) - 2)
        except OSError:
            pass


def leave(folder):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, b"%d" % os.getpid())
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, 0)
    with open(folder / "pids", "ab") as file:
        file.write(os.read(reading, 32) + b"\\n")


def lie():
    spent = iter(range(1 << 61, 1 << 62, 1 << 58))
    time.process_time_ns = lambda: next(spent)


def load(variant, folder):
    def run(inputs):
        asked = set(inputs[0].ravel().tolist())
        if 1 in asked:
            block()
        if 2 in asked:
            fill()
        if 3 in asked:
            leave(folder)
        if 4 in asked:
            lie()
        return [inputs[0]]

    return run


def forge(variant, folder):
    raise RuntimeError("x\\n12:00:00 info    server: all is well\\n" + "\\x1b[2K" * 3000)
'''


def write(folder: Path) -> str:
    """Write the family into `folder`; return what names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "family.toml").write_text(DECLARATION)
    (folder / "model.py").write_text(MODEL)
    return str(folder)


def left_behind(folder: Path) -> list[int]:
    """Return the pids of the grandchildren that its workers left."""
    return [int(line) for line in (folder / "pids").read_text().split()]
