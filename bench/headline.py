"""The headline: one family, load and SLO, served by Clover and by others, and what a right answer costs each.

    python -m bench.headline [fashion language ocr efficientnet_lite] [--servers clover base pytriton ...]
        [--others onnxruntime openvino-bf16] [--rate R] [--slo-ms MS] [--rounds 5] [--seconds 20] [--warm-s 40]
        [--profile] [--cache-dir DIR] [--weight 0] [--json FILE]

Clover serves the family by its default (`clover`) and as BASE (`base`: always the best variant); each of the others
serves the best variant, and once more the second-best, with its own batching, in an environment of its own
(`bench.wire.peers`).  What can be compiled is compiled before, for all of them alike: for ONNX Runtime, and with
`--others` for OpenVINO too; Clover may take forms in fewer bits where answers agree.  A family may also be a folder, as
one of photographs with labels (models/efficientnet_lite/README.md).  All get the same requests of held-out rows
(`bench.headline_requests`), in an open loop at the same rate.  A server's whole tree has core 0 and the load generator
core 1.  Servers stay up together and idle ones are stopped (SIGSTOP), rounds go through them in turn, and each round
goes on with the rows after those of
the last.  Before a round the load is on for some seconds, so that Clover's controller has seen the rate that begins:
what a change of the load costs is not measured here, all else that it does is.  CPU is the tree's, from the scheduler's
nanosecond counters.

With `--profile` each server answers one round more, in which `bench.headline_profile` looks where its CPU goes.
`bench.headline_page` makes a page, a plot and the README's table of the JSON files.  Requires two cores and taskset.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import apart
from bench.common import ROOT, busy_seconds, cpu_seconds, free_port, provenance, show, tree, write_json
from bench.headline_profile import PARTS, Sampler, Share, counts, shares, with_parts
from bench.headline_requests import TAKE_BYTES, Judge, bodies_of, judge_of, rows_of
from bench.headline_work import BACKEND, FOLDER, variant_work
from bench.load import Body, Result, Sample, open_loop
from bench.wire import peers
from clover import backends, families

SERVER_CORE, CLIENT_CORE = 0, 1
CLOVERS = {"clover": (), "base": ("--policy", "base")}
BACKENDS = ("--backends", "eager,onnxruntime,openvino-bf16,openvino,onnxruntime-int8,openvino-int8")
"""Of Clover; `aoti` is left out, which takes half a minute a variant to compile."""
LOADS = {
    # requests a second, SLO in ms
    "fashion": (100.0, 50.0),
    "language": (100.0, 50.0),
    "ocr": (8.0, 250.0),
    "efficientnet_lite": (12.0, 250.0),
}
"""What a family is served at, unless the command says otherwise: one core answers it with room to spare."""
BEST = {"ocr": ("v6-wide", "v6-most")}
"""The best variant and the second-best, of families whose last ones they are not."""
_START_S = 900.0
_OTHERS_WARM_S = 5.0
_LEAD_S, _OTHERS_LEAD_S = 15.0, 2.0
"""Seconds of load before a round: the controller takes the rate from windows of ten."""
_WAKING_S = 1.0
"""How long a server that was stopped has before its round, to catch up with its timers."""


@dataclass
class Round:
    """What one server did in one round."""

    sent: int
    failed: int
    right: float
    cpu_s: float
    p95_ms: float
    foreign_cores: float
    """CPU that neither the server nor the load generator used."""

    @property
    def cpu_per_1000(self) -> float:
        """CPU seconds for a thousand right answers."""
        return 1000.0 * self.cpu_s / self.right if self.right else float("nan")

    @property
    def accuracy(self) -> float:
        """Right answers of a hundred that were sent."""
        return 100.0 * self.right / self.sent


@dataclass
class Contestant:
    """A server: its name in the table, its process while it is up, and its rounds."""

    name: str
    command: list[str]
    environment: dict[str, str]
    model: str
    warm_s: float
    bodies: list[Body]
    judge: Judge
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    rounds: list[Round] = field(default_factory=list)
    profile: list[Share] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The server's first process."""
        assert self.process is not None
        return self.process.pid

    def median(self, figure: str) -> float:
        """Return the median over rounds of a field or property of `Round`."""
        return float(statistics.median(getattr(one, figure) for one in self.rounds))


