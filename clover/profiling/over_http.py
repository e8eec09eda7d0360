"""BASE over HTTP: the p95 that a client sees, and which part of it HTTP and the front end are.

What is measured is what serves: the router and the workers of a family behind the production front end, on a free port
of the loopback, and a client in a process of its own (`load_client`) that sends single rows at random times, at 60 % of
what BASE serves in full batches.  More than `MOST_REQUESTS_PER_S` would measure the client: beyond, requests carry more
rows.

A machine is never as quiet as one would like.  If others take its cores, BASE and the front end serve less, and a queue
grows without bound: so the load of a run is held against what batches took in it and whether latencies grew
(`load_of`), the next run is that much slower, runs at more than `MOST_LOAD` do not count, and the p95 of the others is
brought to the load that was wanted (`brought_to`).  One stall of a few milliseconds makes another p95, too.  So a p95
is the median over five stretches of a run, and runs are repeated until two of them agree within `AGREEMENT`.  The mean
of the least two that do counts.  If none of `MOST_RUNS` agree, the least of all counts, as others can only add to a
p95.  The profile says so, and a start an hour later or more measures once more (`measurement.measured_again`).

`front_ms` is the p95 that the client sees less the p95 that the router sees, from a row's arrival to its answer, but
not less than the same of the median; the least of the runs that count, as others can only add to it.  The planner adds
it to the latencies that it predicts (`planning.model.queueing`).

`front_work_ms` is what is left of it without the time that requests waited for the front end's event loop, as probes
waited for it in the same run (`http.loop_lag`): a server adds what they wait now (`control.front_correction`).  Of a
busy machine both are large, and their difference is no figure of either: so it is not more than `MOST_OVER_LEAST` times
what the front end adds where a request is answered fastest, by the fastest twentieth of all, which others hardly touch.

On cores a last run sends single rows at a light load, without probes (`light_load`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from clover._native.histogram import Histogram
from clover.accounting import Account
from clover.config import FamilyConfig, ListenConfig, ServerConfig, WorkersConfig
from clover.errors import CloverError, ProfileError, Unavailable
from clover.http import Frontend
from clover.http.loop_lag import LoopLag, spread_ms
from clover.interfaces import Control, Device, Model
from clover.planning.model.problem import services_of
from clover.planning.model.queueing import Service
from clover.process_clock import process_ns
from clover.profiling.light_load import LIGHT_PART, LIGHT_RATE, LightLoad
from clover.profiling.records import typical_p95
from clover.profiling.rows import SampleRows, pack
from clover.runtime.router.traffic import Traffic
from clover.runtime.served import Served
from clover.runtime.workers.pool import Pool
from clover.types import Assignment, FamilyProfile, FamilySpec, Placement, Routing

log = logging.getLogger("clover.profiling")

BASE_LOAD = 0.6
"""Of what BASE serves in full batches."""
MOST_REQUESTS_PER_S = 800.0
"""The most requests a second: a client in Python and the server share the cores of a small machine."""
UNSETTLED = "no two measurements of BASE over HTTP agree"
"""What a note says of a profile whose default SLO follows from runs that differ."""
AGREEMENT = 0.1
"""Of the larger p95: how far two runs that agree may lie apart.  Two runs of 800 requests on a quiet machine differ by
5 % in the median by chance, and nine in ten by less than 19 % (simulated).  The default SLO lies 20 % above the p95
(`SLO_OVER_BASE`), so that it holds whichever of the two runs is right."""
MOST_RUNS = 5
"""Runs until two agree."""
MOST_FAILED = 0.01
"""The part of the requests that may have no answer."""
MOST_LOAD = 0.75
"""The load up to which a run counts."""
MOST_GROWTH = 0.05
"""By how much latencies may grow with time (seconds a second) while what comes is served."""
MOST_OVER_LEAST = 3.0
"""How many times as much work a request of the slowest twentieth may be as one of the fastest."""
_FASTEST = 0.05
_PROBES_PER_S = 50.0
_NEAR = 0.2
_STRETCHES = 5
_REQUESTS = 64
"""Different requests that are sent in turn."""
_JSON_VALUES = 10_000
"""Numbers of a request up to which it is JSON, as most clients send; beyond, its tensors are binary."""
_SEED = 1
_MEASURING = "the family is being measured"
_CLIENT = Path(__file__).with_name("load_client.py")


@dataclass(frozen=True)
class HttpFigures:
    """What a client sees of BASE: its p95, and the part of it that HTTP and the front end are, in milliseconds; what of
    that is work (-1: not known); what is to be said of them; and what its batches and requests took at a light load."""

    p95_ms: float
    front_ms: float
    work_ms: float = -1.0
    notes: tuple[str, ...] = ()
    light: LightLoad | None = None


@dataclass(frozen=True)
class HttpRun:
    """One run: p95 of the client as the median over five stretches, brought to the load that was wanted; what the front
    end is of it, and what of that is work; and the load of the run as a part of what could be served then."""

    p95_ms: float
    front_ms: float
    work_ms: float
    load: float


def load_of(ms: NDArray[np.float64], seconds: float, busy: float) -> float:
    """Return the load of a run of `seconds` in which a client saw `ms`: `busy`, by what batches took, or above 1 if the
    latencies grew.

    If only a part 1 / load is served, a row that comes after t waits t (1 - 1 / load).
    """
    stretches = np.array_split(ms, min(_STRETCHES, len(ms)))
    growth = float(np.median(stretches[-1]) - np.median(stretches[0])) / 1e3 / (seconds * (1.0 - 1.0 / _STRETCHES))
    return max(busy, 1.0 / (1.0 - min(growth, 0.75))) if growth > MOST_GROWTH else busy


def brought_to(wanted: float, p95_ms: float, load: float) -> float:
    """Return the p95 at the load `wanted` of a queue that has `p95_ms` at `load`: in proportion to 1 / (1 - load), as
    waits are, from `_NEAR` below at most, as there they are the least of it."""
    return p95_ms * (1.0 - max(load, wanted - _NEAR)) / (1.0 - wanted) if load < 1.0 else p95_ms


def front_of(ms: NDArray[np.float64], router: Histogram) -> float:
    """Return what the front end adds to the p95 of a run in which a client saw `ms` and the `router` took so many
    nanoseconds; at least what it adds to the median, as p95 moves with a few rows."""
    return max(0.0, *(float(np.quantile(ms, q)) - router.quantile(q) / 1e6 for q in (0.5, 0.95)))


def work_of(ms: NDArray[np.float64], router: Histogram, front_ms: float, lag_ms: float) -> float:
    """Return what of `front_ms` (`front_of`) was work, in a run in which probes waited `lag_ms` for the event loop."""
    least_ms = max(0.0, float(np.quantile(ms, _FASTEST)) - router.quantile(_FASTEST) / 1e6)
    return min(max(front_ms - lag_ms, least_ms), MOST_OVER_LEAST * least_ms, front_ms)


def counting(runs: Sequence[HttpRun]) -> list[HttpRun]:
    """Return the runs that count, by rising p95."""
    return sorted((run for run in runs if run.load <= MOST_LOAD), key=lambda run: run.p95_ms)


def agreeing(runs: Sequence[HttpRun]) -> tuple[HttpRun, HttpRun] | None:
    """Return the two runs of the least p95 that agree, of those that count; None if no two do."""
    pairs = itertools.pairwise(counting(runs))
    return next((pair for pair in pairs if pair[1].p95_ms * (1.0 - AGREEMENT) <= pair[0].p95_ms), None)


def figures_of(runs: Sequence[HttpRun]) -> HttpFigures:
    """Return the figures of all runs of a measurement, at least one."""
    kept = counting(runs) or [min(runs, key=lambda run: run.load)]
    front_ms, work_ms = min(run.front_ms for run in kept), min(run.work_ms for run in kept)
    if pair := agreeing(runs):
        p95_ms = statistics.fmean(run.p95_ms for run in pair)
        return HttpFigures(p95_ms, min(front_ms, p95_ms), min(work_ms, p95_ms))
    p95_ms = min(run.p95_ms for run in runs)
    seen = ", ".join(f"{run.p95_ms:.3g} from {run.load:.0%} load" for run in runs)
    why = f"{UNSETTLED} within {AGREEMENT:.0%} (p95 in ms: {seen})"
    note = f"{why}: the least, {p95_ms:.3g} ms, counts; a start in an hour or later measures again"
    return HttpFigures(p95_ms, min(front_ms, p95_ms), min(work_ms, p95_ms), (note,))


@dataclass(frozen=True)
class HttpMeasurement:
    """What a measurement over HTTP needs: workers of `pool` on `devices`, artifacts in `cache_dir`, requests of
    `rows`.  `silent_s`: seconds without an answer that end it."""

    pool: Pool
    devices: Mapping[str, Device]
    cache_dir: Path
    rows: SampleRows
    silent_s: float
    light: bool = False
    """Whether to measure at a light load, too."""

    async def measure(
        self, spec: FamilySpec, profile: FamilyProfile, places: Sequence[Placement], rate: float, seconds: float
    ) -> HttpFigures:
        """Return the figures of the BASE of `profile` on `places` at `rate` rows a second, in runs of `seconds`.

        Nobody else may read the pool's completions meanwhile.  Raises ProfileError if too few requests are answered.
        """
        rows = min(spec.max_batch, math.ceil(rate / MOST_REQUESTS_PER_S))
        requests, base = self._requests(spec, rows), profile.base
        service = services_of(profile)[base.variant, base.profile]
        runs: list[HttpRun] = []
        probes_ns: list[int] = []
        async with self._served(spec, profile, places) as served:
            async with _front_end(served, probes_ns) as (host, port):
                whole = [_request(f"{host}:{port}", served.name, request) for request in requests]
                now, wanted = rate, min(BASE_LOAD, rate * _full_s(service) / len(places))
                while len(runs) < MOST_RUNS and not agreeing(runs):
                    served.traffic.latency.reset()
                    served.traffic.batch_sizes.clear()
                    probes_ns.clear()
                    ms = await self._run(host, port, whole, now / rows, seconds)
                    busy = now * _took_s(served.traffic, service) / len(places)
                    load, front_ms = load_of(ms, seconds, busy), front_of(ms, served.traffic.latency)
                    work_ms = work_of(ms, served.traffic.latency, front_ms, spread_ms(probes_ns))
                    runs.append(HttpRun(brought_to(wanted, typical_p95(ms), load), front_ms, work_ms, load))
                    now = min(rate, now * wanted / load)
            found = figures_of(runs)
            if self.light:
                try:
                    found = replace(found, light=await self._light(spec, served, rate, seconds))
                except (CloverError, OSError) as error:
                    note = f"what batches cost at a light load was not measured: {error}"
                    found = replace(found, notes=(*found.notes, note))
        for note in found.notes:
            log.warning("%s: %s", spec.name, note)
        return found

    async def _light(self, spec: FamilySpec, served: Served, rate: float, seconds: float) -> LightLoad:
        """Return what requests of one row, `LIGHT_RATE` a second or `LIGHT_PART` of `rate`, took of whom."""
        pids = [worker["pid"] for worker in served.fleet.describe()]
        async with _front_end(served, None) as (host, port):
            requests = [_request(f"{host}:{port}", served.name, one) for one in self._requests(spec, 1)]
            served.traffic.batch_sizes.clear()
            read_ns: list[tuple[int, ...]] = []

            def read() -> None:
                used_ns = [process_ns(pid) if pid is not None else None for pid in pids]
                read_ns.append((time.thread_time_ns(), *(-1 if ns is None else ns for ns in used_ns)))

            ms = await self._run(host, port, requests, min(LIGHT_RATE, LIGHT_PART * rate), seconds, begun=read)
            read()
        if any(ns < 0 for ns in itertools.chain.from_iterable(read_ns)):
            raise ProfileError("a worker ended meanwhile")
        front_ns, *used_ns = (after - before for before, after in zip(*read_ns, strict=True))
        sizes = {rows: count for rows, (count, _) in served.traffic.batch_sizes.items()}
        batches, rows = sum(sizes.values()), sum(size * count for size, count in sizes.items())
        return LightLoad(front_ns / 1e9, sum(used_ns) / 1e9, seconds, len(ms), batches, rows, len(pids))

    @contextlib.asynccontextmanager
    async def _served(
        self, spec: FamilySpec, profile: FamilyProfile, places: Sequence[Placement]
    ) -> AsyncIterator[Served]:
        """Serve BASE on `places` until the body ends."""
        loop = asyncio.get_running_loop()
        account = Account(pue=1.0)
        served = Served(
            spec,
            FamilyConfig(family=spec.name, relief="", guard="off", audit=0.0, resident="off"),
            pool=self.pool,
            devices=self.devices,
            account=account,
            workers=WorkersConfig(silent_s=self.silent_s),
            cache=self.cache_dir,
            loop=loop,
        )
        completions = self.pool.completions
        completions.add(served.router.reap)
        try:
            completions.start(loop)
            served.use(profile)
            account.add_family(served.name, time.monotonic_ns())
            base = profile.base
            workers = tuple(
                Assignment(placement=place, family=spec.name, variant=base.variant, backend=base.backend)
                for place in places
            )
            for failed in await asyncio.gather(*map(served.fleet.spawn, workers), return_exceptions=True):
                if failed is not None:
                    raise failed
            served.fleet.route(workers, Routing(shares={base.variant: 1.0}))
            yield served
        finally:
            served.fleet.closing = True
            await served.fleet.stop()
            completions.stop()
            completions.remove(served.router.reap)
            served.close()

    async def _run(
        self,
        host: str,
        port: int,
        requests: Sequence[bytes],
        rate: float,
        seconds: float,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> NDArray[np.float64]:
        """Return the milliseconds of the requests of one run of the client; call `begun` once its process is there.
        Raises ProfileError if too many failed."""
        arguments = map(str, (host, port, rate, seconds, _SEED, self.silent_s))
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(_CLIENT), *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        begun()
        try:
            given = b"".join(len(request).to_bytes(4, "little") + request for request in requests)
            out, errors = await client.communicate(given)
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()
        if client.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise ProfileError(f"the client that measures BASE over HTTP failed: {last}")
        ms = np.frombuffer(out, np.float64)
        answered: NDArray[np.float64] = ms[~np.isnan(ms)]
        if len(answered) < (1.0 - MOST_FAILED) * len(ms) or not len(answered):
            raise ProfileError(f"{len(ms) - len(answered)} of {len(ms)} requests over HTTP had no answer")
        return answered

    def _requests(self, spec: FamilySpec, rows: int) -> list[tuple[bytes, int]]:
        """Return bodies of `rows` rows each, and the bytes of JSON in them (-1: they are JSON altogether)."""
        size = sum(rows * math.prod(tensor.bound) for tensor in spec.inputs)
        plain = size <= _JSON_VALUES and not any(t.datatype in ("BYTES", "FP16", "BF16") for t in spec.inputs)
        found = []
        for number in range(_REQUESTS):
            tensors: list[dict[str, Any]] = []
            tail = b""
            for tensor, given in zip(spec.inputs, self.rows.take(number * rows, rows), strict=True):
                named = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(given.shape)}
                if plain:
                    tensors.append(named | {"data": given.reshape(-1).tolist()})
                    continue
                data = pack(given) if tensor.datatype == "BYTES" else given.tobytes()
                tensors.append(named | {"parameters": {"binary_data_size": len(data)}})
                tail += data
            head = orjson.dumps({"inputs": tensors})
            found.append((head + tail, -1 if plain else len(head)))
        return found


def _request(authority: str, model: str, given: tuple[bytes, int]) -> bytes:
    """Return a whole HTTP request for an inference."""
    body, json_length = given
    fields = [f"POST /v2/models/{model}/infer HTTP/1.1", f"Host: {authority}", f"Content-Length: {len(body)}"]
    if json_length >= 0:
        fields.append(f"Inference-Header-Content-Length: {json_length}")
    return "\r\n".join([*fields, "", ""]).encode() + body


def _full_s(service: Service) -> float:
    """Return the seconds of a row in a full batch."""
    return service.seconds(service.max_batch) / service.max_batch


def _took_s(traffic: Traffic, service: Service) -> float:
    """Return the seconds that a row took in a full batch: those that `service` says, as much longer as batches took."""
    took_s = sum(ns for _, ns in traffic.batch_sizes.values()) / 1e9
    said_s = sum(count * service.seconds(rows) for rows, (count, _) in traffic.batch_sizes.items())
    return took_s / said_s * _full_s(service)


@contextlib.asynccontextmanager
async def _front_end(served: Served, probes_ns: list[int] | None) -> AsyncIterator[tuple[str, int]]:
    """Serve one family over HTTP on a free port of the loopback until the body ends; yield host and port.  What probes
    of the event loop take is added to `probes_ns`; without, there are none."""
    loop = asyncio.get_running_loop()
    frontend = Frontend(_OneFamily(served), ServerConfig(listen=ListenConfig(port=0)), loop)
    probes = LoopLag(loop, probes_ns.append, per_s=_PROBES_PER_S) if probes_ns is not None else None
    try:
        where = await frontend.start()
        if probes is not None:
            probes.start()
        yield where
    finally:
        if probes is not None:
            probes.stop()
        await frontend.close()


class _OneFamily:
    """A `ServerView` of a family that is measured: it answers inferences, and nothing else."""

    def __init__(self, served: Served) -> None:
        self._models = {served.name: cast("Model", served.router)}

    def models(self) -> dict[str, Model]:
        return self._models

    def ready(self) -> bool:
        return True

    def live(self) -> bool:
        return True

    async def load(self, name: str, config: str) -> None:
        raise Unavailable(_MEASURING)

    async def unload(self, name: str) -> None:
        raise Unavailable(_MEASURING)

    def state_of(self, name: str) -> tuple[str, str]:
        return "READY", ""

    def control(self) -> Control:
        raise Unavailable(_MEASURING)

    def metrics(self) -> bytes:
        return b""
