"""Energy of a GPU by a model, if it shows neither energy nor power:  watts = idle + (full - idle) x utilisation.

Virtual GPUs, WSL2 and some laptops are like that.  The three inputs:

- `full` is the maximum board power of the product's data sheet (`data/gpu_power.json`), or for a virtual GPU so many
  watts a GiB of the memory that its name says;
- `idle` is what the operator sets, or else a part of `full`;
- `utilisation` is NVML's: the part of the time in which anything ran.  If NVML has none, as with MIG on, it is the part
  in which our workers were busy x the part of the slices that they hold.  So it is, too, if some slices of the GPU are
  not the server's, since NVML's figure is then also that of others.

The model is good for comparing variants on one GPU.  Every figure is labelled "modelled" and may be off by half, and by
more for a virtual GPU.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from clover.energy.foreign_work import OurWork
from clover.energy.gpu_probe import Failure, MeteredGpu, NvmlSession, Probe, Value, counted_others
from clover.errors import DeviceError
from clover.types import EnergySample, Method, Record

_VIRTUAL = re.compile(r"\bGRID\b|-\d+[QCAB]\d?\b")
_VIRTUAL_GIB = re.compile(r"-(\d+)[QCAB]\d?\b")
_DATA = Path(__file__).parent / "data" / "gpu_power.json"


class GpuPower(Record, frozen=True, kw_only=True):
    """Watts of GPUs at full load by a part of the product's name; the rest as the file says."""

    about: tuple[str, ...]
    generic: float
    idle_part: float
    error: float
    virtual_w_per_gib: float
    virtual_error: tuple[float, float]
    watts: dict[str, float]

    def full_w(self, product: str) -> float | None:
        """Return the maximum board power of `product`; None if no row knows it, or if it is a part of a board: a
        virtual GPU ("NVIDIA A40-8Q", "GRID A100-10C")."""
        if _VIRTUAL.search(product):
            return None
        known = [name for name in self.watts if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", product, re.IGNORECASE)]
        return self.watts[max(known, key=len)] if known else None

    def full_load(self, product: str) -> tuple[float, str, tuple[float, float]]:
        """Return the watts of `product` at full load, where they are from, and by how much they may be off."""
        full_w, error = self.full_w(product), (-self.error, self.error)
        if full_w is not None:
            return full_w, f"the data sheet of {product}", error
        if (memory := _VIRTUAL_GIB.search(product)) is not None and int(memory[1]) > 0:
            full_w = self.virtual_w_per_gib * int(memory[1])
            return full_w, f"a virtual GPU of {memory[1]} GiB, {self.virtual_w_per_gib:g} W each", self.virtual_error
        return self.generic, f"no data sheet of {product!r}: any GPU's", error


@cache
def gpu_power() -> GpuPower:
    """Return the table."""
    return msgspec.json.decode(_DATA.read_bytes(), type=GpuPower)


class PowerModel(NamedTuple):
    """Watts of a GPU at rest and at full load, where they are from, and by how much they may be off, as parts."""

    idle_w: float
    full_w: float
    why: str
    error: tuple[float, float]


class ModelledGpuMeter:
    """Joules of one GPU by the model, since the meter was made; `start` makes one.  `by_work`: utilisation is how busy
    our workers were, because NVML has no utilisation, or its figure is also that of others on the GPU.  The work of
    others is then not in the joules.  `busy_w`: what full load draws above idle."""

    def __init__(
        self, nvml: NvmlSession, gpu: MeteredGpu, probe: Probe, model: PowerModel, work: OurWork | None
    ) -> None:
        self.device = gpu.name
        self.source = "utilisation"
        self.method: Method = "emulated" if gpu.emulated else "modelled"
        self.idle_w = model.idle_w
        self.lost = False
        self._why = model.why
        self._nvml = nvml
        self._probe = probe
        self.by_work = counted_others(gpu) > 0
        self.busy_w = model.full_w - model.idle_w
        self._error = model.error
        self._work = work
        self._busy_ns = work.busy_ns() if work is not None else 0
        self._at_ns = 0
        self._total_j = 0.0
        self._trouble = ""

    @classmethod
    async def start(
        cls, nvml: NvmlSession, gpu: MeteredGpu, probe: Probe, *, idle_w: float | None, work: OurWork | None, why: str
    ) -> ModelledGpuMeter:
        """Return a meter of `gpu` that is modelled because of `why`.  Raises DeviceError if NVML does not answer."""
        table = gpu_power()
        product = await nvml.call(probe.product)
        full_w, whose, error = table.full_load(product)
        idle = table.idle_part * full_w if idle_w is None else idle_w
        words = f"{why}; {idle:.3g} W idle to {full_w:g} W busy ({whose}), {error[0]:+.0%} to {error[1]:+.0%}"
        meter = cls(nvml, gpu, probe, PowerModel(idle, full_w, words, error), work)
        answer = await nvml.call(probe.utilisation)
        meter.by_work = meter.by_work or (isinstance(answer, Failure) and answer.kind == "unsupported")
        await meter.refresh()
        return meter

    @property
    def why(self) -> str:
        """Why it is modelled and by what, and what is wrong now."""
        return f"{self._why}; {self._trouble}" if self._trouble else self._why

    async def measure_resident(self) -> None:
        """Do nothing: the model knows one idle power."""

    async def refresh(self) -> None:
        """Ask how busy the GPU is, and add what it drew since the last time."""
        try:
            answer = await self._nvml.call(self._probe.utilisation)
        except DeviceError as error:
            answer = Failure("failed", str(error))
        at_ns = await self._nvml.call(self._probe.now_ns) if isinstance(answer, Failure) else answer.at_ns
        busy_ns = self._work.busy_ns() if self._work is not None else 0
        worked_ns, self._busy_ns = busy_ns - self._busy_ns, busy_ns
        self.lost = isinstance(answer, Failure) and answer.kind == "lost"
        self._trouble = "the GPU is lost" if self.lost else ""
        if self.lost:
            return
        elapsed_ns = max(at_ns - self._at_ns, 0) if self._at_ns else 0
        if isinstance(answer, Value) and not self.by_work:
            part = answer.number / 100.0
        elif self._work is not None and elapsed_ns:
            part = worked_ns / elapsed_ns / max(len(self._work.workers()), 1) * self._work.held_part()
        else:
            part = 0.0
        watts = self.idle_w + self.busy_w * min(max(part, 0.0), 1.0)
        self._total_j += watts * elapsed_ns / 1e9
        self._at_ns = at_ns

    def sample(self, now_ns: int) -> EnergySample:
        """Return the joules as of the last refresh."""
        return EnergySample(
            device=self.device,
            at_ns=self._at_ns,
            total_j=self._total_j,
            idle_w=self.idle_w,
            method=self.method,
            uncertainty=self._error,
            active_uncertainty=self._error,
        )
