"""`python -m clover doctor`: what of this machine works for Clover, what would, and the command that mends it.

findings.py      a finding: what it is about, how it stands, what to do
machine.py       kernel, cores, memory, descriptors, clock, energy, embodied carbon
gpu.py           NVIDIA driver, its match with torch, MIG, rights
software.py      Python, torch, extras
service.py       settings, families, folders, carbon source, collector, port
grams.py         where this machine's grams go, and what would save most
"""

from clover.cli.doctor.command import main

__all__ = ["main"]
