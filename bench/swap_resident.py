"""What a swap costs where the worker holds the other variant already: only rows go another way.

    python -m bench.swap_resident [--swaps 1000] [--clients 2] [--device emulated:rtx-4090:1] [--json FILE]

An embedded server of `fashion`, with one worker (on one core, or on the device) that holds all variants, is pinned to
one variant after the other, while clients of the same process ask one row after another and compare each answer with
what its variant should say.  A decision is the first step of its transition; "during" is from there to 20 ms after its
last step; rows go to the new variant once it is routed.
The first answer comes after the batches that are ahead of it, of up to a row a client, and its own: more clients make
it later, although the steps take no longer.  `added` is how much later it comes than a batch of the old variant and one
of the new take by the profile, which on an emulated device is the pace that both are held to.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

import clover
from bench.common import fashion_rows, show, write_json
from bench.load import quantile
from bench.oracle import EXACT, TOLERANCE, expected
from bench.swap_parts import last_core
from clover.planning.model.problem import services_of
from clover.types import Assignment, FamilyProfile, Routing

ROWS = 512
AFTER_NS = 20_000_000
PAUSE_S = 0.05


class Clients:
    """Ask `images` and compare the answers with `answers`, by variant; `first_ns` has when each variant first answered
    since it was cleared."""

    def __init__(self, server: clover.Server, images: NDArray[Any], answers: dict[str, NDArray[Any]]) -> None:
        self.images = images
        self.expected = answers
        self.samples: list[tuple[int, int]] = []
        self.failed = self.mismatched = 0
        self.first_ns: dict[str, int] = {}
        self.over = False
        self._server = server

    async def ask(self, seed: int) -> None:
        """Ask until it is over."""
        for row in itertools.cycle(np.random.default_rng(seed).permutation(len(self.images)).tolist()):
            if self.over:
                return
            sent_ns = time.monotonic_ns()
            try:
                answer = await self._server.ainfer({"image": self.images[row : row + 1]})
            except clover.CloverError:
                self.failed += 1
                continue
            done_ns = time.monotonic_ns()
            (variant,) = answer.variants
            self.first_ns.setdefault(variant, done_ns)
            self.samples.append((sent_ns, done_ns))
            (answered,) = answer.outputs.values()
            self.mismatched += bool(np.abs(answered[0] - self.expected[variant][row]).max() > TOLERANCE)
            await asyncio.sleep(0.001)


def batch_ms(profile: FamilyProfile | None, shape: str, rows: int) -> dict[str, float]:
    """Return milliseconds of a batch of `rows` rows of each variant on slices of `shape`, by `profile`."""
    if profile is None:
        raise SystemExit("the server has no profile")
    services = services_of(profile)
    return {variant: 1e3 * service.seconds(rows) for (variant, name), service in services.items() if name == shape}


async def measured(swaps: int, clients: int, device: str) -> dict[str, Any]:
    """Return the figures."""
    place: dict[str, Any] = {"device": device} if device else {"cores": last_core()}
    images = fashion_rows()[0][:ROWS]
    answers = expected(images)
    server = clover.Server(
        "fashion",
        http=False,
        backends=EXACT,
        **place,
        carbon="static:300",
        policy="static:tiny",
        accuracy_floor=1.0,
        slo_ms=1000.0,
        waits=False,
    )
    async with server:
        served = server.engine.pick(None)
        fleet = served.fleet
        begun_ns: list[int] = []
        spawn = fleet.spawn

        async def noted(assignment: Any) -> None:
            begun_ns.append(time.monotonic_ns())
            await spawn(assignment)

        routed_ns: list[int] = []
        route = fleet.route

        def routed(assignments: tuple[Assignment, ...], routing: Routing) -> None:
            route(assignments, routing)
            routed_ns.append(time.monotonic_ns())

        fleet.spawn = noted  # type: ignore[method-assign]
        fleet.route = routed  # type: ignore[method-assign]
        pids = {worker["pid"] for worker in fleet.describe()}
        resident = fleet.describe()[0]["resident"]
        asking = Clients(server, images, answers)
        tasks = [asyncio.create_task(asking.ask(seed)) for seed in range(clients)]
        windows, first_ms, routed_ms, added_ms = [], [], [], []
        names = [variant.name for variant in served.spec.variants]
        takes_ms = batch_ms(served.profile, fleet.describe()[0]["profile"], clients)
        for swap in range(1, swaps + 1):
            await asyncio.sleep(PAUSE_S)
            variant = names[swap % len(names)]
            begun_ns.clear()
            routed_ns.clear()
            asking.first_ns.clear()
            await server.engine.control().command("pin", {"variant": variant, "force": True}, "bench")
            end_ns = time.monotonic_ns()
            while variant not in asking.first_ns:
                await asyncio.sleep(0.001)
            windows.append((begun_ns[0], end_ns + AFTER_NS))
            first_ms.append((asking.first_ns[variant] - begun_ns[0]) / 1e6)
            ahead_ms = takes_ms[names[(swap - 1) % len(names)]] + takes_ms[variant]
            added_ms.append(max(0.0, first_ms[-1] - ahead_ms))
            routed_ms.append((routed_ns[0] - begun_ns[0]) / 1e6)
        asking.over = True
        await asyncio.gather(*tasks)
        same = {worker["pid"] for worker in fleet.describe()} == pids
    during: list[float] = []
    outside: list[float] = []
    at = 0
    for sent_ns, done_ns in sorted(asking.samples):
        while at < len(windows) and windows[at][1] < sent_ns:
            at += 1
        met = at < len(windows) and windows[at][0] <= done_ns
        (during if met else outside).append((done_ns - sent_ns) / 1e6)
    return {
        "variants held": len(resident),
        "swaps": swaps,
        "same processes": same,
        "requests": len(asking.samples),
        "failed": asking.failed,
        "mismatched": asking.mismatched,
        "routed_ms_median": quantile(routed_ms, 0.5),
        "routed_ms_p99": quantile(routed_ms, 0.99),
        "first_answer_ms_median": quantile(first_ms, 0.5),
        "first_answer_ms_p99": quantile(first_ms, 0.99),
        "added_ms_median": quantile(added_ms, 0.5),
        "added_ms_p99": quantile(added_ms, 0.99),
        "steps_ms_median": quantile([(end - begin - AFTER_NS) / 1e6 for begin, end in windows], 0.5),
        "steps_ms_p99": quantile([(end - begin - AFTER_NS) / 1e6 for begin, end in windows], 0.99),
        "p99_outside_ms": quantile(outside, 0.99),
        "p99_during_ms": quantile(during, 0.99),
        "p99_ratio": quantile(during, 0.99) / quantile(outside, 0.99),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--device", default="", help="as of clover serve; by default one core")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(measured(options.swaps, options.clients, options.device))
    show("swaps to variants that workers hold, under load (measured)", ["figure", "value"], list(figures.items()))
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
