"""Releases in numbers: how often a clean one is rolled back, how soon a bad one is, and what a refit would save.

    python -m bench.rollout simulate [--releases 1000]     # the tests of a release, over simulated traffic
    python -m bench.rollout margins [--releases 1000]      # releases that are as bad as a clean one may be
    python -m bench.rollout refit                          # new weights into a resident model, beside a new start

`simulate` plays each release second by second: `RATE` requests a second, a tenth of them for the new version, latencies
that are lognormal around a load that both versions share and that wanders, and `ROWS` rows a second that both answer
and whose labels come.  The tests are the server's own, with its defaults.  All of its numbers are simulated.

`refit` measures how long weights take from a file into a model that is resident in this process, and how long a new
process takes to import torch, to build the model and to load them.  (A worker is forked from a process that has
imported torch; what its start takes the server measures itself.)
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clover.config import RolloutConfig
from clover.runtime.guard.release import TAIL_MARGIN, TESTS, ReleaseTests, log_wealth
from clover.server.rollouts import limits_of

RATE = 20
PERCENT = 10.0
ROWS = 10
LONGEST_S = 3600
PROCESSES = 4


@dataclass(frozen=True)
class Release:
    """A new version: what it does otherwise than the stable one."""

    name: str
    slow: float = 1.0
    failing: float = 0.0
    lost: float = 0.0
    """Part of the rows that it gets wrong and the stable version right."""


CLEAN = Release("as good as the stable one")
RELEASES = (
    CLEAN,
    Release("2 points worse", lost=0.02),
    Release("twice as slow", slow=2.0),
    Release("half as slow again", slow=1.5),
    Release("fails 5 % of its requests", failing=0.05),
)


@dataclass
class Outcome:
    """How a release ended: what was done, by which test, after how many seconds, requests and labelled rows."""

    action: str
    test: str
    seconds: int
    requests: int
    rows: int


def play(release: Release, seed: int) -> Outcome:
    """Play one release until it is decided."""
    random = np.random.default_rng(seed)
    tests = ReleaseTests(limits_of(RolloutConfig()), 0.0)
    load = 0.0
    requests = 0
    for second in range(LONGEST_S):
        now_s = float(second)
        load = 0.9 * load + 0.1 * float(random.standard_normal())
        news = random.random(RATE) < PERCENT / 100.0
        latencies_ms = 20.0 * math.exp(load) * np.exp(0.5 * random.standard_normal(RATE))
        failures = random.random(RATE) < 0.001 + np.where(news, release.failing, 0.0)
        for new, latency_ms, failed in zip(news.tolist(), latencies_ms.tolist(), failures.tolist(), strict=True):
            tests.record_request(new, failed, latency_ms * (release.slow if new else 1.0), 1, now_s)
        requests += int(news.sum())
        for place in random.random(ROWS).tolist():
            lost, won = 0.02 + release.lost, 0.02  # of 4 % of the rows a clean version says something else, too
            new_right, stable_right = place >= lost, not lost <= place < lost + won
            tests.count_label(new_right, stable_right)
            tests.record_comparison(lost + won <= place)
        tests.evaluate(now_s + 1.0)
        verdict = tests.verdict(now_s + 1.0)
        if verdict.action:
            rows = tests.tests["accuracy"].count
            return Outcome(verdict.action, verdict.why.partition(":")[0], second + 1, requests, rows)
    return Outcome("undecided", "", LONGEST_S, requests, tests.tests["accuracy"].count)


def simulate(releases: int, bad: int) -> None:
    """Print what becomes of simulated releases."""
    print(
        "| release | releases | rolled back | by | promoted | undecided in an hour | seconds, median (worst) |"
        " requests of the new version, median | labelled rows, median |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for release in RELEASES:
        count = releases if release is CLEAN else bad
        with ProcessPoolExecutor(PROCESSES) as pool:
            found = list(pool.map(partial(play, release), range(count), chunksize=10))
        actions = Counter(one.action for one in found)
        by = Counter(one.test for one in found if one.action == "roll back")
        seconds = sorted(one.seconds for one in found)
        requests, rows = (int(np.median([getattr(one, key) for one in found])) for key in ("requests", "rows"))
        print(
            f"| {release.name} | {count} | {actions['roll back']} | {', '.join(f'{k} {n}' for k, n in by.items())} | "
            f"{actions['promote']} | {actions['undecided']} | {int(np.median(seconds))} ({seconds[-1]}) | {requests} | "
            f"{rows} |",
            flush=True,
        )


def margins(releases: int) -> None:
    """Print how often releases are rolled back whose every mean lies exactly on its margin: the worst that is clean."""
    random = np.random.default_rng(7)
    limits = limits_of(RolloutConfig())
    enough = math.log(len(TESTS) / limits.risk)
    wrong = dict.fromkeys(TESTS, 0)
    any_wrong = 0
    for _ in range(releases):
        place = random.random(6000)
        seen = {
            "errors": (random.binomial(20, limits.errors, 600) / 20.0, -1.0),
            "slower": (random.beta(2.0, 2.0, 600), 0.0),
            "tail": (random.binomial(20, TAIL_MARGIN, 600) / 20.0, -1.0),
            "differs": ((place < limits.differs).astype(float), 0.0),
            "accuracy": ((place < 0.03).astype(float) - ((place >= 0.03) & (place < 0.05)), -1.0),
        }
        found = {
            name: bool(log_wealth(observations, limits.margin(name), low).max() >= enough)
            for name, (observations, low) in seen.items()
        }
        any_wrong += any(found.values())
        for name, one in found.items():
            wrong[name] += one
    print(f"{releases} releases on every margin, 600 blocks and 6,000 rows each: {any_wrong} rolled back ({wrong})")


def refit(rounds: int) -> None:
    """Print how long new weights take into a resident model, and how long a new process needs before its model."""
    import torch
    from torch import nn

    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(12)]).eval()
    megabytes = sum(one.numel() * 4 for one in model.parameters()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(model.state_dict(), file)
        into_ms, whole_ms = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            model.load_state_dict(torch.load(file, weights_only=True))
            into_ms.append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            code = "import torch;from torch import nn;m=nn.Sequential(*[nn.Linear(1024,1024) for _ in range(12)]);"
            code += f"m.load_state_dict(torch.load({str(file)!r}, weights_only=True))"
            subprocess.run([sys.executable, "-c", code], check=True)
            whole_ms.append(1e3 * (time.perf_counter() - began))
    print(
        f"{megabytes:.0f} MB of weights, medians of {rounds}: into a resident model {np.median(into_ms):.0f} ms; "
        f"a new process that imports torch and loads them {np.median(whole_ms):.0f} ms"
    )


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["simulate", "margins", "refit"])
    parser.add_argument("--releases", type=int, default=1000, help="clean releases [1000]")
    parser.add_argument("--bad", type=int, default=100, help="releases of each other kind [100]")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.part == "simulate":
        simulate(given.releases, given.bad)
    elif given.part == "margins":
        margins(given.releases)
    else:
        refit(given.rounds)


if __name__ == "__main__":
    main()
