"""What a machine has, as records: its GPUs, their MIG mode and their instances."""

from __future__ import annotations

from typing import Any

from clover.planning.packing import geometry
from clover.planning.packing.geometry import SliceProfile
from clover.types import Placement, Record

HIDDEN = (
    "not permitted to see MIG instances: run as root, or hand the driver's capability mig/config to this user or "
    "container (some drivers let mig/monitor look)"
)


class Instance(Record, frozen=True, kw_only=True):
    """A GPU instance.  `uuid` names its MIG device; `whole` says that one compute instance takes all of it, which is
    how Clover uses instances.  `pids`: processes on it, as far as the driver reports them.  `fixed`: it may be used and
    not changed; its place is then a number, and not a memory slice."""

    placement: Placement
    uuid: str
    ours: bool
    whole: bool = True
    fixed: bool = False
    pids: tuple[int, ...] = ()
    memory_mib: int = 0

    @property
    def whose(self) -> str:
        """In one word."""
        return "fixed" if self.fixed else "ours" if self.ours else "foreign"

    @property
    def remark(self) -> str:
        """Owner and use in brackets, as " (foreign, in use by 4711)"; empty if there is nothing to note."""
        parts = [] if self.ours else ["foreign"]
        if self.pids:
            parts.append(f"in use by {', '.join(map(str, self.pids))}")
        return f" ({', '.join(parts)})" if parts else ""


class GpuState(Record, frozen=True, kw_only=True):
    """One GPU.  `enabled` is its MIG mode now, `pending` the one after its next reset; `needs_reset` says that a change
    of mode waits for one.  `profiles` are known only while MIG mode is on; `hidden`: the user may not see all
    instances, and then `fixed` says that those given to this process serve as they are.  `error`: what the driver
    refused, so that nothing else is known.  `holder`: the process of the Clover server that has the GPU (0: one that is
    not visible from here; None: no server has it)."""

    device: str
    index: int
    uuid: str
    product: str
    memory_mib: int = 0
    lost: bool = False
    error: str = ""
    hidden: bool = False
    fixed: str = ""
    holder: int | None = None
    supported: bool = True
    enabled: bool = False
    pending: bool = False
    needs_reset: bool = False
    compute_slices: int = 0
    memory_slices: int = 0
    profiles: dict[str, SliceProfile] = {}
    instances: tuple[Instance, ...] = ()

    @property
    def mode(self) -> str:
        """MIG mode in words, with the mode after the next reset if that differs."""
        words = ("off", "on")
        waits = f" until the next reset, then {words[self.pending]}" if self.pending != self.enabled else ""
        return words[self.enabled] + waits

    @property
    def held(self) -> str:
        """Which server holds the GPU, in words; empty if none does."""
        if self.holder is None:
            return ""
        return f"a Clover server has it (process {self.holder})" if self.holder else "a Clover server has it"

    def room(self) -> dict[str, int]:
        """Return how many more instances of each profile fit beside the present ones (each profile for itself)."""
        taken = [(item.placement.start, item.placement.size) for item in self.instances]
        used = sum(self.profiles[item.placement.profile].slices for item in self.instances)
        media = any(self.profiles[item.placement.profile].media for item in self.instances)
        found: dict[str, int] = {}
        for name, profile in self.profiles.items():
            have = sum(item.placement.profile == name for item in self.instances)
            if profile.media and media:
                continue
            free = geometry.layouts(
                [profile], device=self.device, compute=self.compute_slices - used, blocked=taken, maximal=False
            )
            if more := min(max(map(len, free)), profile.most - have):
                found[name] = more
        return found

    def plain(self) -> dict[str, Any]:
        """Return the GPU as JSON."""
        return {
            "device": self.device,
            "index": self.index,
            "uuid": self.uuid,
            "product": self.product,
            "memory_mib": self.memory_mib,
            "lost": self.lost,
            "error": self.error,
            "hidden": self.hidden,
            "fixed": self.fixed,
            "held": self.holder is not None,
            "mig": {"supported": self.supported, "current": self.enabled, "pending": self.pending},
            "compute_slices": self.compute_slices,
            "memory_slices": self.memory_slices,
            "instances": [
                {
                    "profile": item.placement.profile,
                    "start": item.placement.start,
                    "size": item.placement.size,
                    "uuid": item.uuid,
                    "whose": item.whose,
                    "whole": item.whole,
                    "pids": list(item.pids),
                    "memory_mib": item.memory_mib,
                }
                for item in self.instances
            ],
            "room": {} if self.hidden else self.room(),
        }
