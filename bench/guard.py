"""How rarely the guard is wrong, and how soon it sees that images have changed.

    python -m bench.guard [--rows 5000000] [--seeds 20] [--apart] [--share 0.005] [--repeats 20] [--json FILE]

The default family's variants answer its images in this process.  A profile is made of what they say, as the profiler
does, and the server's own guard, sampler and watches are fed row by row, as its router feeds them: 1,000 rows a second,
a look at the grid once a second, thresholds that tighten where it says so.

`clean`       rows drawn from the held-out images, again and again: every alarm is a false one.  `--apart`: of none of
              which the profile has seen a score
`corrupted`   2,000 such rows, then images with noise, blurred, or shifted: of each the mildest of a few strengths that
              costs the served answers 5 points or more.  Rows from the change to the first alarm of each kind, the
              median and the worst over the seeds; `agree alone`: with no help from scores, which have more audited once
              they look wrong.  `aside`: rows until the cascade steps aside, where it does

`repeats`     300, 3,000 and 30,000 times 1, 10 and 100 held-out images: every alarm is a false one
`return`      `LEAD` corrupted rows more than it took to alarm, then clean ones: rows until it comes down to `ok`, if no
              stay is in the way

A held-out image stands for an input of a client, which comes once: so in `clean`, `corrupted` and `return` every row
that is drawn counts as an input of its own, though images are fewer.  In `repeats` images count as what they are.

Served is a chain of a cheap variant and the best one, at several thresholds, or one variant alone (a mix's).
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.common import fashion_rows, show, write_json
from bench.oracle import expected
from clover import families
from clover.confidence import Scorer, scorer
from clover.profiling.chains import Answers, profile_of
from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.drift import AGREEMENT_LIMIT, SCORE_LIMIT, Detector
from clover.runtime.guard.guard import (
    ALARM_LEVELS,
    CASCADE_OFF,
    MOST_STAY_NS,
    OK,
    OVERRULED,
    OWN,
    RECOVERY,
    SCORES,
    SERVED,
    Guard,
)
from clover.runtime.router.audits import LEAST, Sampler, clean_share
from clover.types import CascadeProfile, ChainPoint, FamilyProfile

Images = NDArray[Any]

COSTS = {"tiny": 0.003, "small": 0.08, "medium": 1.4, "large": 5.7, "xlarge": 22.0}
"""Multiply-adds of a row, millions: what chains are chosen by here."""
NOISE, BLUR, SHIFT = (0.04, 0.06, 0.08, 0.1, 0.14, 0.2), (0.5, 0.6, 0.7, 0.8, 1.0, 1.3), (1, 2, 3)
COSTLY = 5.0
RATE = 1000
LEAD = 2_000
LONGEST = 50_000
REFERENCE = 250.0


def noisy(images: Images, deviation: float) -> Images:
    """Return images with normal noise, cut to 0..1."""
    noise = np.random.default_rng(7).normal(0.0, deviation, images.shape)
    return np.clip(images + noise, 0.0, 1.0).astype(np.float32)


def blurred(images: Images, sigma: float) -> Images:
    """Return images convolved with a Gaussian of `sigma` pixels."""
    reach = int(3 * sigma + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (2, 3):
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        wide, size = np.pad(images, pad), images.shape[axis]
        images = sum(part * wide.take(range(at, at + size), axis) for at, part in enumerate(kernel))
    return images.astype(np.float32)


def shifted(images: Images, pixels: float) -> Images:
    """Return images moved right and down by so many pixels; what comes in is black."""
    found, by = np.zeros_like(images), int(pixels)
    found[:, :, by:, by:] = images[:, :, :-by, :-by]
    return found


def heard(images: Images, labels: NDArray[Any], score: Scorer) -> dict[str, Answers]:
    """Return what every variant says of images [n, 1, 28, 28], how sure it is, and whether it is right."""
    out = {}
    for name, probabilities in expected(images).items():
        said = probabilities.argmax(axis=1)
        out[name] = Answers(score([probabilities]).astype(np.float64), said == labels, said)
    return out


@dataclass(frozen=True)
class Subject:
    """What serves: a point of the profile, a chain of two or a variant alone."""

    name: str
    point: ChainPoint

    def accuracy(self, answers: Mapping[str, Answers]) -> float:
        """Return the accuracy in percent."""
        first, last = answers[self.point.chain[0]], answers[self.point.chain[-1]]
        ends = first.scores >= self.point.thresholds[0] if self.point.thresholds else np.ones(len(first.scores), bool)
        return 100.0 * float(np.where(ends, first.right, last.right).mean())


class Recorded(Guard):
    """A guard that notes the row of the first alarm of each kind."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.row = 0
        self.first: dict[str, int] = {}

    def alarm(self, kind: str, lane: int, what: str, detector: Detector | None = None) -> None:
        self.first.setdefault(kind, self.row)
        super().alarm(kind, lane, what, detector)


