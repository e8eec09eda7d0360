"""TensorRT, through torch-tensorrt: engines built for one shape of slice of one kind of GPU.  An optional extra.

`compile` exports the module with a dynamic batch axis and lets TensorRT choose and time a kernel for every layer,
inside the slice the engine is for, tuned for full batches.  Types are explicit: an engine computes in the types of the
module, so fp16 is a halved module, and TF32 is allowed to tf32 variants alone.  TensorRT takes the whole module or is
not used: a graph that falls back to torch in the middle would be neither what was measured nor what was asked for.

**The store.**  `.../tensorrt/GPU/PROFILE/FAMILY-VARIANT-KEY/` (see `clover.backends.artifacts`).  The library's own
cache of engines hashes neither the device nor its multiprocessors, so it stays off; its cache of kernel timings lies in
the folder of the GPU and profile.  `engine.json` says what an engine was built on, and `load` refuses it anywhere else.

**Parity.**  What was saved is loaded again and compared with the module, eager, in float32 (`clover.backends.parity`);
beyond the tolerance of its precision an engine is not kept.

**New weights.**  Where an engine of the same structure (the same code, declaration and versions, other weights) is in
the store, the weights are exchanged in a copy of it in place of a build; engines are built refittable for that.  If
that fails or parity does not hold, it is built after all, and the log says so.

**CUDA graphs.**  A recording belongs to the state of an engine's execution context, which a batch of another size
changes; recordings of several sizes from one context are undefined.  So graphs are on where there is only one size
(`max_batch` 1), by `torch_tensorrt.runtime.enable_cudagraphs`; elsewhere it would record anew whenever the size
changes.

Everything here was written against torch-tensorrt 2.13 and its neighbours; `tests/gpu` is what shows it on a GPU.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from clover import families
from clover.backends import cuda, parity
from clover.backends.artifacts import MANIFEST, manifest_of, package_version, recipe, tensorrt_version
from clover.backends.targets import CPU, Target, driver_version
from clover.backends.tensors import export, load_module, torch_dtype, with_casts
from clover.errors import CloverError, ProfileError, WorkerError
from clover.types import FamilySpec, Precision, Record, TensorSpec, VariantSpec

_log = logging.getLogger("clover.backends")

PROGRAM = "model.ep"
ENGINE = "engine.json"
TIMINGS = "timings.bin"
EXTRA = "clover-inference[tensorrt]"
OLDEST = (2, 12)
"""The oldest torch-tensorrt that saves a program with dynamic shapes as this module asks it to."""

DATATYPES = ("BOOL", "INT32", "INT64", "FP16", "BF16", "FP32")
"""What goes in and out of an engine; others would need casts that TensorRT does not have."""


class EngineRecord(Record, frozen=True, kw_only=True):
    """What an engine was built on and how accurate it is, in `engine.json`.  `difference`: the largest from eager, as a
    share of what is allowed.  `refitted_from`: the artifact whose engine was reused, with other weights."""

    device: str
    multiprocessors: int
    torch: str
    torch_tensorrt: str
    tensorrt: str
    precision: Precision
    max_batch: int
    seconds: float
    difference: float
    refitted_from: str = ""


class TensorRtBackend:
    """Compiles with `torch_tensorrt.dynamo.compile` inside the slice that will run it."""

    name = "tensorrt"
    compiles = True
    gpu_only = False
    imports: tuple[str, ...] = ()

    def available(self) -> str:
        """Return "" if the packages of the extra `tensorrt` fit together and a driver is loaded, else why not."""
        torch, found = package_version("torch"), package_version("torch-tensorrt")
        if not torch:
            return "torch is not installed"
        if not found:
            return f"torch-tensorrt is not installed: install {EXTRA}"
        if minor(found) != minor(torch):
            needed = ".".join(map(str, minor(found)))
            return (
                f"torch-tensorrt {found} needs torch {needed}, and torch {torch} is installed: install both at once, "
                f"as {EXTRA} does"
            )
        if minor(found) < OLDEST:
            return f"torch-tensorrt {found} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
        if torch.endswith("+cpu"):
            return f"torch {torch} is a build without CUDA: install one for CUDA"
        if not tensorrt_version():
            return f"the libraries of TensorRT are not installed (tensorrt-cu13-libs): install {EXTRA}"
        if not driver_version():
            return "no NVIDIA driver is loaded on this machine"
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if `target` is a GPU and `variant` a torch module over types that TensorRT has, else why not."""
        if not target.cuda:
            return "it runs on the slices of a GPU, not on CPU cores"
        if variant.kind != "torch":
            return f"variant {variant.name} is plain Python"
        for tensor in (*family.model_inputs(variant), *family.model_outputs(variant)):
            if tensor.datatype not in DATATYPES:
                return f"tensor {tensor.name} is {tensor.datatype}"
        return ""

    # --- compiling ------------------------------------------------------------------------------------------------

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Build the engine for `target`, or put new weights into one of the same structure, and check its answers.

        Runs inside the slice that `target.visible` names; takes seconds to minutes.  Raises ProfileError.
        """
        reason = self.supports(family, variant, target) or self.available()
        if reason:
            raise ProfileError(f"{variant.name} cannot be compiled with tensorrt: {reason}")
        library = _library(ProfileError)
        device = cuda.for_building(variant, target)
        began_s = time.monotonic()
        program, arguments, shapes = _exported(family, variant, device)
        base = relative(family, variant, folder, target)
        if base is not None:
            try:
                refit(library, base / PROGRAM, program, arguments, shapes, folder / PROGRAM)
                difference = _difference(library, family, variant, folder, device)
            except Exception as error:
                _log.warning("%s is built anew, new weights for %s failed: %s", variant.name, base.name, error)
                base = None
                program, arguments, shapes = _exported(family, variant, device)  # refitting may have rewritten it
        if base is None:
            module = library.dynamo.compile(
                program,
                arg_inputs=[library.Input(**spec) for spec in engine_inputs(family, variant)],
                **compile_settings(variant.precision, folder.parent / TIMINGS),
            )
            whole(module)
            save(library, module, folder / PROGRAM, arguments, shapes)
            difference = _difference(library, family, variant, folder, device)
        record = EngineRecord(
            **_here(),
            precision=variant.precision,
            max_batch=family.max_batch,
            seconds=time.monotonic() - began_s,
            difference=difference,
            refitted_from=base.name if base is not None else "",
        )
        (folder / ENGINE).write_bytes(msgspec.json.encode(record))

    # --- loading --------------------------------------------------------------------------------------------------

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the engine (see `clover.backends.CompilingBackend`).  Raises WorkerError if there is none for this very
        slice."""
        if device == "cpu":
            raise WorkerError(f"{variant.name} cannot run with tensorrt: this worker has no GPU")
        folder = Path(folder)
        try:
            record = msgspec.json.decode((folder / ENGINE).read_bytes(), type=EngineRecord)
        except FileNotFoundError:
            command = f"python -m clover profile {families.reference(family)} --compile --backends eager,tensorrt"
            raise WorkerError(f"{variant.name} is not compiled for tensorrt on this slice: run `{command}`") from None
        except msgspec.MsgspecError as error:
            raise WorkerError(f"the engine of {variant.name} in {folder} is damaged ({error}): delete it") from error
        if reason := unfit(record, _here()):
            raise WorkerError(f"the engine of {variant.name} is not for this worker: {reason}")
        library = _library(WorkerError)
        module = _loaded(library, folder / PROGRAM)
        if family.max_batch == 1 and not any(tensor.variable for tensor in family.model_inputs(variant)):
            module = library.runtime.enable_cudagraphs(module).__enter__()  # as long as this process runs
        return cuda.Runner(with_casts(module, family, variant), family, variant, graphs=False, device=device)


