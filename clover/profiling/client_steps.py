"""What steps in a client cost: measured here, said of the client, and part of no figure of the server's."""

from __future__ import annotations

import time

import numpy as np

from clover import energy, steps
from clover.config import EnergyConfig
from clover.types import FamilySpec

_ROWS = 32


def client_note(spec: FamilySpec, config: EnergyConfig) -> str:
    """Return what the client's steps of `spec` take a row, in CPU time and joules; "" if it has none."""
    plan = steps.plan_for(spec, spec.variants[0])
    if plan is None or not plan.client_before:
        return ""
    rows = steps.made_up(spec, _ROWS, np.random.default_rng(0))
    steps.as_sent(spec, [array[:1] for array in rows])  # libraries are imported, and not counted
    begun = time.process_time()
    steps.as_sent(spec, rows)
    cpu_s = (time.process_time() - begun) / _ROWS
    joules = cpu_s * energy.cpu_power(config).core_w
    return (
        f"steps before the model run in the client: {cpu_s * 1e3:.2f} ms of CPU a made-up row, measured here, or "
        f"{joules * 1e3:.2f} mJ, modelled; that is the client's, and in no figure of this profile"
    )
