"""gRPC beside HTTP, on one server and in one run: requests a second, latency, and CPU a request of the whole tree.

    python -m bench.over_grpc [--seconds 4] [--rounds 3] [--json FILE]

The default family serves with one pinned variant.  Clients keep one request each in flight, with the tensor in binary
form on both wires, each over a connection of its own; rounds of the two take turns.  `HTTP beside` is an open loop of
100 requests a second over HTTP: alone on a server without the port for gRPC, on one that has it, and there beside 200
calls a second over gRPC.  Everything is measured; needs the extra `grpc`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.common import binary_bodies, fashion_rows, free_port, served, show, write_json
from bench.load import Body, Result, Sample, closed_loop, open_loop
from bench.serve import measure
from clover.grpc.messages import ModelInferRequest

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_BESIDE_PER_S, _GRPC_PER_S = 100.0, 200.0


def messages_of(bodies: Sequence[Body]) -> list[bytes]:
    """Return the requests of binary HTTP bodies as messages of gRPC."""
    out = []
    for body in bodies:
        raw = body.payload[-28 * 28 * 4 :]
        made = ModelInferRequest(model_name="fashion", id=body.id, raw_input_contents=[raw])
        made.inputs.add(name="image", datatype="FP32", shape=[1, 1, 28, 28])
        out.append(bytes(made.SerializeToString()))
    return out


async def grpc_loop(
    target: str, messages: Sequence[bytes], *, connections: int, seconds: float, rate: float = 0.0
) -> Result:
    """Run clients that each keep one call in flight for `seconds`; all together at `rate` a second if that is given."""
    result = Result()
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(connections)]
    begin_s = time.monotonic()
    end_s = begin_s + seconds

    async def ask(channel: Any, number: int) -> None:
        call = channel.unary_unary(_INFER)
        due_s = begin_s + (number / rate if rate else 0.0)
        while (due_s := max(due_s, time.monotonic() if not rate else 0.0)) < end_s:
            if (wait_s := due_s - time.monotonic()) > 0.0:
                await asyncio.sleep(wait_s)
            await call(messages[number % len(messages)])
            result.samples.append(Sample(int(due_s * 1e9), time.monotonic_ns(), 200, number))
            number += 1
            due_s += connections / rate if rate else 0.0

    await asyncio.gather(*(ask(channel, number) for number, channel in enumerate(channels)))
    result.seconds = time.monotonic() - begin_s
    await asyncio.gather(*(channel.close() for channel in channels))
    return result


async def beside(url: str, bodies: Sequence[Body], target: str, messages: Sequence[bytes], seconds: float) -> Result:
    """Return what HTTP's clients saw, beside those of gRPC if there are `messages`."""
    others = grpc_loop(target, messages, connections=4, seconds=seconds, rate=_GRPC_PER_S) if messages else None
    task = asyncio.create_task(others) if others is not None else None
    result = await open_loop(url, "fashion", bodies, rate=_BESIDE_PER_S, seconds=seconds, connections=4)
    if task is not None:
        await task
    return result


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small", help="variant to pin")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    bodies = binary_bodies(fashion_rows()[0], 512)
    messages = messages_of(bodies)
    taken: dict[str, list[dict[str, float]]] = {}
    arguments = ["fashion", "--variant", options.variant, "--mode", "off"]
    port = free_port()
    target = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        with served(arguments, log=log) as plain, served([*arguments, "--grpc-port", str(port)], log=log) as both:
            runs: dict[str, tuple[int, Callable[[], Any]]] = {}
            for clients in (1, 16):
                of = {"connections": clients, "seconds": options.seconds}
                pid = both.process.pid
                runs[f"HTTP x{clients}"] = pid, partial(closed_loop, both.url, "fashion", bodies, **of)
                runs[f"gRPC x{clients}"] = pid, partial(grpc_loop, target, messages, **of)
            for name, server, others in (
                ("HTTP beside: no port", plain, []),
                ("HTTP beside: no calls", both, []),
                ("HTTP beside: calls", both, messages),
            ):
                run = partial(beside, server.url, bodies, target, others, options.seconds)
                runs[name] = server.process.pid, run
            for _ in range(options.rounds):
                for name, (pid, one) in runs.items():
                    taken.setdefault(name, []).append(measure(one, pid, 1))
    rows = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in taken.items()
    }
    columns = list(next(iter(rows.values())))
    table = [[name, *(row[column] for column in columns)] for name, row in rows.items()]
    show(f"fashion/{options.variant}, medians of {options.rounds} (measured)", ["workload", *columns], table)
    write_json(options.json, {"variant": options.variant, "workloads": rows, "rounds": taken})


if __name__ == "__main__":
    main()
