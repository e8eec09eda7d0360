"""How fast a worker is expected to serve, by its profile."""

from __future__ import annotations

from clover.planning.model.queueing import Service
from clover.runtime.router.lane_pace import ProfiledPace

_NEARLY = 0.9
"""A batch is useful if it serves so much of the rows a second that the best one serves."""


def pace_by(service: Service | None) -> ProfiledPace:
    """Return the pace of a worker that serves like `service`; None: nothing is known."""
    if service is None:
        return ProfiledPace()
    enough = _NEARLY * service.capacity()
    sizes = range(1, service.max_batch + 1)
    useful = next((rows for rows in sizes if rows / service.seconds(rows) >= enough), service.max_batch)
    return ProfiledPace(service.capacity(), service.seconds(service.max_batch), useful)
