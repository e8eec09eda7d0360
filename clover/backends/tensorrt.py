"""TensorRT: engines built by torch-tensorrt for one shape of slice of one kind of GPU.  An optional extra.

`compile` exports the module with a dynamic batch axis and lets TensorRT choose and time a kernel for every layer,
inside the slice the engine is for, tuned for full batches.  Types are explicit: an engine computes in the types of the
module, so fp16 is a halved module, and TF32 is allowed to tf32 variants alone.  TensorRT takes the whole module or is
not used: a graph that falls back to torch in the middle would be neither what was measured nor what was asked for.

**Running.**  The engine is taken out of the saved program, as TensorRT serialised it, with the names of its inputs
and outputs (`engine.json`): a worker runs it by TensorRT's own runtime (`clover.backends.trt_engine`) and never
imports torch-tensorrt, which takes seconds.

**The store.**  `.../tensorrt/GPU/PROFILE/FAMILY-VARIANT-KEY/` (see `clover.backends.artifacts`).  The library's own
cache of engines hashes neither the device nor its multiprocessors, so it stays off; its cache of kernel timings lies in
the folder of the GPU and profile.  `engine.json` says what an engine was built on, and `load` refuses it anywhere else.

**Parity.**  The engine is loaded as a worker loads it and compared with the module, eager, in float32
(`clover.backends.parity`); an engine beyond the tolerance of its precision is not kept.

Everything here was written against torch-tensorrt 2.13 and its neighbours; `tests/gpu` is what shows it on a GPU.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from clover import families
from clover.backends import cuda, parity
from clover.backends.artifacts import package_version, tensorrt_version
from clover.backends.targets import CPU, Target, driver_version
from clover.backends.tensors import export, load_module, torch_dtype, with_casts
from clover.backends.trt_engine import TensorRtEngine, runtime_library
from clover.errors import CloverError, ProfileError, WorkerError
from clover.malformed import MALFORMED
from clover.types import FamilySpec, Precision, Record, TensorSpec, VariantSpec

PROGRAM = "model.ep"
PLAN = "model.engine"
ENGINE = "engine.json"
TIMINGS = "timings.bin"
EXTRA = "clover-inference[tensorrt]"
EngineNames = tuple[tuple[str, ...], tuple[str, ...]]
"""An engine's names of its inputs and of its outputs."""

_AT_ENGINE, _AT_INPUTS, _AT_OUTPUTS = 3, 4, 5

OLDEST = (2, 12)
"""The oldest torch-tensorrt that saves a program with dynamic shapes as this module asks it to."""

DATATYPES = ("BOOL", "INT32", "INT64", "FP16", "BF16", "FP32")
"""What goes in and out of an engine, and UINT8 in: others would need casts that TensorRT does not have."""


class EngineRecord(Record, frozen=True, kw_only=True):
    """What an engine was built on and how accurate it is, in `engine.json`.  `difference`: the largest from eager, as a
    share of what is allowed.  `inputs` and `outputs`: the engine's names of the declared tensors, in their order ("":
    it does not use that input)."""

    device: str
    multiprocessors: int
    torch: str
    torch_tensorrt: str
    tensorrt: str
    precision: Precision
    max_batch: int
    seconds: float
    difference: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
        taken = family.model_inputs(variant)
        for tensor in (*taken, *family.model_outputs(variant)):
            if tensor.datatype not in DATATYPES and not (tensor.datatype == "UINT8" and tensor in taken):
                return f"tensor {tensor.name} is {tensor.datatype}"
        return ""

    # --- compiling ------------------------------------------------------------------------------------------------

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Build the engine for `target` and check its answers.

        Runs inside the slice that `target.visible` names; takes seconds to minutes.  Raises ProfileError.
        """
        reason = self.supports(family, variant, target) or self.available()
        if reason:
            raise ProfileError(f"{variant.name} cannot be compiled with tensorrt: {reason}")
        library = _library(ProfileError)
        device = cuda.for_building(variant, target)
        began_s = time.monotonic()
        program, arguments, shapes = _exported(family, variant, device)
        module = library.dynamo.compile(
            program,
            arg_inputs=[library.Input(**spec) for spec in engine_inputs(family, variant)],
            **compile_settings(variant.precision, folder.parent / TIMINGS),
        )
        whole(module)
        save(library, module, folder / PROGRAM, arguments, shapes)
        names = _write_plan(library, program, folder)
        difference = _difference(family, variant, folder, names, device)
        record = EngineRecord(
            **_here(),
            torch=package_version("torch"),
            torch_tensorrt=package_version("torch-tensorrt"),
            precision=variant.precision,
            max_batch=family.max_batch,
            seconds=time.monotonic() - began_s,
            difference=difference,
            inputs=names[0],
            outputs=names[1],
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
        except MALFORMED as error:
            raise WorkerError(f"the engine of {variant.name} in {folder} is damaged ({error}): delete it") from error
        if reason := unfit(record, _here()):
            raise WorkerError(f"the engine of {variant.name} is not for this worker: {reason}")
        engine = _engine(family, variant, folder, (record.inputs, record.outputs), WorkerError)
        return cuda.Runner(with_casts(engine, family, variant), family, variant, graphs=True, device=device)


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
    """Return the module of a saved program, without submodules that guard shapes: it is not run."""
    return library.load(str(path)).module(check_guards=False)


def serialised(module: Any) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Return the engine of a loaded program, and its names of inputs and outputs.  Raises ProfileError if there is not
    just one.

    The library keeps an engine as an attribute whose name has "engine" in it; what it is pickled as begins with its
    version, name, device, the engine in base 64, and the names, joined by "%"."""
    parts = [module, *module.children()] if hasattr(module, "children") else [module]
    found = [value for part in parts for name, value in vars(part).items() if "engine" in name and value is not None]
    if len(found) != 1:
        raise ProfileError(f"TensorRT takes the model in {len(found)} engines instead of one: eager and aoti do")
    try:
        state = found[0].__getstate__()[0]
        data = base64.b64decode(state[_AT_ENGINE], validate=True)
        names = [tuple(str(state[at]).split("%")) for at in (_AT_INPUTS, _AT_OUTPUTS)]
    except (TypeError, IndexError, KeyError, binascii.Error) as error:
        raise ProfileError(f"this torch-tensorrt keeps engines in another form ({error}): use another") from error
    return data, names[0], names[1]


