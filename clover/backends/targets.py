"""What an artifact is compiled for: this machine's CPU cores, or one shape of slice of one kind of GPU.

A kernel that was chosen and timed on seven compute slices also runs on one slice, only slowly, and nothing reports it.
So what is compiled for a GPU belongs to (GPU, profile, driver), lies in a folder of its own for each GPU and profile,
and is built inside the slice that it is for: the compiling process sees that slice and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

from clover.types import Record

_SLUG = re.compile(r"[^a-z0-9.+]+")
_VERSION = re.compile(r"\d+(\.\d+)+")


class Target(Record, frozen=True, kw_only=True):
    """Where an artifact is built and runs; without a GPU, on the CPU.

    `gpu` is the product's name, `profile` the slice's shape ("2g.10gb", or "gpu" for a whole one), `driver` its
    version: these three shape the artifact.  `uuid` is the whole GPU's, on which one build runs at a time; `visible` is
    the slice as CUDA_VISIBLE_DEVICES names it, needed to build but not to find what was built.
    """

    gpu: str = ""
    profile: str = ""
    driver: str = ""
    uuid: str = ""
    visible: str = ""

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return bool(self.gpu)

    @property
    def folder(self) -> Path:
        """The folder, below a backend's own, of what is built for this GPU and profile; "." for the CPU."""
        return Path(_slug(self.gpu)) / _slug(self.profile) if self.cuda else Path()


CPU = Target()
"""This machine's CPU cores."""


def target_of(device: object, profile: str, visible: str = "") -> Target:
    """Return the target of placements of `profile` on `device`: the CPU for core-sets, and for emulated GPUs, whose
    workers compute on cores."""
    gpu, emulated = getattr(device, "product", ""), getattr(device, "emulated", False)
    if not gpu or emulated:
        return CPU
    driver = getattr(device, "driver", "") or driver_version()
    return Target(gpu=gpu, profile=profile, driver=driver, uuid=getattr(device, "uuid", ""), visible=visible)


def driver_version(root: Path = Path("/")) -> str:
    """Return the version of the NVIDIA driver that is loaded; "" if none is.  WSL and some sandboxes show no files of
    the driver: it is asked for its version there."""
    for place in ("sys/module/nvidia/version", "proc/driver/nvidia/version"):
        try:
            text = (root / place).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if found := _VERSION.search(text.partition("\n")[0]):
            return found[0]
    return _asked_version() if any((root / node).exists() for node in ("dev/nvidiactl", "dev/dxg")) else ""


def _asked_version() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""


def _slug(name: str) -> str:
    return _SLUG.sub("-", name.lower()).strip("-.") or "unnamed"
