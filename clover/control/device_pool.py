"""Which devices a family may use, and what changed about them.

Core-sets are shared: every family plans with all of them, slowed to its share.  A GPU belongs to one family: slices of
one GPU under two controllers would have to be planned by both.  GPUs are assigned in proportion to the families'
shares, at least one to each, also to families that are unloaded, which find their GPUs again.  They are assigned anew
when one is lost or comes back, and then as many as possible stay with the family that has them.

A family plans with what it was assigned, but not with a GPU on which another family still has workers: that one moves
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from clover.interfaces import Device
from clover.types import DeviceShape, Placement


@runtime_checkable
class LosableGpu(Protocol):
    """A device that may be lost, and that an earlier run may have left instances on
    (`clover.devices.mig.MigDevice`)."""

    lost: bool

    def report(self) -> dict[str, Any]:
        """Return what an operator should know: quarantined places and instances of others."""

    async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
        """Remove our instances that are not among `keep`; return those that were kept."""


class DevicePool:
    """The devices of a server, and which family each GPU is assigned to."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self.exclusive = any(not device.shape().overlap for device in devices.values())
        """Whether a device belongs to one family: it does unless all of them can be shared."""
        self._shares: dict[str, float] = {}
        self._seen = self.shapes()
        self._lost = self.lost()
        self._assigned: dict[str, tuple[str, ...]] = {}

    def shapes(self) -> dict[str, DeviceShape]:
        """Return what each device allows now."""
        return {name: device.shape() for name, device in self._devices.items()}

    def lost(self) -> frozenset[str]:
        """Return the devices that do not answer."""
        return frozenset(name for name, device in self._devices.items() if getattr(device, "lost", False))

    def gpus(self) -> list[LosableGpu]:
        """Return the devices that may be lost."""
        return [device for device in self._devices.values() if isinstance(device, LosableGpu)]

    def gpu(self, name: str) -> LosableGpu | None:
        """Return the GPU of that name; None for another device."""
        device = self._devices.get(name)
        return device if isinstance(device, LosableGpu) else None

    # --- who may use what ---------------------------------------------------------------------------------------------

    def name(self, family: str, share: float) -> None:
        """Enter `family` with its share of the devices; GPUs are given by `assign`."""
        self._shares[family] = share

    def short(self) -> str:
        """Return why there are too few GPUs for the families; empty if there are enough."""
        usable = self._usable()
        if not self.exclusive or len(usable) >= len(self._shares):
            return ""
        return (
            f"{len(self._shares)} families ({', '.join(self._shares)}) need a GPU each, but there "
            f"{'is' if len(usable) == 1 else 'are'} {len(usable)} ({', '.join(usable) or 'none'}): serve fewer "
            "families, add GPUs, or set workers.device = cpu, which families share"
        )

    def assign(self, occupied: Mapping[str, Iterable[str]]) -> None:
        """Assign the GPUs anew; `occupied`: the devices on which each family has workers."""
        before = {family: {*occupied.get(family, ()), *self._assigned.get(family, ())} for family in self._shares}
        self._assigned = assign(self._usable(), self._shares, before)

    def of(self, family: str, occupied: Mapping[str, Iterable[str]]) -> tuple[DeviceShape, ...]:
        """Return the devices that `family` may plan with now."""
        shapes = self.shapes()
        if not self.exclusive:
            return tuple(shapes.values())
        taken = {name for other, names in occupied.items() if other != family for name in names}
        return tuple(
            shape
            for name, shape in shapes.items()
            if shape.layouts and name in self._assigned.get(family, ()) and name not in taken
        )

    def share(self, family: str) -> float:
        """Return the part of the devices' time that is the family's."""
        total = sum(self._shares.values())
        return 1.0 if self.exclusive or total <= 0.0 else self._shares[family] / total

    def assigned(self, family: str) -> tuple[str, ...]:
        """Return the GPUs that are assigned to the family, lost ones left out."""
        return self._assigned.get(family, ())

    def owner(self, device: str) -> str:
        """Return the family that a device is assigned to; empty if it is shared or assigned to none."""
        return next((family for family, names in self._assigned.items() if device in names), "")

    def _usable(self) -> list[str]:
        return [name for name, shape in self.shapes().items() if shape.layouts and not shape.overlap]

    # --- what happened ------------------------------------------------------------------------------------------------

    def changes(self) -> dict[str, str]:
        """Return what changed about each device since the last call, in words."""
        shapes, lost = self.shapes(), self.lost()
        found = {}
        for name, shape in shapes.items():
            if (name in lost) != (name in self._lost):
                found[name] = f"{name} is lost" if name in lost else f"{name} is back"
            elif shape.layouts != self._seen[name].layouts:
                found[name] = f"what fits on {name} changed{self._blocked(name)}"
        self._seen, self._lost = shapes, lost
        return found

    def _blocked(self, name: str) -> str:
        gpu = self.gpu(name)
        places = [item["placement"] for item in gpu.report()["quarantined"]] if gpu is not None else []
        return f": {', '.join(places)} quarantined" if places else ""


def assign(
    gpus: Sequence[str], shares: Mapping[str, float], before: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each family: in proportion to its share (highest averages), at least one, and of those it had
    before as many as that allows.  If there are fewer GPUs than families those that had one come first."""
    held = {family: [gpu for gpu in gpus if gpu in set(before.get(family, ()))] for family in shares}
    first = sorted(shares, key=lambda family: not held[family])
    counts = dict.fromkeys(shares, 0)
    for family in first[: len(gpus)]:
        counts[family] = 1
    for _ in range(len(gpus) - sum(counts.values())):
        if not shares:
            break
        counts[max(shares, key=lambda family: shares[family] / (2 * counts[family] + 1))] += 1
    free = list(gpus)
    assigned: dict[str, list[str]] = {family: [] for family in shares}
    for keep in (True, False):
        for family in shares:
            wanted = [gpu for gpu in free if gpu in held[family]] if keep else list(free)
            taken = wanted[: counts[family] - len(assigned[family])]
            assigned[family] += taken
            free = [gpu for gpu in free if gpu not in taken]
    return {family: tuple(sorted(names, key=list(gpus).index)) for family, names in assigned.items()}
