"""What exists on one GPU and whose it is: the driver's instances and our record, changed together.

Every function here is one uninterrupted piece of work in the thread of the NVML session, so the record and the GPU
disagree only if the process dies between two lines.  Whatever the line, the next start finds one of these:

    recorded, does not exist          the intent was written, or the removal not yet struck out    -> struck out
    recorded, exists                  ours, with or without its compute instance                   -> adopted or removed
    recorded, another one exists      ours was removed by hand, and that one made                  -> foreign
    not recorded, exists              never ours, since nothing is made before it is recorded      -> foreign
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clover.devices import nodes, nvml
from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.ownership import Ownership, OwnPlace
from clover.types import Record


class InstanceInventory(Record, frozen=True, kw_only=True):
    """The GPU instances of a GPU, by start."""

    ours: tuple[GpuInstance, ...]
    foreign: tuple[GpuInstance, ...]


class OwnedInstances:
    """The instances of `gpu`, of which `owned` records ours.  `root`: where this machine's /proc and /dev lie; None: it
    needs no device nodes, being emulated.  Raises what the bindings raise, and DeviceError if the
    record cannot be written."""

    def __init__(self, library: Any, gpu: MigGpu, owned: Ownership, root: Path | None = None) -> None:
        self._library = library
        self._root = root
        self._gpu = gpu
        self._owned = owned

    def close(self) -> None:
        """Release the GPU for another server."""
        self._owned.close()

    def look(self) -> InstanceInventory:
        """Return the instances that exist; recorded ones that do not exist are struck out."""
        standing = self._gpu.walk()
        ours = tuple(found for found in standing if is_ours(found, self._owned))
        if self._owned.exclusive:
            present = {found.place for found in ours}
            for own in self._owned.places:
                if own.place not in present:
                    self._owned.remove(own)
        return InstanceInventory(ours=ours, foreign=tuple(found for found in standing if found not in ours))

    def make(self, profile: str, start: int) -> GpuInstance:
        """Make the GPU instance at this place, without a compute instance unless ours was there already."""
        own = OwnPlace(profile=profile, start=start, size=self._gpu.profiles[profile].size)
        known = self._owned.find(own.place) is not None
        if not known and self._gpu.find(profile, start) is not None:
            # Foreign.  Recorded even for a moment, it would be ours to the next reader of the record.
            raise self._library.NVMLError(nvml.INSUFFICIENT_RESOURCES)
        self._owned.add(own)
        try:
            return self._gpu.make(profile, start)
        except self._library.NVMLError as error:
            if error.value in nvml.LOST_CODES:
                raise  # unknown whether it exists: it stays recorded, and the next look finds out
            found = self._gpu.find(profile, start)
            # "No room" is also the answer if this very instance exists.  Unless it was recorded before, somebody made
            # it just now; after any other refusal, what stands here is what was refused only half.
            if found is None or (error.value == nvml.INSUFFICIENT_RESOURCES and not known):
                self._owned.remove(own)
                raise
            return found

    def complete(self, found: GpuInstance) -> GpuInstance:
        """Make the compute instance of a GPU instance of ours, and record what the driver calls it."""
        whole = self._gpu.complete(found)
        self._owned.add(_own(whole))
        return whole

    def provide(self, found: GpuInstance) -> None:
        """Make the device nodes that a process needs to open the instance; raises DeviceError if it cannot."""
        if self._root is not None:
            nodes.provide(self._gpu.minor, found.gi, root=self._root)

    def unmake(self, found: GpuInstance) -> None:
        """Remove an instance of ours, also one that is gone already, and strike it out."""
        self._gpu.unmake(found)
        self._owned.remove(_own(found))

    def claim(self, found: GpuInstance) -> None:
        """Record a foreign instance as ours."""
        self._owned.add(_own(found))


def is_ours(found: GpuInstance, owned: Ownership) -> bool:
    """Return whether an instance is the one recorded at its place."""
    own = owned.find(found.place)
    return own is not None and own.means(found.gi, found.uuid)


def _own(found: GpuInstance) -> OwnPlace:
    """Return the record of an instance; without its names if it is not complete."""
    gi = found.gi if found.uuid else -1
    return OwnPlace(profile=found.profile, start=found.start, size=found.size, gi=gi, uuid=found.uuid)
