"""Emulated GPUs: a state file that the emulated NVML serves; made and used from Python.

`csrc/nvml_emulator` is a C library with the soname `libnvidia-ml.so.1`.  The official bindings load exactly that name,
and the dynamic loader answers with a library of that soname which the process already has; so loading ours first, by
its path, puts it under the unmodified bindings (`use_box`).  Everything else - which GPUs, what exists on them, who
uses it - lies in one state file, which all processes of the machine may share.

This module writes the first, constant part of that file (`create_box`); the library keeps the rest.  Functions that
take a `path` act on those GPUs whether or not this process uses them, and leave no library loaded behind.

What survives what: instances outlive servers; a reboot of this machine clears instances and keeps MIG modes; a GPU that
is lost and restored comes back as after a reset, without instances.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clover.cache import make_private
from clover.devices import EMULATED_STATE
from clover.devices.tables import GpuTable, board
from clover.errors import DeviceError
from clover.types import Record

STATE = EMULATED_STATE
"""The environment variable that names the state file to the library."""

LATENCY = "CLOVER_NVML_LATENCY"
"""The environment variable that multiplies how long making (15 to 25 ms) and removing (23 ms) an instance take; "0" for
tests that do not wait."""

SONAME = "libnvidia-ml.so.1"
GPUS_MAX = 32
_MAGIC = b"CLVRNVML"
_VERSION = 3
_HEAD = struct.Struct("@8sI")
_CONFIG_BYTES = 8192
_PRIVILEGED, _MIG, _LACKS = 1, 2, {"energy": 4, "power": 8, "limit": 16}
_ARCHITECTURES = {"turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}
_MOMENTARY = ("turing", "ampere")
"""Architectures whose power reading is that of the moment, and not the average of a second."""
_KINDS = {"media": 1, "all-media": 2, "no-media": 4, "graphics": 8}
_STUCK = 1000
_TURNS = 1 << 40  # beyond every byte that the library locks
_OFD_SETLKW = 38  # of an open file description; the same on all architectures, and no name in `fcntl`
_FLOCK = struct.Struct("hhqqi4x")

ERRORS = {
    "": 0,
    "UNINITIALIZED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "NOT_FOUND": 6,
    "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "OPERATING_SYSTEM": 17,
    "LIB_RM_VERSION_MISMATCH": 18,
    "IN_USE": 19,
    "MEMORY": 20,
    "INSUFFICIENT_RESOURCES": 23,
    "GPU_NOT_FOUND": 28,
    "UNKNOWN": 999,
    "STUCK": _STUCK,
}
"""What a fault may answer, by NVML's names.  "" only delays; "STUCK" freezes a power or energy reading."""

_NAMES = {code: name for name, code in ERRORS.items() if name} | {
    7: "INSUFFICIENT_SIZE",
    25: "VERSION_MISMATCH",
    2046: "CUDA error 46, all CUDA-capable devices are busy or unavailable",
}

# --- the library ------------------------------------------------------------------------------------------------------


def library() -> Path:
    """Return the built library, in the folder CLOVER_NATIVE if that names one; DeviceError says how to build it."""
    folder = Path(os.environ.get("CLOVER_NATIVE") or Path(__file__).parents[1] / "_native").resolve()
    path = folder / f"nvml_emulator{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.is_file():
        raise DeviceError(
            f"the emulated NVML is not built here ({path.name} is missing). "
            "Build it with: python setup.py build_ext --inplace"
        )
    return path


def _functions(path: str) -> ctypes.CDLL:
    """Return the library with the types of its own functions declared."""
    handle = ctypes.CDLL(path)
    text, integer, unsigned, large = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_ulonglong
    for name, arguments in {
        "layout": [ctypes.POINTER(unsigned)],
        "inject": [text, text, integer, unsigned, unsigned, unsigned, ctypes.c_double, large, large],
        "clear_faults": [text],
        "faults_fired": [text, ctypes.POINTER(unsigned)],
        "set_lost": [text, integer, unsigned],
        "set_compute_mode": [text, integer, unsigned],
        "set_driver": [text, text, integer],
        "xid": [text, integer, unsigned, unsigned, unsigned],
        "reset": [text, integer],
        "reboot": [text],
        "set_privileged": [text, integer],
        "advance": [text, large],
        "attach": [text],
        "detach": [integer],
        "draw": [integer, unsigned],
        "use_memory": [integer, large],
        "slice_energy": [text, ctypes.POINTER(large)],
    }.items():
        getattr(handle, f"clover_nvml_{name}").argtypes = arguments
    return handle


@contextlib.contextmanager
def _borrow_library() -> Iterator[ctypes.CDLL]:
    """Load the library for one call, so that a process that only acts on a box does not keep an emulated NVML."""
    handle = _functions(str(library()))
    try:
        yield handle
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(handle._handle))


def _check(result: int, what: str) -> None:
    if result != 0:
        raise DeviceError(f"{what}: {_NAMES.get(result, f'NVML error {result}')}")


