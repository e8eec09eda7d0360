"""What a swap costs where the worker holds the other variant already: only rows go another way.

    python -m bench.swap_resident [--swaps 1000] [--clients 2] [--json FILE]
    python -m bench.swap_resident --device emulated:rtx-4090:1 [--pace core]
    python -m bench.swap_resident --memory

An embedded server of `fashion`, with one worker (on one core, or on the device) that holds all variants, is pinned to
one variant after the other, while clients of the same process ask one row after another and compare each answer with
what its variant should say.  A decision is the first step of its transition; "during" is from there to 20 ms after its
last step; rows go to the new variant once it is routed.

The time from a decision to the new variant's first answer is split: until rows are routed to it; until a client asks
(each pauses for a millisecond between two requests); until the batches ahead of that request are done, of up to a row a
client; its own batch; and until the client has the answer.  `all_but_asked` is all that without the wait for a client,
which no server shortens.  `ordinary` is what an answer of the same variant takes outside of swaps.

An emulated device computes on a core and hands batches back at a pace.  By default that is a pace of this bench's own,
which two cores can keep; `--pace core` is the server's default, which makes a slice 64 times slower than a core:
answers then take as long as that convention says, with or without a swap.

`--memory`: MiB of the worker that holds all variants, beside workers that hold one each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import clover
from bench.common import fashion_rows, show, write_json
from bench.load import quantile
from bench.oracle import EXACT, TOLERANCE, expected
from bench.swap_parts import last_core
from clover.runtime import embedded
from clover.types import Assignment, Routing

ROWS = 512
AFTER_NS = 20_000_000
PAUSE_S = 0.05

PACE_MS = {"tiny": 0.4, "small": 0.5, "medium": 0.6, "large": 0.8, "xlarge": 1.2}
"""Of a batch of up to `PACE_ROWS` rows on the emulated GPU: chosen, not measured, and long enough for a core to compute
it in time."""
PACE_ROWS = 8
PACE_WATTS = 60.0


def pace_file(profile: str = "gpu") -> dict[str, Any]:
    """Return a pace file with `PACE_MS` of every variant of `fashion` on slices of `profile`."""
    rows = [
        {"family": "fashion", "variant": variant, "profile": profile, "batch": batch, "ms": ms, "watts": PACE_WATTS}
        for variant, ms in PACE_MS.items()
        for batch in (1, PACE_ROWS)
    ]
    return {"method": "configured", "source": "bench.swap_resident", "rows": rows}


class AnswerTimes(NamedTuple):
    """When a request was sent, its batch began, and its answer was there (ns), and how long its batch took."""

    variant: str
    sent_ns: int
    begun_ns: int
    computed_ns: int
    done_ns: int


class NotedModel:
    """The model `model`, as one client asks it: keeps the times of the request that it closed last."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.begun_ns = self.computed_ns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def close(self, ticket: Any) -> None:
        """Note when the batch of `ticket` began and how long it took, and close it."""
        self.begun_ns, self.computed_ns = ticket.submit_ns + ticket.queue_ns, ticket.compute_ns
        self._model.close(ticket)


