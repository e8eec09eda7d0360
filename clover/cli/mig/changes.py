"""From what a GPU has to what a configuration wants, with the fewest changes.

Of all legal ways to place the wanted instances, the one is taken that first spares instances in use, then those that
are not ours, and then keeps the most of what exists.  Everything else on the GPU is removed, because a configuration
names all instances of its GPUs.  The same comparison serves `assert` (is anything to change?) and `apply` (change it).
"""

from __future__ import annotations

from collections.abc import Sequence

from clover.cli.mig.files import ConfigGroup
from clover.cli.mig.state import GpuState, Instance
from clover.cli.mig.words import choices, counted, unplaceable
from clover.types import Placement, Record


class Changes(Record, frozen=True, kw_only=True):
    """What one GPU needs: MIG mode turned to `mode` (None: as it is), instances removed, then made.

    `unplaced`: instances to be made whose places are not known yet, because the GPU reports its profiles only with MIG
    mode on.  `impossible`: why it cannot be done at all, whatever may be changed.
    """

    gpu: GpuState
    group: ConfigGroup
    mode: bool | None = None
    destroy: tuple[Instance, ...] = ()
    create: tuple[Placement, ...] = ()
    keep: tuple[Placement, ...] = ()
    unplaced: str = ""
    impossible: str = ""

    @property
    def none(self) -> bool:
        """Whether the GPU is as it should be."""
        return self.mode is None and not (self.destroy or self.create or self.unplaced or self.impossible)

    def differences(self) -> list[str]:
        """Return the differences in sentences; none if there are none."""
        gpu = self.gpu
        found = [f"{gpu.device}: {self.impossible}"] if self.impossible else []
        if self.mode is not None:
            found.append(f"{gpu.device}: MIG mode is {gpu.mode}, wanted {_on(self.mode)}")
        if self.unplaced:
            found.append(f"{gpu.device}: missing {self.unplaced}")
        found += [f"{place.id} is missing" for place in self.create if place not in self._broken()]
        for item in self.destroy:
            why = "has no compute instance of its full size" if item.placement in self.create else "is not wanted"
            found.append(f"{item.placement.id} {why}{item.remark}")
        return found

    def refusals(self, *, mode_changes: bool, force_foreign: bool) -> list[str]:
        """Return what prevents the changes, each with its remedy; none if they may be made."""
        gpu = self.gpu
        if gpu.held and not self.none:
            return [
                f"{gpu.device}: {gpu.held}: its controller changes the layout; to change it by hand stop the server"
            ]
        found = [f"{gpu.device}: {self.impossible}"] if self.impossible else []
        if self.mode is not None and not mode_changes and not self.impossible:
            reset = " (this GPU then needs a reset)" if gpu.needs_reset else ""
            found.append(f"{gpu.device}: turning MIG mode {_on(self.mode)} needs --mode-changes{reset}")
        for item in self.destroy:
            if item.pids:
                who = ", ".join(map(str, item.pids))
                found.append(f"{item.placement.id} is in use by process {who}: stop it first")
            elif not item.ours and not force_foreign:
                found.append(f"{item.placement.id} was not made by Clover: --force-foreign removes it")
        return found

    def _broken(self) -> set[Placement]:
        return {item.placement for item in self.destroy}


def compare(gpu: GpuState, group: ConfigGroup) -> Changes:
    """Return what `gpu` needs to be as `group` says.  Raises ConfigError if the instances cannot exist on this GPU."""
    if gpu.lost:
        return Changes(gpu=gpu, group=group, impossible="the GPU is lost; it needs a reset, or a reboot of the box")
    if gpu.error:
        return Changes(gpu=gpu, group=group, impossible=gpu.error)
    if not gpu.supported:
        if not group.mig:
            return Changes(gpu=gpu, group=group)
        return Changes(gpu=gpu, group=group, impossible=f"{gpu.product} has no MIG")
    if not group.mig:
        return Changes(gpu=gpu, group=group, mode=False if gpu.enabled or gpu.pending else None, destroy=gpu.instances)
    if not gpu.enabled:
        return Changes(gpu=gpu, group=group, mode=True, unplaced=counted(map(str, group.asks)) if group.asks else "")
    mode = None if gpu.pending else True
    target = _closest(gpu, group)
    usable = {item.placement for item in gpu.instances if item.whole}
    return Changes(
        gpu=gpu,
        group=group,
        mode=mode,
        destroy=tuple(item for item in gpu.instances if not item.whole or item.placement not in target),
        create=tuple(place for place in target if place not in usable),
        keep=tuple(place for place in target if place in usable),
    )


def _closest(gpu: GpuState, group: ConfigGroup) -> tuple[Placement, ...]:
    def spared(target: Sequence[Placement]) -> tuple[int, int, int]:
        stay = [item for item in gpu.instances if item.whole and item.placement in target]
        return sum(bool(item.pids) for item in stay), sum(not item.ours for item in stay), len(stay)

    found = max(
        choices(group.asks, gpu.profiles, device=gpu.device, compute=gpu.compute_slices), key=spared, default=None
    )
    if found is None:
        where = f"{gpu.device} ({gpu.product})"
        raise unplaceable(group.asks, gpu.profiles, compute=gpu.compute_slices, where=where)
    return found


def _on(mode: bool) -> str:
    return "on" if mode else "off"