# --- what the library is asked for ------------------------------------------------------------------------------------


def minor(version: str) -> tuple[int, ...]:
    """Return major and minor version: (2, 13) of "2.13.0+cu130"."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def compile_settings(precision: Precision, timings: Path) -> dict[str, Any]:
    """Return keyword arguments of `torch_tensorrt.dynamo.compile` beside the inputs."""
    return {
        "disable_tf32": precision != "tf32",
        "require_full_compilation": True,
        "min_block_size": 1,  # by default a module of fewer than five operations is left to torch, without an error
        "immutable_weights": False,
        "cache_built_engines": False,
        "reuse_cached_engines": False,
        "timing_cache_path": str(timings),  # by default a file in the shared temporary folder, for all devices
    }


def engine_inputs(family: FamilySpec, variant: VariantSpec) -> list[dict[str, Any]]:
    """Return keyword arguments of `torch_tensorrt.Input`, one an input: the range of shapes, tuned for the largest."""
    half = variant.precision == "fp16"
    return [
        shape_range(family, tensor) | {"dtype": torch_dtype(_halved(tensor) if half else tensor)}
        for tensor in family.model_inputs(variant)
    ]


def shape_range(family: FamilySpec, tensor: TensorSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a batch of `tensor` may have: "shape" if there is one, otherwise min_, opt_
    and max_shape."""
    least = (1, *(1 if axis < 0 else axis for axis in tensor.shape))
    most = (family.max_batch, *tensor.bound)
    return {"shape": most} if least == most else {"min_shape": least, "opt_shape": most, "max_shape": most}


def _halved(tensor: TensorSpec) -> TensorSpec:
    floating = tensor.datatype in ("FP16", "BF16", "FP32", "FP64")
    return msgspec.structs.replace(tensor, datatype="FP16") if floating else tensor


