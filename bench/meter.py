"""The server's account of its own energy, held against CPU time that it did not count itself.

    python -m bench.meter [--rates 200 1000] [--seconds 600] [--swap-s 5] [--json FILE]
    python -m bench.meter --claims [--rates 200] [--seconds 14400] [--stretch-s 300] [--lanes 2] [--json FILE]

The first form serves the default family on modelled energy and drives Poisson arrivals.  Its lines (active, front end,
control) are modelled watts x CPU seconds; these seconds are compared with those of a control group in which the server
was started (or, if no group can be made here, with the sum over its living processes).  With --swap-s the variant is
pinned to another one that often.

The second form lets one server serve BASE and what its controller chooses in turn, under the same load, for
`--stretch-s` seconds each.  What BASE used more, in CPU seconds of the group, is held against what the server said of
the other stretches: joules saved against BASE, for the boundary `server`.  The first ten seconds of a stretch are left
out, since the change falls into them.  The first `+-` is twice the standard error over pairs of stretches, the second
what the server says of its own claim, without the error of watts, which are the same on both sides here.

With `--lanes N` so many servers do that at a time, each on a core of its own: every other one begins with its own
choice while the rest begin with BASE, so that both are served at every moment, and half the time is enough.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench import apart
from bench.common import ServerProcess, binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.load import OpenLoop, Result

LINES = ("active", "front_end", "control")
IDLE = ("idle", "idle_no_request", "unowned")
SETTLE_S = 10.0
G_PER_KWH, PUE = 400.0, 1.5
GRAMS_PER_J = G_PER_KWH * PUE / 3.6e6
"""Both are constant here, so that grams are joules."""
_ROOTS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))


class Group:
    """A control group of this bench's own: what runs in it is counted by the kernel, the dead included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seconds(self) -> float:
        """Return CPU seconds used in the group so far."""
        usage = self.folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        fields = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6


@contextlib.contextmanager
def grouped(name: str) -> Iterator[Group | None]:
    """Make a control group for the block, which what is started may join; None if this user may not make one."""
    for root in _ROOTS:
        folder = root / f"clover-bench-{os.getpid()}-{name}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "cpuacct.usage").exists() or (folder / "cpu.stat").exists():
            break
        folder.rmdir()
    else:
        yield None
        return
    home = root / "cgroup.procs"
    try:
        yield Group(folder)
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            home.write_text(pid)
        folder.rmdir()


@contextlib.contextmanager
def confined(core: int | None) -> Iterator[None]:
    """Have what the block starts run on this core alone; None: wherever this process may."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, whole if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, whole)


def metered(server: ServerProcess) -> dict[str, float]:
    """Return the joules of the machine's account by line."""
    (line,) = server.get("/v2/clover/state")["totals"]["devices"].values()
    return {name: line[f"{name}_j"] for name in (*LINES, *IDLE, "unattributed", "measured")}


class Watched:
    """A server with two counts of its CPU time: its own and ours."""

    def __init__(self, server: ServerProcess, group: Group | None, core_w: float) -> None:
        self.server = server
        self._group = group
        self._core_w = core_w
        self._last = self.read()

    def read(self) -> dict[str, float]:
        """Return CPU seconds by line of the server's account, in sum (`said`), and as counted from outside (`seen`)."""
        pid = self.server.process.pid
        seen = self._group.seconds() if self._group is not None else cpu_seconds(tree(pid))
        lines = metered(self.server)
        said = {name: lines[name] / self._core_w for name in LINES}
        saved = (self.server.get("/v2/clover/state")["totals"]["saved"] or {}).get("base") or {}
        server = (saved.get("boundaries") or {}).get("server") or {}
        errors = server.get("errors_g") or {"profile": 0.0, "ratio": 0.0}
        claims = {
            "claimed": server.get("grams", 0.0) / GRAMS_PER_J,
            "model error": math.hypot(errors["profile"], errors["ratio"]) / GRAMS_PER_J,
        }
        return said | {"said": sum(said.values()), "seen": seen, **claims}

    def since(self) -> dict[str, float]:
        """Return the same for the time since the last call."""
        before, self._last = self._last, self.read()
        return {name: value - before[name] for name, value in self._last.items()}


