"""Measures a family that a server serves already, in a process that takes the cores where they are idle.

    python -P -m clover.profiling.beside < order

Standard input has the length of a `MeasureOrder` in bytes on a line of its own, then the order.  The profile is stored
where the server finds it.  If the exit status is not 0, there is no profile, and standard output says why.  Signals
that end the server's group are ignored: the process ends with its standard input, which the server holds open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading

import msgspec
import uvloop

from clover import devices
from clover.cache import cache_folder
from clover.config import ServerConfig
from clover.errors import CloverError, DeviceError, ProfileError, WorkerError
from clover.low_priority import SLOWDOWN
from clover.profiling.progress import ProgressLines
from clover.profiling.stored import ensure
from clover.runtime.workers.pool import Pool
from clover.telemetry import logs
from clover.types import FamilySpec

log = logging.getLogger("clover.profiling")

_NICE = 19
"""The least claim on a core that Linux knows: live rows come first."""
_MAY_PASS = 3
"""The exit status if a worker died, or was not ready in time."""
_END_S = 2.0
"""Seconds for the process to end once its standard input is closed."""


class MeasureOrder(msgspec.Struct, frozen=True):
    """The order to measure `spec` by `config`, on its devices."""

    spec: FamilySpec
    config: ServerConfig


def order_of(spec: FamilySpec, config: ServerConfig) -> bytes:
    """Return what `main` reads on standard input.  No secret of `config` is in it."""
    kept = {name: getattr(config, name) for name in ("workers", "energy", "log", "cache_dir", "profile")}
    data = msgspec.msgpack.encode(MeasureOrder(spec, ServerConfig(**kept)))
    return b"%d\n" % len(data) + data


async def measure_beside(spec: FamilySpec, config: ServerConfig, environment: dict[str, str]) -> None:
    """Have `spec` measured in a process of its own with `environment`.  If the caller is cancelled, the process ends.
    Raises ProfileError with the reason if the family cannot be measured, WorkerError if that may pass."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(order_of(spec, config))
        said = (await process.stdout.read()).decode(errors="replace").strip()
        status = await process.wait()
    finally:
        process.stdin.close()  # so the process and its workers end
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if status != 0:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        kind = ProfileError if said and status != _MAY_PASS else WorkerError
        raise kind(said or f"the process that measured it ended ({how})")


def main() -> int:
    """Read the order, measure, and return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    stdin = sys.stdin.buffer
    order = msgspec.msgpack.decode(stdin.read(int(stdin.readline())), type=MeasureOrder)
    threading.Thread(target=_end_with, args=(stdin.fileno(),), daemon=True).start()
    logs.configure(order.config.log)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_measure(order.spec, order.config))
    except CloverError as error:
        print(" ".join(str(error).split()), flush=True)
        return status_of(error)
    return 0


def status_of(error: Exception) -> int:
    """Return the exit status if `error` ended the measurement."""
    passing = (DeviceError, WorkerError)
    return _MAY_PASS if isinstance(error, passing) or isinstance(error.__cause__, passing) else 1


async def _measure(spec: FamilySpec, config: ServerConfig) -> None:
    found = devices.build(config.workers, cache_folder(config.cache_dir))
    own = config.workers
    slower = msgspec.structs.replace(own, start_s=SLOWDOWN * own.start_s, silent_s=SLOWDOWN * own.silent_s)
    pool = Pool.launch(start_s=slower.start_s, silent_s=slower.silent_s)
    try:
        await pool.start()
        progress = ProgressLines(spec.name, log.info)
        await ensure(spec, found, pool, msgspec.structs.replace(config, workers=slower), progress=progress)
        await ensure(spec, found, pool, msgspec.structs.replace(config, profile="require"))
    finally:
        await pool.stop()
        devices.close(found)


def _end_with(descriptor: int) -> None:
    """End this process at once when there is no more of standard input; its workers end with its pipes."""
    while os.read(descriptor, 1):
        pass
    os._exit(2)


if __name__ == "__main__":
    sys.exit(main())