def contestants(family: str, given: argparse.Namespace, slo_ms: float, folder: Path) -> list[Contestant]:
    """Return the servers of a family in the order of the table; those that cannot be installed are said and left out.

    What runs the variants of the others is ONNX Runtime, if it can and is installed, else PyTorch as it is."""
    spec = families.load_family(family)
    rows, labels = rows_of(family)
    served = BEST.get(family) or [variant.name for variant in reversed(spec.variants[-2:])]
    work = variant_work(f"{family}:{served[0]}")
    in_json = bodies_of(work, rows, binary=False)
    in_bytes = bodies_of(work, rows, binary=True) if work.pictures else in_json
    found = []
    for server in given.servers:
        bodies = in_bytes if server in TAKE_BYTES else in_json
        if server in CLOVERS:
            words = [sys.executable, "-m", "clover.serve", family, "--slo-ms", f"{slo_ms:g}", "--ledger", "off"]
            words += [*BACKENDS, *_cached(given), *CLOVERS[server]]
            # BASE's answers are those of the best variant, which the receipt says, too.
            judge = judge_of(family, rows, labels, "")
            found.append(Contestant(server, words, {}, spec.name, given.warm_s, bodies, judge))
            continue
        if why := peers.install(server):
            print(f"{server} is not there: {why}")
            continue
        for variant in served:
            name = f"{family}:{variant}"
            command = [str(peers.python_of(server)), "-m", f"bench.wire.peers.with_{server}", name]
            judge = judge_of(family, rows, labels, variant)
            warm_s = min(given.warm_s, _OTHERS_WARM_S)
            for backend in dict.fromkeys(compiled(name, folder, wanted) for wanted in given.others):
                own = {FOLDER: str(folder), BACKEND: backend}
                shown = f"{server} {variant}" + (f" {backend}" if len(given.others) > 1 else "")
                found.append(Contestant(shown, command, own, spec.name, warm_s, bodies, judge))
    return found


def prepare(family: str, given: argparse.Namespace) -> None:
    """Compile a family for Clover, if that is not kept, and measure it anew, on the core that the server will have."""
    words = [sys.executable, "-m", "clover", "profile", family, "--quick", "--compile", *BACKENDS, *_cached(given)]
    print(f"{family}: compiling and profiling for Clover ...", flush=True)
    subprocess.run(["taskset", "-c", str(SERVER_CORE), *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _cached(given: argparse.Namespace) -> list[str]:
    return ["--cache-dir", given.cache_dir] if given.cache_dir else []


def compiled(work: str, folder: Path, wanted: str) -> str:
    """Return the backend for a variant of the others: the `wanted` one if it can run it, else PyTorch as it is."""
    found = variant_work(work)
    backend = backends.get(wanted)
    if found.variant.kind == "python" or backend.available() or backend.supports(found.family, found.variant):
        return "eager"
    place = backends.artifact_dir(folder, found.family, found.variant, wanted, 1)
    if not backends.is_compiled(place):
        asyncio.run(backends.compile_in_background(found.family, found.variant, wanted, place))
    return wanted


@contextlib.contextmanager
def up(one: Contestant, folder: Path) -> Iterator[None]:
    """Run a server on core 0 until the block ends; entered once it answers."""
    one.port = free_port()
    port = ["--port", str(one.port)] if one.name in CLOVERS else [str(one.port)]
    log = folder / f"{one.name.replace(' ', '-')}.log"
    with log.open("ab") as sink:
        one.process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *one.command, *port],
            stdout=sink,
            stderr=sink,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **one.environment},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + _START_S
        while not answers(one):
            if one.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{one.name} does not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        signal_all(one, signal.SIGCONT)
        one.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


def answers(one: Contestant) -> bool:
    """Return whether a server answers a request with 200."""
    try:
        found = asyncio.run(open_loop(url(one), one.model, one.bodies[:1], rate=20.0, seconds=0.2, connections=1))
    except OSError:
        return False
    return bool(found.samples) and not found.failed()


def url(one: Contestant) -> str:
    """Return where a server answers."""
    return f"http://127.0.0.1:{one.port}"


