"""What exists on one GPU and whose it is: the driver's instances and our record, changed together.

Every function here is one uninterrupted piece of work in the thread of the NVML session, so the record and the GPU
disagree only if the process dies between two lines.  Whatever the line, the next start finds one of these:

    recorded, does not exist          the intent was written, or the removal not yet struck out    -> struck out
    recorded, exists                  ours, with or without its compute instance                   -> adopted or removed
    not recorded, exists              never ours, since nothing is made before it is recorded      -> foreign
"""

from __future__ import annotations

from typing import Any

from clover.devices import nvml
from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.ownership import Ownership, OwnPlace
from clover.types import Record


class InstanceInventory(Record, frozen=True, kw_only=True):
    """The GPU instances of a GPU, by start."""

    ours: tuple[GpuInstance, ...]
    foreign: tuple[GpuInstance, ...]


class OwnedInstances:
    """The instances of `gpu`, of which `owned` records ours.  Raises what the bindings raise, and DeviceError if the
    record cannot be written."""

    def __init__(self, library: Any, gpu: MigGpu, owned: Ownership) -> None:
        self._library = library
        self._gpu = gpu
        self._owned = owned

    def look(self) -> InstanceInventory:
        """Return the instances that exist; recorded ones that do not exist are struck out."""
        standing = self._gpu.walk()
        recorded = {(own.profile, own.start) for own in self._owned.places}
        if self._owned.exclusive:
            present = {found.place for found in standing}
            for own in self._owned.places:
                if (own.profile, own.start) not in present:
                    self._owned.remove(own)
        return InstanceInventory(
            ours=tuple(found for found in standing if found.place in recorded),
            foreign=tuple(found for found in standing if found.place not in recorded),
        )

    def make(self, profile: str, start: int) -> GpuInstance:
        """Make the GPU instance at this place, without a compute instance unless ours was there already."""
        own = OwnPlace(profile=profile, start=start, size=self._gpu.profiles[profile].size)
        known = own in self._owned.places
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
        """Make the compute instance of a GPU instance of ours."""
        return self._gpu.complete(found)

    def unmake(self, found: GpuInstance) -> None:
        """Remove an instance of ours, also one that is gone already, and strike it out."""
        self._gpu.unmake(found)
        self._owned.remove(OwnPlace(profile=found.profile, start=found.start, size=found.size))

    def claim(self, found: GpuInstance) -> None:
        """Record a foreign instance as ours."""
        self._owned.add(OwnPlace(profile=found.profile, start=found.start, size=found.size))
