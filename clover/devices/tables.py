"""GPUs as data, for the emulated NVML and for planning where no GPU is at hand.

`data/mig_profiles.json` holds twelve boards with every MIG profile, `data/plain_gpus.json` boards without MIG, which
are used whole.  Both say field by field where their numbers come from.  What was not published is filled in by a stated
rule and named in the row's `analytical`.  On a real GPU the driver is asked for all of this instead: names, memory and
even placements differ by driver and by die.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from clover.errors import DeviceError
from clover.planning.packing.geometry import SliceProfile
from clover.types import Record

_HBM = ("a100", "a30", "b200", "gb200", "gh200", "h100", "h20", "h200", "v100")
"""Boards, by the first part of their names, whose memory is HBM."""
CONTEXT_HBM_W, CONTEXT_GDDR_W = 35.0, 60.0
"""Watts that a CUDA context adds to an idle board, within what was measured: 26 to 50 W with HBM (H100, A100), 66 W
with GDDR (L40S); arXiv:2605.23918."""
_CONTEXT_MOST = 0.2
"""The most of a board's power that a context is taken to add: nobody published it of boards of 70 W (T4, L4)."""

_DATA = Path(__file__).parent / "data"

Kind = Literal["base", "double-memory", "media", "graphics", "all-media", "no-media"]


class ProfileRow(Record, frozen=True, kw_only=True):
    """One MIG profile of a board.

    `enum` is NVML's constant (0..0x11), `profile_id` the id that instances are created by; `size` and `starts` count
    memory slices, `slices` compute slices; `most` is the cap; `engines` are copy, decode, encode, JPEG and optical
    flow units.  `analytical` names the fields that were not published.
    """

    name: str
    enum: int
    profile_id: int
    slices: int
    size: int
    starts: tuple[int, ...]
    most: int
    memory_mib: int
    sm: int
    engines: tuple[int, int, int, int, int]
    kind: Kind
    analytical: tuple[str, ...] = ()

    @property
    def base(self) -> bool:
        """Whether it is one of the plain shapes (1g, 2g, 3g, 4g, 7g) that Clover plans with."""
        return self.kind == "base"

    @property
    def media(self) -> bool:
        """Whether it takes the media extension, of which a GPU has one."""
        return self.kind in ("media", "all-media")


class BoardSleep(Record, frozen=True, kw_only=True):
    """A board that is switched off while nothing uses it, as in hybrid laptops (D3cold): `after_s` seconds without a
    process and without a call of the driver, to draw `watts`; the next use waits `wake_s`."""

    after_s: float
    wake_s: float
    watts: float


class GpuTable(Record, frozen=True, kw_only=True):
    """One board: its axes, its power and its profiles.

    `compute_slices` and `memory_slices` are the lengths of the two axes; `toggle_needs_reset` says that MIG mode is
    changed only by a reset; `idle_w` and `max_w` are watts of the whole board.  A board without MIG has no profiles.
    `lacks` names what its driver does not show; `sleeps` is None of a board that is never switched off.
    `sources` maps fields to keys of `sources()`.
    """

    name: str
    product: str
    architecture: Literal["turing", "ampere", "ada", "hopper", "blackwell"]
    compute_capability: str
    pci_device: str
    compute_slices: int
    memory_slices: int
    memory_mib: int
    sm: int
    toggle_needs_reset: bool
    idle_w: float
    max_w: float
    sources: dict[str, str]
    notes: tuple[str, ...]
    profiles: tuple[ProfileRow, ...]
    lacks: tuple[Literal["energy", "power", "limit"], ...] = ()
    sleeps: BoardSleep | None = None

    @property
    def context_w(self) -> float:
        """Watts that the board draws more as soon as a process holds it, whatever that does: an estimate, by memory."""
        watts = CONTEXT_HBM_W if self.name.split("-")[0] in _HBM else CONTEXT_GDDR_W
        return min(watts, _CONTEXT_MOST * self.max_w)

    def profile(self, name: str) -> ProfileRow:
        """Return the profile of that name; DeviceError names the existing ones."""
        for row in self.profiles:
            if row.name == name:
                return row
        raise DeviceError(f"{self.name} has no profile {name}; it has {', '.join(row.name for row in self.profiles)}")


class _File(Record, frozen=True, kw_only=True):
    about: tuple[str, ...]
    sources: dict[str, str]
    gpus: tuple[GpuTable, ...]


@cache
def _file(name: str = "mig_profiles.json") -> _File:
    return msgspec.json.decode((_DATA / name).read_bytes(), type=_File)


def _plain() -> _File:
    return _file("plain_gpus.json")


def sources() -> dict[str, str]:
    """Return what the keys in `GpuTable.sources` stand for; "size", "media" and "cores" are the rules that gave
    analytical memory, engines and SMs."""
    return {**_plain().sources, **_file().sources}


def names() -> tuple[str, ...]:
    """Return the names of the boards with MIG: "a100-40gb" and so on."""
    return tuple(gpu.name for gpu in _file().gpus)


def plain_names() -> tuple[str, ...]:
    """Return the names of the boards without MIG: "rtx-4090" and so on."""
    return tuple(gpu.name for gpu in _plain().gpus)


def board(name: str) -> GpuTable:
    """Return the table of a board, with MIG or without; DeviceError names the existing ones."""
    for gpu in (*_file().gpus, *_plain().gpus):
        if gpu.name == name:
            return gpu
    raise DeviceError(f"there is no table of a GPU {name!r}; known: {', '.join((*names(), *plain_names()))}")


def table(name: str) -> GpuTable:
    """Return the table of a board with MIG; DeviceError names the existing ones."""
    for gpu in _file().gpus:
        if gpu.name == name:
            return gpu
    raise DeviceError(f"there is no table of a GPU {name!r}; known: {', '.join(names())}")


def slice_profiles(table: GpuTable, *, base_only: bool = True) -> tuple[SliceProfile, ...]:
    """Return the board's profiles as the planner's geometry wants them.

    Without `base_only` every profile is there.  One rule of the RTX PRO 6000 has no place in that geometry: `+me.all`
    stands only beside `-me` profiles.
    """
    return tuple(
        SliceProfile(name=row.name, slices=row.slices, size=row.size, starts=row.starts, most=row.most, media=row.media)
        for row in table.profiles
        if row.base or not base_only
    )
