"""Where the time of a swap goes, for every variant of a family on every backend.

    python -m bench.swap_parts [--family heavy] [--backend eager aoti onnxruntime] [--rounds 7] [--rate 200]
                               [--cache-dir DIR] [--json FILE]

The family is the default one, or `heavy` (`bench/heavy`): larger networks, whose loading and warming take longer.  An
embedded server serves open-loop load from a process of its own while an operator pins one variant after another, so
that solver, transition, zygote, worker, router and front end all take the way they always take.  Which backend a
variant has is what its profile says; the bench keeps one profile a backend, which differ in nothing else.  Warm-cached:
the files were read before, the zygote is up and has a spare, no process has built or run the model that comes.

`plan`      from the command to the order for a worker: solver and transition
`fork`      until the worker says that it loads: zygote, its spare (or a fork, where none stands), pinning, limits
`load`      until it says that it warms: what the backend imports and reads
`warm`      until it says that it is ready: batches of several sizes
`route`     until rows may go to it
`asked`     until the request comes that the new variant answers first: nobody waits then.  One is sent at once, beside
            those of the load, so that the time until somebody happens to ask is no part of a swap
`answer`    until its client has the answer
`total`     from the command to that answer
`planned`   from the order to that answer: `total` without `plan`
`alone`     load and warm of such a worker on the same cores with no requests and no plan, as it says itself
`beyond`    `planned` without `alone`
`drain`     from the new worker's first row to the old one's end

Standing by (setting `relief`): the worker was loaded before, beside a dearer one, as the server keeps it, and a pin
makes it work.  Its memory is its proportional set; its watts are modelled, CPU seconds while it stands by x `core_w`.

`cpu`       what the new worker had used of a core when it was routed to

All times are measured, medians over swaps; the first round is not counted.  A swap waits for a moment in which others
leave the cores alone, and counts only where they went on doing so (`FOREIGN` of a core at most, as ticks tell);
otherwise it is tried again in a later round, three times as many rounds at most.  `counted` says how many did count; a
line where none did is of all of them, and says so with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

import clover
from bench.common import ROOT, busy_seconds, cpu_seconds, provenance, pss_bytes, show, tree, write_json
from bench.planning import load
from clover import backends
from clover.cache import cache_folder
from clover.config import EnergyConfig
from clover.energy import cpu_power
from clover.runtime.workers.pool import WorkerProcess
from clover.types import FamilyProfile

FOREIGN = 0.2
QUIET_S = 0.25
PATIENCE_S = 2.0
LIMIT_MS = 100.0
BEYOND_MS = 30.0
SETTLE_S = 0.4
IDLE_S = 3.0
LONGEST_S = 30.0


T = TypeVar("T")
Found = dict[str, list[tuple[T, bool]]]
"""What was measured by variant, and whether it counts."""


@dataclass
class Parts:
    """One swap, milliseconds."""

    plan: float
    fork: float
    load: float
    warm: float
    route: float
    asked: float
    answer: float
    total: float
    planned: float
    drain: float
    cpu: float


@dataclass
class Standing:
    """One swap to a worker that stood by."""

    total_ms: float
    pss_mib: float
    idle_w: float


@dataclass
class Swap:
    """One swap as the server's side saw it; monotonic nanoseconds."""

    variant: str
    begin_ns: int
    routed_ns: int
    end_ns: int
    worker: WorkerProcess
    cpu_s: float
    quiet: bool

    def parts(self, first_ns: int, due_ns: int) -> Parts:
        """Return the parts of the swap, with the first answer at `first_ns` to a request due at `due_ns`."""
        said = self.worker.said_ns
        ordered_ns = self.worker.started_at_ns
        return Parts(
            plan=(ordered_ns - self.begin_ns) / 1e6,
            fork=(said["loading"] - ordered_ns) / 1e6,
            load=(said["warming"] - said["loading"]) / 1e6,
            warm=(said["ready"] - said["warming"]) / 1e6,
            route=(self.routed_ns - said["ready"]) / 1e6,
            asked=max(0, due_ns - self.routed_ns) / 1e6,
            answer=(first_ns - max(due_ns, self.routed_ns)) / 1e6,
            total=(first_ns - self.begin_ns) / 1e6,
            planned=(first_ns - ordered_ns) / 1e6,
            drain=(self.end_ns - self.routed_ns) / 1e6,
            cpu=self.cpu_s * 1e3,
        )