async def drive(
    options: argparse.Namespace, watched: Watched, rate: float, variants: list[str]
) -> tuple[Result, dict[str, float]]:
    """Drive `rate` requests a second, pinning the next of `variants` every `options.swap_s`."""
    load = OpenLoop(watched.server.url, "fashion", binary_bodies(fashion_rows()[0], 512), rate, 32, 1, None)
    running = asyncio.create_task(load.run(options.seconds + 2 * SETTLE_S))
    await asyncio.sleep(SETTLE_S)
    await asyncio.to_thread(watched.since)
    end = asyncio.get_running_loop().time() + options.seconds
    turns = itertools.cycle(variants)
    while (left := end - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(left, options.swap_s or left))
        if options.swap_s:
            await asyncio.to_thread(watched.server.post, "/v2/clover/pin", {"variant": next(turns), "force": True})
    found = await asyncio.to_thread(watched.since)
    return await running, found


@dataclass(slots=True)
class Lane:
    """What one server did: its requests, and what each stretch of BASE and of the controller's choice used."""

    result: Result
    base: list[dict[str, float]]
    own: list[dict[str, float]]


async def stretches(options: argparse.Namespace, watched: Watched, rate: float, lane: int) -> Lane:
    """Serve BASE and the controller's choice in turn; return what each stretch of the two used.  Odd lanes begin with
    the choice."""
    load = OpenLoop(watched.server.url, "fashion", binary_bodies(fashion_rows()[0], 512), rate, 32, 1, None)
    count = max(2, round(options.seconds / options.stretch_s / 2) * 2)
    running = asyncio.create_task(load.run(count * options.stretch_s + 5.0))
    base: list[dict[str, float]] = []
    own: list[dict[str, float]] = []
    for number in range(count):
        path, body, found = ("base", {}, base) if (number + lane) % 2 == 0 else ("pin", {"variant": None}, own)
        await asyncio.to_thread(watched.server.post, f"/v2/clover/{path}", body)
        await asyncio.sleep(SETTLE_S)
        await asyncio.to_thread(watched.since)
        await asyncio.sleep(options.stretch_s - SETTLE_S)
        used = await asyncio.to_thread(watched.since)
        found.append(used)
        gc.freeze()  # samples of hours: to walk them again and again would hold requests up
        joules = f"{options.core_w * used['seen']:.1f} J used, {used['claimed']:.1f} J said to be saved"
        print(
            f"lane {lane}, stretch {number + 1} of {count}, {'BASE' if found is base else 'own'}: {joules}", flush=True
        )
    return Lane(await running, base, own)


async def in_lanes(options: argparse.Namespace, lanes: list[Watched], rate: float) -> list[Lane]:
    """Run the stretches of all lanes at the same time."""
    return await asyncio.gather(*(stretches(options, watched, rate, lane) for lane, watched in enumerate(lanes)))


def lines(options: argparse.Namespace, watched: Watched) -> dict[str, Any]:
    """Print and return the lines of the account beside CPU seconds from outside, at each rate."""
    columns = ("requests/s", "failed", *LINES, "said s", "seen s", "said/seen", "CPU us/request")
    rows = []
    for rate in options.rates:
        result, used = uvloop.run(drive(options, watched, rate, ["tiny", "small", "medium"]))
        rows.append(
            (
                f"{rate:g}",
                result.failures(),
                *(round(used[name], 2) for name in LINES),
                round(used["said"], 2),
                round(used["seen"], 2),
                round(used["said"] / used["seen"], 4),
                round(1e6 * used["seen"] / (rate * options.seconds), 1),
            )
        )
    swaps = f", a swap every {options.swap_s:g} s" if options.swap_s else ""
    show(f"CPU seconds by line of the account, {options.seconds:g} s each{swaps}", columns, rows)
    return {"columns": columns, "rows": rows}


