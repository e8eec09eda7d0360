"""The server without flags beside six other settings, each at the same moment on one meter: which saves most?

    python -m bench.settings [--family fashion] [--rate 200] [--seconds 240] [--day-s 240] [--slo-ms 15]
                             [--only base "budget, cascade"] [--weight W] [--json FILE]

Two servers of one family run at a time, on a core each: one without flags (`default`), the other with a
setting.  First that is BASE, then the settings of `SETTINGS`.  Both get the same requests in the same order, Poisson at
the same rate, while one day of the synthetic grid passes.  Each gets them at moments of its own: of two that are sent
at one moment the first finds the machine asleep, and costs its server 7 % more than the other one costs.  They exchange
their cores every ten seconds, as other work may slow one core down for minutes.  Every server starts afresh from one
profile, that of the first core; nothing that another one learned or spent is left to it.  `--slo-ms` gives all of them
that SLO, BASE too: the default lets rows wait for fuller batches only if an SLO was given.

Joules are CPU seconds of a control group, which the kernel counts, x modelled watts of a busy core; idle power, the
same for all, is left out.  Grams are these joules at the intensity of their ten seconds.  Three boundaries:
`workers`; `serving`, which is workers and front end; and `server`, with the controller (on the event loop, too) and its
solver, as the server's own account has them.  They plan for a day in minutes here, hundreds of times as often as on a
real grid, so settings are judged by `serving`; with `--day-s 86400` a day takes a day, and `server` is what it is.
Accuracy is by labels, the same images for both.

A setting saves 1 - c / b of BASE's grams, c and b being its grams and BASE's, each divided by those of the default
beside it.  So it does not count that the machine is faster at one time than at another.  After +- is twice the standard
error over windows of ten seconds, of c and b together.

**At the default's accuracy.**  Who serves two settings in turn gets what lies on the line between them.  So what all
settings together reach at an accuracy is the upper hull of their points and BASE's, a setting that is more accurate
counting as a less accurate one too; `all six` is that hull at the default's accuracy, and the column of one setting
that of it (in all its forms) and BASE alone.  The waiting cascade, the most frugal of them, also runs at the floor that
is the accuracy which the default promises.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import uvloop

from bench import apart, headline_requests, headline_work
from bench.cascade import Order
from bench.common import ServerProcess, binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.load import Body, Check, Result, Sample, open_loop
from bench.meter import Group, confined, grouped
from bench.promise import WARM_S, WINDOW_S, Marks, Stretch, right, watch, within
from clover import families, profiles
from clover.cache import cache_folder
from clover.config import EnergyConfig, ServerConfig
from clover.devices.cpu import CpuDevice
from clover.energy import cpu_power
from clover.profiling.stored import key_of

J_PER_KWH = 3.6e6
BOUNDARIES = ("workers", "serving", "server")


@dataclass(frozen=True)
class Setting:
    """A setting that the default is held against; `of`: the line of the table that it is another form of."""

    name: str
    flags: str
    of: str = ""

    @property
    def line(self) -> str:
        """The line that its points belong to."""
        return self.of or self.name


_BEFORE = "--policy objective --no-waits --reference-g-per-kwh 250"
_FLOOR = "--policy objective --objective floor"
BASE = Setting("base", "--policy base")
SETTINGS = (
    Setting("old default", f"{_BEFORE} --no-cascade"),
    Setting("old default, cascade", f"{_BEFORE} --cascade"),
    Setting("floor", f"{_FLOOR} --no-cascade --no-waits"),
    Setting("floor, cascade", f"{_FLOOR} --cascade --no-waits"),
    Setting("floor, cascade, waits", f"{_FLOOR} --cascade --waits"),
    Setting(
        "floor as promised, cascade, waits",
        f"{_FLOOR} --cascade --waits --accuracy-margin 0 --accuracy-floor {{promised}}",
        of="floor, cascade, waits",
    ),
    Setting("budget, cascade", "--policy budget --cascade --no-waits --reference-g-per-kwh 250"),
)


@dataclass(frozen=True)
class Prices:
    """What CPU seconds are worth: modelled watts of a busy core, and the power usage effectiveness."""

    core_w: float
    pue: float


@dataclass(frozen=True)
class Side:
    """One server of a pair: what it did, in figures a request."""

    stretch: Stretch
    prices: Prices
    family: str

    def used_j(self, boundary: str = "serving") -> list[float]:
        """Return joules in each window of ten seconds, within `boundary`."""
        marks, core_w = self.stretch.marks, self.prices.core_w
        used = [core_w * seconds for seconds in (marks.workers_s if boundary == "workers" else marks.server_s)]
        if boundary == "serving":
            used = [joules - control_j for joules, control_j in zip(used, marks.control_j, strict=True)]
        return [after - before for before, after in itertools.pairwise(used)]

    def windows_g(self, boundary: str = "serving") -> list[float]:
        """Return grams a request in each window of ten seconds."""
        grid, windows = self.stretch.marks.g_per_kwh, self.stretch.windows()
        used = zip(self.used_j(boundary), grid, windows, strict=False)  # the grid is read once more, at the end
        return [joules * self.prices.pue * g / J_PER_KWH / max(len(window), 1) for joules, g, window in used]

    def grams(self, boundary: str = "serving") -> float:
        """Return grams a request."""
        requests = [len(window) for window in self.stretch.windows()]
        used = zip(self.windows_g(boundary), requests, strict=True)
        return sum(each * count for each, count in used) / max(sum(requests), 1)

    def joules(self, boundary: str = "serving") -> float:
        """Return joules a request."""
        return sum(self.used_j(boundary)) / max(sum(map(len, self.stretch.windows())), 1)

    def figures(self) -> dict[str, Any]:
        """Return what the table and the file have of it."""
        part = right(self.stretch) / 100.0
        family = self.stretch.state["models"][self.family]
        return {
            "requests": len(self.stretch.answered),
            "failed": self.stretch.result.failures(),
            "mismatched": self.stretch.result.mismatched(),
            "accuracy": 100.0 * part,
            "p95_ms": self.stretch.result.latency_ms(0.95),
            "slo_ms": family["targets"]["slo_ms"],
            "windows_within_slo": within(self.stretch, family["targets"]["slo_ms"]),
            "windows": len(self.stretch.windows()),
            **{f"mj_a_request_{boundary}": 1e3 * self.joules(boundary) for boundary in BOUNDARIES},
            "mj_a_right_answer": 1e3 * self.joules() / part,
            "ug_a_request": 1e6 * self.grams(),
            "ug_a_right_answer": 1e6 * self.grams() / part,
            "plan": family["routing"],
            "changes": family["changes"],
            "thresholds_moved": family["thresholds_moved"],
        }


@dataclass(frozen=True)
class Pair:
    """A setting and the default, at the same moment."""

    setting: Setting
    own: Side
    default: Side

    def ratio(self, boundary: str = "serving") -> float:
        """Return the setting's grams a request as a part of the default's."""
        return self.own.grams(boundary) / self.default.grams(boundary)

    def error(self) -> float:
        """Return twice the standard error of `ratio`, over windows; NaN if there are fewer than two."""
        own, default = self.own.windows_g(), self.default.windows_g()
        if len(own) < 2:
            return float("nan")
        mean, ratio = statistics.fmean(default), self.ratio()
        off = [a - ratio * b for a, b in zip(own, default, strict=False)]
        return 2.0 * statistics.stdev(off) / math.sqrt(len(off)) / mean


@dataclass(frozen=True)
class Point:
    """What a setting saves of BASE's grams (a part), at which accuracy (percent)."""

    accuracy: float
    saved: float