class Clients:
    """Ask `images` and compare the answers with `answers`, by variant; `first` has the first answer of each variant
    since it was cleared."""

    def __init__(self, model: Any, images: NDArray[Any], answers: dict[str, NDArray[Any]]) -> None:
        self.images = images
        self.expected = answers
        self.samples: list[AnswerTimes] = []
        self.failed = self.mismatched = 0
        self.first: dict[str, AnswerTimes] = {}
        self.over = False
        self._model = model

    async def ask(self, seed: int) -> None:
        """Ask until it is over."""
        model = NotedModel(self._model)
        for row in itertools.cycle(np.random.default_rng(seed).permutation(len(self.images)).tolist()):
            if self.over:
                return
            sent_ns = time.monotonic_ns()
            try:
                answer = await embedded.infer(model, {"image": self.images[row : row + 1]})  # type: ignore[arg-type]
            except clover.CloverError:
                self.failed += 1
                await asyncio.sleep(0.001)
                continue
            done_ns = time.monotonic_ns()
            (variant,) = answer.variants
            times = AnswerTimes(variant, sent_ns, model.begun_ns, model.computed_ns, done_ns)
            self.first.setdefault(variant, times)
            self.samples.append(times)
            (answered,) = answer.outputs.values()
            self.mismatched += bool(np.abs(answered[0] - self.expected[variant][row]).max() > TOLERANCE)
            await asyncio.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap: when its steps began and ended and rows were routed (ns), and the first answer of its variant."""

    begun_ns: int
    routed_ns: int
    end_ns: int
    first: AnswerTimes

    def parts_ms(self) -> dict[str, float]:
        """Return the milliseconds from the decision to the first answer, by part; they add up."""
        first = self.first
        asked_ns = max(self.routed_ns, first.sent_ns)
        computed_ns = first.begun_ns + first.computed_ns
        return {
            "routed": (self.routed_ns - self.begun_ns) / 1e6,
            "asked": (asked_ns - self.routed_ns) / 1e6,
            "batches_ahead": (first.begun_ns - asked_ns) / 1e6,
            "own_batch": first.computed_ns / 1e6,
            "handed_back": (first.done_ns - computed_ns) / 1e6,
        }

    @property
    def first_ms(self) -> float:
        """From the decision to the first answer."""
        return (self.first.done_ns - self.begun_ns) / 1e6


def split(samples: Sequence[AnswerTimes], swaps: Sequence[Swap]) -> tuple[list[AnswerTimes], list[AnswerTimes]]:
    """Return the answers that a swap met, from its decision to `AFTER_NS` after its last step, and the others."""
    during: list[AnswerTimes] = []
    outside: list[AnswerTimes] = []
    at = 0
    for sample in sorted(samples, key=lambda sample: sample.sent_ns):
        while at < len(swaps) and swaps[at].end_ns + AFTER_NS < sample.sent_ns:
            at += 1
        met = at < len(swaps) and swaps[at].begun_ns <= sample.done_ns
        (during if met else outside).append(sample)
    return during, outside


def took_ms(samples: Sequence[AnswerTimes]) -> list[float]:
    """Return the milliseconds of each request."""
    return [(sample.done_ns - sample.sent_ns) / 1e6 for sample in samples]


def spread(name: str, ms: Sequence[float]) -> dict[str, float]:
    """Return median and p99 of `ms` under names that begin with `name`."""
    return {f"{name}_ms_median": quantile(ms, 0.5), f"{name}_ms_p99": quantile(ms, 0.99)}


def figures_of(samples: Sequence[AnswerTimes], swaps: Sequence[Swap]) -> dict[str, Any]:
    """Return the figures of `swaps` among `samples`."""
    during, outside = split(samples, swaps)
    parts = [swap.parts_ms() for swap in swaps]
    first = spread("first_answer", [swap.first_ms for swap in swaps])
    for name in parts[0]:
        first |= spread(name, [part[name] for part in parts])
    first |= spread("all_but_asked", [swap.first_ms - swap.parts_ms()["asked"] for swap in swaps])
    names = sorted({swap.first.variant for swap in swaps})
    by_variant = {
        name: {
            **spread("first_answer", [swap.first_ms for swap in swaps if swap.first.variant == name]),
            **spread("ordinary", took_ms([sample for sample in outside if sample.variant == name])),
            **spread("ordinary_batch", [one.computed_ns / 1e6 for one in outside if one.variant == name]),
        }
        for name in names
    }
    p99 = {"outside": quantile(took_ms(outside), 0.99), "during": quantile(took_ms(during), 0.99)}
    return {
        **first,
        **spread("steps", [(swap.end_ns - swap.begun_ns) / 1e6 for swap in swaps]),
        "p99_outside_ms": p99["outside"],
        "p99_during_ms": p99["during"],
        "p99_ratio": p99["during"] / p99["outside"],
        "by variant": by_variant,
    }


def settings(device: str, pace: str) -> dict[str, Any]:
    """Return the server's settings: one worker on one core, or on `device` at the pace of the file `pace`."""
    place: dict[str, Any] = {"device": device, "pace": pace} if device else {"cores": last_core()}
    return {
        "http": False,
        "profile": "wait",
        "backends": EXACT,
        **place,
        "carbon": "static:300",
        "policy": "static:tiny",
        "accuracy_floor": 1.0,
        "slo_ms": 1000.0,
        "waits": False,
    }