def claims(options: argparse.Namespace, lanes: list[Watched]) -> dict[str, Any]:
    """Print and return what servers claim to have saved against BASE beside what BASE really used, by lane and of all
    pairs of stretches."""
    columns = ("requests/s", "lane", "pairs", "BASE J", "own J", "saved J seen", "+-", "claimed", "+- model", "failed")
    rows, kept = [], []
    for rate in options.rates:
        found = uvloop.run(in_lanes(options, lanes, rate))
        kept += [{"rate": rate, "lane": lane, "base": one.base, "own": one.own} for lane, one in enumerate(found)]
        every = Lane(
            Result([item for one in found for item in one.result.samples], lost=sum(one.result.lost for one in found)),
            [item for one in found for item in one.base],
            [item for one in found for item in one.own],
        )
        named = [(str(lane), one) for lane, one in enumerate(found)] if len(found) > 1 else []
        for name, one in (*named, ("all", every)):
            rows.append((f"{rate:g}", name, len(one.base), *compared(options.core_w, one), one.result.failures()))
    show(f"Joules a stretch of {options.stretch_s - SETTLE_S:g} s, boundary server", columns, rows)
    return {"columns": columns, "rows": rows, "stretches": kept}


def compared(core_w: float, lane: Lane) -> tuple[float, ...]:
    """Return joules of BASE and of the choice, saved as seen with its error, and as claimed with its error."""
    base_j, own_j = ([core_w * item["seen"] for item in side] for side in (lane.base, lane.own))
    seen = [a - b for a, b in zip(base_j, own_j, strict=True)]
    error = 2.0 * statistics.stdev(seen) / len(seen) ** 0.5 if len(seen) > 1 else float("nan")
    claimed = statistics.fmean(item["claimed"] for item in lane.own)
    model = sum(item["model error"] for item in (*lane.base, *lane.own)) / len(seen)
    figures = (statistics.fmean(base_j), statistics.fmean(own_j), statistics.fmean(seen), error, claimed, model)
    return tuple(round(figure, 1) for figure in figures)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[200.0, 1000.0], help="requests a second, one run each"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="seconds of one run")
    parser.add_argument("--swap-s", type=float, default=0.0, help="seconds between two swaps; 0: none are forced")
    parser.add_argument("--claims", action="store_true", help="hold what is said to be saved against what BASE uses")
    parser.add_argument("--stretch-s", type=float, default=300.0, help="claims: seconds of a stretch")
    parser.add_argument("--lanes", type=int, default=0, help="claims: servers at a time, a core each [one, all cores]")
    parser.add_argument("--core-w", type=float, default=8.0, help="modelled watts of a busy core")
    parser.add_argument("--weight", type=float, default=0.0, help="prefer all this to other work, so many to 1 [no]")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if not 0 <= options.lanes <= len(cores) or (options.lanes and not options.claims):
        parser.error(f"--lanes goes with --claims and takes at most the {len(cores)} cores of this machine")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = Path(folder) / "clover.toml"
        config.write_text(
            f'[energy]\nmeter = "modelled"\ncore_w = {options.core_w}\n'
            f'[carbon]\npue = {PUE}\nsource = "static:{G_PER_KWH}"\n'
        )
        stack.enter_context(apart.preferred(options.weight))
        lanes = []
        for lane, core in enumerate(cores[: options.lanes] or [None]):
            group = stack.enter_context(grouped(str(lane)))
            arguments = ["fashion", "--config", str(config)]
            with confined(core):
                joined = group.folder if group else None
                server = stack.enter_context(served(arguments, log=Path(folder) / f"serve-{lane}.log", group=joined))
            lanes.append(Watched(server, group, options.core_w))
        print("CPU seconds are counted by " + ("a control group" if group else "process"), flush=True)
        document = claims(options, lanes) if options.claims else lines(options, lanes[0])
    write_json(options.json, document)


if __name__ == "__main__":
    main()