def hull(points: Sequence[Point], accuracy: float) -> float:
    """Return the most that settings in turn save at `accuracy` percent on average or more: the upper hull of `points`
    there.  NaN if none is as accurate."""
    reached = [
        _between(low, high, accuracy)
        for low, high in itertools.product(points, repeat=2)
        if low.accuracy < accuracy <= high.accuracy
    ]
    return max([*reached, *(point.saved for point in points if point.accuracy >= accuracy)], default=float("nan"))


def _between(low: Point, high: Point, accuracy: float) -> float:
    """Return what is saved on the line between two points."""
    part = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
    return low.saved + part * (high.saved - low.saved)


# --- one pair ---------------------------------------------------------------------------------------------------------


def fashion() -> tuple[list[Body], Check]:
    """Return requests of the default family, in binary, and a check that holds an answer against its label, whatever
    backend it came from."""
    images, labels = fashion_rows()

    def check(body: Body, sample: Sample, answer: bytes) -> None:
        scores = np.asarray(orjson.loads(answer)["outputs"][0]["data"])
        sample.correct = bool(scores.argmax() == labels[body.row])

    return binary_bodies(images, len(images)), check


def requests_of(family: str) -> tuple[list[Body], Check]:
    """Return requests of another family and a check, as `bench.headline` has them: an answer without a label counts by
    the published accuracy of the variant that gave it."""
    rows, labels = headline_requests.rows_of(family)
    judge = headline_requests.judge_of(family, rows, labels, "")
    best = families.load_family(family).variants[-1].name
    work = headline_work.variant_work(f"{family}:{best}")

    def check(body: Body, sample: Sample, answer: bytes) -> None:
        sample.correct = judge(body, sample, answer)

    return headline_requests.bodies_of(work, rows, binary=work.pictures), check