def ordered(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the engine's names of inputs in the order of the program's `wanted`, "" for those that it does not use;
    its own order if it calls them otherwise.  Raises ProfileError if they cannot be told apart."""
    if set(names) <= set(wanted):
        return tuple(name if name in names else "" for name in wanted)
    if len(names) != len(wanted):
        raise ProfileError(f"the engine's inputs {list(names)} are not those of the model, {list(wanted)}")
    return tuple(names)


def _write_plan(library: Any, program: Any, folder: Path) -> EngineNames:
    """Write the engine of the saved program, as TensorRT serialised it, in the program's place; return its names."""
    data, inputs, outputs = serialised(_loaded(library, folder / PROGRAM))
    (folder / PROGRAM).unlink()
    (folder / PLAN).write_bytes(data)
    return ordered(program.graph_signature.user_inputs, inputs), outputs


def _engine(
    family: FamilySpec, variant: VariantSpec, folder: Path, names: EngineNames, failure: type[CloverError]
) -> TensorRtEngine:
    """Return the engine in `folder` as a function of tensors on the device."""
    fixed = not any(tensor.variable for tensor in family.model_inputs(variant))
    data = (folder / PLAN).read_bytes()
    return TensorRtEngine(runtime_library(failure), data, *names, fixed=fixed, failure=failure)


def _difference(family: FamilySpec, variant: VariantSpec, folder: Path, names: EngineNames, device: str) -> float:
    """Return how far the saved engine is from eager, as a share of what is allowed.  Raises ProfileError beyond
    that."""
    exact = msgspec.structs.replace(variant, precision="fp32")
    eager = cuda.Runner(load_module(family, exact, device), family, exact, graphs=False, device=device)
    rows = parity.rows_of(family, variant)
    sizes = parity.batches_of(family)
    # All of eager first: whether TF32 is allowed is the process's, and belongs to the runner made last.
    truth = [[array.copy() for array in eager([row[:size] for row in rows])] for size in sizes]
    call = with_casts(_engine(family, variant, folder, names, ProfileError), family, variant)
    engine = cuda.Runner(call, family, variant, graphs=False, device=device)
    worst = 0.0
    for size, expected in zip(sizes, truth, strict=True):
        found = engine([row[:size] for row in rows])
        difference, wrong = parity.compare(family.model_outputs(variant), found, expected, variant.precision)
        if wrong:
            raise ProfileError(f"the engine of {variant.name} is refused: for {size} rows, {wrong}")
        worst = max(worst, difference)
    return worst


# --- the store --------------------------------------------------------------------------------------------------------


def _here() -> dict[str, Any]:
    """Return what this process sees of what an engine depends on, in the terms of an `EngineRecord`."""
    import torch

    seen = torch.cuda.get_device_properties(0)
    return {
        "device": seen.name,
        "multiprocessors": seen.multi_processor_count,
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
