"""Backends: how a variant is compiled ahead of time and loaded in a worker.

`BACKENDS` names them; importing this package never imports torch, only `compile` and `load` do.  What is compiled lies
in a folder of the cache whose name says everything that would invalidate it (`artifact_dir`), and is written by a
process of its own (`compile_in_background`), because the server never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from clover import plugins
from clover.backends.aoti import AotiBackend
from clover.backends.artifacts import CpuBudget, artifact_dir, compile_in_background, is_compiled
from clover.backends.cuda import device_for
from clover.backends.eager import Bf16Backend, EagerBackend, RoundedBackend
from clover.backends.environment import child_environment
from clover.backends.onnxruntime import OnnxRuntimeBackend
from clover.backends.openvino import OpenVinoBackend
from clover.backends.quantised import QuantisedBackend
from clover.backends.targets import CPU, Target, target_of
from clover.backends.tensorrt import TensorRtBackend
from clover.errors import ConfigError
from clover.interfaces import Backend
from clover.types import FamilySpec, VariantSpec

__all__ = [
    "BACKENDS",
    "CPU",
    "CpuBudget",
    "Target",
    "artifact_dir",
    "child_environment",
    "compile_in_background",
    "device_for",
    "get",
    "is_compiled",
    "names",
    "runs_itself",
    "shown",
    "target_of",
]


class CompilingBackend(Backend, Protocol):
    """What Clover's own backends offer beyond `clover.interfaces.Backend`: they distinguish CPU cores from the slices
    of a GPU, to compile for and (`device` "cpu" or "cuda", see `device_for`) to load on."""

    compiles: bool
    """Whether there is an artifact to write before `load`."""

    gpu_only: bool
    """Whether it is of no use on CPU cores, and not to be mentioned there."""

    imports: tuple[str, ...]
    """Modules beyond torch that `load` needs on CPU cores, as far as a process without threads may import them."""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if this backend can take `variant` on `target`, otherwise the reason why not."""

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write the artifact into `folder`; do nothing if the backend has none.  Raises ProfileError."""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Return a function from input arrays (leading batch axis, declared order) to output arrays, which its next
        call may overwrite.  Raises WorkerError."""


# An installed package's own are added when they are first asked for (`clover.plugins`).
BACKENDS: dict[str, CompilingBackend] = {
    backend.name: backend
    for backend in (
        EagerBackend(),
        RoundedBackend("tf32"),
        RoundedBackend("fp16"),
        Bf16Backend(),
        AotiBackend(),
        OnnxRuntimeBackend(),
        QuantisedBackend(),
        OpenVinoBackend("f32"),
        OpenVinoBackend("bf16"),
        OpenVinoBackend("int8"),
        TensorRtBackend(),
    )
}


def get(name: str) -> CompilingBackend:
    """Return the backend of that name; raises ConfigError."""
    if name not in BACKENDS:
        if (added := plugins.make("backends", name)) is None:
            raise ConfigError(f"unknown backend {name!r}; one of {', '.join(names())}")
        BACKENDS[name] = added
    return BACKENDS[name]


def shown(backend: str, variant: VariantSpec) -> str:
    """Return what people are shown of the backend of a variant: an ONNX file is run by its own loader."""
    return "ONNX file" if backend == EagerBackend.name and runs_itself(variant) else backend


def runs_itself(variant: VariantSpec) -> bool:
    """Return whether a variant is an ONNX file: no torch module that a backend could compile."""
    return variant.kind == "python" and variant.weights.endswith(".onnx")


def names() -> tuple[str, ...]:
    """Return all backends by name."""
    return tuple(dict.fromkeys((*BACKENDS, *plugins.names("backends"))))