@dataclass(frozen=True)
class Bench:
    """What all pairs share: family, cores, requests, prices, the folder of the run and the profile that plans are made
    from."""

    family: str
    cores: tuple[int, int]
    bodies: list[Body]
    check: Check
    rate: float
    seconds: float
    day_s: float
    prices: Prices
    folder: Path
    slo_ms: float | None = None
    """The SLO that all servers are given; None: their own default."""

    def pair(self, number: int, setting: Setting) -> Pair:
        """Run `setting` and the default side by side for a day of the grid; the default begins on the first core in
        even pairs."""
        words = setting.flags.split()
        flags = [words, []] if number % 2 else [[], words]
        with contextlib.ExitStack() as stack:
            groups = [stack.enter_context(grouped(f"{number}-{lane}")) for lane in range(2)]
            with ThreadPoolExecutor(2) as starting:  # at once, so that both see the same part of the day
                started = [starting.submit(self._start, number, lane, flags[lane], groups[lane]) for lane in range(2)]
            up = [stack.enter_context(one.result()) for one in started if one.exception() is None]
            for one in started:
                one.result()  # raises why it did not start
            stretches = uvloop.run(self._drive(up, groups))
        sides = [Side(stretch, self.prices, self.family) for stretch in stretches]
        return Pair(setting, sides[1 - number % 2], sides[number % 2])

    def _start(
        self, number: int, lane: int, flags: list[str], group: Group | None
    ) -> contextlib.AbstractContextManager[ServerProcess]:
        """Start a server on the core of `lane` and return it ready, behind a context that ends it."""
        cache = self.folder / f"cache-{number}-{lane}"
        seeded(self.family, cache, self.cores)
        day = ["--carbon", "synthetic", "--trace-speed", str(86_400.0 / self.day_s)]
        words = [self.family, *day, "--cache-dir", str(cache), "--profile", "require", *flags]
        if self.slo_ms is not None:
            words += ["--slo-ms", f"{self.slo_ms:g}"]
        joined = group.folder if group is not None else None
        with confined(self.cores[lane]), contextlib.ExitStack() as stack:  # the affinity is this thread's alone
            server = stack.enter_context(served(words, log=self.folder / f"serve-{number}-{lane}.log", group=joined))
            return _closing(stack.pop_all(), server)

    async def _drive(self, servers: list[ServerProcess], groups: list[Group | None]) -> list[Stretch]:
        """Send the same requests to both servers, and watch what they use."""
        load = partial(open_loop, model=self.family, rate=self.rate, connections=32)
        await asyncio.gather(*(load(server.url, bodies=self.bodies[:512], seconds=WARM_S) for server in servers))
        stop, marks = threading.Event(), [Marks() for _ in servers]
        threads = [
            threading.Thread(target=watch, args=(server, own, self.seconds, stop, _counter(server, group)))
            for server, own, group in zip(servers, marks, groups, strict=True)
        ]
        threads.append(threading.Thread(target=self._exchange, args=(servers, stop)))
        for thread in threads:
            thread.start()
        try:
            results: list[Result] = await asyncio.gather(
                *(
                    load(server.url, bodies=Order(self.bodies, 1), seconds=self.seconds, check=self.check, seed=seed)
                    for seed, server in enumerate(servers, 2)
                )
            )
        except BaseException:
            stop.set()
            raise
        finally:
            await asyncio.to_thread(_joined, threads)
        states = [server.get("/v2/clover/state") for server in servers]
        return [Stretch(*found) for found in zip(results, marks, states, strict=True)]

    def _exchange(self, servers: list[ServerProcess], stop: threading.Event) -> None:
        """Let the servers exchange their cores every `WINDOW_S` until the pair is over."""
        begin = time.monotonic()
        for number in range(1, round(self.seconds / WINDOW_S)):
            if stop.wait(max(0.0, begin + number * WINDOW_S - time.monotonic())):
                return
            for lane, server in enumerate(servers):
                moved(server.process.pid, self.cores[(lane + number) % 2])


