"""The first few of a row of cores as a device of its own: what a plan uses that leaves the other cores alone.

A layout of core-sets covers every core.  If some of its core-sets cover the first n cores exactly, they are a layout of
these n.  No other layout of n cores is needed, since cores are alike and each of its profiles was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from clover.types import Assignment, DeviceShape, GroupCount

_EACH_UP_TO = 8
_STEPS = 4


def sleeping_row(devices: Sequence[DeviceShape]) -> DeviceShape | None:
    """Return the row of cores of which a plan may use the first few only; None if there is none."""
    row = row_of_cores(devices)
    return row if row is not None and row.core_sleep_w is not None else None


def row_of_cores(devices: Sequence[DeviceShape]) -> DeviceShape | None:
    """Return the one device of `devices` if it is a row of cores, else None."""
    return devices[0] if len(devices) == 1 and devices[0].kind == "cpu" else None


def first_cores(shape: DeviceShape, count: int) -> DeviceShape:
    """Return the first `count` cores of `shape`; without layouts if no layout ends there."""
    if count >= shape.slices:
        return shape
    within = (tuple(item for item in layout if item.start + item.size <= count) for layout in shape.layouts)
    whole = dict.fromkeys(layout for layout in within if sum(item.size for item in layout) == count)
    return msgspec.structs.replace(shape, layouts=tuple(whole), slices=count)


def holding(devices: tuple[DeviceShape, ...], configuration: Iterable[GroupCount]) -> tuple[DeviceShape, ...]:
    """Return the devices on which `configuration` is laid out: of a row whose cores may sleep the cores that it takes,
    else `devices`."""
    row = sleeping_row(devices)
    return devices if row is None else (first_cores(row, cores_of(configuration)),)


def core_counts(total: int) -> tuple[int, ...]:
    """Return the numbers of cores that are weighed of a row of `total`, ascending: each up to 8, then in steps of a
    quarter of the power of two below."""
    counts = [*range(1, min(total, _EACH_UP_TO) + 1)]
    while counts[-1] < total:
        counts.append(min(total, counts[-1] + (1 << (counts[-1].bit_length() - 1)) // _STEPS))
    return tuple(counts)


def cores_under(deployment: Iterable[Assignment]) -> int:
    """Return how many cores of a row have a worker of `deployment`, and all before them."""
    return max((item.placement.start + item.placement.size for item in deployment), default=0)


def cores_of(configuration: Iterable[GroupCount]) -> int:
    """Return how many cores the workers of `configuration` take, by the names of their profiles ("2c")."""
    return sum(group.count * int(group.profile.removesuffix("c")) for group in configuration)
