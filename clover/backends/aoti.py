"""AOTInductor: the variant as a shared library, compiled ahead of time with this machine's C++ compiler.

`compile` exports the module with a dynamic batch axis and writes two files: `model.pt2`, torch's package, and
`model.so`, the library out of it.  Loading the package unpacks it into a temporary folder first, which costs time and
is left behind by a killed worker; the library alone is mapped, in milliseconds, and its weights are shared by all
workers of the variant.

For a GPU the package also holds the kernels Triton made, and only it can be loaded, as torch documents it.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clover import families
from clover.backends import cuda
from clover.backends.artifacts import manifest_of, package_version
from clover.backends.targets import CPU, Target
from clover.backends.tensors import export, to_arrays, to_tensor, unsupported, with_casts
from clover.errors import ProfileError, WorkerError
from clover.types import FamilySpec, VariantSpec

PACKAGE = "model.pt2"
LIBRARY = "model.so"


class AotiBackend:
    """Compiles with `torch._inductor.aoti_compile_and_package`; needs g++ to compile, nothing of it to load."""

    name = "aoti"
    compiles = True
    gpu_only = False
    imports: tuple[str, ...] = ()

    def available(self) -> str:
        """Return "" if a C++ compiler is there, else the reason why not."""
        if not package_version("torch"):
            return "torch is not installed"
        if not (shutil.which("g++") or shutil.which("clang++")):
            return "no C++ compiler (g++ or clang++) in PATH"
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if `variant` is a torch module over numeric tensors, and for a GPU if Triton is there; else why
        not."""
        if target.cuda and (lacking := _lacking_for_gpus()):
            return lacking
        return unsupported(family, variant, half=target.cuda)

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write `model.pt2`, and for `threads` threads of a CPU `model.so`; takes 10-60 s of CPU.  Raises
        ProfileError."""
        reason = self.available() or self.supports(family, variant, target)
        if reason:
            raise ProfileError(reason)
        if target.cuda:
            make_package(family, variant, folder, {}, cuda.for_building(variant, target))
        else:
            make_library(family, variant, folder, threads, {})

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the artifact (see `clover.interfaces.Backend`).  Raises WorkerError if it is missing or for another
        device."""
        import torch

        made = Path(folder) / (LIBRARY if device == "cpu" else PACKAGE)
        if not made.is_file():
            command = f"python -m clover profile {families.reference(family)} --compile"
            raise WorkerError(f"{variant.name} is not compiled for aoti here: run `{command}`")
        if device != "cpu":
            return cuda.Runner(_on_gpu(made, family, variant), family, variant, graphs=True, device=device)
        runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(made), 1)
        specs = family.model_inputs(variant)

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(runner.run([to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        return run


def _lacking_for_gpus() -> str:
    """Return what is missing to compile for a GPU, which torch's own wheel does not bring; "" if all is there."""
    if not package_version("triton"):
        return "triton is not installed, which makes the kernels for a GPU"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not (home or shutil.which("nvcc") or Path("/usr/local/cuda").exists()):
        return "there is no CUDA toolkit to link the kernels for a GPU with: install one, or set CUDA_HOME"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are missing (python3-dev), which triton compiles with"
    return ""


def make_library(
    family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, options: Mapping[str, Any]
) -> None:
    """Write package and library for `threads` threads of a CPU, compiled with these `options` of inductor."""
    import torch
    import torch._inductor.config

    torch.set_num_threads(threads)
    # One thread is compiled without any OpenMP region, which is both faster and safe to fork.
    configs = {**options, "cpp.threads": threads}
    if hasattr(torch._inductor.config.aot_inductor, "precompile_headers"):
        # They would lie in a folder of /tmp that anybody can guess, and cost more than one model gains by them.
        configs["aot_inductor.precompile_headers"] = False
    package = make_package(family, variant, folder, configs, "cpu")
    _extract_library(package, folder / LIBRARY)


def make_package(family: FamilySpec, variant: VariantSpec, folder: Path, configs: dict[str, Any], device: str) -> Path:
    """Write the package for `device` and return its path."""
    import torch
    import torch._inductor

    module, arguments, shapes = export(family, variant, device)
    package = folder / PACKAGE
    with torch.no_grad():
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
    return package


def _on_gpu(package: Path, family: FamilySpec, variant: VariantSpec) -> Callable[..., Any]:
    """Return the package's model as a function of tensors on the GPU."""
    import torch._inductor

    manifest = manifest_of(package.parent)
    if manifest is None or not manifest.recipe.gpu:
        raise WorkerError(f"what is compiled of {variant.name} is for CPU cores, not for the GPU this worker has")
    # One thread runs it, so it needs no locks; they would be in the way of recording its launches.
    model = torch._inductor.aoti_load_package(str(package), run_single_threaded=True).loader

    def call(*inputs: Any) -> Any:
        return model.run(list(inputs))

    return with_casts(call, family, variant)


def _extract_library(package: Path, library: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        members = [name for name in archive.namelist() if name.endswith(".so")]
        if len(members) != 1:
            raise ProfileError(f"the package holds {len(members)} libraries instead of one")
        with archive.open(members[0]) as source, open(library, "wb") as target:
            shutil.copyfileobj(source, target)
    library.chmod(0o700)