def _joined(threads: Sequence[threading.Thread]) -> None:
    """Wait for the end of all `threads`."""
    for thread in threads:
        thread.join()


def moved(pid: int, core: int) -> None:
    """Have all threads of `pid` and its descendants run on `core` alone."""
    for process in tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            for thread in os.listdir(f"/proc/{process}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread), {core})


@contextlib.contextmanager
def _closing(stack: contextlib.ExitStack, server: ServerProcess) -> Iterator[ServerProcess]:
    """Hand on what another thread has started, and end it after the block."""
    with stack:
        yield server


def _counter(server: ServerProcess, group: Group | None) -> Any:
    """Return what counts the CPU seconds of `server`: its control group, or the sum over its living processes."""
    return group.seconds if group is not None else lambda: cpu_seconds(tree(server.process.pid))


def seeded(family: str, cache: Path, cores: Sequence[int]) -> None:
    """Fill the empty folder `cache` with the profile of the first of `cores`, as if each of the others had it too, and
    with what was compiled for it.  RuntimeError if there is no such profile."""
    kept, spec, config = cache_folder(""), families.load_family(family), ServerConfig()
    keys = [key_of(spec, CpuDevice((core,)), config) for core in cores]
    source, store = profiles.ProfileStore(kept), profiles.ProfileStore(cache)
    profile = source.get(family, keys[0])
    if profile is None:
        raise RuntimeError(f"core {cores[0]} has no profile of {family}")
    cache.mkdir(mode=0o700)
    store.folder.mkdir(mode=0o700)
    shutil.copytree(kept / "artifacts", cache / "artifacts")
    for key in keys:
        store.put(msgspec.structs.replace(profile, key=key))
        rows = source.rows_path(family, keys[0])
        if rows.exists():
            shutil.copy(rows, store.rows_path(family, key))


def profiled(family: str, core: int, folder: Path) -> float:
    """Have a server on `core` take or measure its profile; return the accuracy that the default promises (percent)."""
    with confined(core), served([family, "--carbon", "synthetic"], log=folder / "profile.log"):
        pass
    spec, config = families.load_family(family), ServerConfig()
    profile = profiles.ProfileStore(cache_folder("")).get(family, key_of(spec, CpuDevice((core,)), config))
    if profile is None:
        raise RuntimeError(f"the server kept no profile of {family}; see {folder / 'profile.log'}")
    best = max(profiles.accuracy_of(profile, variant) for variant in profile.backend)
    return best - config.families[0].accuracy_budget


# --- the table --------------------------------------------------------------------------------------------------------


def compared(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what each setting of `pairs` and the default save of BASE's grams, and the hull at the default's accuracy.
    The first pair is BASE's."""
    base, *others = pairs
    of_base, base_error = base.ratio(), base.error()
    default = Point(statistics.fmean(right(pair.default.stretch) for pair in pairs), 1.0 - 1.0 / of_base)
    others_of = {boundary: base.ratio(boundary) for boundary in BOUNDARIES if boundary != "serving"}
    points = {BASE.name: [Point(right(base.own.stretch), 0.0)]}
    rows = []
    for pair in others:
        point = Point(right(pair.own.stretch), 1.0 - pair.ratio() / of_base)
        points.setdefault(pair.setting.line, []).append(point)
        part = pair.ratio() / of_base
        error = part * ((pair.error() / pair.ratio()) ** 2 + (base_error / of_base) ** 2) ** 0.5
        rows.append({"setting": pair.setting.name, "of": pair.setting.line, **vars(point), "error": error})
        rows[-1] |= {f"saved, {name}": 1.0 - pair.ratio(name) / ratio for name, ratio in others_of.items()}
    for row in rows:
        row["at the default's accuracy"] = hull([*points[row["of"]], *points[BASE.name]], default.accuracy)
    reached = hull(list(itertools.chain.from_iterable(points.values())), default.accuracy)
    error = base_error / of_base**2
    beyond = {f"saved, {name}": 1.0 - 1.0 / ratio for name, ratio in others_of.items()}
    return {"default": {**vars(default), "error": error, "all six": reached, **beyond}, "settings": rows}


def printed(kept: Sequence[dict[str, Any]], found: dict[str, Any], promised: float, title: str) -> None:
    """Print the tables; `kept` has the figures of both sides of each pair."""
    own = found["default"]
    rows = [("default", *_saved(own), "", "")]
    for row in found["settings"]:
        there = row["at the default's accuracy"]
        rows.append((row["setting"], *_saved(row), f"{100 * there:.1f}", f"{100 * (own['saved'] - there):+.1f}"))
    rows.append(("all six", *[""] * 4, f"{100 * own['all six']:.1f}", f"{100 * (own['saved'] - own['all six']):+.1f}"))
    columns = ("setting", "accuracy %", "serving", "workers", "server", "at the default's accuracy", "default ahead by")
    show(f"{title}: saved of BASE's grams, %, idle power left out; the last two columns: serving", columns, rows)
    sides = [
        (name, *(figures[what] for what in _COLUMNS))
        for pair in kept
        for name, figures in ((pair["setting"]["name"], pair["own"]), ("  default beside it", pair["default"]))
    ]
    show("each pair (CPU seconds, answers, latencies measured; watts modelled)", ("setting", *_COLUMNS), sides)
    base, budget = kept[0]["own"]["accuracy"], ServerConfig().families[0].accuracy_budget
    held = statistics.fmean(pair["default"]["windows_within_slo"] for pair in kept)
    print(
        f"the default promises {promised:.2f} % by its profile; BASE's {base:.2f} % by labels less the budget is "
        f"{base - budget:.2f} %; it served {own['accuracy']:.2f} %; client p95 within its SLO of "
        f"{kept[0]['default']['slo_ms']:.3g} ms in {100 * held:.1f} % of its windows"
    )


def _saved(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of `compared`: accuracy, and what is saved by boundary."""
    serving = f"{100 * row['saved']:.1f} +-{100 * row['error']:.1f}"
    return f"{row['accuracy']:.3f}", serving, *(f"{100 * row[f'saved, {name}']:.1f}" for name in ("workers", "server"))


_COLUMNS = (
    "requests", "failed", "mismatched", "accuracy", "p95_ms", "windows_within_slo", "mj_a_request_workers",
    "mj_a_request_serving", "mj_a_request_server", "mj_a_right_answer", "ug_a_right_answer",
)  # fmt: skip


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="fashion", help="the family that is served [fashion]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second to each server [200]")
    parser.add_argument("--seconds", type=float, default=240.0, help="seconds of a pair [240]")
    parser.add_argument("--day-s", type=float, default=0.0, help="seconds of a day of the grid [those of a pair]")
    parser.add_argument("--slo-ms", type=float, default=None, help="the SLO that all servers are given [none]")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these settings, and BASE [all]")
    parser.add_argument("--weight", type=float, default=0.0, help="prefer all this to other work, so many to 1 [no]")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed: one for the default, one for the setting beside it")
    if unknown := set(options.only) - {setting.name for setting in (BASE, *SETTINGS)}:
        parser.error(f"--only takes names of {', '.join(setting.name for setting in SETTINGS)}, not {unknown.pop()}")
    family = options.family
    bodies, check = fashion() if family == "fashion" else requests_of(family)
    prices = Prices(cpu_power(EnergyConfig()).core_w, ServerConfig().carbon.pue)
    other = apart.OtherWork()
    with tempfile.TemporaryDirectory() as name, apart.preferred(options.weight):
        folder = Path(name)
        promised = profiled(family, cores[0], folder)
        cpus = (cores[0], cores[1])
        day_s = options.day_s or options.seconds
        bench = Bench(family, cpus, bodies, check, options.rate, options.seconds, day_s, prices, folder, options.slo_ms)
        wanted = [setting for setting in SETTINGS if not options.only or setting.name in options.only]
        pairs = []
        for number, setting in enumerate([BASE, *wanted]):
            flags = setting.flags.format(promised=f"{promised:.4f}")
            pairs.append(bench.pair(number, Setting(setting.name, flags, setting.of)))
            ratio, error = pairs[-1].ratio(), pairs[-1].error()
            print(f"{setting.name}: {ratio:.3f} +-{error:.3f} of the default's grams", flush=True)
    found = compared(pairs)
    about = f"{family}, {options.rate:g} requests/s, a day in {day_s:g} s, {prices.core_w:g} W a busy core"
    kept = [
        {"setting": vars(pair.setting), "own": pair.own.figures(), "default": pair.default.figures()} for pair in pairs
    ]
    printed(kept, found, promised, about)
    meanwhile = other.report(options.weight)
    print("; ".join(f"{what}: {value}" for what, value in meanwhile.items()))
    write_json(options.json, {**found, "promised": promised, "pairs": kept, "windows_s": WINDOW_S, **meanwhile})


if __name__ == "__main__":
    main()