async def measured(swaps: int, clients: int, device: str, pace: str) -> dict[str, Any]:
    """Return the figures."""
    images = fashion_rows()[0][:ROWS]
    answers = expected(images)
    server = clover.Server("fashion", **settings(device, pace))
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
        asking = Clients(served.router, images, answers)
        tasks = [asyncio.create_task(asking.ask(seed)) for seed in range(clients)]
        done: list[Swap] = []
        names = [variant.name for variant in served.spec.variants]
        for swap in range(1, swaps + 1):
            await asyncio.sleep(PAUSE_S)
            variant = names[swap % len(names)]
            begun_ns.clear()
            routed_ns.clear()
            asking.first.clear()
            await server.engine.control().command("pin", {"variant": variant, "force": True}, "bench")
            end_ns = time.monotonic_ns()
            while variant not in asking.first:
                await asyncio.sleep(0.001)
                for task in tasks:
                    if task.done():  # it failed, as it is not over yet
                        await task
            done.append(Swap(begun_ns[0], routed_ns[0], end_ns, asking.first[variant]))
        asking.over = True
        await asyncio.gather(*tasks)
        workers = fleet.describe()
    return {
        "variants held": len(resident),
        "swaps": swaps,
        "same processes": {worker["pid"] for worker in workers} == pids,
        "requests": len(asking.samples),
        "failed": asking.failed,
        "mismatched": asking.mismatched,
        "late for their pace": sum(worker["overruns"] for worker in workers) if device else "-",
        **figures_of(asking.samples, done),
    }


# --- memory -----------------------------------------------------------------------------------------------------------

MIB = 2**10  # KiB, which /proc counts in


def memory_mib(smaps_rollup: str) -> dict[str, float]:
    """Return what a process holds by the text of its smaps_rollup: `private` pages, and `pss`, in which pages that n
    processes share count an nth."""
    kib = {
        name: float(value.split()[0])
        for name, _, value in (line.partition(":") for line in smaps_rollup.splitlines()[1:])
    }
    return {
        "private": (kib["Private_Clean"] + kib["Private_Dirty"]) / MIB,
        "pss": kib["Pss"] / MIB,
        "rss": kib["Rss"] / MIB,
    }


async def memory_of(variants: Sequence[str], device: str, pace: str, resident: str) -> dict[str, dict[str, float]]:
    """Return what the worker holds after it answered for each of `variants`, by variant; `resident` as the setting."""
    images = fashion_rows()[0][:ROWS]
    server = clover.Server("fashion", **settings(device, pace), resident=resident)
    found = {}
    async with server:
        for variant in variants:
            await server.engine.control().command("pin", {"variant": variant, "force": True}, "bench")
            for row in range(64):
                answer = await server.ainfer({"image": images[row : row + 1]})
                assert answer.variants == (variant,)
            (worker,) = [one for one in server.engine.pick(None).fleet.describe() if one["routed"]]
            found[variant] = memory_mib(Path(f"/proc/{worker['pid']}/smaps_rollup").read_text())
    return found


async def memory(device: str, pace: str) -> dict[str, Any]:
    """Return MiB of the worker that holds all variants, of workers that hold one each, and of several of these
    together: of their private pages, as shares of pages that several have depend on how many there are."""
    names = list(PACE_MS)
    together = (await memory_of(names, device, pace, "auto"))[names[-1]]
    apart = await memory_of(names, device, pace, "off")
    both = sorted((one["private"] for one in apart.values()), reverse=True)[:2]
    return {
        "all": together,
        **apart,
        "one each, together": {"private": sum(one["private"] for one in apart.values())},
        "the two largest, together": {"private": sum(both)},
    }


# --- showing ----------------------------------------------------------------------------------------------------------


def show_swaps(figures: dict[str, Any]) -> None:
    """Print the figures of swaps."""
    rows = [(name, value) for name, value in figures.items() if name != "by variant"]
    show("swaps to variants that workers hold, under load (measured)", ["figure", "value"], rows)
    variants = figures["by variant"]
    columns = list(next(iter(variants.values())))
    show("by variant", ["variant", *columns], [[name, *found.values()] for name, found in variants.items()])


def show_memory(figures: dict[str, Any]) -> None:
    """Print the figures of memory."""
    columns = ["private", "pss", "rss"]
    rows = [[name, *(found.get(column, "-") for column in columns)] for name, found in figures.items()]
    show("MiB of workers by the variants that they hold (measured)", ["holds", *columns], rows)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--device", default="", help="as of clover serve; by default one core")
    parser.add_argument("--pace", choices=("bench", "core"), default="bench", help="of an emulated device")
    parser.add_argument("--memory", action="store_true", help="MiB of workers instead of swaps")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pace = ""
        if options.device and options.pace == "bench":
            pace = str(Path(folder) / "pace.json")
            Path(pace).write_text(json.dumps(pace_file()))
        if options.memory:
            figures = asyncio.run(memory(options.device, pace))
            show_memory(figures)
        else:
            figures = asyncio.run(measured(options.swaps, options.clients, options.device, pace))
            show_swaps(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
