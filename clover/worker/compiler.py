"""The compiling process: `python -m clover.worker.compiler` reads one order (JSON, one line) and compiles it.

It ends with its parent: the order comes by standard input, which the parent leaves open; at its end this process and
all that it started (the C++ compiler included) are killed.  The reason of a failure is written to standard output as
one line.

To compile a variant, its family's code runs.  It does so in a fork of this process, confined as workers are
(`clover.worker.sandbox`), which may write to the folder of the unfinished artifact and to its family's cache of the
compiler, and start programs.  This process runs nothing of the family's: it keeps the lock, ends what the fork left
behind, checks what it made, and puts that in its place (`clover.backends.artifacts.build`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path

import msgspec
from msgspec import structs

from clover import backends
from clover.backends.artifacts import CompileOrder, Compiler, build
from clover.backends.quantised import starts_from
from clover.backends.targets import CPU, Target
from clover.errors import ProfileError
from clover.types import FamilySpec, VariantSpec
from clover.worker import orphans, sandbox
from clover.worker.frames import WorkerOrder

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_REASON_BYTES = 1000


_ending = threading.Event()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    _ending.set()
    end_descendants()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def end_descendants() -> None:
    """Kill every process that this one started, and those that these started: it adopts them as their parents end."""
    while children := orphans.children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):  # the main thread waited for it
                os.waitpid(pid, 0)


def _leave_mode(path: object, mode: int, **options: object) -> None:
    """Stand for `os.chmod`, which the sandbox refuses: it cannot tell whose file a path leads to."""


def close_all_but(kept: int) -> None:
    """Close every descriptor of this process but the three standard ones and `kept`."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)


class ConfinedCompiler:
    """A backend whose compilations run in a fork of this process, confined as `order` says; `needed` is the folder of
    an artifact that they start from, empty if they need none."""

    def __init__(self, backend: Compiler, order: CompileOrder, needed: str = "") -> None:
        self._backend = backend
        self._order = order
        self._needed = needed

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write the artifact into `folder`; raises ProfileError with what the fork said, or how it ended."""
        reason = os.memfd_create("reason", os.MFD_CLOEXEC)
        child = os.fork()
        if not child:
            status = 1
            try:
                self._confine(family, variant, folder, reason)
                self._backend.compile(family, variant, folder, threads, target)
                status = 0
            except BaseException as error:
                traceback.print_exc()
                text = " ".join(str(error).split()) + sandbox.hint(self._worker_order(family, variant, folder), error)
                os.write(reason, f"{type(error).__name__}: {text}".encode()[:_REASON_BYTES])
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        end_descendants()
        said = os.pread(reason, _REASON_BYTES, 0).decode("utf-8", "replace")
        os.close(reason)
        if status:
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise ProfileError(said or f"the compiling process was {how}")

    def _confine(self, family: FamilySpec, variant: VariantSpec, folder: Path, reason: int) -> None:
        """Give up, in the fork, all that a compilation needs no more, and end with the process that forked it.  Of its
        descriptors `reason` stays, and what it prints to."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # it is the server's end of a pipe
        os.close(nothing)
        # The locks of the artifact and of the GPU are among them, which the family's code could drop, and the server's
        # end of the answers.
        close_all_but(reason)
        if sandbox.confine(self._worker_order(family, variant, folder)):
            os.chmod = _leave_mode  # torch's compiler sets the modes of what it made, which need none

    def _worker_order(self, family: FamilySpec, variant: VariantSpec, folder: Path) -> WorkerOrder:
        """Return the order of a worker with the sandbox of a compilation."""
        wanted = self._order.sandbox
        if wanted is not None:
            # The compiler's cache comes first: temporary files go there, too.
            caches = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
            write = tuple(path for path in (caches, str(folder), *wanted.write) if path)
            wanted = structs.replace(wanted, write=write, processes=True)
        return WorkerOrder(
            family=family,
            variant=variant.name,
            backend=self._order.backend,
            artifact_dir=self._needed,
            cores=(),
            max_batch=family.max_batch,
            visible_devices=self._order.target.visible,
            sandbox=wanted,
        )


def compile_apart(order: CompileOrder) -> None:
    """Compile an order, and what it starts from, each in a confined fork; raises what `build` raises."""
    backend = backends.get(order.backend)
    needed = starts_from(order)
    if needed is not None:
        compile_apart(needed)
    build(ConfinedCompiler(backend, order, needed.folder if needed is not None else ""), order)


def main() -> int:
    """Compile one order; return 0 if the artifact is complete."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            return 1
        line += piece
    order = msgspec.json.decode(line, type=CompileOrder)
    orphans.adopt()
    threading.Thread(target=_watch, daemon=True).start()
    os.nice(10)
    os.environ["CUDA_VISIBLE_DEVICES"] = order.target.visible  # the slice it is for, and no other
    answers = os.dup(1)
    os.dup2(2, 1)  # compilers print on standard output
    try:
        compile_apart(order)
    except Exception as error:
        if _ending.is_set():  # it killed what failed; to end first would leave the rest of what was started
            threading.Event().wait()
        traceback.print_exc()
        reason = " ".join(str(error).split())[:_REASON_BYTES]
        kind = "" if isinstance(error, ProfileError) else f"{type(error).__name__}: "
        os.write(answers, f"{kind}{reason}".encode())
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the watching thread still reads standard input, which would hold up a normal exit