class Served:
    """A subject under guard, row by row.  `told` False: its scores are not looked at."""

    def __init__(self, subject: Subject, profile: FamilyProfile, share: float, *, told: bool = True) -> None:
        assert profile.cascade is not None
        self.names = list(profile.cascade.sureness)
        self.now_ns = 0
        """Stands still, so that it comes down where that is set forward, and not before."""
        self.guard = Recorded("bench", self.names, clock=lambda: self.now_ns)
        self.guard.expect(profile)
        self.sampler = Sampler(share)
        self._share = share
        self._inputs = 0
        self._point = subject.point
        self._told = told
        self._rows = profile.cascade.held_out_rows

    def run(
        self, answers: Mapping[str, Answers], rows: Iterable[int], until: str = "", *, repeated: bool = False
    ) -> None:
        """Serve these rows; `until` the guard stands on that step, if it is given.  `repeated`: rows of one number are
        one input, however often they come; else each is an input of its own."""
        guard, sampler, point = self.guard, self.sampler, self._point
        first, last = self.names.index(point.chain[0]), guard.best
        best = self.names[last]
        mine, dear = answers[point.chain[0]], answers[best]
        scores = mine.scores.astype(np.float32).tolist()
        assert mine.said is not None
        assert dear.said is not None
        same = (mine.said == dear.said).tolist()
        ended = round((point.reach[0] - (point.reach[1] if point.thresholds else 0.0)) * self._rows)
        served = (point.alike[0], ended) if point.thresholds else guard.alike(first, last)
        plan = chain = RoutedChain(
            (first, last), point.thresholds, (), (), overruled=point.overruled, overruled_rows=self._rows
        )
        own = guard.alike(first, last)
        rung, threshold = -1, -math.inf
        for row in rows:
            guard.row += 1
            if rung != guard.alarm_level:
                rung = guard.alarm_level
                if point.thresholds:
                    chain = guard.tighten_chain(plan) if rung != OK else plan
                    threshold = chain.thresholds[0]
                if ALARM_LEVELS[rung] == until:
                    return
            if guard.row % RATE == 0:
                guard.evaluate()
                share = clean_share(
                    self._share, REFERENCE, REFERENCE, suspicious=guard.suspicious, urgent=guard.urgent > 0
                )
                sampler.set(share)
            picked = sampler.pick(guard.row * 1_000_000_000 // RATE)
            if picked and guard.urgent and not (repeated and guard.was_audited(row + 1)):
                guard.urgent -= 1
            if rung == CASCADE_OFF:
                continue  # the best variant answers, and there is nothing to hold it against
            self._inputs += 1
            digest = row + 1 if repeated else self._inputs
            counts = guard.fresh(digest)
            if self._told and counts:
                guard.score(first, scores[row], counts)
            if first == last:
                continue
            goes_on = not scores[row] >= threshold
            if point.thresholds and counts:
                guard.record_overrules(chain, goes_on and not same[row], 1)
            evidence = guard.fresh_audit(digest) if picked else 0
            if evidence:
                guard.record_comparison(OWN, first, same[row], *own, evidence=evidence)
                if evidence & RECOVERY and (not point.thresholds or scores[row] >= plan.thresholds[0]):
                    guard.record_planned(first, same[row], *served)
                if not goes_on:
                    guard.record_comparison(SERVED, first, same[row], *served, evidence=evidence)


def clean(subject: Subject, profile: FamilyProfile, held: Mapping[str, Answers], rows: int, share: float) -> list[Any]:
    """Return false alarms over `rows` rows, and how near to one it came."""
    served = Served(subject, profile, share)
    draw = np.random.default_rng(11)
    count, alarms, began = len(next(iter(held.values())).right), 0, time.monotonic()
    for _ in range(0, rows, 100_000):
        served.run(held, draw.integers(0, count, 100_000).tolist())
        if served.guard.detected_level != OK:
            alarms += served.guard.alarms
            served.guard.alarms = 0
            served.guard.reset()
    lowest = served.sampler.lowest
    seen = served.guard.report()["variants"].get(subject.point.chain[0], {})
    now = max((test["statistic"] / test["limit"] for test in seen.values()), default=0.0)
    audited = served.sampler.taken / max(served.sampler.rows, 1)
    least = min(audited, lowest if lowest is not None else 1.0)
    return [subject.name, rows, alarms, f"{now:.2g}", f"{least:.3%}", f"{time.monotonic() - began:.0f}"]


def corrupted(
    subject: Subject,
    profile: FamilyProfile,
    held: Mapping[str, Answers],
    changed: Mapping[str, Answers],
    seed: int,
    share: float,
) -> dict[str, float]:
    """Return rows from the change to the first alarm of scores, of agreement, of agreement alone, and to stepping
    aside; infinite if there was none within `LONGEST`."""
    found = {}
    for told in (True, False):
        served = Served(subject, profile, share, told=told)
        draw = np.random.default_rng(seed)
        count = len(next(iter(held.values())).right)
        served.run(held, draw.integers(0, count, LEAD).tolist())
        served.guard.first.clear()
        served.guard.row = 0
        served.run(changed, draw.integers(0, count, LONGEST).tolist(), "aside")
        first = served.guard.first
        agreement = min(first.get(kind, np.inf) for kind in (OWN, OVERRULED, SERVED))
        if told:
            found["scores"] = first.get(SCORES, np.inf)
            found["agreement"] = agreement
            found["aside"] = served.guard.row if served.guard.alarm_level == CASCADE_OFF else np.inf
        else:
            found["alone"] = agreement
    return found


def repeated(
    subject: Subject, profile: FamilyProfile, held: Mapping[str, Answers], draws: int, share: float
) -> list[list[Any]]:
    """Return alarms of 300, 3,000 and 30,000 repeats of a few images, over so many draws of them."""
    table: list[list[Any]] = []
    count = len(next(iter(held.values())).right)
    for repeats in (300, 3000, 30_000):
        row: list[Any] = [subject.name, repeats]
        for inputs in (1, 10, 100):
            alarms = 0
            for seed in range(draws if repeats * inputs <= 300_000 else 1):
                served = Served(subject, profile, share)
                images = np.random.default_rng(seed).choice(count, inputs, replace=False).tolist()
                served.run(held, images * repeats, repeated=True)
                alarms += served.guard.alarms
            row.append(alarms)
        table.append(row)
    return table


def returned(
    subject: Subject,
    profile: FamilyProfile,
    held: Mapping[str, Answers],
    changed: Mapping[str, Answers],
    seed: int,
    share: float,
) -> float:
    """Return rows from the last corrupted one until it is `ok` again; infinite if that takes longer than four times
    `LONGEST`, or if it stepped aside (audits the other way decide there, and are not played here)."""
    served = Served(subject, profile, share)
    draw = np.random.default_rng(seed)
    count = len(next(iter(held.values())).right)
    served.run(changed, draw.integers(0, count, LONGEST).tolist(), "tightened")
    served.run(changed, draw.integers(0, count, LEAD).tolist(), "aside")
    if served.guard.alarm_level == CASCADE_OFF:
        return math.inf
    served.now_ns += MOST_STAY_NS
    began = served.guard.row
    served.run(held, draw.integers(0, count, 4 * LONGEST).tolist(), "ok")
    return served.guard.row - began if served.guard.alarm_level == OK else math.inf


def subjects_of(cascade: CascadeProfile, held: Mapping[str, Answers]) -> list[Subject]:
    """Return the cheapest chain of two that ends at the best variant within each of some distances of it, and two
    variants alone."""
    best = 100.0 * float(held[cascade.best].right.mean())
    found: dict[tuple[Any, ...], Subject] = {}
    for points in (2.0, 1.0, 0.5, 0.2):
        fit = [
            point
            for point in cascade.points
            if len(point.chain) == 2 and point.chain[-1] == cascade.best and point.accuracy >= best - points
        ]
        if fit:
            point = min(fit, key=lambda point: point.cost)
            name = f"{point.chain[0]} < {point.thresholds[0]:.3f} > {cascade.best}, {point.reach[1]:.0%} go on"
            found[point.chain, point.thresholds] = Subject(name, point)
    for name in ("small", "medium", cascade.best):
        right = 100.0 * float(held[name].right.mean())
        point = ChainPoint(
            chain=(name,), thresholds=(), accuracy=right, low=right, high=right, reach=(1.0,), ends=(), cut=(), cost=1.0
        )
        found[point.chain, ()] = Subject(f"{name} alone", point)
    return list(found.values())


def rows_of(times: Iterable[float]) -> str:
    """Return the cells of a table: median and worst."""
    found = sorted(times)
    words = [f"{value:.0f}" if np.isfinite(value) else "-" for value in (found[len(found) // 2], found[-1])]
    return " / ".join(words)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="clean rows a subject [5000000]")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of every corruption [20]")
    parser.add_argument("--apart", action="store_true", help="make the profile of the calibration images alone")
    parser.add_argument("--share", type=float, default=0.005, help="share that is audited [0.005]")
    parser.add_argument("--repeats", type=int, default=20, help="draws of images that are repeated [20]")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    logging.getLogger("clover.guard").setLevel(logging.CRITICAL)
    score = scorer(families.load_family("fashion"))
    assert score is not None
    calibration, (images, labels) = heard(*fashion_rows("calibration"), score), fashion_rows()
    held = heard(images, labels, score)
    known = calibration if options.apart else held
    cascade = profile_of(calibration, known, COSTS)
    profile = plain_profile(cascade)
    subjects = subjects_of(cascade, known)
    kinds = [("noise", noisy, NOISE), ("blur", blurred, BLUR), ("shift", shifted, SHIFT)]
    changed = (
        {}
        if not options.seeds
        else {
            (kind, strength): heard(corrupt(images, strength), labels, score)
            for kind, corrupt, strengths in kinds
            for strength in strengths
        }
    )
    table: list[list[Any]] = []
    for subject in subjects if options.seeds else ():
        for kind, _, strengths in kinds:
            lost = {at: subject.accuracy(held) - subject.accuracy(changed[kind, at]) for at in strengths}
            mildest = next((at for at in strengths if lost[at] >= COSTLY), None)
            if mildest is None:
                table.append([subject.name, kind, "none costs 5 points", "", "", "", "", "", ""])
                continue
            runs = [
                corrupted(subject, profile, held, changed[kind, mildest], seed, options.share)
                for seed in range(options.seeds)
            ]
            what = [rows_of(run[key] for run in runs) for key in ("scores", "agreement", "alone", "aside")]
            what.append(
                rows_of(
                    returned(subject, profile, held, changed[kind, mildest], seed, options.share)
                    for seed in range(options.seeds)
                )
            )
            table.append([subject.name, kind, mildest, f"{lost[mildest]:.1f}", *what])
    seen = ("scores", "agreement", "agree alone", "aside", "return")
    columns = ("served", "corruption", "strength", "points lost", *seen)
    show(f"rows to an alarm, median / worst of {options.seeds} seeds (- : not within {LONGEST})", columns, table)
    often = [
        row
        for subject in (subjects if options.repeats else ())
        for row in repeated(subject, profile, held, options.repeats, options.share)
    ]
    show("alarms of repeats", ("served", "repeats", "of 1 image", "of 10", "of 100"), often)
    quiet = [clean(subject, profile, held, options.rows, options.share) for subject in subjects]
    title = f"clean rows; limits {SCORE_LIMIT:.3g} rows, {AGREEMENT_LIMIT:.3g} audits; least share {LEAST:.1%}"
    show(title, ("served", "rows", "false alarms", "statistic / limit at the end", "lowest hour audited", "s"), quiet)
    write_json(options.json, {"share": options.share, "corrupted": table, "repeats": often, "clean": quiet})


def plain_profile(cascade: CascadeProfile) -> FamilyProfile:
    """Return a profile with nothing but a cascade."""
    empty: Any = {
        "family": "fashion",
        "key": "bench",
        "machine": "",
        "made_at": "",
        "quick": False,
        "accuracy": (),
        "latency": (),
        "backend": {},
        "base": {
            "variant": cascade.best,
            "profile": "",
            "count": 1,
            "backend": "",
            "p95_ms": 0.0,
            "energy_j_per_row": 0.0,
            "accuracy": 0.0,
            "method": "none",
        },
    }
    return msgspec.structs.replace(msgspec.convert(empty, FamilyProfile), cascade=cascade)


if __name__ == "__main__":
    main()