def _in_use() -> str:
    """Return the path of the NVML that this process has loaded, real or ours; empty if none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line.partition("/")[2]
        if "libnvidia-ml.so" in name or "nvml_emulator" in name:
            return f"/{name}"
    return ""


# --- boxes ------------------------------------------------------------------------------------------------------------


class _Profile(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 32),
        ("index", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("slices", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("most", ctypes.c_uint32),
        ("memory_mib", ctypes.c_uint32),
        ("sm", ctypes.c_uint32),
        ("engines", ctypes.c_uint32 * 5),
        ("kind", ctypes.c_uint32),
        ("start_count", ctypes.c_uint32),
        ("starts", ctypes.c_uint32 * 16),
    ]


class _Config(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("version", ctypes.c_uint32),
        ("gpu_count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("profile_count", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("product", ctypes.c_char * 96),
        ("architecture", ctypes.c_uint32),
        ("compute_major", ctypes.c_uint32),
        ("compute_minor", ctypes.c_uint32),
        ("pci_device", ctypes.c_uint32),
        ("compute_slices", ctypes.c_uint32),
        ("memory_slices", ctypes.c_uint32),
        ("memory_mib", ctypes.c_uint32),
        ("sm", ctypes.c_uint32),
        ("toggle_needs_reset", ctypes.c_uint32),
        ("average_power", ctypes.c_uint32),
        ("idle_mw", ctypes.c_uint32),
        ("max_mw", ctypes.c_uint32),
        ("context_mw", ctypes.c_uint32),
        ("grain_ms", ctypes.c_uint32),
        ("sleep_after_ms", ctypes.c_uint32),
        ("wake_ms", ctypes.c_uint32),
        ("asleep_mw", ctypes.c_uint32),
        ("profiles", _Profile * 24),
    ]


class BoardPower(Record, frozen=True, kw_only=True):
    """How emulated boards draw and count: `context_w` more watts while any process is attached (None: as such boards
    do), and an energy counter that moves every `grain_s` seconds (0: all the time)."""

    context_w: float | None = None
    grain_s: float = 0.1


LIFELIKE = BoardPower()
EXACT = BoardPower(context_w=0.0, grain_s=0.0)
"""Boards that draw nothing for being held and whose counter is exact at any instant: as no real one is."""


def _config(gpu: GpuTable, count: int, flags: int, seed: int, power: BoardPower) -> bytes:
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    config = _Config(
        magic=_MAGIC,
        version=_VERSION,
        gpu_count=count,
        flags=flags,
        profile_count=len(gpu.profiles),
        seed=seed,
        product=gpu.product.encode(),
        architecture=_ARCHITECTURES[gpu.architecture],
        compute_major=major,
        compute_minor=minor,
        pci_device=int(gpu.pci_device, 16),
        compute_slices=gpu.compute_slices,
        memory_slices=gpu.memory_slices,
        memory_mib=gpu.memory_mib,
        sm=gpu.sm,
        toggle_needs_reset=gpu.toggle_needs_reset,
        average_power=gpu.architecture not in _MOMENTARY,
        idle_mw=round(gpu.idle_w * 1000),
        max_mw=round(gpu.max_w * 1000),
        context_mw=round((gpu.context_w if power.context_w is None else power.context_w) * 1000),
        grain_ms=round(power.grain_s * 1000),
    )
    if (sleeps := gpu.sleeps) is not None:
        times = (sleeps.after_s, sleeps.wake_s, sleeps.watts)
        config.sleep_after_ms, config.wake_ms, config.asleep_mw = (round(value * 1000) for value in times)
    for place, row in zip(config.profiles, gpu.profiles, strict=False):
        place.name = row.name.encode()
        place.index, place.id, place.slices, place.size = row.enum, row.profile_id, row.slices, row.size
        place.most, place.memory_mib, place.sm = row.most, row.memory_mib, row.sm
        place.engines[:] = row.engines
        place.kind = _KINDS.get(row.kind, 0)
        place.start_count = len(row.starts)
        place.starts[: len(row.starts)] = row.starts
    return bytes(config).ljust(_CONFIG_BYTES, b"\0")


def create_box(
    path: Path,
    table: GpuTable | str,
    count: int,
    *,
    privileged: bool = True,
    mig_enabled: bool = True,
    seed: int = 0,
    power: BoardPower = LIFELIKE,
) -> None:
    """Make the state file of a machine with `count` boards, or keep the one that is there if it is the same machine.

    `privileged`: whether callers may change instances; `mig_enabled`: the boards' MIG mode at first, if they have any;
    `seed`: makes other UUIDs and other luck; `power`: what its boards draw beside work.  DeviceError if `path` holds
    another machine or cannot be written.
    """
    gpu = board(table) if isinstance(table, str) else table
    if not 1 <= count <= GPUS_MAX:
        raise DeviceError(f"an emulated machine has 1 to {GPUS_MAX} GPUs, not {count}")
    flags = (_PRIVILEGED if privileged else 0) | (_MIG if mig_enabled and gpu.profiles else 0)
    flags |= sum(_LACKS[sensor] for sensor in gpu.lacks)
    content = _config(gpu, count, flags, seed, power)
    _check_layout()
    try:
        make_private(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)  # whole or not at all, and never over another
        with path.open("rb") as existing:
            header = existing.read(_CONFIG_BYTES)
    except OSError as error:
        raise DeviceError(f"the emulated machine cannot be kept at {path}: {error.strerror}") from error
    check_box(path)
    if header != content:
        raise DeviceError(
            f"{path} holds another emulated machine than the {count} x {gpu.name} asked for; remove it or name another"
        )


def _check_layout() -> None:
    profile = ctypes.c_uint()
    with _borrow_library() as handle:
        config = handle.clover_nvml_layout(ctypes.byref(profile))
    if (config, profile.value) != (ctypes.sizeof(_Config), ctypes.sizeof(_Profile)):
        raise DeviceError(
            "the emulated NVML was built from other sources than these. "
            "Build it with: python setup.py build_ext --inplace"
        )


_used: list[Any] = []  # the library that use_box loaded, kept so that it stays


def use_box(path: Path) -> None:
    """Let the NVML bindings of this process see the box at `path`, now and when they are first imported.

    Sets CLOVER_NVML_STATE, which child processes inherit.  Calling it again with the same box does nothing; DeviceError
    where the process uses another box, or has loaded another NVML already.
    """
    name = os.path.realpath(path)
    if _used:
        _choose(name)
        return
    check_box(path)
    ours, loaded = str(library()), _in_use()
    if loaded not in ("", ours):
        raise DeviceError(f"this process has loaded another NVML ({loaded}); use the emulated one in another process")
    if loaded:
        _choose(name)
    os.environ[STATE] = name
    _used.append(_functions(ours))


def check_box(path: Path) -> None:
    """Raise DeviceError if `path` is no state file that this version of Clover can use."""
    if not path.is_file():
        raise DeviceError(f"there is no emulated machine at {path}")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror}") from error
    magic, version = _HEAD.unpack(head.ljust(_HEAD.size, b"\0"))
    if magic != _MAGIC:
        raise DeviceError(f"{path} is no emulated machine: give another file, or remove it")
    if version != _VERSION:
        raise DeviceError(
            f"{path} holds an emulated machine of another version of Clover: end what uses it, and remove the file"
        )


def _choose(name: str) -> None:
    """Name the box at `name` to the library, which keeps the first one that it is given; DeviceError for another."""
    if os.path.realpath(os.environ.setdefault(STATE, name)) != name:
        raise DeviceError(f"this process uses the emulated machine {os.environ[STATE]} already")


def _act(path: Path, what: str, function: str, *arguments: object) -> None:
    with _borrow_library() as handle:
        _check(getattr(handle, f"clover_nvml_{function}")(os.fsencode(path), *arguments), f"{path}: {what}")


def set_privileged(path: Path, privileged: bool) -> None:
    """Set whether callers may change instances and modes; otherwise they get NO_PERMISSION."""
    _act(path, "set privilege", "set_privileged", int(privileged))


def nodes_of(state: Path) -> str:
    """Return the folder that stands for /dev/nvidia-caps of an emulated box."""
    return f"{os.path.realpath(state)}.caps/"


# --- processes on slices ----------------------------------------------------------------------------------------------


class Attachment:
    """This process on a slice, as a CUDA context is: it holds the slice until `close` or its death, and draws power.

    `library` and `state` are the paths of the emulator and of the box, `uuid` the slice ("MIG-...") or, with MIG off,
    the board ("GPU-...").  DeviceError if there is none such, or the board is lost.
    """

    def __init__(self, library: str, state: str, uuid: str) -> None:
        _choose(os.path.realpath(state))
        try:
            self._library = _functions(library)
        except OSError as error:
            raise DeviceError(f"the emulated NVML cannot be loaded: {error}") from error
        self._handle = self._library.clover_nvml_attach(uuid.encode())
        if self._handle < 0:
            _check(-self._handle, f"attach to {uuid}")
        self._turns = os.open(state, os.O_RDWR | os.O_CLOEXEC)
        self._turn = _TURNS + zlib.crc32(uuid.encode())

    def enter(self) -> None:
        """Wait until the slice is free and take it: two processes on a slice take turns, as on a GPU, and each takes
        longer for it.  The lock is one on a byte of the state file, which the death of its holder frees."""
        fcntl.fcntl(self._turns, _OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._turn, 1, 0))

    def leave(self) -> None:
        """Give the slice back for others."""
        fcntl.fcntl(self._turns, _OFD_SETLKW, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, self._turn, 1, 0))

    def draw(self, watts: float) -> None:
        """Draw `watts` above idle from now on; DeviceError once the GPU is lost or the slice gone."""
        _check(self._library.clover_nvml_draw(self._handle, round(watts * 1000)), "draw power")

    def use_memory(self, size: int) -> None:
        """Hold `size` bytes of the slice's memory from now on; DeviceError (MEMORY) if that is more than is free."""
        _check(self._library.clover_nvml_use_memory(self._handle, size), "use memory")

    def close(self) -> None:
        """Leave the slice."""
        if self._handle >= 0:
            self._library.clover_nvml_detach(self._handle)
            self._handle = -1
            os.close(self._turns)
