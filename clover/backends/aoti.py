"""AOTInductor: the variant as a shared library, compiled ahead of time with this machine's C++ compiler.

`compile` exports the module with a dynamic batch axis and writes two files: `model.pt2`, torch's package, and
`model.so`, the library out of it.  Loading the package unpacks it into a temporary folder first, which costs time and
is left behind by a killed worker; the library alone is mapped, in milliseconds, and its weights are shared by all
workers of the variant.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clover import families
from clover.backends.artifacts import package_version
from clover.backends.tensors import export, to_arrays, to_tensor, unsupported
from clover.errors import ProfileError, WorkerError
from clover.types import FamilySpec, VariantSpec

PACKAGE = "model.pt2"
LIBRARY = "model.so"


class AotiBackend:
    """Compiles with `torch._inductor.aoti_compile_and_package`; needs g++ to compile, nothing of it to load."""

    name = "aoti"
    compiles = True

    def available(self) -> str:
        """Empty if a C++ compiler is there."""
        if not package_version("torch"):
            return "torch is not installed"
        if not (shutil.which("g++") or shutil.which("clang++")):
            return "no C++ compiler (g++ or clang++) in PATH"
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec) -> str:
        """Empty if `variant` is a torch module over numeric tensors."""
        return unsupported(family, variant)

    def compile(self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int) -> None:
        """Write `model.pt2` and `model.so` for `threads` threads.  Raises ProfileError; 10-60 s of CPU."""
        reason = self.available()
        if reason:
            raise ProfileError(reason)
        import torch
        import torch._inductor

        torch.set_num_threads(threads)
        module, arguments, shapes = export(family, variant)
        package = folder / PACKAGE
        with torch.no_grad():
            program = torch.export.export(module, arguments, dynamic_shapes=shapes)
            # One thread is compiled without any OpenMP region, which is both faster and safe to fork.
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs={"cpp.threads": threads}
            )
        _extract_library(package, folder / LIBRARY)

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """See `clover.interfaces.Backend`.  Raises WorkerError where the artifact is missing."""
        import torch

        library = Path(folder) / LIBRARY
        if not library.is_file():
            command = f"python -m clover profile {families.reference(family)} --compile"
            raise WorkerError(f"{variant.name} is not compiled for aoti here: run `{command}`")
        runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
        specs = family.inputs

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(runner.run([to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        return run


def _extract_library(package: Path, library: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        members = [name for name in archive.namelist() if name.endswith(".so")]
        if len(members) != 1:
            raise ProfileError(f"the package holds {len(members)} libraries instead of one")
        with archive.open(members[0]) as source, open(library, "wb") as target:
            shutil.copyfileobj(source, target)
    library.chmod(0o700)
