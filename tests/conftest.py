"""Settings all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# One fixed set of examples a run, so that a failure is a change and not luck; CLOVER_HYPOTHESIS=deep searches on.
# No per-example deadline: on shared cores it measures the neighbours.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("CLOVER_HYPOTHESIS", "default"))