def _exported(family: FamilySpec, variant: VariantSpec, device: str) -> tuple[Any, tuple[Any, ...], Any]:
    import torch

    module, arguments, shapes = export(family, variant, device)
    with torch.no_grad():
        return torch.export.export(module, arguments, dynamic_shapes=shapes), arguments, shapes


def whole(module: Any) -> None:
    """Raise ProfileError if parts of a compiled module, or all of it, are left to torch: the library says so only in
    its log."""
    children = [name for name, _ in module.named_children()]
    engines = [name for name in children if "_run_on_acc" in name]
    if not engines or any("_run_on_gpu" in name for name in children):
        raise ProfileError("TensorRT does not take the whole model: eager and aoti do")


def save(library: Any, module: Any, path: Path, arguments: tuple[Any, ...], shapes: Any) -> None:
    """Write a compiled module as an exported program."""
    library.save(
        module,
        str(path),
        output_format="exported_program",
        arg_inputs=list(arguments),
        dynamic_shapes=shapes if any(shapes) else None,
    )


def _loaded(library: Any, path: Path) -> Any:
    """Return the module of a saved program.  Its guards on shapes are left out: the runner knows its shapes, and a
    guard is a submodule, by which refitting takes the program for another kind of module."""
    return library.load(str(path)).module(check_guards=False)


def _difference(library: Any, family: FamilySpec, variant: VariantSpec, folder: Path, device: str) -> float:
    """Return how far the saved engine is from eager, as a share of what is allowed.  Raises ProfileError beyond
    that."""
    exact = msgspec.structs.replace(variant, precision="fp32")
    eager = cuda.Runner(load_module(family, exact, device), family, exact, graphs=False, device=device)
    rows = parity.rows_of(family, variant)
    sizes = parity.batches_of(family)
    # All of eager first: whether TF32 is allowed is the process's, and belongs to the runner made last.
    truth = [[array.copy() for array in eager([row[:size] for row in rows])] for size in sizes]
    module = with_casts(_loaded(library, folder / PROGRAM), family, variant)
    engine = cuda.Runner(module, family, variant, graphs=False, device=device)
    worst = 0.0
    for size, expected in zip(sizes, truth, strict=True):
        found = engine([row[:size] for row in rows])
        difference, wrong = parity.compare(family.model_outputs(variant), found, expected, variant.precision)
        if wrong:
            raise ProfileError(f"the engine of {variant.name} is refused: for {size} rows, {wrong}")
        worst = max(worst, difference)
    return worst


def refit(library: Any, base: Path, program: Any, arguments: tuple[Any, ...], shapes: Any, path: Path) -> None:
    """Write the engine in `base` to `path` with the weights of `program`."""
    module = library.dynamo.refit_module_weights(_loaded(library, base), program)
    save(library, module, path, arguments, shapes)


# --- the store --------------------------------------------------------------------------------------------------------


def relative(family: FamilySpec, variant: VariantSpec, folder: Path, target: Target) -> Path | None:
    """Return the newest artifact beside `folder` that differs in nothing but the weights, if there is one.  Without a
    file of weights, code and weights cannot be told apart."""
    if not variant.weights:
        return None
    mine = msgspec.structs.replace(recipe(family, variant, "tensorrt", 1, None, target), variant="")
    found = []
    for path in folder.parent.glob(f"*/{MANIFEST}"):
        manifest = manifest_of(path.parent)
        if path.parent == folder or manifest is None:
            continue
        if msgspec.structs.replace(manifest.recipe, variant="") == mine and (path.parent / PROGRAM).is_file():
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def _here() -> dict[str, Any]:
    """Return what this process sees, in the terms of an `EngineRecord`."""
    import torch

    seen = torch.cuda.get_device_properties(0)
    return {
        "device": seen.name,
        "multiprocessors": seen.multi_processor_count,
        "torch": package_version("torch"),
        "torch_tensorrt": package_version("torch-tensorrt"),
        "tensorrt": tensorrt_version(),
    }


def unfit(record: EngineRecord, here: dict[str, Any]) -> str:
    """Return why an engine must not run here; "" if it may."""
    for name, now in here.items():
        built = getattr(record, name)
        if built != now:
            return f"it was built for {name.replace('_', '-')} {built!r}, here it is {now!r}"
    return ""


def _library(failure: type[CloverError]) -> Any:
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # it raises a bare Exception if a library of TensorRT is missing
        text = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError) and "uid" in text:  # it asks for the user's name while it is imported
            hint = f"user {os.getuid()} has no entry in /etc/passwd, which torch-tensorrt needs: add one"
            raise failure(f"torch-tensorrt cannot be imported ({text}): {hint}") from error
        raise failure(f"torch-tensorrt cannot be imported ({text}): install {EXTRA}") from error