# --- what others do ---------------------------------------------------------------------------------------------------


class Others:
    """How many cores others have used since this was made."""

    def __init__(self) -> None:
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), busy_seconds() - used()

    def cores(self) -> float:
        """Return the cores in use so far, on average."""
        at_s, theirs_s = self._now()
        return (theirs_s - self._since[1]) / (at_s - self._since[0])


async def quiet() -> Others:
    """Wait, not for ever, until others leave the cores alone; gives those of the last look."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        others = Others()
        await asyncio.sleep(QUIET_S)
        if others.cores() <= FOREIGN or time.monotonic() > end_s:
            return others


def used() -> float:
    """Return CPU seconds of this process and all that it started, those that have ended included."""
    ticks = 0
    for pid in tree(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, words[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


# --- one server -------------------------------------------------------------------------------------------------------


class Bench:
    """An embedded server, and what is done to it."""

    def __init__(self, server: clover.Server, backend: str) -> None:
        self.server = server
        self.backend = backend
        (self.served,) = server.engine.served.values()
        self._pool = server.engine.parts.pool

    async def pin(self, variant: str, ask: Callable[[], None] | None = None) -> Swap:
        """Swap to `variant`, through the controller, and `ask` once rows go there; returns when the old worker is
        gone."""
        others = await quiet()
        cpu_s = 0.0
        begin_ns = time.monotonic_ns()
        pinning = asyncio.create_task(
            self.server.engine.controller.command("pin", {"variant": variant, "force": True}, "bench")
        )
        routed_ns = 0
        while not pinning.done() or not routed_ns:
            if not routed_ns and {item.variant for item in self.served.fleet.routed} == {variant}:
                routed_ns = time.monotonic_ns()
                if ask is not None:
                    ask()
                cpu_s = cpu_seconds([self.worker(variant).pid])
            if pinning.done() and not routed_ns:
                break
            await asyncio.sleep(0.001)  # less would be none at all: timers of the loop count milliseconds
        await pinning
        end_ns = time.monotonic_ns()
        calm = others.cores() <= FOREIGN
        return Swap(variant, begin_ns, routed_ns, end_ns, self.worker(variant), cpu_s, calm)

    def worker(self, variant: str, state: str = "ready") -> WorkerProcess:
        """Return the first worker of `variant`."""
        pids = [
            item["pid"] for item in self.served.fleet.describe() if (item["variant"], item["state"]) == (variant, state)
        ]
        return next(worker for worker in self._pool.workers if worker.pid in pids)

    async def alone(self) -> tuple[float, bool]:
        """Load and warm of the worker that serves, in a second process on its cores that nobody asks anything; whether
        others left the cores alone."""
        others = await quiet()
        order = self.served.order(self.served.fleet.routed[0])
        assert order.backend == self.backend, f"{order.variant} is served by {order.backend}"
        worker = await self._pool.spawn(order, self.served.slab)
        await worker.drain_and_exit()
        return worker.load_ms + worker.warm_ms, others.cores() <= FOREIGN

    async def until_loaded(self) -> None:
        """Wait until the load has come."""
        before = self.served.fleet.observe()["rows"]
        await self.until(lambda: self.served.fleet.observe()["rows"] > before + 20)

    async def until(self, found: Callable[[], bool]) -> None:
        """Wait for something."""
        end_s = time.monotonic() + LONGEST_S
        while not found():
            if time.monotonic() > end_s:
                raise RuntimeError("the server did not get there in time")
            await asyncio.sleep(0.02)


def last_core() -> str:
    """Return the core of the workers; the front end and the load have the others to themselves."""
    return str(max(os.sched_getaffinity(0)))


def server_of(cache: Path, family: str, first: str, **more: Any) -> clover.Server:
    """Return a server with one worker, on a core of its own, that changes nothing by itself."""
    return clover.Server(
        place_of(family),
        port=0,
        cores=last_core(),
        cache_dir=str(cache),
        carbon="static:300",
        policy=f"static:{first}",
        accuracy_floor=1.0,
        slo_ms=1000.0,
        log_level="error",
        profile="require",
        resident="off",  # each swap starts a process
        **more,
    )


def place_of(family: str) -> str:
    """Return where a server finds the artifact."""
    return family if family == "fashion" else str(ROOT / "bench" / family)


def first_answer(seen: dict[str, Any], variant: str, since_ns: int) -> tuple[int, int]:
    """Return when the first answer of `variant` after `since_ns` was there, and when its request was due."""
    return min(
        (int(due_ns + ms * 1e6), int(due_ns))
        for due_ns, ms, status, by in seen["samples"]
        if status == 200 and by == variant and due_ns + ms * 1e6 > since_ns
    )


async def swaps(
    cache: Path, backend: str, variants: list[str], options: argparse.Namespace
) -> tuple[Found[Parts], Found[float]]:
    """Swap to every variant in turn, from the one before it; loading and warming alone between the rounds.  With each,
    whether it counts."""
    parts: Found[Parts] = {name: [] for name in variants}
    alone: Found[float] = {name: [] for name in variants}
    async with server_of(cache, options.family, variants[0]) as server:
        await server.engine.controller.command("freeze", {"on": True}, "bench")
        bench = Bench(server, backend)
        for number in range(3 * options.rounds + 1):
            for name in variants[1:] + variants[:1]:
                await bench.pin(name)
                own = await bench.alone()
                alone[name] += [own] if number else []
            seen: dict[str, Any] = {}
            done: list[Swap] = []
            async with load(server.url, options.rate, seen, options.family) as ask:
                await bench.until_loaded()
                for name in variants[1:] + variants[:1]:
                    await asyncio.sleep(SETTLE_S)
                    done.append(await bench.pin(name, ask))
                await asyncio.sleep(SETTLE_S)
            for swap in done if number else ():
                found = swap.parts(*first_answer(seen, swap.variant, swap.begin_ns))
                parts[swap.variant].append((found, swap.quiet))
            if seen["lost"] or any(status != 200 for _, _, status, _ in seen["samples"]):
                print(f"round {number}: requests failed", file=sys.stderr)
            least = min(sum(counts for _, counts in found) for found in parts.values())
            print(f"round {number}: {least} of {options.rounds} that count", file=sys.stderr)
            if least >= options.rounds:
                break
    return parts, alone


def counted(found: list[tuple[T, bool]]) -> list[T]:
    """Return those that count; all where none does."""
    return [item for item, counts in found if counts] or [item for item, _ in found]


async def standing(cache: Path, backend: str, variant: str, beside: str, options: argparse.Namespace) -> list[Standing]:
    """Return swaps from `beside` to `variant`, which stands by."""
    found = []
    async with server_of(cache, options.family, variant, relief=variant) as server:
        await server.engine.controller.command("freeze", {"on": True}, "bench")
        bench = Bench(server, backend)
        for _ in range(options.standing):
            await bench.pin(beside)
            await bench.until(lambda: any(item["state"] == "standing by" for item in bench.served.fleet.describe()))
            await asyncio.sleep(1.0)
            pid = bench.worker(variant, "standing by").pid
            seen: dict[str, Any] = {}
            async with load(server.url, options.rate, seen, options.family) as ask:
                await bench.until_loaded()
                used_s = cpu_seconds([pid])
                await asyncio.sleep(IDLE_S)
                watts = (cpu_seconds([pid]) - used_s) / IDLE_S * cpu_power(EnergyConfig()).core_w
                memory = pss_bytes([pid]) / 2**20
                swap = await bench.pin(variant, ask)
                await asyncio.sleep(SETTLE_S)
            first_ns, _ = first_answer(seen, variant, swap.begin_ns)
            found.append(Standing((first_ns - swap.begin_ns) / 1e6, memory, watts))
    return found


# --- profiles ---------------------------------------------------------------------------------------------------------


def stored(cache: Path, family: str) -> Path:
    """Return the file of the profile, which is measured first where there is none."""
    folder = cache_folder(str(cache)) / "profiles"
    if not list(folder.glob(f"{family}-*.json")):
        words = ["-m", "clover", "profile", place_of(family), "--quick", "--compile", "--cores", last_core()]
        words += ["--cache-dir", str(cache)]
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return next(folder.glob(f"{family}-*.json"))


def only(profile: FamilyProfile, backend: str) -> FamilyProfile:
    """Return the profile with `backend` chosen for every variant and no other measured: a plan may take a cheaper
    one."""
    mine = tuple(m for m in profile.latency if m.backend == backend)
    return msgspec.structs.replace(profile, backend=dict.fromkeys(profile.backend, backend), latency=mine)


def run(options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Run the whole bench."""
    path = stored(cache, options.family)
    kept = path.read_bytes()
    profile = msgspec.json.decode(kept, type=FamilyProfile)
    variants = list(profile.backend)
    figures: dict[str, Any] = {}
    try:
        for backend in options.backend or ("eager", "aoti", "onnxruntime"):
            if why := backends.get(backend).available():
                print(f"{backend}: {why}")
                continue
            path.write_bytes(msgspec.json.encode(only(profile, backend)))
            figures[backend] = one_backend(options, cache, backend, variants)
    finally:
        path.write_bytes(kept)
    return figures


