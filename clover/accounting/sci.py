"""The Software Carbon Intensity of a server, by ISO/IEC 21031: SCI = (E x I + M) / R.

E x I are the grams of operation, PUE included; M is the embodied carbon (`clover.accounting.embodied`); R is the number
of rows answered.  A score holds within one boundary (`clover.accounting.boundaries`).  M is that of what workers hold
(`workers`), of all that the server reserves (`server`), or of the whole machine if a counter covers it (`machine`).
The server's score is given first.  If a part of a score is unknown, the score is unknown.

A model's own score has the boundary `model`: its variants, the idle cores and slices that its workers hold, their M,
and its part of front end and control.  What no worker holds belongs to no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clover.accounting.boundaries import BOUNDARIES, WITHIN, Boundary, metered_boundaries
from clover.accounting.embodied import EmbodiedGrams, EmbodiedLedger, Hardware
from clover.accounting.labels import DeviceLines, grams_method, join_labels
from clover.quantities import grams
from clover.types import Record

ModelBoundary = Literal["workers", "model"]


class SciMethods(Record, frozen=True, kw_only=True):
    """How the terms of a score are known, and the grams of operation that are energy x intensity; more than one way is
    joined by " + "."""

    energy: str
    intensity: str
    grams: str
    embodied: str


@dataclass(frozen=True)
class SciScore:
    """SCI of one boundary: grams of operation and embodied (None: unknown) over the rows answered."""

    rows: int
    operational_g: float | None
    embodied: EmbodiedGrams | None

    @property
    def per_row_g(self) -> float | None:
        """Grams a row; None if a term is unknown or nothing was answered yet."""
        if self.operational_g is None or self.embodied is None or not self.rows:
            return None
        return (self.operational_g + self.embodied.grams) / self.rows

    def as_json(self) -> dict[str, Any]:
        """Return the score for the state."""
        embodied, per_row_g = self.embodied, self.per_row_g
        return {
            "operational_g": self.operational_g,
            "embodied_g": None if embodied is None else embodied.grams,
            "embodied_low_g": None if embodied is None else embodied.low_g,
            "embodied_high_g": None if embodied is None else embodied.high_g,
            "rows": self.rows,
            "g_per_row": per_row_g,
            "g_per_1000_rows": None if per_row_g is None else per_row_g * 1e3,
        }


@dataclass(frozen=True)
class SciReport:
    """The scores of all boundaries and of each model; `boundary` is the one given first."""

    boundary: Boundary
    boundaries: dict[Boundary, SciScore]
    model_boundary: ModelBoundary
    models: dict[str, SciScore]
    methods: SciMethods
    hardware: tuple[Hardware, ...]
    embodied: Mapping[str, EmbodiedGrams]
    """By device; those of unknown hardware are not there."""
    embodied_parts: Mapping[tuple[str, str], float]
    """The grams of `embodied` by (device, model), under the empty name what no worker held."""
    pue: float
    energy_range: tuple[float, float] | None = None
    """By which parts the energy of the boundary given first may be off, by the range of modelled watts."""

    def as_json(self) -> dict[str, Any]:
        """Return the report for the state."""
        return {
            "unit": "gCO2e per row answered",
            "boundary": self.boundary,
            **self.boundaries[self.boundary].as_json(),
            "words": self.words(),
            "methods": {
                "energy": self.methods.energy,
                "intensity": self.methods.intensity,
                "grams": self.methods.grams,
                "embodied": self.methods.embodied,
            },
            "energy_uncertainty_low": None if self.energy_range is None else self.energy_range[0],
            "energy_uncertainty_high": None if self.energy_range is None else self.energy_range[1],
            "pue": self.pue,
            "boundaries": {name: score.as_json() for name, score in self.boundaries.items()},
            "hardware": [
                {
                    "device": item.device,
                    "product": item.product,
                    "kg": item.kg,
                    "low_kg": item.low_kg,
                    "high_kg": item.high_kg,
                    "reserved": item.reserved,
                    "of": item.total,
                    "grams": self.embodied[item.device].grams if item.device in self.embodied else None,
                    "known": item.known,
                    "source": item.source,
                }
                for item in self.hardware
            ],
        }

    def model_json(self, model: str) -> dict[str, Any] | None:
        """Return the score of one model for the state; None if it has none."""
        score = self.models.get(model)
        return None if score is None else {"boundary": self.model_boundary, **score.as_json()}

    def words(self) -> str:
        """Return the score of the boundary given first in words, with how its terms are known."""
        score = self.boundaries[self.boundary]
        unknown = [item for item in self.hardware if item.kg is None]
        if unknown:
            names = ", ".join(f"{item.device} ({item.product})" for item in unknown)
            return f"unknown: no embodied carbon is published of {names}; set embodied.gpu_kg"
        if score.operational_g is None or score.embodied is None:
            return f"unknown: the grams of the boundary {self.boundary} are not counted"
        if score.per_row_g is None:
            return "nothing was answered yet"
        per_row_g, embodied, energy = score.per_row_g, score.embodied, self.methods.energy
        if self.energy_range is not None:
            low, high = self.energy_range
            energy += f" {100.0 * high:+.0f} %/{100.0 * low:+.0f} %"
        terms = (
            f"{grams(per_row_g * 1e3)}CO2e per 1,000 rows of the {self.boundary}: "
            f"operation {grams(score.operational_g / score.rows * 1e3)} "
            f"(energy {energy}, intensity {self.methods.intensity}, PUE {self.pue:g}) and "
            f"embodied {grams(embodied.grams / score.rows * 1e3)} ({self.methods.embodied}"
        )
        if embodied.low_g < embodied.high_g:
            terms += f", {grams(embodied.low_g / score.rows * 1e3)} to {grams(embodied.high_g / score.rows * 1e3)}"
        terms += ")"
        if "emulated" in f"{self.methods.energy} {self.methods.embodied}":
            terms += "; emulated GPUs stand for no hardware, so quote no score of theirs"
        return terms


def sci(
    devices: Mapping[str, DeviceLines],
    models: Mapping[str, tuple[int, Mapping[str, float]]],
    ledger: EmbodiedLedger,
    *,
    intensities: Iterable[str],
    pue: float,
) -> SciReport:
    """Return the report of a server.  `devices`: the account's lines by device; `models`: rows answered and the
    account's totals by model, which have no part in the front end if they do not say so; `intensities`: how the
    intensities are known at which grams were priced."""
    rows = sum(count for count, _ in models.values())
    whole = EmbodiedGrams()
    machine = EmbodiedGrams()
    for item in ledger.hardware:
        charged = ledger.devices.get(item.device, EmbodiedGrams())
        whole.add(charged)
        # A counter covers all cores of the machine, whatever uses them; a model covers what the server reserves.
        covers_all = devices.get(item.device, {}).get("method") == "measured"
        machine.add(charged, item.total / item.reserved if covers_all else 1.0)
    known = not ledger.unknown()
    held = [ledger.models.get(model, EmbodiedGrams()) for model in models]
    of_workers = EmbodiedGrams()
    for part in held:
        of_workers.add(part or EmbodiedGrams())
    embodied: dict[Boundary, EmbodiedGrams | None] = {
        "workers": of_workers if None not in held else None,
        "server": whole if known else None,
        "machine": machine if known else None,
    }
    operational: dict[Boundary, float | None] = {
        name: _sum(lines, list(devices.values())) if name in metered_boundaries(devices) else None
        for name, lines in WITHIN.items()
    }
    if operational["workers"] is None:
        operational["workers"] = sum(float(totals["carbon_g"]) for _, totals in models.values())
    boundaries = {name: SciScore(rows, operational[name], embodied[name]) for name in BOUNDARIES}
    with_front_end = all("front_end_j" in totals for _, totals in models.values())
    boundary: Boundary = "server" if operational["server"] is not None else "workers"
    energy, known_intensities = {str(line["method"]) for line in devices.values()}, set(intensities)
    return SciReport(
        boundary=boundary,
        boundaries=boundaries,
        model_boundary="model" if with_front_end else "workers",
        models={
            model: SciScore(count, float(totals["carbon_g"]), ledger.models.get(model, EmbodiedGrams()))
            for model, (count, totals) in models.items()
        },
        methods=SciMethods(
            energy=join_labels(energy) or "unknown",
            intensity=join_labels(known_intensities) or "unknown",
            grams=join_labels(grams_method(method, known) for method in energy for known in known_intensities)
            or "unknown",
            embodied=join_labels(item.known for item in ledger.hardware) or "unknown",
        ),
        hardware=tuple(ledger.hardware),
        embodied=ledger.devices,
        embodied_parts=ledger.parts,
        pue=pue,
        energy_range=_energy_range(WITHIN[boundary], list(devices.values())),
    )


def _sum(lines: tuple[str, ...], accounts: list[DeviceLines]) -> float | None:
    """Return the grams of `lines` over all `accounts`; None if a line is in none of them, and so is not counted."""
    if not all(any(f"{line}_g" in account for account in accounts) for line in lines):
        return None
    return sum(_grams(lines, account) for account in accounts)


def _grams(lines: tuple[str, ...], account: DeviceLines) -> float:
    return sum(float(account.get(f"{line}_g", 0.0)) for line in lines)


def _energy_range(lines: tuple[str, ...], accounts: list[DeviceLines]) -> tuple[float, float] | None:
    """Return by which parts the energy of `lines` may be off, low and high, each device by its grams; None if no range
    is known.  Devices whose range is not known add nothing to it."""
    whole_g = sum(_grams(lines, account) for account in accounts)
    ranged = [account for account in accounts if "uncertainty_low" in account]
    if not ranged or whole_g <= 0.0:
        return None
    low, high = (
        sum(_grams(lines, account) * float(account[f"uncertainty_{end}"]) for account in ranged) / whole_g
        for end in ("low", "high")
    )
    return low, high
