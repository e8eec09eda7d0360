"""What making hardware emitted, where somebody published it: the defaults of `[embodied]`.

`data/embodied.json` has a figure for each CPU (hardware thread) of a server, and for GPUs by product, each with its
sources and with the least and the most that these would give.  Sources differ several times over, so a figure is never
shown without its range.  If nothing was published of a GPU, it has no figure.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from clover.types import Record

_DATA = Path(__file__).parent / "data" / "embodied.json"


class EmbodiedFigure(Record, frozen=True, kw_only=True):
    """Embodied carbon in kgCO2e: of one GPU, or of a server for each of its CPUs; `low` and `high` bound it."""

    kg: float
    low: float | None
    high: float | None
    sources: tuple[str, ...]
    products: tuple[str, ...] = ()

    def cited(self) -> str:
        """Return what the sources are, in words."""
        known = _file().sources
        return "; ".join(known[key] for key in self.sources)


class _File(Record, frozen=True, kw_only=True):
    about: tuple[str, ...]
    sources: dict[str, str]
    cpu: EmbodiedFigure
    gpus: tuple[EmbodiedFigure, ...]


@cache
def _file() -> _File:
    return msgspec.json.decode(_DATA.read_bytes(), type=_File)


def per_cpu() -> EmbodiedFigure:
    """Return the embodied carbon of a server without GPUs, for each of its CPUs (hardware threads)."""
    return _file().cpu


def of_gpu(product: str) -> EmbodiedFigure | None:
    """Return the embodied carbon of one GPU of that product (as NVML names it); None if nothing was published."""
    return next((figure for figure in _file().gpus if product in figure.products), None)
