"""The worker process: one variant on one instance.  Forked by the zygote, never imported by the server.

Life: pin, harden, say "loading", load, say "warming", run batches of several sizes, say "ready", then turn: take a
batch from the ring, gather its rows, run, scatter, complete (`worker.loop`).  Told to exit, the worker answers what is
in its ring first.

On an emulated slice (`clover.worker.pacing`) it attaches to the slice before it says anything, so that the instance
cannot be destroyed under it, and hands batches back at the slice's pace.  Where its GPU is lost it says so and ends.

It dies with the server in any state, mid-batch included: its lifeline is a pipe that only the server holds open, and
the kernel is asked to send SIGKILL when that pipe hangs up.  (PR_SET_PDEATHSIG would follow the zygote's life instead,
and a zygote that dies should not take down workers that serve.)  The end of the control socket ends it as well.

Workers end by frame, by the server's end, or by SIGKILL: a terminal or a service manager signals the whole group, while
the server still wants its answers.  So SIGINT and SIGHUP are ignored; SIGTERM is passed on to the server, which drains
this worker once another is in its place, unless it is stopping itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import io
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from clover import backends
from clover._native.ring import RING_BYTES, Ring
from clover.backends.tensors import example_inputs
from clover.errors import DeviceError, WorkerError
from clover.runtime.memory.slab import Layout, Slab, map_shared
from clover.worker import frames, pacing, pinned
from clover.worker.batches import Batches
from clover.worker.loop import ParentGone, Run, Scores, WorkerLoop, say

_log = logging.getLogger("clover.worker")

WARM_S = 0.012
"""Seconds that warming on CPU cores may take, as far as what a row took so far tells.  A size that comes first later
takes a few milliseconds more, once, and the larger it is the less that matters; a swap would wait for all of them."""

WARM_GPU_S = 0.25
"""The same on a GPU, whose libraries look for a kernel for each size; powers of two are visited in any case there."""

_ENDING_NICE = 10

_PR_SET_NO_NEW_PRIVS = 38
_SETSIG = 10  # fcntl.F_SETSIG is missing from Python's fcntl
_REASON_CHARS = 2000


def main(spawn: frames.Spawn, fds: tuple[int, ...]) -> int:
    """Run a worker in this (forked) process; its exit status.  Takes over `fds` (see `frames.SPAWN_FDS`)."""
    order = spawn.order
    control_fd, slab_fd, ring_fd, doorbell, completions, lifeline, output = fds
    _print_to(output)
    control = socket.socket(fileno=control_fd)
    try:
        _tie_to_server(lifeline)
        _pass_on_sigterm(control)
        everywhere = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, order.cores)
            _yield(order)
            _harden(order)
            held = pacing.HeldSlice.attach(order.emulated, order.max_batch) if order.emulated is not None else None
            say(control, frames.WorkerState(state="loading", fork_ms=_ms_since(spawn.begun_ns)))
            slab = Slab.attach(slab_fd, Layout(order.family, spawn.slots))
            batches = Batches(slab)
            ring = Ring(map_shared(ring_fd, RING_BYTES(order.max_batch)), order.max_batch)
            os.close(ring_fd)
            with _within_its_memory(order):
                run, load_ms = _load(order)
                pinned.pin(slab, batches, order.max_batch)
                scores = Scores.of(order, slab)
                say(control, frames.WorkerState(state="warming", load_ms=load_ms))
                warm_ms = _warm(order, run, batches, scores)
        except Exception as error:
            _log.exception("%s does not start", order.variant)
            say(control, frames.WorkerState(state="failed", text=_reason(error)))
            return 1
        gc.collect()
        gc.freeze()
        say(control, frames.WorkerState(state="ready", load_ms=load_ms, warm_ms=warm_ms))
        try:
            WorkerLoop(control, batches, ring, run, doorbell, completions, order.max_batch, held, scores).forever()
            _step_aside(order, everywhere)
        except DeviceError as error:
            text = f"{order.place or 'its slice'} is gone: {error}"
            _log.error("%s on %s", order.variant, text)
            say(control, frames.WorkerState(state="failed", text=text, device_lost=True))
            return 1
        except WorkerError as error:
            _log.error("%s on %s ends: %s", order.variant, order.place or "its cores", error)
            say(control, frames.WorkerState(state="failed", text=_reason(error)))
            return 1
    except ParentGone:
        return 0
    return 0


# --- starting ---------------------------------------------------------------------------------------------------------


def _tie_to_server(lifeline: int) -> None:
    """SIGKILL for this process once the server's end of the lifeline closes."""
    # A descriptor that was passed shares its open file, and with it the one owner of signals: open the pipe anew.
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(lifeline)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, _SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(own, 0)
    if poller.poll(0):
        raise ParentGone  # it hung up before we asked


def _print_to(output: int) -> None:
    """From here on, what this process prints goes to the server (`runtime.workers.output`), line by line."""
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # or its last words would be lost when it is killed


