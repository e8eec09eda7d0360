"""A plausible ledger from a seed: models, devices, slices, tenants, a restart, a kill, gaps, and an outage of the
provider.  Its figures are invented, and add up as those of a server do."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clover.accounting.boundaries import WITHIN
from clover.telemetry.ledger import LedgerWriter, latency
from clover.telemetry.ledger.rows import EventRow, KeptProfile
from clover.telemetry.ledger.schema import DAY_S, HOUR_S, MINUTE_S, TABLES
from clover.telemetry.ledger.store import LedgerBatch, RunStart

MIDNIGHT = 1_790_035_200
"""2026-09-22 00:00 UTC."""

PUE = 1.5
ACCURACY = {"small": 88.0, "base": 91.5, "large": 93.0}
JOULES = {"small": 0.004, "base": 0.011, "large": 0.027}
UNOWNED_W = {"gpu0": 4.0, "host": 2.0}
SLO_MS = {"fashion": 20.0, "digits": 35.0}

Rows = dict[str, dict[tuple[object, ...], list[object]]]


@dataclass(frozen=True)
class LedgerScene:
    """What is written: `days` from `start_s` (a midnight, UTC), the last `minutes_days` of them by the minute and those
    before by the hour.  `gpu_label` is how the joules of gpu0 are known; those of the machine are modelled."""

    days: float = 2.0
    seed: int = 1
    start_s: int = MIDNIGHT
    minutes_days: float = 1.0
    models: tuple[str, ...] = ("fashion", "digits")
    tenants: tuple[str, ...] = ("", "acme", "umbrella")
    slices: tuple[str, ...] = ("3g.20gb@0", "2g.10gb@4", "1g.5gb@6", "1c@0")
    gpu_label: str = "measured"
    host: str = "box"
    zone: str = "GB"
    down: tuple[tuple[float, float], ...] = ((0.3, 0.33), (0.71, 0.715))
    """Parts of the whole time in which no server runs; the first one is after a clean stop, the others after a kill."""
    outage: tuple[float, float] = (0.5, 0.58)
    """The part in which the provider does not answer."""

    @property
    def end_s(self) -> int:
        """When it ends."""
        return self.start_s + int(self.days * DAY_S)

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield start and length of every span."""
        at, fine = self.start_s, self.end_s - int(self.minutes_days * DAY_S)
        while at < self.end_s:
            length = HOUR_S if at + HOUR_S <= fine else MINUTE_S
            yield at, length
            at += length

    def part(self, at_s: float) -> float:
        """Return the part of the whole time that is over at `at_s`."""
        return (at_s - self.start_s) / (self.end_s - self.start_s)

    def run_of(self, at_s: float) -> int:
        """Return the run under way at `at_s`, from 1; 0 while none is."""
        part, run = self.part(at_s), 1
        for since, until in self.down:
            if since <= part < until:
                return 0
            run += part >= until
        return run

    def known(self, at_s: float) -> tuple[str, float]:
        """Return how the intensity is known at `at_s`, and the age of its reading in seconds."""
        since, until = self.outage
        part = self.part(at_s)
        if since <= part < until:
            late_s = (part - since) * (self.end_s - self.start_s)
            return ("bridged" if part < (since + until) / 2 else "configured"), late_s
        return ("estimated" if at_s // HOUR_S % 7 == 0 else "live"), at_s % 300


@dataclass
class LedgerTruth:
    """What was written, summed while it was: in microjoules and nanograms."""

    joules_uj: int = 0
    grams_ng: int = 0
    rows: int = 0
    requests: int = 0
    seconds: int = 0
    by_model_uj: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_label_uj: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: int = 0


def write_ledger(path: Path, scene: LedgerScene = LedgerScene()) -> LedgerTruth:
    """Write the ledger `path` and return what is in it."""
    chance, truth, writer = random.Random(scene.seed), LedgerTruth(), LedgerWriter(path)
    run, number, seen = 0, 0, float(scene.start_s)
    gathered: Rows = {}
    profiles: list[KeptProfile] = []
    for model in scene.models:
        content = {
            name: {"accuracy": ACCURACY[name], "accuracy_method": "measured", "joules_per_row": JOULES[name]}
            for name in ACCURACY
        }
        profiles.append(KeptProfile(f"profile-{model}", model, scene.start_s, json.dumps({"variants": content})))
    for start, length in scene.steps():
        now_run = scene.run_of(start)
        if now_run == 0:
            continue
        if now_run != run:
            if gathered:
                number += 1
                writer.add(LedgerBatch(number, seen, gathered))
                gathered = {}
            if run == 1:
                writer.end(seen)
            run, number = now_run, 0
            writer.begin(_start(scene, start))
            writer.add(LedgerBatch(number := number + 1, start, events=[_configured(start, run)], profiles=profiles))
        seen = start + length
        _span(scene, chance, start, length, gathered, truth)
        events = list(_events(scene, chance, start, length))
        if events or start % DAY_S == 0:
            number += 1
            writer.add(LedgerBatch(number, seen, gathered, events))
            gathered = {}
    writer.add(LedgerBatch(number + 1, seen, gathered))
    writer.close()
    return truth


def _start(scene: LedgerScene, at_s: int) -> RunStart:
    facts = {
        "pue": PUE,
        "life_years": 4.0,
        "trace_speed": 1.0,
        "hardware": [
            {
                "device": "host", "product": "a machine of 16 CPUs", "kg": 1200.0, "low_kg": 600.0, "high_kg": 2400.0,
                "reserved": 8.0, "total": 16.0, "for_workers": 4.0, "slices": 4, "known": "cited default",
                "source": "75 kg a CPU",
            },
            {
                "device": "gpu0", "product": "NVIDIA A100-SXM4-40GB", "kg": 150.0, "low_kg": 100.0, "high_kg": 250.0,
                "reserved": 7.0, "total": 7.0, "for_workers": 7.0, "slices": 7, "known": "cited default",
                "source": "published",
            },
        ],
        "devices": {
            "host": {"method": "modelled", "uncertainty_low": -0.3, "uncertainty_high": 0.4},
            "gpu0": {"method": scene.gpu_label},
        },
    }  # fmt: skip
    configuration = {
        "families": [{"family": model} for model in scene.models],
        "carbon": {"source": "neso", "pue": PUE},
    }
    return RunStart(at_s, "0.9.0", scene.host, 4242, "c0ffee", json.dumps(configuration), json.dumps(facts))


def _configured(at_s: float, run: int) -> EventRow:
    return EventRow(at_s, "configuration", "", "started" if run == 1 else "started again", '{"digest": "c0ffee"}')


def _events(scene: LedgerScene, chance: random.Random, start: int, length: int) -> Iterator[EventRow]:
    if start % HOUR_S == 0:
        for model in scene.models:
            yield EventRow(start + 1.5, "decision", model, "kept: intensity changed by 6 %", '{"action": "kept"}')
            if chance.random() < 0.3:
                detail = json.dumps({"action": "applied", "from": "1 x large@3g.20gb", "to": "2 x base@2g.10gb"})
                yield EventRow(start + 2.5, "transition", model, "applied: forecast step", detail)
    for at, text in ((scene.outage[0], "neso does not answer: bridged"), (scene.outage[1], "neso answers again")):
        moment = scene.start_s + at * (scene.end_s - scene.start_s)
        if start <= moment < start + length:
            yield EventRow(moment, "provider", "", text, '{"provider": "neso"}')
    if chance.random() < 0.0005 * length / MINUTE_S:
        yield EventRow(start + 10.0, "fault", scene.models[0], "worker on 1c@0 died (signal 9): started again")
    if chance.random() < 0.0003 * length / MINUTE_S:
        yield EventRow(start + 20.0, "operator", scene.models[0], "pinned to large by ada", '{"operator": "ada"}')


def _span(scene: LedgerScene, chance: random.Random, start: int, length: int, into: Rows, truth: LedgerTruth) -> None:
    """Write one span."""
    hour = start % DAY_S / HOUR_S
    g_per_kwh = 230.0 + 110.0 * math.cos((hour - 19.0) / 24.0 * 2.0 * math.pi) + chance.uniform(-15.0, 15.0)
    known, age_s = scene.known(start)
    if known == "configured":
        g_per_kwh = 400.0
    ng_per_uj = g_per_kwh / 3.6e6 * PUE * 1e3
    lines: dict[tuple[str, str, str], int] = defaultdict(int)
    grams: dict[tuple[str, str, str], int] = defaultdict(int)
    load = (1.2 - math.cos((hour - 2.0) / 24.0 * 2.0 * math.pi)) * chance.uniform(0.9, 1.1)

    def add(table: str, keys: tuple[object, ...], **figures: object) -> None:
        row = [
            figures.pop(name, "" if TABLES[table].fold(name) == "histogram" else 0) for name in TABLES[table].figures
        ]
        assert not figures, figures
        into.setdefault(table, {})[start, length, *keys] = row

    def book(device: str, line: str, label: str, uj: int) -> int:
        ng = round(uj * ng_per_uj)
        lines[device, line, label] += uj
        grams[device, line, label] += ng
        return ng

    for index, model in enumerate(scene.models):
        rate = 40.0 * load / (1 + index)
        variant_of = ["large", "base", "base", "small"] if g_per_kwh < 240.0 else ["base", "base", "small", "small"]
        model_rows, right = 0, 0.0
        used: dict[str, int] = defaultdict(int)
        for place, variant in zip(scene.slices, variant_of, strict=False):
            device = "host" if place.startswith("1c") else "gpu0"
            label = "modelled" if device == "host" else scene.gpu_label
            for weight, tenant in enumerate(scene.tenants, 1):
                share = weight / sum(range(1, len(scene.tenants) + 1)) / len(scene.slices)
                rows = round(rate * length * share * chance.uniform(0.95, 1.05))
                active, idle = round(rows * JOULES[variant] * 1e6), round(1.5e6 * length * share)
                add(
                    "usage", (model, variant, device, place, tenant, label), rows=rows, active_uj=active, idle_uj=idle,
                    active_ng=book(device, "active", label, active), idle_ng=book(device, "idle", label, idle),
                )  # fmt: skip
                model_rows += rows
                right += rows * ACCURACY[variant]
                used["active"] += active
                used["idle"] += idle
        front_end, control = round(model_rows * 900.0), round(0.08e6 * length)
        used["front_end"], used["control"] = front_end, control
        outcome: dict[str, int] = defaultdict(int)
        for tenant in scene.tenants:
            requests = round(model_rows / len(scene.tenants) / 1.1)
            limited, bad, failed = (round(requests * chance.uniform(0.0, most)) for most in (0.01, 0.002, 0.001))
            first = tenant == scene.tenants[0]
            part = {"front_end_uj": front_end, "control_uj": control} if first else {}
            if first:
                part["front_end_ng"] = book("host", "front_end", "modelled", front_end)
                part["control_ng"] = book("host", "control", "modelled", control)
                part["receipts_uj"] = used["active"] + used["idle"] + front_end
            add(
                "usage", (model, "", "", "", tenant, "modelled"), requests=requests, limited=limited, client_errors=bad,
                server_errors=failed, ok=requests - limited - bad - failed, **part,
            )  # fmt: skip
            outcome["requests"] += requests
            outcome["ok"] += requests - limited - bad - failed
        truth.rows += model_rows
        truth.requests += outcome["requests"]
        truth.by_model_uj[model] += sum(used.values())
        _quality(scene, chance, add, (model, model_rows, right, outcome["ok"], length))
        own = sum(used[line] for line in WITHIN["server"] if line in used)
        own += round(sum(UNOWNED_W.values()) * 1e6 * length / len(scene.models))
        for against, factor, points in (("base", 1.45, 93.0), ("fixed", 1.04, right / max(model_rows, 1))):
            shadow = round(own * factor * chance.uniform(0.97, 1.03))
            label = "emulated" if scene.gpu_label == "emulated" else "modelled"
            add(
                "saved", (model, "server", against, label), rows=model_rows, own_uj=own, shadow_uj=shadow,
                own_ng=round(own * ng_per_uj), shadow_ng=round(shadow * ng_per_uj), own_upr=round(right * 1e6),
                shadow_upr=round(model_rows * points * 1e6), error_ng=round(own * ng_per_uj * 0.03),
            )  # fmt: skip
    for device, line, label, watts in (
        ("gpu0", "unowned", scene.gpu_label, UNOWNED_W["gpu0"]), ("host", "unowned", "modelled", UNOWNED_W["host"]),
        ("gpu0", "unattributed", scene.gpu_label, 0.3), ("host", "foreign", "modelled", 1.0),
    ):  # fmt: skip
        book(device, line, label, round(watts * 1e6 * length))
    for (device, line, label), uj in lines.items():
        add("lines", (device, line, label), joules_uj=uj, grams_ng=grams[device, line, label])
        truth.by_label_uj[label] += uj
    whole, whole_g = sum(lines.values()), sum(grams.values())
    provider = "configured" if known == "configured" else "neso"
    add(
        "grid", (scene.zone, provider, "average", "lifecycle", known), seconds_ms=length * 1000, joules_uj=whole,
        intensity_time=round(g_per_kwh * 1e3 * length * 1e3), age_time=round(age_s * length * 1e3),
        age_max_s=round(age_s), net_ng=round(whole_g / PUE), grams_ng=whole_g,
    )  # fmt: skip
    truth.joules_uj += whole
    truth.grams_ng += whole_g
    truth.seconds += length
    truth.spans += 1


def _quality(scene: LedgerScene, chance: random.Random, add: object, served: tuple[str, int, float, int, int]) -> None:
    """Write accuracy and latency of one model: its name, rows, rows x percent, answers 200, and seconds."""
    model, rows, right, answered, length = served
    slo_ms = SLO_MS.get(model, 25.0)
    counts: dict[int, int] = defaultdict(int)
    drawn = [chance.lognormvariate(math.log(slo_ms * 0.45), 0.35) for _ in range(24)]
    for place, value in enumerate(drawn):
        bucket = next(k for k, bound in enumerate((*latency.BOUNDS_MS, math.inf)) if value <= bound)
        counts[bucket] += (answered * (place + 1)) // 24 - (answered * place) // 24
    late = sum(count for k, count in counts.items() if k >= 80 or latency.BOUNDS_MS[k] > slo_ms)
    windows = length // 10
    missed = min(windows, round(windows * chance.uniform(0.0, 0.06)))
    labelled = rows // 200
    add(  # type: ignore[operator]
        "quality", (model, slo_ms), rows=rows, accuracy_upr=round(right * 1e6), labelled=labelled,
        labelled_right=round(labelled * (right / max(rows, 1) / 100.0) * chance.uniform(0.99, 1.01)), requests=answered,
        violations=late, held=windows - missed, missed=missed, latency=latency.encode(counts),
    )  # fmt: skip
