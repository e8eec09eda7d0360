"""The joules and grams of each device as OpenTelemetry counters: `hw.energy` and `clover.carbon`.

The SDK's thread collects; the account belongs to the event loop, so the thread asks the loop for a copy and waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider

from clover._version import __version__
from clover.accounting.labels import grams_method

READ_S = 2.0
"""How long the thread waits for the loop; without an answer this export has no values."""


class DeviceEnergy(NamedTuple):
    """What one device used so far.  `kind` is cpu or gpu; `method` says how the joules are known, and each key of
    `grams` how the intensity was."""

    device: str
    kind: str
    name: str
    method: str
    joules: float
    grams: Mapping[str, float]


class DeviceReader:
    """Reads the devices from another thread than the loop's; `read` runs on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[], Sequence[DeviceEnergy]]) -> None:
        self._loop = loop
        self._read = read

    def read(self) -> Sequence[DeviceEnergy]:
        """Return what the loop says now; nothing if it does not answer in time, or is closed."""
        found: Future[Sequence[DeviceEnergy]] = Future()

        def answer() -> None:
            try:
                found.set_result(self._read())
            except Exception as error:
                found.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(answer)
            return found.result(READ_S)
        except (RuntimeError, TimeoutError):
            return ()


def _attributes(item: DeviceEnergy, method: str, intensity: str = "") -> dict[str, str]:
    found = {"hw.id": item.device, "hw.type": item.kind, "hw.name": item.name}
    found |= {"clover.method": method, "clover.intensity": intensity}
    return {name: value for name, value in found.items() if value}


def observe(provider: MeterProvider, reader: DeviceReader) -> None:
    """Make both counters, whose values are those of `reader`."""

    def joules(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(item.joules, _attributes(item, item.method)) for item in reader.read()]

    def grams(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(grams, _attributes(item, grams_method(item.method, known), known))
            for item in reader.read()
            for known, grams in item.grams.items()
        ]

    meter = provider.get_meter("clover", __version__)
    meter.create_observable_counter("hw.energy", [joules], "J", "Energy that a device used")
    meter.create_observable_counter(
        "clover.carbon",
        [grams],
        "g",
        "CO2e of the energy that a device used, with the overhead of the data centre (PUE)",
    )