def _pass_on_sigterm(control: socket.socket) -> None:
    """From the first SIGTERM on, have the server know that somebody asked this process to end."""
    own = os.getpid()
    told = False

    def asked(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if os.getpid() != own:  # a child that the model forked: no worker
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif not told:
            told = True
            with contextlib.suppress(OSError):  # the server is gone: so will this process be
                frames.send(control, frames.EndAsked())

    signal.signal(signal.SIGTERM, asked)
    signal.siginterrupt(signal.SIGTERM, False)  # what a model waits for in C goes on


def _yield(order: frames.WorkerOrder) -> None:
    """Where worker and front end share a core, let the front end finish its turn before this process wakes up: it rings
    in the middle of one, and what else it has read then shares the batch.  A slice of a GPU is fed at once, and an
    emulated one keeps to its pace."""
    ours = os.sched_getscheduler(0) == os.SCHED_OTHER  # and nobody has chosen another policy
    if ours and _on_cores(order):
        with contextlib.suppress(OSError):  # a sandbox may not know of it, and nothing but time depends on it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _step_aside(order: frames.WorkerOrder, everywhere: set[int]) -> None:
    """What is left is to end.  The kernel takes ten milliseconds to unmap all that this process shares, and who comes
    after it has the same cores and clients that wait: end beside them, on other cores of the server's if it has any.
    Not at the lowest priority: the zygote forks under locks that an end takes too."""
    if _on_cores(order):
        with contextlib.suppress(OSError):
            os.nice(_ENDING_NICE)
            os.sched_setaffinity(0, everywhere.difference(order.cores) or everywhere)


def _on_cores(order: frames.WorkerOrder) -> bool:
    """Return whether it serves a core-set, and not a slice of a GPU, emulated or not."""
    return order.emulated is None and not order.visible_devices


def _harden(order: frames.WorkerOrder) -> None:
    """No new privileges, no core dumps, no GPUs but its own; the limits it was given."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (order.memory_bytes, order.memory_bytes))
    os.environ["CUDA_VISIBLE_DEVICES"] = order.visible_devices
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(f"clover:{order.variant}"[:15])
    faulthandler.enable()


@contextlib.contextmanager
def _within_its_memory(order: frames.WorkerOrder) -> Iterator[None]:
    """From here on an emulated slice's memory bounds this process; a model that finds no room in it is told apart."""
    if order.emulated is None:
        yield
        return
    pacing.limit_memory(order.emulated.memory_bytes)
    try:
        yield
    except Exception as error:
        if pacing.out_of_memory(error):
            raise pacing.misfit(order.variant, order.place, order.emulated.memory_bytes) from error
        raise


def _load(order: frames.WorkerOrder) -> tuple[Run, float]:
    import torch

    torch.set_num_threads(order.threads)
    torch.set_num_interop_threads(1)
    start_ns = time.monotonic_ns()
    variant = order.family.variant(order.variant)
    device = backends.device_for(order.visible_devices)
    run = backends.get(order.backend).load(order.family, variant, Path(order.artifact_dir), order.threads, device)
    return run, _ms_since(start_ns)


def _warm(order: frames.WorkerOrder, run: Run, batches: Batches, scores: Scores | None) -> float:
    """Run batch sizes once on zeros, powers of two and the largest first, then the others.

    Frameworks prepare kernels per shape: the first batch of a size would take longer.  This also finds a module whose
    answers do not match the family's declaration, and, where memory is limited, one that finds no room for the largest
    batch.  Plain Python may well refuse zeros or empty strings, and has nothing to prepare: its failure here is only
    logged.  On an emulated slice the pace hides what a size costs first, and dozens of workers start at once: powers of
    two suffice.
    """
    start_ns = time.monotonic_ns()
    inputs = example_inputs(order.family, order.max_batch)
    row_ms = 0.0
    for size, until_ms in _sizes(order):
        begin_ms = _ms_since(start_ns)
        if begin_ms + row_ms * size > until_ms:
            continue
        try:
            answers = run([array[:size] for array in inputs])
            batches.check(size, answers)
            if scores is not None:
                scores.score(answers)
            if size > 1:  # the very first run is slow and tells little
                row_ms = (_ms_since(start_ns) - begin_ms) / size
        except Exception as error:
            if order.family.variant(order.variant).kind == "torch":
                raise
            _log.info("%s does not take zeros: %s", order.variant, _reason(error))
            break
    return _ms_since(start_ns)


def _sizes(order: frames.WorkerOrder) -> Iterator[tuple[int, float]]:
    """Batch sizes to warm, and how many milliseconds after the start each has to be done."""
    most = order.max_batch
    powers = sorted({1 << power for power in range(most.bit_length())} | {most})
    on_gpu = bool(order.visible_devices)
    limited = order.emulated is not None or order.memory_bytes > 0
    for size in powers:
        # Two rows in any case: a module that mixes up its batch axis shows it then, and not under load.
        yield size, math.inf if on_gpu or limited or size <= 2 else WARM_S * 1e3
    if order.emulated is None:
        for size in range(most, 0, -1):
            if size not in powers:
                yield size, (WARM_GPU_S if on_gpu else WARM_S) * 1e3


def _reason(error: BaseException) -> str:
    causes: list[str] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 4:
        causes.append(f"{type(current).__name__}: {current}")
        current = current.__cause__
    return "; because ".join(causes)[:_REASON_CHARS]


def _ms_since(start_ns: int) -> float:
    return (time.monotonic_ns() - start_ns) / 1e6
