"""Clover: a carbon-aware inference server for families of model variants.

The public names below load on first use, so that `import clover` costs little and never imports torch: the server
process does not need it, only its workers do.

    async with clover.Server("fashion", port=0) as server:
        answer = await server.ainfer({"image": images})
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from clover._version import __version__

if not sys.platform.startswith("linux"):
    raise ImportError(f"Clover needs Linux (memfd, eventfd, pidfd); this is {sys.platform}")
if sys.version_info < (3, 11):  # noqa: UP036 - a copied checkout may still meet an older interpreter
    raise ImportError(f"Clover needs Python 3.11 or newer; this is {sys.version.split()[0]}")

if TYPE_CHECKING:
    from clover.config import ServerConfig
    from clover.errors import (
        BadRequest,
        CarbonError,
        CloverError,
        ConfigError,
        DeadlineMissed,
        DeviceError,
        ModelFailed,
        NotFound,
        Overloaded,
        PlanError,
        ProfileError,
        RequestError,
        StartError,
        TooLarge,
        Unavailable,
        WorkerError,
    )
    from clover.families import load_family
    from clover.server import Answer, Server
    from clover.types import (
        EvaluationSpec,
        FamilySpec,
        Plan,
        PublishedAccuracy,
        Receipt,
        TensorSpec,
        VariantSpec,
    )

_HOMES = {
    "clover.config": ("ServerConfig",),
    "clover.errors": (
        "BadRequest",
        "CarbonError",
        "CloverError",
        "ConfigError",
        "DeadlineMissed",
        "DeviceError",
        "ModelFailed",
        "NotFound",
        "Overloaded",
        "PlanError",
        "ProfileError",
        "RequestError",
        "StartError",
        "TooLarge",
        "Unavailable",
        "WorkerError",
    ),
    "clover.families": ("load_family",),
    "clover.server": ("Answer", "Server"),
    "clover.types": (
        "EvaluationSpec",
        "FamilySpec",
        "Plan",
        "PublishedAccuracy",
        "Receipt",
        "TensorSpec",
        "VariantSpec",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "BadRequest",
    "CarbonError",
    "CloverError",
    "ConfigError",
    "DeadlineMissed",
    "DeviceError",
    "EvaluationSpec",
    "FamilySpec",
    "ModelFailed",
    "NotFound",
    "Overloaded",
    "Plan",
    "PlanError",
    "ProfileError",
    "PublishedAccuracy",
    "Receipt",
    "RequestError",
    "Server",
    "ServerConfig",
    "StartError",
    "TensorSpec",
    "TooLarge",
    "Unavailable",
    "VariantSpec",
    "WorkerError",
    "__version__",
    "load_family",
]

logging.getLogger("clover").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'clover' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
