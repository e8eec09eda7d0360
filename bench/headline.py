"""The headline: one family, load and SLO, served by Clover and by others, and what a right answer costs each.

    python -m bench.headline [fashion language] [--servers clover base mlserver ...] [--rate 100] [--slo-ms 50]
        [--rounds 5] [--seconds 20] [--warm-s 40] [--json FILE] [--plot FILE]

Clover serves the family by its default (`clover`) and as BASE (`base`: always the best variant); each of the others
serves the best variant, and once more the second-best, with its own batching, in an environment of its own
(`bench.wire.peers`).  All get the same JSON requests of held-out rows with labels, in an open loop at the same rate.
A server's whole tree has core 0 and the load generator core 1.  Servers stay up together and idle ones are stopped
(SIGSTOP), rounds go through them in turn.  CPU is the tree's, from the scheduler's nanosecond counters, with all that
Clover's controller does meanwhile; an answer is right if its largest output is the label's.  Requires two cores and
taskset.
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
from typing import Any

import numpy as np
import orjson

from bench.common import ROOT, busy_seconds, cpu_seconds, free_port, provenance, show, tree, write_json
from bench.headline_work import BACKEND, FOLDER, VariantWork, variant_work
from bench.load import Body, Result, Sample, open_loop
from bench.wire import peers
from clover import backends, families

SERVER_CORE, CLIENT_CORE = 0, 1
CLOVERS = {"clover": (), "base": ("--policy", "base")}
_ROWS = 512
_START_S = 600.0
_WAKING_S = 1.0
"""How long a server that was stopped has before its round, to catch up with its timers."""


@dataclass
class Round:
    """What one server did in one round."""

    sent: int
    failed: int
    right: int
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
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    rounds: list[Round] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """Return the median over rounds of a field or property of `Round`."""
        return float(statistics.median(getattr(one, figure) for one in self.rounds))


def bodies_of(work: VariantWork, rate: float) -> tuple[list[Body], list[int]]:
    """Return requests of one held-out row each, and the labels of those rows."""
    inputs, labels = families.load_evaluation(work.family, "held_out")
    spec = work.family.inputs[0]
    found = []
    for row, values in enumerate(inputs[0][:_ROWS]):
        data: list[Any]
        if spec.datatype == "BYTES":
            data = [bytes(value).decode() for value in np.asarray(values).reshape(-1)]
        else:
            data = np.round(np.asarray(values, float).reshape(-1), 6).tolist()
        tensor = {"name": spec.name, "shape": [1, *spec.shape], "datatype": spec.datatype, "data": data}
        payload = orjson.dumps({"id": f"row-{row}", "inputs": [tensor]})
        found.append(Body(payload, f"row-{row}", row, b"Content-Type: application/json\r\n"))
    return found, [int(label) for label in labels[: len(found)]]


def contestants(family: str, servers: Sequence[str], slo_ms: float, folder: Path) -> list[Contestant]:
    """Return the servers of a family in the order of the table; those that cannot be installed are said and left out.

    What runs the variants of the others is the fastest backend that Clover found for the best one, if it is installed
    behind them."""
    spec = families.load_family(family)
    found = []
    for server in servers:
        if server in CLOVERS:
            words = [sys.executable, "-m", "clover.serve", family, "--slo-ms", f"{slo_ms:g}", "--ledger", "off"]
            found.append(Contestant(server, [*words, *CLOVERS[server]], {}, spec.name))
            continue
        if why := peers.install(server):
            print(f"{server} is not there: {why}")
            continue
        for variant in reversed(spec.variants[-2:]):
            work = f"{family}:{variant.name}"
            command = [str(peers.python_of(server)), "-m", f"bench.wire.peers.with_{server}", work]
            own = {FOLDER: str(folder), BACKEND: compiled(work, folder)}
            found.append(Contestant(f"{server} {variant.name}", command, own, spec.name))
    return found


def compiled(work: str, folder: Path) -> str:
    """Return the backend for a variant of the others: ONNX Runtime if it can run it, else PyTorch as it is."""
    found = variant_work(work)
    backend = backends.get("onnxruntime")
    if found.variant.kind == "python" or backend.available():
        return "eager"
    place = backends.artifact_dir(folder, found.family, found.variant, "onnxruntime", 1)
    if not backends.is_compiled(place):
        backends.compile_in_subprocess(found.family, found.variant, "onnxruntime", place)
    return "onnxruntime"


@contextlib.contextmanager
def up(one: Contestant, first: Body, folder: Path) -> Iterator[None]:
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
        while not answers(one, first):
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


def answers(one: Contestant, body: Body) -> bool:
    """Return whether a server answers a request with 200."""
    try:
        found = asyncio.run(open_loop(url(one), one.model, [body], rate=20.0, seconds=0.2, connections=1))
    except OSError:
        return False
    return bool(found.samples) and not found.failed()


def url(one: Contestant) -> str:
    """Return where a server answers."""
    return f"http://127.0.0.1:{one.port}"


def signal_all(one: Contestant, number: signal.Signals) -> None:
    """Send a signal to a server's whole tree."""
    assert one.process is not None
    for pid in tree(one.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def play(one: Contestant, bodies: list[Body], labels: list[int], rate: float, seconds: float) -> Round:
    """Send the load to one server, and judge its answers."""
    right = 0

    def check(body: Body, sample: Sample, answer: bytes) -> None:
        nonlocal right
        values = orjson.loads(answer)["outputs"][0]["data"]
        right += not sample.mismatch and int(np.argmax(values)) == labels[body.row]

    assert one.process is not None
    pids = tree(one.process.pid)
    before, whole, own = cpu_seconds(pids), busy_seconds(), time.process_time()
    result: Result = asyncio.run(open_loop(url(one), one.model, bodies, rate=rate, seconds=seconds, check=check))
    used = cpu_seconds(tree(one.process.pid)) - before
    others = busy_seconds() - whole - used - (time.process_time() - own)
    failed = result.failed() + result.mismatched()
    return Round(result.sent, failed, right, used, result.latency_ms(0.95), others / seconds)


def measure(family: str, given: argparse.Namespace, folder: Path) -> list[Contestant]:
    """Return the servers of one family with their rounds."""
    best = families.load_family(family).variants[-1].name
    bodies, labels = bodies_of(variant_work(f"{family}:{best}"), given.rate)
    found = contestants(family, given.servers, given.slo_ms, folder)
    with contextlib.ExitStack() as stack:
        for one in found:
            print(f"{family}: starting {one.name} ...", flush=True)
            stack.enter_context(up(one, bodies[0], folder))
            play(one, bodies, labels, given.rate, given.warm_s)
            signal_all(one, signal.SIGSTOP)
        for at in range(given.rounds):
            for one in found:
                signal_all(one, signal.SIGCONT)
                time.sleep(_WAKING_S)
                one.rounds.append(play(one, bodies, labels, given.rate, given.seconds))
                signal_all(one, signal.SIGSTOP)
            print(f"{family}: round {at + 1} of {given.rounds}", flush=True)
    return found


def report(family: str, found: list[Contestant], slo_ms: float) -> None:
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
    show(f"{family}, one core, {where['processor']}, {where['date']}: measured", columns, rows)


def plot(tables: dict[str, list[Contestant]], path: str) -> None:
    """Write an image of CPU seconds a thousand right answers, a group of bars a family."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(5 * len(tables), 4), squeeze=False)
    for axis, (family, found) in zip(axes[0], tables.items(), strict=True):
        names = [one.name for one in found]
        values = [one.median("cpu_per_1000") for one in found]
        colours = ["#2a7f4f" if name == "clover" else "#9aa5a0" for name in names]
        axis.barh(names[::-1], values[::-1], color=colours[::-1])
        axis.set_title(f"{family}: CPU seconds per 1,000 right answers")
    figure.tight_layout()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print a table a family."""
    parser = argparse.ArgumentParser(prog="python -m bench.headline", description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=["fashion", "language"])
    known = [*CLOVERS, *sorted(set(peers.PACKAGES) - {"fastapi"})]
    parser.add_argument("--servers", nargs="+", choices=known, default=known)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--slo-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-s", type=float, default=40.0, help="load before the first round, for each server")
    parser.add_argument("--json", default="", help="write the figures there")
    parser.add_argument("--plot", default="", help="write an image there (needs matplotlib)")
    given = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    os.sched_setaffinity(0, {CLIENT_CORE})
    tables = {}
    with tempfile.TemporaryDirectory() as name:
        for family in given.families:
            tables[family] = measure(family, given, Path(name))
            report(family, tables[family], given.slo_ms)
    found = {
        family: {one.name: [asdict(each) for each in one.rounds] for one in table} for family, table in tables.items()
    }
    write_json(given.json, {"families": found})
    if given.plot:
        plot(tables, given.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
