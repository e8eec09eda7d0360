"""Twin of `clover._native.queueing`: the same sums in the same order, so that results agree to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NODES = 48
DEPTH = 38.0
NOTHING = 45.0
ROOT_HALF = math.sqrt(0.5)
ROOT_PI = math.sqrt(math.pi)

Floats = Sequence[float]


def _legendre() -> tuple[list[float], list[float]]:
    nodes, weights = [], []
    for i in range(NODES):
        x = -math.cos(math.pi * (i + 0.75) / (NODES + 0.5))
        slope = 1.0
        for _ in range(8):
            this, last = x, 1.0
            for j in range(2, NODES + 1):
                this, last = ((2 * j - 1) * x * this - (j - 1) * last) / j, this
            slope = NODES * (x * this - last) / (x * x - 1.0)
            x -= this / slope
        nodes.append(x)
        weights.append(2.0 / ((1.0 - x * x) * slope * slope))
    return nodes, weights


NODE, WEIGHT = _legendre()


def erfcx(x: float) -> float:
    if x < 25.0:
        return math.exp(x * x) * math.erfc(x)
    r = 0.5 / (x * x)
    return (1.0 - r * (1.0 - 3.0 * r * (1.0 - 5.0 * r * (1.0 - 7.0 * r * (1.0 - 9.0 * r))))) / (x * ROOT_PI)


class Moment:
    """What a group's service time says about the time t."""

    def __init__(self, t_s: float, service_s: float, cv: float) -> None:
        self.ahead_s = t_s - service_s
        self.spread_s = cv * service_s
        if self.spread_s > 0.0:
            self.z = self.ahead_s / self.spread_s
            self.longer = 0.5 * math.erfc(self.z * ROOT_HALF)
            self.gauss = 0.5 * math.exp(-0.5 * self.z * self.z)
        else:
            self.z = 0.0
            self.longer = 1.0 if self.ahead_s < 0.0 else 0.0
            self.gauss = 0.0

    def waited(self, drain: float) -> float:
        """Return P(wait + service > t) of a request that waits."""
        if self.spread_s > 0.0:
            fall = drain * self.spread_s
            u = self.z - fall
            if u >= 0.0:
                decay = drain * (self.ahead_s - 0.5 * fall * self.spread_s)
                if decay > NOTHING:
                    return self.longer
                if u >= 8.5:
                    return self.longer + math.exp(-decay)
                return self.longer + math.exp(-decay) * (1.0 - 0.5 * math.erfc(u * ROOT_HALF))
            return self.longer if self.gauss == 0.0 else self.longer + self.gauss * erfcx(-u * ROOT_HALF)
        return 1.0 if self.ahead_s < 0.0 else math.exp(-drain * self.ahead_s)


def erlang_c(servers: float, load: float) -> float:
    rho = load / servers
    step = 1.0 / max(load, 1e-60)
    twice, thrice = 2.0 * step, 3.0 * step
    term, total, left = 1.0, 1.0, servers
    while left > 0.0:
        one, five = left * step, (left - 4.0) * step
        two, six = one * (one - step), five * (five - step)
        third, seventh = one - twice, five - twice
        four, eight = two * (third * (one - thrice)), six * (seventh * (five - thrice))
        total += term * (((one + two) + (two * third + four)) + four * ((five + six) + (six * seventh + eight)))
        term *= four * eight
        left -= 8.0
        if term <= 1e-15 * total or total > 1e40:
            break
    return 1.0 / ((1.0 - rho) * total + rho)


def mean_field(
    active: Sequence[int], count: Floats, service_s: Floats, rate: float, gap_s: float, share: list[float]
) -> float:
    """Fill `share` and return the mean idle time of a worker between requests."""
    for _ in range(100):
        served = slope = bend = 0.0
        for j in active:
            one = 1.0 / (service_s[j] + gap_s)
            part = count[j] * one
            served += part
            slope += part * one
            bend += part * one * one
        excess = served - rate
        newton = rate * (slope * slope)
        halley = excess * (bend * served - slope * slope)
        if halley < 0.5 * newton:
            gap_s += served * excess * slope / (newton - halley)
        else:
            gap_s += served * excess / (rate * slope)
        gap_s = max(gap_s, 0.0)
        if -1e-5 * rate <= excess <= 1e-5 * rate:
            break
    served = 0.0
    for j in active:
        share[j] = count[j] / (service_s[j] + gap_s)
        served += share[j]
    one = 1.0 / served
    for j in active:
        share[j] *= one
    return gap_s


def height(u: float, active: Sequence[int], count: Floats, service_s: Floats, rate: float) -> float:
    total = -u
    for j in active:
        total += count[j] * math.log(u + rate * service_s[j])
    return total


def product_form(
    active: Sequence[int], count: Floats, service_s: Floats, rate: float, gap_s: float, share: list[float]
) -> tuple[float, float]:
    """Fill `share` for requests that do not wait; return the mean idle time and the probability to wait."""
    gap_s = mean_field(active, count, service_s, rate, gap_s, share)
    system = (active, count, service_s, rate)
    top = rate * gap_s
    peak = height(top, *system)
    narrow = capacity = 0.0
    for j in active:
        share[j] = 0.0
        u = top + rate * service_s[j]
        narrow += count[j] / (u * u)
        capacity += count[j] / service_s[j]
    reach = 9.0 / math.sqrt(narrow)
    low = top - reach if top > reach else 0.0
    while height(top + reach, *system) > peak - DEPTH:
        reach *= 1.25
    high = top + reach
    half, middle = 0.5 * (high - low), 0.5 * (high + low)
    area = 0.0
    for x, w in zip(NODE, WEIGHT, strict=True):
        u = middle + half * x
        mass = w * half * math.exp(height(u, *system) - peak)
        area += mass
        for j in active:
            share[j] += mass / (u + rate * service_s[j])
    full = math.exp(height(0.0, *system) - peak)
    rho = rate / capacity
    p_wait = full / ((1.0 - rho) * area + rho * full)
    area = 0.0
    for j in active:
        share[j] *= count[j]
        area += share[j]
    area = 1.0 / area
    for j in active:
        share[j] *= area
    return gap_s, p_wait


