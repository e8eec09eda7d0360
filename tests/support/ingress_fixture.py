"""Settings of an ingress in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clover.cluster.ingress.config import IngressOrigin, IngressSettings, Upstream


def settings(folder: Path | str = "/run/ingress", **changes: Any) -> IngressSettings:
    """Return settings of two regions, the first of which has gRPC too."""
    north = IngressOrigin(name="north", listen="127.0.0.1:8080", listen_grpc="127.0.0.1:9000")
    south = IngressOrigin(name="south", listen="127.0.0.1:8081")
    return IngressSettings(**({"folder": str(folder), "origins": (north, south)} | changes))


def upstream(name: str = "a", **changes: Any) -> Upstream:
    """Return a node's addresses."""
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 80, "grpc_host": "127.0.0.1", "grpc_port": 90}
    return Upstream(name=name, **(given | changes))
