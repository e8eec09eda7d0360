"""`clover mig emulate`: any NVML program on emulated GPUs, or a box of them."""

from __future__ import annotations

from clover.emulation.cli.command import main

__all__ = ["main"]
