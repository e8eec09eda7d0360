"""Ids that never repeat, for ten minutes: is any answer lost, or given to somebody else?

    python -m bench.soak_ids [--minutes 10] [--clients 32] [--kill-every-s 60] [--json FILE]

Clients send requests to the echo family of `bench.wire`, a few at once on a connection, in JSON or as bytes, cut at any
place, each with an id of its own and numbers that follow from it.  Answers have to come in order, with that id and
these numbers.  Some clients hang up with answers due, and the worker is killed now and then: what is refused then (503)
is counted, and no answer may be missing or wrong.  Everything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from bench.common import ROOT, served, show, tree, write_json

PATH = "/v2/models/echo/infer"
_HANG_UP = 1 / 300
_TIMEOUT_S = 30.0


def row_of(identity: str) -> Any:
    """Return the numbers that go with an id: floats that JSON tells exactly."""
    luck = np.random.default_rng(list(identity.encode()))
    return (luck.integers(-(10**6), 10**6, (1, 16)) / 1024).astype(np.float32)


def request_of(identity: str, *, binary: bool) -> bytes:
    """Return a whole request."""
    row = row_of(identity)
    tensor: dict[str, Any] = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
    document: dict[str, Any] = {"id": identity, "inputs": [tensor]}
    tail, fields = b"", b""
    if binary:
        tail = row.tobytes()
        tensor["parameters"] = {"binary_data_size": len(tail)}
        document["parameters"] = {"binary_data_output": True}
    else:
        tensor["data"] = row.tolist()
    head = orjson.dumps(document)
    if binary:
        fields = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    return (
        (
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nx-request-id: h-%b\r\n%bContent-Length: %d\r\n\r\n"
            % (PATH.encode(), identity.encode(), fields, len(head) + len(tail))
        )
        + head
        + tail
    )


async def answer(reader: asyncio.StreamReader, identity: str, counts: Counter[str]) -> None:
    """Take the next answer, which has to be that of `identity`."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(fields["content-length"]))
    if fields["x-request-id"] != f"h-{identity}":
        counts["mismatched"] += 1
        return
    status = int(head.split(" ", 2)[1])
    if status != 200:
        counts[f"status {status}"] += 1
        return
    size = int(fields.get("inference-header-content-length", len(body)))
    document = orjson.loads(body[:size])
    data = document["outputs"][0].get("data")
    values = np.frombuffer(body[size:], "<f4") if data is None else np.array(data, np.float32)
    right = document["id"] == identity and np.array_equal(values.reshape(-1), row_of(identity)[0])
    counts["right" if right else "mismatched"] += 1


async def client(number: int, port: int, end_s: float, counts: Counter[str]) -> None:
    """Ask until `end_s`, on one connection after another."""
    luck = random.Random(number)
    sent = 0
    while time.monotonic() < end_s:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while time.monotonic() < end_s:
                names = [f"c{number}-{sent + at}-" + "y" * luck.randrange(9) for at in range(luck.randint(1, 6))]
                sent += len(names)
                stream = b"".join(request_of(name, binary=luck.random() < 0.5) for name in names)
                counts["sent"] += len(names)
                at = 0
                while at < len(stream):
                    size = luck.choice((1, 40, 300, 5000))
                    writer.write(stream[at : at + size])
                    at += size
                    await asyncio.sleep(0)
                if luck.random() < _HANG_UP:
                    counts["hung up on"] += len(names)
                    break
                for name in names:
                    try:
                        await asyncio.wait_for(answer(reader, name, counts), _TIMEOUT_S)
                    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                        counts["lost"] += 1
                        raise
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            continue
        finally:
            writer.transport.abort()


async def killing(pid: int, every_s: float, counts: Counter[str]) -> None:
    """Kill a worker now and then."""
    while True:
        await asyncio.sleep(every_s)
        for one in tree(pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{one}/comm").read_text().startswith("clover:"):
                    os.kill(one, signal.SIGKILL)
                    counts["kills"] += 1
                    break


async def soak(pid: int, port: int, options: argparse.Namespace) -> Counter[str]:
    """Run all clients for the time given; return the counts."""
    counts: Counter[str] = Counter()
    end_s = time.monotonic() + 60.0 * options.minutes
    killer = asyncio.create_task(killing(pid, options.kill_every_s, counts)) if options.kill_every_s else None
    await asyncio.gather(*(client(number, port, end_s, counts) for number in range(options.clients)))
    if killer is not None:
        killer.cancel()
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; 1 where an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kill-every-s", type=float, default=60.0, help="0: never")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args(argv)
    os.environ["PYTHONPATH"] = str(ROOT)
    command = ["bench.wire.workloads:ECHO", "--policy", "static:only"]
    with tempfile.TemporaryDirectory() as folder, served(command, log=Path(folder) / "serve.log") as server:
        port = int(server.url.rpartition(":")[2].strip("/"))
        counts = uvloop.run(soak(server.process.pid, port, options))
        left = {
            name: value for name, value in server.metrics().items() if name.partition("{")[0] == "clover_pending_rows"
        }
    figures: dict[str, object] = {"minutes": options.minutes, "lost": 0, "mismatched": 0, **dict(counts)}
    for name, value in left.items():
        figures[f"{name} afterwards"] = value
    show("unique ids (measured)", ["figure", "value"], [[key, value] for key, value in figures.items()])
    write_json(options.json, {"figures": figures})
    return int(bool(counts["lost"] or counts["mismatched"]))


if __name__ == "__main__":
    raise SystemExit(main())
