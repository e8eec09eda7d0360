"""What a context costs on each GPU of this machine, kept from one start to the next.

A server that is never at rest could not measure it.  The cache folder has one small JSON file a GPU,
`energy/GPU-....json`, with the watts measured with a context at rest.  A file that cannot be read or written is left
out, with a line in the log.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from clover.energy.nvml import NvmlMeter
from clover.malformed import MALFORMED
from clover.types import Record

log = logging.getLogger("clover.energy")


class KeptIdle(Record, frozen=True, kw_only=True):
    """Watts of a GPU at rest, with a context and without."""

    bare_w: float
    resident_w: float


class KeptIdles:
    """The files in `cache`."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "energy"

    def restore(self, uuid: str, meter: object) -> None:
        """Give `meter` what an earlier run measured on the GPU `uuid`, to use until it has measured that itself."""
        if not isinstance(meter, NvmlMeter) or meter.idle.resident_by != "unknown":
            return
        try:
            kept = msgspec.json.decode((self._folder / f"{uuid}.json").read_bytes(), type=KeptIdle)
        except FileNotFoundError:
            return
        except (OSError, *MALFORMED) as error:
            log.warning("what a context costs on %s is measured anew: %s", meter.device, error)
            return
        meter.idle.restore(meter.idle_w + max(kept.resident_w - kept.bare_w, 0.0))

    def save(self, uuid: str, meter: object) -> None:
        """Keep what `meter` measured on the GPU `uuid`, if it has."""
        if not isinstance(meter, NvmlMeter) or meter.idle.resident_by != "rest":
            return
        idle = meter.idle
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = msgspec.json.encode(KeptIdle(bare_w=idle.bare_w, resident_w=idle.resident_w))
            (self._folder / f"{uuid}.json").write_bytes(kept)
        except OSError as error:
            log.warning("what a context costs on %s is not kept for the next start: %s", meter.device, error)