def one_backend(options: argparse.Namespace, cache: Path, backend: str, variants: list[str]) -> dict[str, Any]:
    """Measure and print the tables of one backend."""
    parts, alone = uvloop.run(swaps(cache, backend, variants, options)) if options.rounds else ({}, {})
    names = [item.name for item in fields(Parts)]
    rows: list[list[object]] = []
    out: dict[str, Any] = {"swaps": {}, "standing": {}}
    for variant, all_found in parts.items():
        found = counted(all_found)
        figures: dict[str, float] = {name: statistics.median(getattr(item, name) for item in found) for name in names}
        figures["worst"] = max(item.total for item in found)
        figures["alone"] = statistics.median(counted(alone[variant]))
        figures["beyond"] = figures["planned"] - figures["alone"]
        figures["counted"] = sum(counts for _, counts in all_found)
        holds = (figures["total"] < LIMIT_MS, figures["beyond"] <= BEYOND_MS)
        rows.append([variant, *figures.values(), *("yes" if ok else "no" for ok in holds)])
        out["swaps"][variant] = figures
    columns = ["variant", *out["swaps"].get(variants[0], ()), f"< {LIMIT_MS:g}", f"beyond <= {BEYOND_MS:g}"]
    where = f"{provenance()['cores']} cores, {options.rate:g} requests/s"
    if rows:
        show(f"{backend}: {where}; ms, medians, measured", columns, rows)
    if options.standing:
        rows = []
        for variant in variants[:-1]:
            stood = uvloop.run(standing(cache, backend, variant, variants[-1], options))
            figures = {
                "to first answer ms": statistics.median(item.total_ms for item in stood),
                "worst": max(item.total_ms for item in stood),
                "memory MiB": statistics.median(item.pss_mib for item in stood),
                "idle W, modelled": statistics.median(item.idle_w for item in stood),
            }
            rows.append([variant, *figures.values()])
            out["standing"][variant] = figures
        title = f"{backend}: standing by beside {variants[-1]}, {options.standing} swaps (measured, but for the watts)"
        show(title, ["variant", *figures], rows)
    return out


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=[], help="backends; all that can be used otherwise")
    parser.add_argument("--rounds", type=int, default=7, help="swaps to every variant; 0 leaves them out")
    parser.add_argument(
        "--standing", type=int, default=2, help="swaps to every variant that stands by; 0 leaves them out"
    )
    parser.add_argument("--family", default="fashion", choices=("fashion", "heavy"), help="whose variants [fashion]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--cache-dir", default="", help="profile and artifacts; a temporary folder otherwise (minutes)")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(options.cache_dir or Path(folder) / "cache").absolute()
        figures = run(options, cache)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
