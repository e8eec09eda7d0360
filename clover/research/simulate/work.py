"""From cases to results: every case is played, the ledgers are summed up, and a manifest says how to repeat it."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from clover._version import __version__
from clover.errors import CloverError
from clover.profiles import processor
from clover.research.simulate.records import (
    SCHEMA,
    Accounting,
    Results,
    Run,
    RunInput,
    RunManifest,
    Summary,
    summarise,
)
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Trace, World

OnProgress = Callable[[World, Trace, int], None]
"""Called with the family, the trace and the number of runs that were just finished."""

LABELS = (
    "joules, p95 and accuracy are modelled by the planner's own queueing model, on the profiles that inputs name",
    "nothing was measured here",
    "emissions are joules x the trace's intensity x PUE",
    "accuracy is that of the variants' profile, weighted with the rows each of them answered",
    "a constant load is constant within a step; arrivals within a step are Poisson",
)


def execute(cases: Sequence[Case], on_progress: OnProgress = lambda own, trace, number: None) -> list[Run]:
    """Play all cases in their order; CloverError names the one that failed."""
    runs = []
    for case in cases:
        try:
            runs.append(play(case))
        except CloverError as error:
            name = f"{case.world.known.profile.family}, {case.trace.name}, {case.scheme.name}"
            raise type(error)(f"{name}: {error}") from error
        on_progress(case.world, case.trace, 1)
    return runs


def summaries(runs: Sequence[Run]) -> tuple[Summary, ...]:
    """Return every policy beside the BASE of its family, trace and accounting, in the order they were played."""
    groups: dict[tuple[str, str, Accounting], dict[str, list[Run]]] = {}
    for run in runs:
        own = groups.setdefault((run.family, run.trace, run.accounting), {})
        own.setdefault(run.policy, []).append(run)
    results = []
    for policies in groups.values():
        results += [summarise(own, policies["base"], policies.get(own[0].beside, ())) for own in policies.values()]
    return tuple(results)


def results(
    runs: Sequence[Run],
    *,
    command: Sequence[str],
    arguments: dict[str, str],
    inputs: Sequence[RunInput],
    seeds: int,
    began: float,
    labels: Sequence[str] = (),
) -> Results:
    """Return the results of `runs`; `began` by `time.monotonic`."""
    manifest = RunManifest(
        schema=SCHEMA,
        command=tuple(command),
        versions={
            "clover": __version__,
            "python": sys.version.split()[0],
            **{name: _version(name) for name in ("numpy", "msgspec")},
        },
        machine=f"{processor()}, {platform.system()} {platform.release()}",
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        seeds=seeds,
        arguments=arguments,
        inputs=tuple(dict.fromkeys(inputs)),
        labels=(*LABELS, *labels),
    )
    return Results(manifest=manifest, summaries=summaries(runs), runs=tuple(runs))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