def late(
    active: Sequence[int],
    count: Floats,
    rate_of: Floats,
    share: Floats,
    moments: Sequence[Moment],
    capacity: float,
    p_wait: float,
    drain: float,
) -> float:
    idle = busy = 0.0
    for j in active:
        idle += share[j] * moments[j].longer
    if p_wait < 1e-15:
        return idle
    for j in active:
        busy += count[j] * rate_of[j] * moments[j].waited(drain)
    return (1.0 - p_wait) * idle + p_wait * (busy / capacity)


@dataclass
class System:
    service_s: list[float]
    cv: list[float]
    count: list[float]
    rate: float
    model: str
    gap_s: float = 0.0  # a guess, then the answer
    active: list[int] = field(init=False)
    rate_of: list[float] = field(init=False)
    share: list[float] = field(init=False)
    capacity: float = 0.0
    p_wait: float = 1.0
    drain: float = 0.0

    def __post_init__(self) -> None:
        if self.model not in ("pf", "mf"):
            raise ValueError("model")
        if not (self.rate > 0.0 and math.isfinite(self.rate)):
            raise ValueError("rate")
        if any(not s > 0.0 for s in self.service_s) or any(x < 0.0 for x in self.cv + self.count):
            raise ValueError("service_s, cv or counts")
        self.active = [j for j, n in enumerate(self.count) if n > 0.0]
        self.rate_of = [1.0 / s for s in self.service_s]
        self.share = [0.0] * len(self.count)
        variation = 0.0
        for j in self.active:
            part = self.count[j] * self.rate_of[j]
            self.capacity += part
            variation += part * (self.cv[j] * self.cv[j])
        if not self.stable:
            return
        self.drain = 2.0 * (self.capacity - self.rate) / (1.0 + variation / self.capacity)
        if self.model == "pf":
            self.gap_s, self.p_wait = product_form(
                self.active, self.count, self.service_s, self.rate, self.gap_s, self.share
            )
        else:
            self.gap_s = mean_field(self.active, self.count, self.service_s, self.rate, self.gap_s, self.share)
            servers = sum(self.count[j] for j in self.active)
            self.p_wait = erlang_c(servers, servers * (self.rate / self.capacity))

    def shares(self) -> list[float]:
        """Return the shares of all requests, whether they wait or not."""
        if self.model == "mf":
            return self.share
        shares = [0.0] * len(self.share)
        for j in self.active:
            full = self.count[j] * self.rate_of[j] / self.capacity
            shares[j] = (1.0 - self.p_wait) * self.share[j] + self.p_wait * full
        return shares

    @property
    def stable(self) -> bool:
        return self.rate < self.capacity

    def tail(self, t_s: float) -> float:
        moments = [Moment(t_s, s, x) for s, x in zip(self.service_s, self.cv, strict=True)]
        return late(self.active, self.count, self.rate_of, self.share, moments, self.capacity, self.p_wait, self.drain)

    def quantile(self, miss: float) -> float:
        if self.tail(0.0) <= miss:
            return 0.0
        low, high = 0.0, max(self.service_s[j] * (1.0 + 8.0 * self.cv[j]) for j in self.active)
        while self.tail(high) > miss:
            low, high = high, high * 2.0
        while high - low > 1e-14 * high:
            middle = 0.5 * (low + high)
            if middle <= low or middle >= high:
                break
            if self.tail(middle) > miss:
                low = middle
            else:
                high = middle
        return high


def _column(values: Any, size: int | None) -> list[float]:
    column = [float(value) for value in values]
    if (size is not None and len(column) != size) or not all(map(math.isfinite, column)):
        raise ValueError("one finite number a group")
    return column


def _system(service_s: Any, cv: Any, counts: Any, rate: float, model: str) -> System:
    services = _column(service_s, None)
    whole = list(counts)
    if any(int(n) != n or isinstance(n, float) for n in whole):
        raise ValueError("counts must be whole numbers")
    return System(services, _column(cv, len(services)), _column(whole, len(services)), float(rate), model)


def evaluate(
    service_s: Any, cv: Any, energy_j: Any, accuracy: Any, counts: Any, rate: float, model: str, quantile: float
) -> tuple[bool, NDArray[np.float64], float, float, float, float]:
    system = _system(service_s, cv, counts, rate, model)
    size = len(system.count)
    joules, quality = _column(energy_j, size), _column(accuracy, size)
    miss = 1.0 - quantile
    if not 0.0 < miss < 1.0:
        raise ValueError("quantile")
    if not system.stable:
        return False, np.full(size, math.nan), math.nan, math.nan, math.inf, 1.0
    p95_s = system.quantile(miss)
    share = system.shares()
    energy = right = 0.0
    for j in system.active:
        energy += share[j] * joules[j]
        right += share[j] * quality[j]
    return True, np.array(share), energy, right, p95_s, system.p_wait


def tail(
    service_s: Any,
    cv: Any,
    energy_j: Any,
    accuracy: Any,
    counts: Any,
    rate: float,
    model: str,
    quantile: float,
    t: float,
) -> float:
    system = _system(service_s, cv, counts, rate, model)
    return system.tail(float(t)) if system.stable else 1.0
