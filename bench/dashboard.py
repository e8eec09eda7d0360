"""Open dashboards: what they cost the server's process, and how large and how prompt their messages are.

    python -m bench.dashboard [--pages 0 1 50] [--seconds 30] [--rounds 2] [--json FILE]

A server of one pinned variant, without requests, has so many pages open, each of them a stream that is read to the end.
The figure is the CPU time of the server's process alone, workers and readers apart, as a part of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.common import served, show, write_json

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process used, all of its threads and none of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


SEEN_S = 5.0
"""Within that time a server has seen that pages were closed: when it has sent them the next messages."""


async def page(host: str, port: int, number: int, until_s: float) -> tuple[float, list[int]]:
    """Read one stream until `until_s` (monotonic); return the seconds to its first message, and the bytes of each.
    Each page comes from an address of its own, since a client has only a few streams."""
    begun_s = time.monotonic()
    here = (f"127.0.1.{number + 1}", 0)
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22, local_addr=here)
    writer.write(f"GET /dashboard/stream HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode("latin-1"))
    first_s, sizes = 0.0, []
    try:
        while True:
            async with asyncio.timeout(until_s - time.monotonic()):
                message = await reader.readuntil(b"\n\n")
            if message.startswith(b"retry"):
                continue
            first_s = first_s or time.monotonic() - begun_s
            sizes.append(len(message))
    except TimeoutError:
        writer.close()
        return first_s, sizes


async def stretch(url: str, pid: int, pages: int, seconds: float) -> dict[str, float]:
    """Have so many pages open for so long; return what was measured."""
    address = urlsplit(url)
    host, port = str(address.hostname), int(address.port or 80)
    settle_s = 2.0
    until_s = time.monotonic() + settle_s + seconds
    opened = [asyncio.create_task(page(host, port, number, until_s)) for number in range(pages)]
    await asyncio.sleep(settle_s)
    before, begun_s = cpu_s(pid), time.monotonic()
    found = await asyncio.gather(*opened) if opened else []
    await asyncio.sleep(max(0.0, seconds - (time.monotonic() - begun_s)))
    used, lasted_s = cpu_s(pid) - before, time.monotonic() - begun_s
    await asyncio.sleep(SEEN_S if opened else 0.0)
    return {
        "core_percent": 100.0 * used / lasted_s,
        "messages": float(sum(len(sizes) for _, sizes in found)),
        "first_bytes": float(max((sizes[0] for _, sizes in found if sizes), default=0)),
        "tick_bytes": statistics.median([size for _, sizes in found for size in sizes[1:]] or [0]),
        "first_ms": 1e3 * max((first_s for first_s, _ in found), default=0.0),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[0, 1, 50], help="pages that are open at once")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of one stretch")
    parser.add_argument("--rounds", type=int, default=2, help="stretches with each number of pages")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[int, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        served(["fashion", "--variant", "small"], log=Path(folder) / "serve.log") as server,
    ):
        for pages in options.pages:
            runs = [
                asyncio.run(stretch(server.url, server.process.pid, pages, options.seconds))
                for _ in range(options.rounds)
            ]
            figures[pages] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    columns = list(next(iter(figures.values())))
    table = [[str(pages), *(row[column] for column in columns)] for pages, row in figures.items()]
    show(f"dashboards that are open, medians of {options.rounds} (measured)", ["pages", *columns], table)
    write_json(options.json, {"pages": {str(pages): row for pages, row in figures.items()}})


if __name__ == "__main__":
    main()
