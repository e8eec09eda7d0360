"""Surprises for the controller: workers that serve faster or slower than their profile says, and GPUs that are lost.

A profile is measured once, and the machine may be another one later: hotter, shared, with a new driver.  So every
variant may have a hidden truth: its service times and its joules are the profile's times a factor each, drawn once by
the seed between 1 - `misprofiled` and 1 + `misprofiled`, the same on all slices and at all batch sizes.  The controller
plans with the profile, the simulated workers serve by the truth, and what is summed up is the truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from clover.errors import ConfigError
from clover.types import FamilyProfile

HOUR_S = 3600.0


@dataclass(frozen=True)
class LostDevice:
    """A device that does not answer from `from_s` on, for `seconds`; both count from the start of the run."""

    device: int
    from_s: float
    seconds: float

    def holds(self, at_s: float) -> bool:
        """Return whether the device is lost `at_s` seconds after the start."""
        return self.from_s <= at_s < self.from_s + self.seconds


@dataclass(frozen=True)
class Surprises:
    """What is not as the controller believes.  `misprofiled`: by which part times and joules may differ from the
    profile."""

    misprofiled: float = 0.0
    lost: tuple[LostDevice, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is a surprise at all."""
        return self.misprofiled > 0.0 or bool(self.lost)

    @property
    def labels(self) -> tuple[str, ...]:
        """What a report says of them."""
        texts = []
        if self.misprofiled > 0.0:
            part = f"{100.0 * self.misprofiled:g} %"
            texts.append(
                f"hidden truth: times and joules of each variant are the profile's times factors of up to {part} more "
                "or less, drawn by the seed; the controller knows the profile and what it learns"
            )
        texts += [
            f"GPU {item.device} does not answer from hour {item.from_s / HOUR_S:g} on, for {item.seconds / HOUR_S:g} h"
            for item in self.lost
        ]
        return tuple(texts)


NONE = Surprises()


def factors(profile: FamilyProfile, misprofiled: float, seed: int) -> dict[str, tuple[float, float]]:
    """Return by how much the times and the joules of each variant differ from its profile: (time, joules)."""
    by_variant = {}
    for variant in sorted({item.variant for item in profile.latency}):
        rng = random.Random(f"{seed}/{variant}")
        by_variant[variant] = (
            1.0 + rng.uniform(-misprofiled, misprofiled),
            1.0 + rng.uniform(-misprofiled, misprofiled),
        )
    return by_variant


def truth(profile: FamilyProfile, by: dict[str, tuple[float, float]]) -> FamilyProfile:
    """Return the profile that would have been measured if each variant differed by its factors of time and joules."""
    return msgspec.structs.replace(
        profile,
        latency=tuple(
            msgspec.structs.replace(
                item,
                mean_ms=item.mean_ms * by[item.variant][0],
                energy_j_per_row=item.energy_j_per_row * by[item.variant][1],
                rested_j=item.rested_j * by[item.variant][1],
                wake_j=item.wake_j * by[item.variant][1],
            )
            for item in profile.latency
        ),
    )


def parse_lost(text: str, devices: int) -> LostDevice:
    """Return the lost device of DEVICE@FROM+HOURS, as 1@12+3; ConfigError if it is none of `devices`."""
    try:
        device, _, when = text.partition("@")
        begin, _, hours = when.partition("+")
        device_lost = LostDevice(int(device), float(begin) * HOUR_S, float(hours) * HOUR_S)
    except ValueError:
        raise ConfigError(f"--lost-gpu takes GPU@FROM+HOURS, as 1@12+3 (hours), not {text!r}") from None
    if not 0 <= device_lost.device < devices:
        raise ConfigError(f"--lost-gpu {text}: there are {devices} GPUs, from 0 on")
    if not (0.0 <= device_lost.from_s < float("inf") and 0.0 < device_lost.seconds < float("inf")):
        raise ConfigError(f"--lost-gpu {text}: hours are 0 or more, and last more than 0")
    return device_lost
