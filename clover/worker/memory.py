"""How much memory a worker's variants hold on its slice, measured as they are loaded and warmed.

**Weights** are counted: the parameters and buffers of a torch module, or the largest file of an artifact.  A model in
plain Python counts as 0.  The **peak** is the most that a variant needed beyond its weights, from before it was loaded
until its largest batch was warmed.  The **context** is what the first variant brought that any other would use too:
libraries that set themselves up in the first batch, CUDA's context.

On CPU cores, and on an emulated slice, which the CPU plays, figures are this process's resident memory as the kernel
counts it; pages that it still shares with the zygote are left out of the context.  On a GPU, figures are the memory in
use on the device.  They include what another process takes meanwhile, and its context cannot be distinguished from
ours.  So only figures from workers that are alone on their slice are kept.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from clover.worker.frames import HeldMemory

CONTEXT_MOST = 1 << 30
"""Bytes that a CUDA context with its libraries takes at most; 0.3 to 0.6 GiB are usual."""

_PROC = Path("/proc/self")


class MemorySource(Protocol):
    """Where bytes are read from."""

    def start(self) -> int:
        """Return the bytes that are this process's own before it loads anything."""

    def held(self) -> int:
        """Return the bytes that are held now."""

    def peak(self) -> int:
        """Return the most bytes that were held since the last `forget`."""

    def forget(self) -> None:
        """Begin a new peak."""

    def split_shared(self, grown: int, weights_bytes: int) -> tuple[int, int]:
        """Return how much of the `grown` bytes that came with the first variant is not that variant's own, and how much
        of this is the context."""


class ResidentPages:
    """The resident memory of this process.  `folder` differs in tests only."""

    def __init__(self, folder: Path = _PROC) -> None:
        self._folder = folder

    def start(self) -> int:
        """Return the pages that this fork has copied or made: at most one at each of its page faults.  (The kernel
        counts them exactly in `smaps_rollup`, which takes milliseconds.)"""
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()

    def held(self) -> int:
        """Return the resident bytes."""
        return _fields(self._folder / "status").get("VmRSS", 0)

    def peak(self) -> int:
        """Return the most resident bytes since `forget`."""
        return _fields(self._folder / "status").get("VmHWM", 0)

    def forget(self) -> None:
        """Have the kernel begin a new peak; a sandbox that forbids it leaves a peak that is too high."""
        with contextlib.suppress(OSError):
            (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def split_shared(self, grown: int, weights_bytes: int) -> tuple[int, int]:
        """Return all but the weights, twice: libraries have set themselves up."""
        found = max(0, grown - weights_bytes)
        return found, found


class DeviceMemory:
    """What is in use on the GPU.  Until the first variant is loaded there is no context, and nothing is held.

    Torch keeps what it took until it is asked to give it back, so what is in use after a batch is its peak."""

    def start(self) -> int:
        """Return 0."""
        return 0

    def held(self) -> int:
        """Return the bytes in use on the device."""
        import torch

        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    def peak(self) -> int:
        """Return the bytes in use on the device."""
        return self.held()

    def forget(self) -> None:
        """Do nothing: nothing is given back."""

    def split_shared(self, grown: int, weights_bytes: int) -> tuple[int, int]:
        """Return what torch has not taken for the variant, and of that what can be a context, but no more: the rest is
        another process's, as during a swap.  Weights that torch has not taken are those of a compiled artifact."""
        import torch

        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return 0, 0
        taken = torch.cuda.memory_reserved()
        found = max(0, grown - (taken if taken >= weights_bytes else taken + weights_bytes))
        return found, min(found, CONTEXT_MOST)


def _fields(path: Path) -> dict[str, int]:
    """Return the lines "name: number kB" of a file of /proc, in bytes; none if it cannot be read."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            parts = rest.split()
            if len(parts) == 2 and parts[1] == "kB":
                sizes[name] = int(parts[0]) << 10
    return sizes


class MemoryMeter:
    """Measures variants one after another: `begin`, load, `settle` once its first row was answered, warm, `end`."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self._own = source.start()
        self._before = 0
        self._beyond = 0
        self._settled = False
        self.context_bytes = 0
        self.held: list[HeldMemory] = []

    @property
    def total_bytes(self) -> int:
        """What the process holds at most: the context and all variants with their peaks."""
        return self.context_bytes + sum(held.weights_bytes + held.peak_bytes for held in self.held)

    def begin(self) -> None:
        """Note what is held before a variant is loaded."""
        self._before = self._source.held()
        self._source.forget()
        self._settled = False

    def settle(self, weights_bytes: int) -> None:
        """Take what is held now, beyond the weights of the variant just loaded, for the context if it is the first
        one, else for its own."""
        if self._settled:
            return
        self._settled = True
        now = self._source.held()
        grown = now - self._before
        if not self.held:
            beside, context = self._source.split_shared(grown, weights_bytes)
            self.context_bytes = self._own + context
            grown -= beside
            self._source.forget()  # what loading took at most was libraries', as far as one can tell
        self._beyond = max(0, grown - weights_bytes) - now

    def end(self, variant: str, weights_bytes: int) -> HeldMemory:
        """Return what the variant holds, now that it is warmed."""
        self.settle(weights_bytes)
        most = max(self._source.peak(), self._source.held())
        held = HeldMemory(variant=variant, weights_bytes=weights_bytes, peak_bytes=max(0, most + self._beyond))
        self.held.append(held)
        return held

    def drop(self) -> None:
        """Forget the variant measured last: it is not kept."""
        self.held.pop()


def meter_of(on_gpu: bool) -> MemoryMeter:
    """Return a meter for a worker on a GPU, or on CPU cores."""
    return MemoryMeter(DeviceMemory() if on_gpu else ResidentPages())


def weights_of(run: Callable[..., object], artifact_dir: str) -> int:
    """Return the bytes of a loaded variant's weights: as its backend counted them, or else the largest file in
    `artifact_dir` ("": there is none)."""
    counted = getattr(run, "weights_bytes", None)
    if counted is not None:
        return int(counted)
    sizes = [path.stat().st_size for path in Path(artifact_dir).iterdir() if path.is_file()] if artifact_dir else []
    return max(sizes, default=0)
