"""The worker process: the variants of one order on one instance.  Forked by the zygote, never imported by the server.

Life: pin to cores, harden, confine itself (`worker.sandbox`), report "loading", load the first variant, report
"warming", run batches of several sizes, load and warm the others that fit (`worker.residents`), report "ready" and what
is held, then serve batches (`worker.loop`).  When the server says EXIT, the worker first answers what is in its ring.

On an emulated slice (`clover.emulation.pacing`) it attaches to the slice before it reports anything, so that the
instance cannot be destroyed meanwhile, and completes batches at the slice's pace.  If its GPU is lost, it reports that
and ends.

It dies with the server in any state, mid-batch included: its lifeline is a pipe that only the server holds open, and
the kernel is asked to send SIGKILL when that pipe hangs up.  (PR_SET_PDEATHSIG would follow the zygote's life instead,
and a zygote that dies should not take down workers that serve.)  The end of the control socket ends it as well.

Workers end by an EXIT frame, by the server's end, or by SIGKILL.  A terminal or a service manager signals the whole
process group while the server still needs its workers, so SIGINT and SIGHUP are ignored; SIGTERM is passed on to the
server, which drains this worker once another is in its place, unless it is stopping itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import io
import logging
import os
import resource
import signal
import socket
import sys
from functools import partial
from types import FrameType

from clover._native.ring import RING_BYTES, Ring
from clover.errors import DeviceError, WorkerError
from clover.runtime.memory.slab import Layout, Slab, map_shared
from clover.worker import cuda_driver, frames, lifeline, oom_score, orphans, sandbox
from clover.worker.batches import Batches
from clover.worker.loop import ParentGone, Scores, ServerChannel, WorkerLoop, send_state
from clover.worker.pipelined import PipelinedLoop
from clover.worker.residents import ResidentSet, checked_files, ms_since, reason_of

_log = logging.getLogger("clover.worker")

PACING = "clover.emulation.pacing"
"""What plays an emulated slice, of a wing; imported by workers on one alone."""

_PR_SET_NO_NEW_PRIVS = 38


def main(spawn: frames.Spawn, fds: tuple[int, ...]) -> int:
    """Run a worker in this (forked) process and return its exit status.  Takes over `fds` (see `frames.SPAWN_FDS`)."""
    order = spawn.order
    control_fd, slab_fd, ring_fd, doorbell, completions, tied, output = fds
    _print_to(output)
    control = socket.socket(fileno=control_fd)
    try:
        if not lifeline.tie(tied):
            raise ParentGone  # it hung up before we asked
        _pass_on_sigterm(control, doorbell)
        residents = None
        try:
            os.sched_setaffinity(0, order.cores)
            _yield(order)
            _harden(order)
            pacing = None if order.emulated is None else importlib.import_module(PACING)
            held = None if pacing is None else pacing.HeldSlice.attach(order, partial(_report_overruns, control))
            slab = Slab.attach(slab_fd, Layout(order.family, spawn.slots))
            batches = Batches(slab)
            also = () if _on_cores(order) or held is not None else (Batches(slab),)  # of a second batch in flight
            shared = map_shared(ring_fd, RING_BYTES(order.max_batch))
            ring = Ring(shared, order.max_batch, lanes=order.lanes)
            os.close(ring_fd)
            confined = sandbox.confine(order)  # before the first line of the family's code
            send_state(control, frames.WorkerState(state="loading", fork_ms=ms_since(spawn.begun_ns), sandbox=confined))
            files = checked_files(order)
            residents = ResidentSet(order, slab)
            with contextlib.nullcontext() if pacing is None else pacing.within_its_memory(order):
                load_ms = residents.load_first()
                cuda_driver.pin((batches, *also), order.max_batch)
                scores = Scores.from_order(order, slab)
                send_state(control, frames.WorkerState(state="warming", load_ms=load_ms))
                residents.warm_first(batches, scores)
                residents.add_others(batches, scores)
            if files is not None:
                files.check_unchanged()
        except (Exception, SystemExit) as error:
            _log.exception("%s does not start", order.variant)
            left_out = residents.left_out if residents is not None else {}
            text = reason_of(error) + sandbox.hint(order, error)
            send_state(control, frames.WorkerState(state="failed", text=text, left_out=left_out))
            return 1
        gc.collect()
        gc.freeze()
        send_state(control, residents.state())
        try:
            channel = ServerChannel(control, ring, doorbell, completions)
            lanes = residents.lanes if held is None else held.paced(residents.lanes)
            if any(lane is not None and lane.overlap is not None for lane in lanes):
                PipelinedLoop(channel, (batches, *also), lanes, order.max_batch, scores).run()
            else:
                WorkerLoop(channel, batches, lanes, order.max_batch, scores).run()
        except DeviceError as error:
            text = f"{order.place or 'its slice'} is gone: {error}"
            _log.error("%s on %s", order.variant, text)
            send_state(control, frames.WorkerState(state="failed", text=text, device_lost=True))
            return 1
        except WorkerError as error:
            _log.error("%s on %s ends: %s", order.variant, order.place or "its cores", error)
            send_state(control, frames.WorkerState(state="failed", text=reason_of(error)))
            return 1
    except ParentGone:
        return 0
    return 0


# --- starting ---------------------------------------------------------------------------------------------------------


def _print_to(output: int) -> None:
    """Send what this process prints to the server (`runtime.workers.output`) from now on, line by line."""
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # or its last words would be lost when it is killed


def _pass_on_sigterm(control: socket.socket, doorbell: int) -> None:
    """Report the first SIGTERM to the server instead of ending."""
    pid = os.getpid()
    reported = False

    def asked(number: int, frame: FrameType | None) -> None:
        nonlocal reported
        if os.getpid() != pid:  # in a child that the model forked: it is no worker
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif not reported:
            reported = True
            with contextlib.suppress(OSError):  # the server is gone, and this process will be soon
                frames.send(control, frames.EndAsked())

    signal.signal(signal.SIGTERM, asked)
    signal.siginterrupt(signal.SIGTERM, False)  # system calls of the model are not interrupted
    # A signal rings as well: the handler runs between two lines of Python, and a worker that is about to wait has none
    # before the next batch.
    rings = os.open(f"/proc/self/fd/{doorbell}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(rings, warn_on_full_buffer=False)


def _yield(order: frames.WorkerOrder) -> None:
    """Let a front end on the same core finish its turn before this process wakes up, by the policy SCHED_BATCH.

    The front end rings in the middle of a turn, and the rows that it reads in the rest of it then share the batch.  A
    slice of a GPU is fed at once, and an emulated one has its own pace."""
    ours = os.sched_getscheduler(0) == os.SCHED_OTHER  # the default: no other policy was chosen
    if ours and _on_cores(order):
        with contextlib.suppress(OSError):  # a sandbox may not allow it, and only latency depends on it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _on_cores(order: frames.WorkerOrder) -> bool:
    """Return whether it serves a set of CPU cores, rather than a slice of a GPU, emulated or not."""
    return order.emulated is None and not order.visible_devices


def _harden(order: frames.WorkerOrder) -> None:
    """Give up new privileges, core dumps and all GPUs but its own; set the limits of its order.  On a GPU, CUDA is
    started first (`cuda_driver.start` says why).

    What the model forks stays below this process until it ends, and is ended by the zygote then."""
    os.environ["CUDA_VISIBLE_DEVICES"] = order.visible_devices
    if order.visible_devices and (reason := cuda_driver.start()):
        _log.warning("CUDA does not start on %s: %s", order.visible_devices, reason)  # torch says it as an error
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    orphans.adopt()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order.memory_bytes:
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):  # files may lie in memory, and need not be mapped
            resource.setrlimit(limit, (order.memory_bytes, order.memory_bytes))
    oom_score.volunteer()
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(f"clover:{order.family.name if order.also else order.variant}"[:15])
    faulthandler.enable()


def _report_overruns(control: socket.socket, batches: int, overruns: int) -> None:
    """Tell the server that of the `batches` on an emulated slice so far, `overruns` took longer than its pace."""
    send_state(control, frames.WorkerState(state="ready", batches=batches, overruns=overruns))
