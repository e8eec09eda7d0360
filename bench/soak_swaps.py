"""Two hundred swaps under light load: does anything leak?

    python -m bench.soak_swaps [--swaps 200] [--json FILE]

Memory (PSS), file descriptors and /dev/shm of the server's process tree after 20 swaps and 30 idle seconds are the
base line; the same is taken after the last swap.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.common import (
    ServerProcess,
    binary_bodies,
    fashion_rows,
    open_fds,
    pss_bytes,
    served,
    shm_entries,
    show,
    tree,
    write_json,
)
from bench.load import open_loop

BASE_AFTER = 20


def usage(server: ServerProcess, idle_s: float) -> dict[str, int]:
    """Return what the tree holds after `idle_s` without requests."""
    time.sleep(idle_s)
    pids = tree(server.process.pid)
    return {"processes": len(pids), "pss_bytes": pss_bytes(pids), "fds": open_fds(pids), "shm": shm_entries()}


async def swap(server: ServerProcess, variant: str, bodies: list[Any]) -> int:
    """Pin `variant` while requests run; the number of failed requests."""
    load = asyncio.create_task(open_loop(server.url, "fashion", bodies, rate=100, seconds=0.8, connections=4))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(server.post, "/v2/clover/pin", {"model": "fashion", "variant": variant, "force": True})
    return (await load).failed()


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, _ = fashion_rows()
    bodies = binary_bodies(images, 256)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, served(["fashion"], log=Path(folder) / "serve.log") as server:
        base: dict[str, int] = {}
        for number in range(options.swaps):
            failed += uvloop.run(swap(server, ("small", "medium", "large")[number % 3], bodies))
            if number + 1 == BASE_AFTER:
                base = usage(server, options.idle_s)
        last = usage(server, options.idle_s)
    figures = {
        "swaps": options.swaps,
        "failed": failed,
        **{f"{key} after {BASE_AFTER}": value for key, value in base.items()},
        **{f"{key} after {options.swaps}": value for key, value in last.items()},
        "pss_allowed": int(base["pss_bytes"] * 1.2) + (64 << 20),
    }
    show("swaps (measured)", ["figure", "value"], [[k, v] for k, v in figures.items()])
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
