"""The faults of a soak: each does harm, and returns once it is over; what follows is the server's to mend."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
from collections.abc import Awaitable, Callable

from bench.soak_server import Server

Fault = Callable[[Server, random.Random], Awaitable[str]]


async def swap(server: Server, rng: random.Random) -> str:
    """Pin another variant, then lift the pin."""
    variant = rng.choice(("rough", "middle", "exact"))
    await server.ask("/v2/clover/pin", {"model": "echo", "variant": variant, "force": True})
    await asyncio.sleep(2.0)
    await server.ask("/v2/clover/pin", {"model": "echo", "variant": None})
    return f"pinned {variant} for 2 s"


async def kill_worker(server: Server, rng: random.Random) -> str:
    """Kill one worker."""
    pids = await server.worker_pids()
    pid = rng.choice(pids)
    os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to one of {len(pids)}"


async def kill_workers(server: Server, rng: random.Random) -> str:
    """Kill all workers at once."""
    pids = await server.worker_pids()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to all {len(pids)}"


async def stop_worker(server: Server, rng: random.Random) -> str:
    """Have a worker stand still until the server ends it."""
    pid = rng.choice(await server.worker_pids())
    os.kill(pid, signal.SIGSTOP)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if not os.path.exists(f"/proc/{pid}"):
            return "SIGSTOP to a worker, which the server ended"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return "SIGSTOP to a worker for 10 s: nothing was asked of it"


async def end_worker(server: Server, rng: random.Random) -> str:
    """Ask a worker to end, as an operator would."""
    os.kill(rng.choice(await server.worker_pids()), signal.SIGTERM)
    return "SIGTERM to a worker"


async def kill_helper(server: Server, rng: random.Random) -> str:
    """Kill the zygote, or the solver."""
    what = rng.choice(("clover.worker.zygote", "clover.control.solver.process"))
    pids = server.named(what)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to {what.rpartition('.')[0]}: {len(pids)}"


async def provider(server: Server, rng: random.Random) -> str:
    """Have the provider of carbon intensity fail."""
    mode = server.provider.mode = rng.choice(("refuse", "hang", "reset", "nonsense"))
    await asyncio.sleep(6.0)
    server.provider.mode = "well"
    return f"{mode} for 6 s"


async def clock(server: Server, rng: random.Random) -> str:
    """Step the wall clock there and back."""
    seconds = rng.choice((3600.0, -3600.0, 90.0, -90.0))
    server.step_clock(seconds)
    await asyncio.sleep(3.0)
    server.step_clock(0.0)
    return f"{seconds:+g} s for 3 s"


async def full_disk(server: Server, rng: random.Random) -> str:
    """Fill the disk under the ledger."""
    filler = server.state / "filler"

    def fill() -> int:
        size = 0
        with contextlib.suppress(OSError), filler.open("wb", 0) as file:
            while size < 1 << 30:
                size += file.write(bytes(1 << 12))
        return size

    size = await asyncio.to_thread(fill)
    await asyncio.sleep(4.0)
    filler.unlink()
    return f"the last {size >> 10} KiB taken for 4 s"


async def memory_pressure(server: Server, rng: random.Random) -> str:
    """Have another program take more memory than the server's control group has left: the kernel has to end one."""
    assert server.group is not None
    taking = "x = bytearray(32 << 20); import time; time.sleep(3)"
    server.limit_memory(16 << 20)
    try:
        command = [
            "sh",
            "-c",
            'echo $$ > "$0/cgroup.procs" && exec "$@"',
            str(server.group),
            sys.executable,
            "-c",
            taking,
        ]
        process = await asyncio.create_subprocess_exec(*command)
        await process.wait()
    finally:
        server.limit_memory(None)
    return f"32 MiB wanted where 16 MiB were left; the one who wanted ended with {process.returncode}"


async def rotate(server: Server, rng: random.Random) -> str:
    """Move the ledger away under the running server."""
    moved = 0
    for path in (server.state / "ledger").glob("*.db*"):
        if not path.name.endswith(".lock"):
            path.rename(server.folder / f"{path.name}.{server.number}") if not server.disk else path.unlink()
            moved += 1
    return f"{moved} files gone"


async def descriptors(server: Server, rng: random.Random) -> str:
    """Leave the server no free descriptor."""
    pid = server.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), hard))
    await asyncio.sleep(2.0)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return "none free for 2 s"


async def reload(server: Server, rng: random.Random) -> str:
    """Have it read its configuration again."""
    os.kill(server.pid, signal.SIGHUP)
    await asyncio.sleep(1.0)
    return "SIGHUP"


async def take_over(server: Server, rng: random.Random) -> str:
    """Replace the server by another one."""
    await server.start("--take-over")
    return f"server {server.number}"


async def broken_take_over(server: Server, rng: random.Random) -> str:
    """Have a successor killed, or asked to end, in the first second after it was given the sockets: it is not ready
    by then, and later it would be the one who serves."""
    seconds, number = rng.uniform(0.0, 1.0), rng.choice((signal.SIGKILL, signal.SIGTERM))
    process, log = await server.launch("--take-over")
    while b"taking over from" not in log.read_bytes() and process.poll() is None:
        await asyncio.sleep(0.02)
    await asyncio.sleep(seconds)
    process.send_signal(number)
    while process.poll() is None:
        await asyncio.sleep(0.05)
    assert server.process is not None
    if server.process.poll() is not None:
        raise RuntimeError("the running server has ended")
    return f"a successor got {number.name} {seconds:.1f} s after the sockets"


FAULTS: dict[str, Fault] = {
    "swap": swap,
    "worker killed": kill_worker,
    "all workers killed": kill_workers,
    "worker stopped": stop_worker,
    "worker ended": end_worker,
    "helper killed": kill_helper,
    "provider": provider,
    "clock": clock,
    "full disk": full_disk,
    "memory pressure": memory_pressure,
    "ledger gone": rotate,
    "descriptors": descriptors,
    "reload": reload,
    "take-over": take_over,
    "take-over broken": broken_take_over,
}