def signal_all(one: Contestant, number: signal.Signals) -> None:
    """Send a signal to a server's whole tree."""
    for pid in tree(one.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def play(one: Contestant, rate: float, seconds: float, first: int = 0) -> Round:
    """Send the load to one server, from row `first` on, and judge its answers."""
    right = 0.0

    def check(body: Body, sample: Sample, answer: bytes) -> None:
        nonlocal right
        right += 0.0 if sample.mismatch else one.judge(body, sample, answer)

    first %= len(one.bodies)
    bodies = one.bodies[first:] + one.bodies[:first]
    before, whole, own = cpu_seconds(tree(one.pid)), busy_seconds(), time.process_time()
    result: Result = asyncio.run(open_loop(url(one), one.model, bodies, rate=rate, seconds=seconds, check=check))
    used = cpu_seconds(tree(one.pid)) - before
    others = busy_seconds() - whole - used - (time.process_time() - own)
    failed = result.failed() + result.mismatched()
    return Round(result.sent, failed, right, used, result.latency_ms(0.95), others / seconds)


def profiled(one: Contestant, rate: float, seconds: float) -> list[Share]:
    """Return where a server's CPU goes under the load."""
    sampler, pids = Sampler(), tree(one.pid)
    before = counts(pids)
    sampler.start(pids)
    sent = play(one, rate, seconds).sent
    sampled, after = sampler.stop(), counts(tree(one.pid))
    return with_parts(shares(before, after, sent), before, after, sampled)


def measure(family: str, given: argparse.Namespace, folder: Path) -> tuple[float, float, list[Contestant]]:
    """Return the rate and the SLO of a family, and its servers with their rounds."""
    rate, slo_ms = LOADS.get(family, LOADS["fashion"])
    rate, slo_ms = given.rate or rate, given.slo_ms or slo_ms
    if not CLOVERS.keys().isdisjoint(given.servers):
        prepare(family, given)
    found = contestants(family, given, slo_ms, folder)
    with contextlib.ExitStack() as stack:
        for one in found:
            print(f"{family}: starting {one.name} ...", flush=True)
            stack.enter_context(up(one, folder))
            play(one, rate, one.warm_s)
            signal_all(one, signal.SIGSTOP)
        for at in range(given.rounds):
            for one in found:
                with awake(one, rate):
                    one.rounds.append(play(one, rate, given.seconds, round(at * rate * given.seconds)))
            print(f"{family}: round {at + 1} of {given.rounds}", flush=True)
        for one in found if given.profile else ():
            with awake(one, rate):
                one.profile = profiled(one, rate, given.seconds)
    return rate, slo_ms, found


@contextlib.contextmanager
def awake(one: Contestant, rate: float) -> Iterator[None]:
    """Let a server that is stopped run until the block ends, and get used to the load before it begins."""
    signal_all(one, signal.SIGCONT)
    time.sleep(_WAKING_S)
    play(one, rate, _LEAD_S if one.name in CLOVERS else _OTHERS_LEAD_S)
    yield
    signal_all(one, signal.SIGSTOP)


def report(family: str, rate: float, slo_ms: float, found: list[Contestant]) -> None:
    """Print a family's table: medians over rounds, and ratios to the first server taken within rounds."""
    where = provenance()
    first, rows = found[0], []
    for one in found:
        ratio = statistics.median(
            mine.cpu_per_1000 / theirs.cpu_per_1000 for mine, theirs in zip(one.rounds, first.rounds, strict=True)
        )
        span = sorted(each.cpu_per_1000 for each in one.rounds)
        late = one.median("p95_ms")
        rows.append(
            [
                *(one.name, f"{one.median('cpu_per_1000'):.3f}", f"{span[0]:.3f}..{span[-1]:.3f}", f"{ratio:.2f}"),
                *(f"{one.median('accuracy'):.2f}", f"{late:.1f}{' (late)' if late > slo_ms else ''}"),
                *(sum(each.failed for each in one.rounds), f"{max(each.foreign_cores for each in one.rounds):.2f}"),
            ]
        )
    columns = ["server", "CPU s/1,000 right", "range", f"x {first.name}", "right %", "p95 ms", "failed"]
    columns += ["foreign cores"]
    title = f"{family} at {rate:g} requests/s, SLO {slo_ms:g} ms, one core"
    show(f"{title}, {where['processor']}, {where['date']}: measured", columns, rows)
    shown = []
    for one in found:
        for share in (each for each in one.profile if each.cpu_us >= 1.0):
            parts = [f"{share.parts[part]:.0f}" if share.parts else "" for part in PARTS]
            shown.append([one.name, share.role, f"{share.cpu_us:.0f}", *parts, f"{share.switches:.2f}"])
    if shown:
        columns = ["server", "process", "CPU us a request", *(f"of it {part}" for part in PARTS), "switches a request"]
        show(f"{family}: where the CPU goes", columns, shown)


def record_of(rate: float, slo_ms: float, found: list[Contestant]) -> dict[str, object]:
    """Return a family's part of the JSON file."""
    servers = {
        one.name: {
            "rounds": [asdict(each) for each in one.rounds],
            "profile": [asdict(share) for share in one.profile],
        }
        for one in found
    }
    return {"rate": rate, "slo_ms": slo_ms, "servers": servers}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print a table a family."""
    parser = argparse.ArgumentParser(prog="python -m bench.headline", description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=list(LOADS))
    known = [*CLOVERS, *sorted(set(peers.PACKAGES) - peers.WIRE)]
    parser.add_argument("--servers", nargs="+", choices=known, default=known)
    parser.add_argument("--others", nargs="+", default=["onnxruntime"], help="backends of the others, one server each")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; by default the family's own")
    parser.add_argument("--slo-ms", type=float, default=0.0, help="p95 target; by default the family's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-s", type=float, default=40.0, help="load on Clover before the first round; others: 5")
    parser.add_argument("--profile", action="store_true", help="one round more, to see where the CPU goes")
    parser.add_argument("--cache-dir", default="", help="Clover's profiles and artifacts; a new folder measures anew")
    parser.add_argument("--json", default="", help="write the figures there")
    parser.add_argument("--weight", type=float, default=0.0, help="have the kernel prefer this to other work, N to 1")
    given = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    os.sched_setaffinity(0, {CLIENT_CORE})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers that are stopped would stay for ever
    tables: dict[str, tuple[float, float, list[Contestant]]] = {}
    with apart.preferred(given.weight), tempfile.TemporaryDirectory() as name:
        for family in given.families:
            shown = family if family in LOADS else f"{families.load_family(family).name}, labelled"
            tables[shown] = measure(family, given, Path(name))
            report(shown, *tables[shown])
            write_json(given.json, {"families": {name: record_of(*table) for name, table in tables.items()}})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
