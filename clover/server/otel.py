"""OpenTelemetry of a server: its tracer, and the energy of its devices as the collector gets it."""

from __future__ import annotations

import asyncio

from clover.accounting import Account
from clover.config import ServerConfig
from clover.server.machine import Machine
from clover.telemetry import otel


def build_otel(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, account: Account, machine: Machine
) -> otel.OpenTelemetry | None:
    """Return what `otel.endpoint` asks for, None if it is empty; raises ConfigError."""
    if not config.otel.endpoint:
        return None
    from clover.telemetry.otel.energy import DeviceEnergy

    def devices() -> list[DeviceEnergy]:
        shapes = machine.shapes()
        return [
            DeviceEnergy(
                name,
                "cpu" if shapes[name].kind == "cpu" else "gpu",
                shapes[name].label,
                str(line["method"]),
                float(line["measured_j"]),
                float(line["total_g"]),
            )
            for name, line in account.devices().items()
            if name in shapes
        ]

    return otel.build(config.otel, loop, devices)
