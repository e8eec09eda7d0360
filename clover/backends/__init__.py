"""Backends: how a variant is compiled ahead of time and loaded in a worker.

`BACKENDS` names them; importing this package never imports torch, only `compile` and `load` do.  What is compiled lies
in a folder of the cache whose name says everything that would invalidate it (`artifact_dir`), and is written by a
process of its own (`compile_in_subprocess`), because the server never imports torch.
"""

from __future__ import annotations

from typing import Protocol

from clover.backends.aoti import AotiBackend
from clover.backends.artifacts import artifact_dir, compile_in_background, compile_in_subprocess, is_compiled
from clover.backends.eager import EagerBackend
from clover.backends.environment import child_environment
from clover.backends.onnxruntime import OnnxRuntimeBackend
from clover.errors import ConfigError
from clover.interfaces import Backend
from clover.types import FamilySpec, VariantSpec

__all__ = [
    "BACKENDS",
    "artifact_dir",
    "child_environment",
    "compile_in_background",
    "compile_in_subprocess",
    "get",
    "is_compiled",
    "names",
]


class CompilingBackend(Backend, Protocol):
    """What Clover's own backends offer beyond `clover.interfaces.Backend`."""

    compiles: bool
    """Whether there is an artifact to write before `load`."""

    def supports(self, family: FamilySpec, variant: VariantSpec) -> str:
        """Empty if this backend can take `variant`, otherwise the reason why not."""


BACKENDS: dict[str, CompilingBackend] = {
    backend.name: backend for backend in (EagerBackend(), AotiBackend(), OnnxRuntimeBackend())
}


def get(name: str) -> CompilingBackend:
    """The backend of that name; raises ConfigError."""
    try:
        return BACKENDS[name]
    except KeyError as error:
        raise ConfigError(f"unknown backend {name!r}; one of {', '.join(BACKENDS)}") from error


def names() -> tuple[str, ...]:
    """All backends by name."""
    return tuple(BACKENDS)
